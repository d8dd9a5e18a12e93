"""Detection: scenes, the models against loops, AP against pycocotools, exact resume, what predict writes."""

import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dltrain.callbacks.boxes import drawn
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import _utils
from torchvision.ops import box_iou, nms

from dltrain import build, cli, run
from dltrain.batches import BatchError, DetectionBatch, generator
from dltrain.data.scenes import COLOURS, Scenes, tight_box
from dltrain.errors import UserError
from dltrain.models import faster_rcnn, overfeat
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.fast_rcnn import RCNN, FastRCNN, grid
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.localizer import Localizer, decode, encode, moments
from dltrain.models.overfeat import OverFeatDetector
from dltrain.models.regions import OneMapRoIPool
from tests.test_resume import assert_a_crash_changes_nothing

WORDS = ["model=faster_rcnn", "model.backbone.depth=8", "data.num_train=12", "data.batch_size=4", "trainer=cpu",
         "trainer.max_epochs=2", "task.optimizer.lr=0.01", "recipe=none", "model.hidden=16",
         "data._target_=tests.test_detection.FewScenes"]


def detector(**keys) -> FasterRCNN:
    torch.manual_seed(0)
    return FasterRCNN(CifarResNet(8), **{"num_classes": 10, "anchor_px": [12, 24], "ratios": [1.0], "short_px": 64,
                                         "long_px": 500, "hidden": 16, "rpn_proposals": 50, "test_proposals": 20,
                                         **keys})


class FewScenes:
    """12 + 8 + 8 scenes."""

    def __new__(cls, **keys):
        from dltrain.data.scenes import SceneBoxes

        data = SceneBoxes(**keys)
        data.num_scenes = {"train": data.num_scenes["train"], "val": 8, "test": 8}
        return data


def test_a_scene_is_a_function_of_split_and_index():
    one, other = Scenes(64, (14, 32)), Scenes(64, (14, 32))
    assert torch.equal(one.draw("train", 7).image, other.draw("train", 7).image)
    assert one.draw("train", 7).objects == other.draw("train", 7).objects
    assert not torch.equal(one.draw("train", 7).image, one.draw("train", 8).image)
    assert not torch.equal(one.draw("train", 7).image, one.draw("val", 7).image)


def test_boxes_are_tight_around_strokes_of_the_right_colour():
    scenes = Scenes(64, (14, 32))
    counts = []
    for index in range(60):
        image, objects, mask = scenes.draw("val", index)
        assert image.shape == (3, 64, 64)
        counts.append(len(objects))
        if len({one.digit for one in objects}) < len(objects):
            continue
        for one in objects:
            stroke = mask == one.digit + 1
            x1, y1, x2, y2 = one.box
            inside = torch.zeros_like(stroke)
            inside[y1:y2, x1:x2] = True
            assert stroke.any()
            assert not (stroke & ~inside).any()
            if all(box_iou(torch.tensor([one.box]), torch.tensor([o.box])) == 0 for o in objects if o is not one):
                assert tight_box(stroke) == one.box
            colour = image[:, stroke].float().mean(1)
            nearest = min(COLOURS, key=lambda name: float((torch.tensor(COLOURS[name]) - colour).norm()))
            assert nearest == one.colour or (colour < 200).all()
    assert set(counts) == {1, 2, 3, 4}


def test_anchors_are_labelled_as_in_the_paper():
    """Section 3.1.2: positive from IoU 0.7 on or the best of a box, negative below 0.3, the rest is not used."""
    net = detector().net.rpn
    rng = generator("anchors")
    corners = torch.rand(300, 2, generator=rng) * 50
    anchors = torch.cat([corners, corners + 4 + torch.rand(300, 2, generator=rng) * 20], 1)
    boxes = anchors[[3, 50, 200]] + torch.tensor([[1.0, 0, 0, 2], [3, 3, 3, 3], [0.0, 0, 0, 0]])
    (labels,), (matched,) = net.assign_targets_to_anchors([anchors], [{"boxes": boxes}])
    overlap = box_iou(boxes, anchors)
    for anchor in range(300):
        ious = overlap[:, anchor]
        best_of_a_box = any(overlap[row, anchor] == overlap[row].max() for row in range(3))
        expected = 1.0 if ious.max() >= 0.7 or best_of_a_box else 0.0 if ious.max() < 0.3 else -1.0
        assert labels[anchor] == expected
        if expected == 1.0:
            assert torch.equal(matched[anchor], boxes[ious.argmax()])
    assert {-1.0, 0.0, 1.0} == set(labels.tolist())


def test_boxes_are_coded_as_in_the_paper():
    """Equation 2: t = ((x - xa) / wa, (y - ya) / ha, log(w / wa), log(h / ha)), and back."""
    boxes = torch.tensor([[10.0, 20, 40, 80], [0, 0, 5, 7]])
    anchors = torch.tensor([[12.0, 18, 44, 82], [1, 1, 9, 9]])
    coder = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    coded = coder.encode([boxes], [anchors])[0]
    for row in range(2):
        (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes[row].tolist(), anchors[row].tolist()
        wa, ha = a2 - a1, b2 - b1
        expected = [((x1 + x2) / 2 - (a1 + a2) / 2) / wa, ((y1 + y2) / 2 - (b1 + b2) / 2) / ha,
                    math.log((x2 - x1) / wa), math.log((y2 - y1) / ha)]
        assert coded[row].tolist() == pytest.approx(expected, abs=1e-6)
    torch.testing.assert_close(coder.decode(coded, [anchors])[:, 0], boxes)


def test_suppression_equals_a_loop():
    rng = generator("nms")
    corners = torch.rand(80, 2, generator=rng) * 20
    boxes, scores = torch.cat([corners, corners + 10], 1), torch.rand(80, generator=rng)
    kept: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(float(box_iou(boxes[[index]], boxes[[better]])) <= 0.5 for better in kept):
            kept.append(index)
    assert nms(boxes, scores, 0.5).tolist() == kept
    assert 3 < len(kept) < 80


def test_roi_pooling_equals_a_loop():
    """Fast R-CNN, section 2.1: the maximum of each of 7 x 7 cells of the rounded window."""
    maps = torch.randn(1, 2, 16, 16, generator=generator("maps"))
    box = [4.0, 8.0, 47.0, 59.0]
    pooled = OneMapRoIPool(7, 4)({"0": maps}, [torch.tensor([box])], [])[0]
    x1, y1, x2, y2 = (round(v / 4) for v in box)
    h, w = y2 - y1 + 1, x2 - x1 + 1
    for row in range(7):
        for column in range(7):
            top, bottom = y1 + math.floor(row * h / 7), y1 + math.ceil((row + 1) * h / 7)
            left, right = x1 + math.floor(column * w / 7), x1 + math.ceil((column + 1) * w / 7)
            cell = maps[0, :, top:min(bottom, 16), left:min(right, 16)]
            torch.testing.assert_close(pooled[:, row, column], cell.amax((1, 2)))


def a_case() -> tuple[list[dict], list[dict]]:
    """Truth and boxes found of 12 images, 3 classes, with misses, doubles and confusions."""
    draws = generator("case")
    truths, found = [], []
    for _ in range(12):
        count = int(torch.randint(0, 5, (), generator=draws))
        corners = torch.rand(count, 2, generator=draws) * 60
        boxes = torch.cat([corners, corners + 8 + torch.rand(count, 2, generator=draws) * 40], 1)
        labels = torch.randint(3, (count,), generator=draws)
        moved = boxes.repeat(2, 1) + torch.randn(2 * count, 4, generator=draws) * 2
        kept = torch.rand(2 * count, generator=draws) < 0.7
        guessed = torch.where(torch.rand(2 * count, generator=draws) < 0.85, labels.repeat(2), 2)
        truths.append({"boxes": boxes, "labels": labels})
        found.append({"boxes": moved[kept], "labels": guessed[kept],
                      "scores": torch.rand(int(kept.sum()), generator=draws)})
    return truths, found


def test_average_precision_equals_pycocotools(tmp_path):
    truths, found = a_case()
    metric = MeanAveragePrecision()
    metric.update(found, truths)
    ours = metric.compute()

    def xywh(box):
        x1, y1, x2, y2 = map(float, box)
        return [x1, y1, x2 - x1, y2 - y1]

    boxes = [{"id": number + 1, "image_id": image, "category_id": int(label), "bbox": xywh(box), "iscrowd": 0,
              "area": float((box[2] - box[0]) * (box[3] - box[1]))} for number, (image, box, label) in enumerate(
        (image, box, label) for image, truth in enumerate(truths)
        for box, label in zip(truth["boxes"], truth["labels"], strict=True))]
    (tmp_path / "truth.json").write_text(json.dumps({
        "images": [{"id": image} for image in range(12)], "categories": [{"id": k} for k in range(3)],
        "annotations": boxes, "info": {}}))
    coco = COCO(str(tmp_path / "truth.json"))
    results = coco.loadRes([{"image_id": image, "category_id": int(label), "bbox": xywh(box), "score": float(score)}
                            for image, one in enumerate(found)
                            for box, label, score in zip(one["boxes"], one["labels"], one["scores"], strict=True)])
    evaluated = COCOeval(coco, results, "bbox")
    evaluated.evaluate()
    evaluated.accumulate()
    evaluated.summarize()
    for name, place in (("map", 0), ("map_50", 1), ("map_75", 2)):
        assert float(ours[name]) == pytest.approx(float(evaluated.stats[place]), abs=1e-6)
    assert 0.2 < float(ours["map"]) < float(ours["map_50"]) < 0.95


@pytest.mark.parametrize("roi_pool", ["align", "pool"])
def test_labels_are_foreground_classes_and_empty_images_train(roi_pool):
    model = detector(roi_pool=roi_pool)
    images = [torch.randn(3, 64, 64, generator=generator("i", i)) for i in range(2)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([9])},
               {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]
    losses = model(images, targets)
    assert targets[0]["labels"].tolist() == [9], "the batch must not change"
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.backbone.stem[0].weight.grad.abs().sum() > 0
    labels = torch.cat([detected["labels"] for detected in model.eval().detect(images)])
    assert ((labels >= 0) & (labels < 10)).all()
    model.net.roi_heads.box_predictor.cls_score.bias.data[3 + 1] = 50.0
    assert {3} == {int(label) for detected in model.detect(images) for label in detected["labels"]}


def test_a_training_step_of_faster_rcnn_runs_code_of_two_model_files():
    """That of the detector and that of its backbone: what they share is called when they are built."""
    files, folder = set(), Path(faster_rcnn.__file__).parent
    model, targets = detector(), [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([9])}]

    def note(frame, event, argument):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.parent == folder:
            files.add(file.name)

    sys.setprofile(note)
    try:
        sum(model([torch.randn(3, 64, 64)], targets).values()).backward()
    finally:
        sys.setprofile(None)
    assert files == {"faster_rcnn.py", "cifar_resnet.py"}


@pytest.mark.parametrize("at", [2, 5])
def test_a_resumed_run_ends_in_the_same_bits(at, config, run_folder, monkeypatch):
    """The samplers of proposals and regions use random numbers in each step."""
    assert_a_crash_changes_nothing(WORDS, at, config, run_folder, monkeypatch)


def test_predict_draws_boxes_and_writes_them_as_coco_does(config, run_folder, monkeypatch, capsys):
    path = run_folder("run")
    result = run.train(config(*WORDS), path)
    assert {"test/map", "test/map_50", "test/map_75", "test/map_voc07", "val/map"} <= result.keys()
    each = [value for key, value in result.items() if key.startswith("test/map/") and value >= 0]
    assert len(each) > 3
    assert sum(each) / len(each) == pytest.approx(result["test/map"], abs=1e-6)
    monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", f"input={path}/samples", "score=0.01"])
    assert cli.main() == 0
    found = json.loads((path / "predictions.json").read_text())
    assert found
    for one in found:
        x, y, w, h = one["bbox"]
        assert min(x, y) >= 0
        assert x + w <= 64.01
        assert y + h <= 64.01
        assert one["category"] == str(one["category_id"])
    with Image.open(path / "predictions/00.png") as picture:
        assert picture.size == (256, 256)
    assert len(capsys.readouterr().out.splitlines()) >= 8 + 1


def test_a_picture_with_boxes():
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    picture = drawn(image, torch.tensor([[4.0, 4, 12, 16]]), torch.tensor([1]), ["7 0.9"], at_least_px=40)
    assert picture.shape == (3, 40, 80)
    lit = np.asarray(picture.permute(1, 2, 0)).any(2)
    assert lit[8:32, 8].all()
    assert lit[8:32, 24].all()
    assert not lit[20:30, 12:20].any()


def test_what_breaks_the_promise_is_named(config):
    data = build.build_data(config(*WORDS))
    batch = next(data.read("train", [torch.arange(3)]))
    batch.check(10)
    batch.targets[1]["boxes"] = torch.tensor([[5.0, 5, 2, 9]])
    batch.targets[1]["labels"] = torch.tensor([1])
    with pytest.raises(BatchError, match=r"boxes must be 0 <= x1 < x2 <= 64, .* of image 1 of the first batch"):
        DetectionBatch(*batch).check(10)


def test_the_localizers_boxes_are_coded_in_units_of_the_images_sides():
    torch.manual_seed(0)
    model = Localizer(CifarResNet(8), 10, points=4, box_weight=2.0)
    image = torch.randn(3, 64, 64)
    boxes = torch.tensor([[8.0, 16, 40, 32]])
    assert encode(boxes, image).tolist() == [[0.375, 0.375, 0.5, 0.25]]
    torch.testing.assert_close(decode(encode(boxes, image), image), boxes)
    targets = [{"boxes": boxes, "labels": torch.tensor([3])}]
    logits, box = model.eval().logits_and_codes([image])
    losses = model([image], targets)
    torch.testing.assert_close(losses["loss_classifier"], -logits.log_softmax(1)[0, 3])
    distances = [abs(a.item() - b) for a, b in zip(box[0], [0.375, 0.375, 0.5, 0.25], strict=True)]
    expected = sum(d**2 / 0.1 if d < 0.05 else d - 0.025 for d in distances) / 4
    assert losses["loss_box_reg"].item() == pytest.approx(2 * expected, rel=1e-5)
    (detected,) = model.detect([image])
    assert detected["labels"].item() == logits.argmax().item()
    assert detected["boxes"].shape == (1, 4)
    assert ((detected["boxes"] >= 0) & (detected["boxes"] <= 64)).all()


def test_moments_equal_a_loop():
    maps = torch.randn(2, 3, 4, 5, generator=generator("moments"))
    values = moments(maps)
    for image in range(2):
        for point in range(3):
            probabilities = maps[image, point].exp() / maps[image, point].exp().sum()
            for axis, size, first in ((1, 5, 0), (0, 4, 6)):
                places = [(i + 0.5) / size for i in range(size)]
                marginal = probabilities.sum(1 - axis).tolist()
                mean = sum(p * place for p, place in zip(marginal, places, strict=True))
                variance = sum(p * (place - mean) ** 2 for p, place in zip(marginal, places, strict=True))
                assert values[image, first + point].item() == pytest.approx(mean, abs=1e-5)
                assert values[image, first + 3 + point].item() == pytest.approx(math.sqrt(variance + 1e-6), abs=1e-5)


def test_the_localizer_refuses_scenes_of_several_objects(config, run_folder):
    words = ["model=localizer", *WORDS[1:-2], WORDS[-1], "task.optimizer.lr=0.0001"]
    with pytest.raises(UserError, match=r"one object an image, but they have 1 to [234]; .*data.max_objects=1"):
        run.train(config(*words), run_folder("several"))
    result = run.train(config(*words, "data.max_objects=1"), run_folder("one"))
    assert 0 <= result["test/map"] <= 1


def test_a_grid_reaches_from_edge_to_edge_and_no_gap_is_wider_than_the_step():
    boxes = grid(40, 60, [16], [1.0], 0.5)
    tops, lefts = sorted({float(v) for v in boxes[:, 1]}), sorted({float(v) for v in boxes[:, 0]})
    assert (tops[0], tops[-1], lefts[0], lefts[-1]) == (0, 24, 0, 44)
    assert len(boxes) == len(tops) * len(lefts) == 4 * 7
    assert max(b - a for row in (tops, lefts) for a, b in pairwise(row)) <= 8
    assert (boxes[:, 2:] - boxes[:, :2] == 16).all()
    tall = grid(40, 60, [16], [4.0], 0.5)
    torch.testing.assert_close(tall[:, 2:] - tall[:, :2], torch.tensor([8.0, 32.0]).expand(len(tall), 2))
    large = grid(20, 60, [64], [1.0], 0.5)
    assert large.tolist() == [[0, 0, 60, 20]], "clipped to the image"


def grid_detector(kind, **keys):
    torch.manual_seed(0)
    return kind(CifarResNet(8), **{"num_classes": 10, "box_px": [16, 24], "ratios": [1.0], "step": 0.5, "short_px": 64,
                                   "long_px": 500, "hidden": 16, **keys})


@pytest.mark.parametrize("kind", [FastRCNN, RCNN])
def test_boxes_of_a_grid_train_and_labels_are_foreground_classes(kind):
    model = grid_detector(kind)
    images = [torch.randn(3, 64, 64, generator=generator("i", i)) for i in range(2)]
    targets = [{"boxes": torch.tensor([[5.0, 5, 30, 40]]), "labels": torch.tensor([9])},
               {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}]
    losses = model(images, targets)
    assert set(losses) == set(kind.losses)
    sum(losses.values()).backward()
    assert sum(float(p.grad.abs().sum()) for name, p in model.named_parameters() if "stem" in name) > 0
    model.regions.heads.box_predictor.cls_score.bias.data[3 + 1] = 50.0
    first, second = model.eval().detect([images[0], torch.randn(3, 48, 80)])
    assert {3} == {*first["labels"].tolist(), *second["labels"].tolist()}
    assert (second["boxes"][:, 2] <= 80).all()
    assert (second["boxes"][:, 3] <= 48).all()


@pytest.mark.parametrize("kind", [FasterRCNN, FastRCNN, RCNN])
def test_the_loss_falls_with_the_true_classs_score_and_no_others(kind):
    """Class 9 of the data is class 10 of the head, where 0 is background, which most regions are."""
    model = detector(roi_batch=8) if kind is FasterRCNN else grid_detector(kind, roi_batch=8)
    bias = (model.net.roi_heads if kind is FasterRCNN else model.regions.heads).box_predictor.cls_score.bias
    targets = [{"boxes": torch.tensor([[8.0, 8, 32, 32], [30, 30, 54, 54]]), "labels": torch.tensor([9, 9])}]
    model([torch.randn(3, 64, 64, generator=generator("loss"))], targets)["loss_classifier"].backward()
    assert [k for k in range(11) if bias.grad[k] < 0] == [0, 10]


def test_each_region_of_rcnn_goes_through_the_backbone_alone(monkeypatch):
    model = grid_detector(RCNN).eval()
    image = torch.randn(3, 64, 64, generator=generator("crop"))
    boxes = torch.tensor([[4.0, 8, 32, 36], [10, 0, 38, 28]])
    maps = model.crop_maps({"0": image[None]}, [boxes], [(64, 64)])
    assert maps.shape == (2, 64, 7, 7)
    torch.testing.assert_close(model.crop_maps({"0": image[None]}, [boxes[1:]], [(64, 64)]), maps[1:])
    features = model.backbone.features
    monkeypatch.setattr(model.backbone, "features", lambda crops: crops)
    crops = model.crop_maps({"0": image[None]}, [boxes], [(64, 64)])
    torch.testing.assert_close(maps, features(crops))
    for number, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):  # 28 px, a crop's own size: two samples a side
        smooth = F.avg_pool2d(F.interpolate(image[None, :, y1:y2, x1:x2], scale_factor=2, mode="bilinear"), 2)
        torch.testing.assert_close(crops[number, :, 1:-1, 1:-1], smooth[0, :, 1:-1, 1:-1])


@pytest.mark.parametrize("kind", [FasterRCNN, FastRCNN, RCNN])
def test_a_detector_lists_the_weights_of_its_backbone_once(kind):
    model = detector() if kind is FasterRCNN else grid_detector(kind)
    backbone = {id(value) for value in model.backbone.state_dict(keep_vars=True).values()}
    listed = [id(value) for value in model.state_dict(keep_vars=True).values()]
    assert backbone <= {*listed}
    assert len(listed) == len({*listed})
    assert not any("head.weight" in name for name in model.backbone.state_dict()), "the classifier's head is removed"


def test_fast_and_faster_rcnn_agree_on_the_same_regions():
    """With the same weights and the same proposals they detect the same boxes."""
    fast, faster = grid_detector(FastRCNN).eval(), detector().eval()
    faster.backbone.load_state_dict(fast.backbone.state_dict())
    boxes = grid(64, 64, [16, 24], [1.0], 0.5)
    faster.net.rpn.forward = lambda *inputs: ([boxes], {})
    heads = fast.regions.heads
    heads.box_predictor.cls_score.weight.data *= 30
    faster.net.roi_heads.box_head.load_state_dict(heads.box_head.state_dict())
    faster.net.roi_heads.box_predictor.load_state_dict(heads.box_predictor.state_dict())
    heads.score_thresh = faster.net.roi_heads.score_thresh = 0.0
    image = torch.randn(3, 64, 64, generator=generator("same"))
    (ours,), (theirs,) = fast.detect([image]), faster.detect([image])
    assert len(ours["scores"]) > 5
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key])


def sliding(**keys) -> OverFeatDetector:
    torch.manual_seed(0)
    return OverFeatDetector(**{"num_classes": 10, "in_channels": 3, "width": 4, "hidden": 8, "window_px": 32,
                               "scales": [1.0, 1.5], "windows": 16, "score_threshold": 0.05, "nms": 0.5, **keys})


def test_overfeats_windows_lie_where_their_pixels_are():
    """The outputs of a window equal those of its pixels alone, cropped from the scaled image with its margin."""
    model = sliding().eval()
    image = torch.randn(3, 48, 64, generator=generator("slide"))
    logits, codes, windows = model.slide([image])
    assert logits.shape == (1, len(windows), 11)
    start = 0
    for scale in (1.0, 1.5):
        scaled = F.interpolate(image[None], size=(round(48 * scale), round(64 * scale)), mode="bilinear")
        framed = F.pad(scaled, (8, 8, 8, 8))
        rows, columns = (framed.shape[2] - 32) // 4 + 1, (framed.shape[3] - 32) // 4 + 1
        for row, column in ((0, 0), (2, 5), (rows - 1, columns - 1)):
            index = start + row * columns + column
            alone = model.net(framed[:, :, 4 * row : 4 * row + 32, 4 * column : 4 * column + 32])[0]
            torch.testing.assert_close(torch.cat([logits[0, index], codes[0, index]]), alone)
            x, y = (4 * column - 8) / scale, (4 * row - 8) / scale
            torch.testing.assert_close(windows[index], torch.tensor([x, y, x + 32 / scale, y + 32 / scale]))
        start += rows * columns
    assert start == len(windows)


def test_overfeats_windows_learn_the_objects_they_overlap():
    model = sliding()
    windows = torch.tensor([[0.0, 0, 32, 32], [40, 40, 72, 72], [10, 0, 42, 32], [14, 0, 46, 32],
                            [200, 0, 232, 32]])
    target = {"boxes": torch.tensor([[8.0, 0, 24, 32], [41, 41, 70, 70]]), "labels": torch.tensor([7, 2])}
    labels, objects = model.match(windows, target)
    assert labels.tolist() == [7, 2, 7, -1, 10]
    assert objects[:3].tolist() == [0, 1, 0]
    assert overfeat.squares(target["boxes"])[0].tolist() == [0, 0, 32, 32]
    codes = overfeat.encode(target["boxes"], windows[:2])
    assert codes[0].tolist() == pytest.approx([0, 0, math.log(0.5), 0], abs=1e-6)
    torch.testing.assert_close(overfeat.decode(codes, windows[:2]), target["boxes"])
    no_objects = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    assert model.match(windows, no_objects)[0].tolist() == [10] * 5
    losses = model([torch.randn(3, 64, 64)] * 2, [target, no_objects])
    assert all(torch.isfinite(value) for value in losses.values())
    sampled = model.sample(torch.tensor([7] * 20 + [10] * 30 + [-1] * 9))
    assert len(sampled) == len(set(sampled.tolist())) == 16
    assert (sampled < 20).sum() == 4
    assert (sampled < 50).all()


def test_overfeat_merges_boxes_of_a_class_by_their_scores():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores, labels = torch.tensor([0.9, 0.3, 0.6, 0.5]), torch.tensor([1, 1, 2, 1])
    merged = overfeat.merge(boxes, scores, labels, torch.tensor([0, 2, 3]), 0.5)
    assert merged.tolist() == [[0, 0, 10, pytest.approx((0.9 * 10 + 0.3 * 12) / 1.2)], [0, 0, 10, 11], [50, 50, 60, 60]]


def test_eleven_point_ap_equals_a_loop(config):
    """VOC 2007: the mean over recall 0, 0.1 ... 1 of the best precision at that recall or beyond, by class."""
    truths, found = a_case()
    metric = build.build_task(config(*WORDS)).voc07_metric
    metric.update(found, truths)
    by_class = []
    for label in range(3):
        wanted = sum(int((truth["labels"] == label).sum()) for truth in truths)
        guesses = sorted(((float(s), image, box) for image, one in enumerate(found) for box, k, s in
                          zip(one["boxes"], one["labels"], one["scores"], strict=True) if k == label),
                         key=lambda guess: -guess[0])
        taken, right = set(), []
        for _, image, box in guesses:
            free = [(float(box_iou(box[None], truths[image]["boxes"][[n]])), n)
                    for n in range(len(truths[image]["labels"])) if truths[image]["labels"][n] == label
                    and (image, n) not in taken]
            overlap, number = max(free, default=(0.0, -1))
            right.append(overlap >= 0.5)
            if right[-1]:
                taken.add((image, number))
        hits, curve = 0, []
        for count, hit in enumerate(right, start=1):
            hits += hit
            curve.append((hits / wanted, hits / count))
        by_class.append(sum(max((p for r, p in curve if r >= i / 10 - 1e-9), default=0.0) for i in range(11)) / 11)
    assert float(metric.compute()["map"]) == pytest.approx(sum(by_class) / 3, abs=1e-6)
