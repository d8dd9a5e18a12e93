"""R-CNN, Fast R-CNN, Faster R-CNN and what they take from torchvision: anchors, codes, pooling, against loops."""

import math
import sys
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import _utils
from torchvision.ops import box_iou, nms

from dltrain.batches import generator
from dltrain.build import build as build_node
from dltrain.models import fast_rcnn, faster_rcnn
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.fast_rcnn import RCNN, FastRCNN, grid
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.models.regions import OneMapRoIPool

Region = FasterRCNN | FastRCNN | RCNN


def build_faster_rcnn(**changes: Any) -> FasterRCNN:
    torch.manual_seed(0)
    keys: dict[str, Any] = {"num_classes": 10, "anchor_px": [12, 24], "ratios": [1.0], "short_px": 64, "long_px": 500,
                            "hidden": 16, "rpn_proposals": 50, "test_proposals": 20}
    return FasterRCNN(CifarResNet(8), **{**keys, **changes})


def build(kind: type[Region], **changes: Any) -> Region:
    if issubclass(kind, FasterRCNN):
        return build_faster_rcnn(**changes)
    torch.manual_seed(0)
    keys: dict[str, Any] = {"num_classes": 10, "box_px": [16, 24], "ratios": [1.0], "step": 0.5, "short_px": 64,
                            "long_px": 500, "hidden": 16}
    return kind(CifarResNet(8), **{**keys, **changes})


def heads_of(model: Region) -> Any:
    """torchvision's RoIHeads."""
    return model.net.roi_heads if isinstance(model, FasterRCNN) else model.regions.heads


def make_target(boxes: list[list[float]], labels: list[int]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}


def test_anchors_are_labelled_as_in_the_paper():
    """Section 3.1.2: positive from IoU 0.7 on or the best of a box, negative below 0.3, the others are not used."""
    net = build_faster_rcnn().net.rpn
    rng = generator("anchors")
    corners = torch.rand(300, 2, generator=rng) * 50
    anchors = torch.cat([corners, corners + 4 + torch.rand(300, 2, generator=rng) * 20], 1)
    boxes = anchors[[3, 50, 200]] + torch.tensor([[1.0, 0, 0, 2], [3, 3, 3, 3], [0.0, 0, 0, 0]])
    (labels,), (matched,) = net.assign_targets_to_anchors([anchors], [{"boxes": boxes}])
    overlap = box_iou(boxes, anchors)
    is_best = (overlap == overlap.max(1, keepdim=True)[0]).any(0)
    for anchor in range(300):
        ious = overlap[:, anchor]
        expected = 1.0 if ious.max() >= 0.7 or is_best[anchor] else 0.0 if ious.max() < 0.3 else -1.0
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
    x1, y1, x2, y2 = (round(value / 4) for value in box)
    h, w = y2 - y1 + 1, x2 - x1 + 1
    for row in range(7):
        for column in range(7):
            top, bottom = y1 + math.floor(row * h / 7), y1 + math.ceil((row + 1) * h / 7)
            left, right = x1 + math.floor(column * w / 7), x1 + math.ceil((column + 1) * w / 7)
            cell = maps[0, :, top:min(bottom, 16), left:min(right, 16)]
            torch.testing.assert_close(pooled[:, row, column], cell.amax((1, 2)))


def test_a_grid_reaches_from_edge_to_edge_and_no_gap_is_wider_than_the_step():
    boxes = grid(40, 60, [16], [1.0], 0.5)
    tops, lefts = sorted({float(value) for value in boxes[:, 1]}), sorted({float(value) for value in boxes[:, 0]})
    assert (tops[0], tops[-1], lefts[0], lefts[-1]) == (0, 24, 0, 44)
    assert len(boxes) == len(tops) * len(lefts) == 4 * 7
    assert max(b - a for corners in (tops, lefts) for a, b in pairwise(corners)) <= 8
    assert (boxes[:, 2:] - boxes[:, :2] == 16).all()
    tall = grid(40, 60, [16], [4.0], 0.5)
    assert len(tall) > 0
    torch.testing.assert_close(tall[:, 2:] - tall[:, :2], torch.tensor([8.0, 32.0]).expand(len(tall), 2))
    large = grid(20, 60, [64], [1.0], 0.5)
    assert large.tolist() == [[0, 0, 60, 20]], "clipped to the image"


def test_pooling_from_a_pyramid_is_refused():
    with pytest.raises(ValueError, match="roi_pool must be align where pyramid=true: roi_pool=pool reads one map"):
        build_faster_rcnn(roi_pool="pool", pyramid=True, anchor_px=[8, 16, 24, 32, 48])
    with pytest.raises(ValueError, match=r"^anchor_px must have 5 sides, .* but is \[12, 24\]$"):
        build_faster_rcnn(pyramid=True)


@pytest.mark.parametrize(("kind", "changes"), [(FasterRCNN, {}), (FasterRCNN, {"roi_pool": "pool"}), (FastRCNN, {}),
                                               (FastRCNN, {"roi_pool": "pool"}), (RCNN, {})])
def test_labels_are_foreground_classes_and_empty_images_train(kind, changes):
    model = build(kind, **changes)
    images = [torch.randn(3, 64, 64, generator=generator("i", i)) for i in range(2)]
    targets = [make_target([[5.0, 5, 30, 40]], [9]), make_target([], [])]
    losses = model(images, targets)
    assert targets[0]["labels"].tolist() == [9], "the batch must not change"
    assert set(losses) == set(kind.losses)
    sum(losses.values()).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    stem = [gradient for name, gradient in gradients.items() if "stem" in name]
    assert len(stem) == 3
    assert all(gradient.abs().sum() > 0 for gradient in stem)
    heads_of(model).box_predictor.cls_score.bias.data[3 + 1] = 50.0
    square, wide = model.eval().detect([images[0], torch.randn(3, 48, 80)])
    assert {3} == {*square["labels"].tolist()} == {*wide["labels"].tolist()}
    assert wide["boxes"].min() >= 0
    assert (wide["boxes"] <= torch.tensor([80.0, 48, 80, 48])).all()


@pytest.mark.parametrize("kind", [FasterRCNN, FastRCNN, RCNN])
def test_the_loss_falls_with_the_score_of_the_true_class_and_no_other_class(kind):
    """Class 9 of the data is class 10 of the head, where 0 is background, which most regions are."""
    model = build(kind, roi_batch=8)
    bias = heads_of(model).box_predictor.cls_score.bias
    target = make_target([[8.0, 8, 32, 32], [30, 30, 54, 54]], [9, 9])
    model([torch.randn(3, 64, 64, generator=generator("loss"))], [target])["loss_classifier"].backward()
    assert [label for label in range(11) if bias.grad[label] < 0] == [0, 10]


@pytest.mark.parametrize("kind", [FasterRCNN, FastRCNN, RCNN])
def test_a_detector_lists_the_weights_of_its_backbone_once(kind):
    model = build(kind)
    assert isinstance(model.backbone, nn.Module)
    backbone = {id(value) for value in model.backbone.state_dict(keep_vars=True).values()}
    listed = [id(value) for value in model.state_dict(keep_vars=True).values()]
    assert len(backbone) == len(CifarResNet(8).state_dict()) - 2, "all but the classifier's head"
    assert backbone <= {*listed}
    assert len(listed) == len({*listed})


def test_each_region_of_rcnn_goes_through_the_backbone_alone(monkeypatch):
    model = build(RCNN).eval()
    assert isinstance(model, RCNN)
    image = torch.randn(3, 64, 64, generator=generator("crop"))
    boxes = torch.tensor([[4.0, 8, 32, 36], [10, 0, 38, 28]])
    maps = model.crop_maps({"0": image[None]}, [boxes], [(64, 64)])
    assert maps.shape == (2, 64, 7, 7)
    torch.testing.assert_close(model.crop_maps({"0": image[None]}, [boxes[1:]], [(64, 64)]), maps[1:])
    with monkeypatch.context() as patch:
        patch.setattr(fast_rcnn, "CROPS_AT_ONCE", 1)
        torch.testing.assert_close(model.crop_maps({"0": image[None]}, [boxes], [(64, 64)]), maps)
    features = model.backbone.features
    monkeypatch.setattr(model.backbone, "features", lambda crops: crops)
    crops = model.crop_maps({"0": image[None]}, [boxes], [(64, 64)])
    torch.testing.assert_close(maps, features(crops))
    for number, (x1, y1, x2, y2) in enumerate(boxes.int().tolist()):  # 28 px, a crop's own size: two samples a side
        smooth = F.avg_pool2d(F.interpolate(image[None, :, y1:y2, x1:x2], scale_factor=2, mode="bilinear"), 2)
        torch.testing.assert_close(crops[number, :, 1:-1, 1:-1], smooth[0, :, 1:-1, 1:-1])


def test_fast_and_faster_rcnn_agree_on_the_same_regions():
    """With the same weights and the same proposals they detect the same boxes."""
    fast, faster = build(FastRCNN).eval(), build_faster_rcnn().eval()
    assert isinstance(fast.backbone, nn.Module)
    assert isinstance(faster.backbone, nn.Module)
    faster.backbone.load_state_dict(fast.backbone.state_dict())
    boxes = grid(64, 64, [16, 24], [1.0], 0.5)
    faster.net.rpn.forward = lambda *inputs: ([boxes], {})
    heads = heads_of(fast)
    heads.box_predictor.cls_score.weight.data *= 30
    faster.net.roi_heads.box_head.load_state_dict(heads.box_head.state_dict())
    faster.net.roi_heads.box_predictor.load_state_dict(heads.box_predictor.state_dict())
    heads.score_thresh = faster.net.roi_heads.score_thresh = 0.0
    image = torch.randn(3, 64, 64, generator=generator("same"))
    (detected,), (expected,) = fast.detect([image]), faster.detect([image])
    assert len(expected["scores"]) > 5
    assert detected.keys() == expected.keys()
    for key, value in detected.items():
        torch.testing.assert_close(value, expected[key])


def test_a_training_step_of_faster_rcnn_runs_code_of_three_model_files():
    """That of the detector, of its heads and of its backbone: what else they share is called when they are built."""
    files, folder = set(), Path(faster_rcnn.__file__).parent
    model, targets = build_faster_rcnn(), [make_target([[5.0, 5, 30, 40]], [9])]

    def note_file(frame: FrameType, event: str, argument: object) -> None:
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.parent == folder:
            files.add(file.name)

    sys.setprofile(note_file)
    try:
        sum(model([torch.randn(3, 64, 64)], targets).values(), torch.zeros(())).backward()
    finally:
        sys.setprofile(None)
    assert files == {"faster_rcnn.py", "regions.py", "cifar_resnet.py"}


@pytest.mark.parametrize("name", ["faster_rcnn", "fast_rcnn", "rcnn", "localizer", "overfeat"])
def test_detectors_take_grey_images(name, config):
    """The photos of a folder with data.channels=1: two losses and boxes in the photo."""
    composed = config(f"model={name}", "data=voc_folder", "data.root=x", "data.channels=1", "data.num_classes=2",
                      "data.image_px=64", "recipe=none")
    model = build_node(composed.model, "model")
    images = [torch.rand(1, 64, 64, generator=generator("grey", number)) for number in range(2)]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in images]
    losses = model.train()(images, targets)
    assert all(value.isfinite() for value in losses.values())
    for detections in model.eval().detect(images):
        assert bool((detections["boxes"] <= 64).all())


@pytest.mark.parametrize(("model", "expected"), [("faster_rcnn_vgg16", (12000, 2000, 6000, 300)),
                                                 ("faster_rcnn", (200, 100, 100, 50))])
def test_the_proposals_before_and_after_suppression(model, expected, config):
    """12,000 and 6,000 at the paper's setting, which the paper does not state but its authors' code does."""
    net = build_node(config(f"model={model}", "data.num_classes=2").model, "model").net
    assert (net.rpn._pre_nms_top_n["training"], net.rpn._post_nms_top_n["training"], net.rpn._pre_nms_top_n["testing"],
            net.rpn._post_nms_top_n["testing"]) == expected
