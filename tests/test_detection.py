"""Detection: average precision against pycocotools and a loop, a run, its figures, predict, exact resume."""

import json
import re
from pathlib import Path
from typing import Any, Unpack

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from dltrain import build, cli, evaluation, run
from dltrain.augment.pipeline import Augment
from dltrain.batches import BatchError, DetectionBatch, generator
from dltrain.config.compose import compose
from dltrain.data.datamodule import DataKeys
from dltrain.data.images import read_image
from dltrain.data.scenes import SceneBoxes
from dltrain.drawing.boxes import COLOURS, draw_boxes
from dltrain.drawing.images import LEAST_LIGHT
from dltrain.errors import UserError
from dltrain.models.faster_rcnn import FasterRCNN
from dltrain.run_dir import RunDir
from dltrain.tasks import detection
from dltrain.tasks.detection import Detection, keep_above
from tests.finished_run import FinishedRun

WORDS = ["model=faster_rcnn", "model.backbone.depth=8", "data.num_train=12", "data.batch_size=4", "trainer=cpu",
         "trainer.max_epochs=2", "task.optimizer.lr=0.01", "recipe=none", "model.hidden=16",
         "data._target_=tests.test_detection.FewScenes"]

Target = dict[str, Tensor]


class FewScenes(SceneBoxes):
    """12 + 8 + 8 scenes."""

    def __init__(self, *, channels: int, num_classes: int, image_px: int, sizes_px: list[int], max_objects: int,
                 num_train: int, **keys: Unpack[DataKeys]):
        super().__init__(channels=channels, num_classes=num_classes, image_px=image_px, sizes_px=sizes_px,
                         max_objects=max_objects, num_train=num_train, **keys)
        self.num_scenes = {"train": num_train, "val": 8, "test": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> FinishedRun:
    run_dir = RunDir.named(tmp_path_factory.mktemp("detection"), "run")
    return FinishedRun(run_dir, run.train(compose(WORDS).job_config(), run_dir))


def disturb(truths: list[Target], num_classes: int) -> list[Target]:
    """Detections with misses, doubles and confusions: each object twice, moved, and seven of ten kept."""
    rng, detections = generator("disturb"), []
    for truth in truths:
        boxes, labels = truth["boxes"].repeat(2, 1), truth["labels"].repeat(2)
        kept = torch.rand(len(boxes), generator=rng) < 0.7
        moved = boxes + torch.randn(len(boxes), 4, generator=rng) * 2
        guesses = torch.where(torch.rand(len(boxes), generator=rng) < 0.85, labels, num_classes - 1)
        detections.append({"boxes": moved[kept], "labels": guesses[kept],
                           "scores": torch.rand(int(kept.sum()), generator=rng)})
    return detections


def draw_case() -> tuple[list[Target], list[Target]]:
    """Truth and detections of 12 images, 3 classes."""
    rng, truths = generator("case"), []
    for _ in range(12):
        count = int(torch.randint(0, 5, (), generator=rng))
        corners = torch.rand(count, 2, generator=rng) * 60
        boxes = torch.cat([corners, corners + 8 + torch.rand(count, 2, generator=rng) * 40], 1)
        truths.append({"boxes": boxes, "labels": torch.randint(3, (count,), generator=rng)})
    return truths, disturb(truths, 3)


@pytest.fixture
def task(config) -> Detection:
    task = build.build_task(config(*WORDS))
    assert isinstance(task, Detection)
    return task


def test_average_precision_equals_pycocotools(task, tmp_path):
    truths, detections = draw_case()
    metric = task.coco_metric
    metric.update(detections, truths)
    result = metric.compute()

    def xywh(box: Tensor) -> list[float]:
        x1, y1, x2, y2 = box.tolist()
        return [x1, y1, x2 - x1, y2 - y1]

    def entries(images: list[Target]) -> list[dict[str, Any]]:
        return [{"image_id": image, "category_id": int(label), "bbox": xywh(box)}
                for image, target in enumerate(images)
                for box, label in zip(target["boxes"], target["labels"], strict=True)]

    annotations = [{**entry, "id": number, "iscrowd": 0, "area": entry["bbox"][2] * entry["bbox"][3]}
                   for number, entry in enumerate(entries(truths), start=1)]
    (tmp_path / "truth.json").write_text(json.dumps({
        "images": [{"id": image} for image in range(12)], "categories": [{"id": label} for label in range(3)],
        "annotations": annotations, "info": {}}))
    coco = COCO(str(tmp_path / "truth.json"))
    scores = torch.cat([target["scores"] for target in detections]).tolist()
    results = coco.loadRes([{**entry, "score": score} for entry, score in
                            zip(entries(detections), scores, strict=True)])
    evaluated = COCOeval(coco, results, "bbox")
    evaluated.evaluate()
    evaluated.accumulate()
    evaluated.summarize()
    assert [float(result[name]) for name in ("map", "map_50", "map_75")] == pytest.approx(
        evaluated.stats[:3].tolist(), abs=1e-6)
    assert 0.2 < float(result["map"]) < float(result["map_50"]) < 0.95


def test_a_run_ends_with_the_precision_of_each_class(trained):
    summary = {"test/map", "test/map_50", "test/map_75", "test/map_voc07"}
    of_classes = {name: value for name, value in trained.result.items() if name.startswith("test/map/")}
    assert {name for name in trained.result if name.startswith("test/")} == summary | set(of_classes)
    assert {*of_classes} <= {f"test/map/{digit}" for digit in range(10)}
    present = [value for value in of_classes.values() if value >= 0]
    assert len(present) > 3
    assert trained.result["test/map"] == pytest.approx(sum(present) / len(present), abs=1e-6)
    assert trained.result["headline"] == "val/map"


def test_training_metrics_are_the_mean_losses_of_an_image_by_name(task, config):
    data = build.build_data(config(*WORDS))
    task.fit_statistics(data)
    totals = dict.fromkeys(["loss", *FasterRCNN.losses], 0.0)
    for seed, indices in enumerate([[0, 1, 2], [3]]):
        batch = next(data.read("train", [torch.tensor(indices)]))
        torch.manual_seed(seed)
        losses = task.model(*task.augmented(batch))
        assert losses.keys() == {*FasterRCNN.losses}
        torch.manual_seed(seed)
        loss = task.training_step(batch, 0)
        assert loss.item() == pytest.approx(sum(value.item() for value in losses.values()))
        totals["loss"] += loss.item() * len(indices)
        for name, value in losses.items():
            totals[name] += value.item() * len(indices)
    assert task.read_training_metrics() == pytest.approx({f"train/{name}": total / 4 for name, total in totals.items()})


def test_evaluation_scores_each_image_against_its_own_truth(trained, monkeypatch):
    """With detections that are right for some objects."""
    data = build.build_data(trained.config)
    assert isinstance(data, FewScenes)
    truths = data.targets["test"]
    detections = disturb(truths, 10)
    absent = next(label for label in range(10) if not any((truth["labels"] == label).any() for truth in truths))
    detections[0]["labels"][0] = absent
    queue = list(detections)
    monkeypatch.setattr(FasterRCNN, "detect", lambda self, images: [queue.pop(0) for _ in images])
    result = evaluation.evaluate(trained.config, trained.run_dir, "test").metrics
    assert not queue
    metric = MeanAveragePrecision(class_metrics=True)
    metric.update(detections, truths)
    expected = metric.compute()
    assert expected["map"] > 0.2
    assert expected["map_per_class"].min() == -1, "COCO's mark of a class without objects, which is no result"
    assert {name: result[f"test/{name}"] for name in ("map", "map_50", "map_75")} == {
        name: float(expected[name]) for name in ("map", "map_50", "map_75")}
    assert {name: value for name, value in result.items() if name.startswith("test/map/")} == {
        f"test/map/{label}": value for label, value in
        zip(expected["classes"].tolist(), expected["map_per_class"].tolist(), strict=True) if value >= 0}


def test_predict_draws_boxes_and_writes_them_as_coco_does(trained, monkeypatch, capsys):
    path = trained.run_dir.path
    monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", f"input={path}/samples", "score=0.01"])
    assert cli.main() == 0
    task = evaluation.restore(trained.config, trained.run_dir)
    records, lines = [], []
    for number in range(8):
        file = path / f"samples/{number:02d}.png"
        with torch.inference_mode():
            (detections,) = task([read_image(file, 3)])
        kept = keep_above(detections, 0.01)
        rows = list(zip(*(kept[name].tolist() for name in ("boxes", "labels", "scores")), strict=True))
        records += [{"image_id": number, "file_name": str(file), "category_id": label, "category": str(label),
                     "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)], "score": round(score, 6)}
                    for (x1, y1, x2, y2), label, score in rows]
        lines.append(f"{file.name}  {'  '.join(f'{label} {score:.2f}' for _, label, score in rows)}")
        with Image.open(path / f"predictions/{file.name}") as picture:
            assert picture.size == (256, 256)
    assert len(records) > 8
    assert json.loads((path / "predictions.json").read_text()) == records
    written = f"8 inputs; {path}/predictions and {path}/predictions.json"
    assert capsys.readouterr().out.splitlines() == [*lines, written]


def test_predict_leaves_out_boxes_of_lower_scores(trained, monkeypatch, capsys):
    path = trained.run_dir.path
    monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", f"input={path}/samples/00.png", "score=0.99"])
    assert cli.main() == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "00.png  no object"
    assert re.fullmatch(rf"1 input; {path}/predictions((?:_\d)?) and {path}/predictions\1.json", second)


def test_figures_of_a_run(trained):
    board = EventAccumulator(str(trained.run_dir.path), size_guidance={"images": 0}).Reload()
    tags = board.Tags()["images"]
    assert {*tags} == {"train/augmented_batch", *(f"{split}/{name}" for split in ("val", "test")
                                                  for name in ("truth_and_predictions", "proposals_and_anchors"))}
    sizes = {tag: {(image.width, image.height) for image in board.Images(tag)} for tag in tags}
    row, gap = 256, 6
    four_in_a_row = 4 * (row + gap) + gap
    assert sizes["train/augmented_batch"] == {(four_in_a_row, row + 2 * gap)}, "the four images of a batch"
    assert sizes["val/truth_and_predictions"] == {(four_in_a_row, 2 * (row + gap) + gap)}
    assert [image.step for image in board.Images("val/truth_and_predictions")] == [3, 6]


def test_a_box_is_drawn_in_the_colour_of_its_label_on_the_enlarged_image():
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    picture = draw_boxes(image, torch.tensor([[4.0, 4, 12, 16]]), torch.tensor([11]))
    assert picture.shape == (3, 7 * 20, 7 * 40), "at least 256 px wide"
    colour = torch.tensor([int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)], dtype=torch.uint8)
    lit = (picture == colour[:, None, None]).all(0)
    assert torch.equal(lit, picture.any(0))
    first, last = lit.nonzero().aminmax(dim=0)
    assert (first.tolist(), last.tolist()) == ([28, 28], [112, 84]), "row and column"
    for border in (lit[28:113, 28], lit[28:113, 84], lit[28, 28:85], lit[112, 28:85]):
        assert border.all()
    assert not lit[32:108, 32:80].any()
    labelled = draw_boxes(image, torch.tensor([[4.0, 4, 12, 16]]), torch.tensor([11]), ["7 0.9"])
    assert labelled.shape == picture.shape
    assert (labelled != picture).any(0).sum() > 100, "a label"
    assert torch.equal(draw_boxes(image, torch.zeros(0, 4), torch.zeros(0)), torch.zeros_like(picture))


def test_a_batch_that_breaks_its_promise_is_refused(config):
    data = build.build_data(config(*WORDS))
    batch = next(data.read("train", [torch.arange(3)]))
    batch.check(10)
    wrong_box = {"boxes": torch.tensor([[5.0, 5, 2, 9]]), "labels": torch.tensor([1])}
    message = (r"boxes must be 0 <= x1 < x2 <= 64, 0 <= y1 < y2 <= 64, but of image 1 of the first batch they are "
               r"\[\[5.0, 5.0, 2.0, 9.0\]\]")
    with pytest.raises(BatchError, match=message):
        DetectionBatch(batch.images, [batch.targets[0], wrong_box, batch.targets[2]]).check(10)
    wrong_label = {"boxes": torch.tensor([[1.0, 5, 2, 9]]), "labels": torch.tensor([10])}
    with pytest.raises(BatchError, match=r"labels must be in \[0, 10\), but of image 1 .* are \[10\]"):
        DetectionBatch(batch.images, [batch.targets[0], wrong_label, batch.targets[2]]).check(10)


def test_results_are_drawn_brighter_and_a_batch_as_the_model_sees_it(task, config, monkeypatch):
    data = build.build_data(config(*WORDS))
    batch = next(data.read("train", [torch.arange(2)]))
    pictures: list[Tensor] = []

    def draw(image: Tensor, *others: object) -> Tensor:
        pictures.append(image)
        return image

    monkeypatch.setattr(detection, "draw_boxes", draw)
    monkeypatch.setattr(task, "augment", Augment("standard", channels=3, image_px=64))
    task.fit_statistics(data)
    task.class_names = data.class_names
    task.training_figures(batch)
    assert all((image.int() - before.int()).abs().max() <= 1
               for image, before in zip(pictures, batch.images, strict=True))
    pictures.clear()
    task.eval().figures(batch, [{**target, "scores": torch.ones(len(target["labels"]))} for target in batch.targets])
    assert len(pictures) == 8, "truth, predictions, proposals and anchors of each"
    assert all(float(image.float().mean(0).median()) / 255 == pytest.approx(LEAST_LIGHT, abs=0.02)
               for image in pictures)


def test_a_detector_that_returns_no_scores_is_refused(task, config, monkeypatch):
    composed = config(*WORDS)
    data = build.build_data(composed)
    monkeypatch.setattr(FasterRCNN, "detect", lambda self, images: [
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)} for _ in images])
    with pytest.raises(UserError, match=r"^model=faster_rcnn does not take the batches of data=scenes: its detect must "
                                        r"return boxes, labels and scores of each image$"):
        build.check_first_step(composed, data, task)


def test_the_localizer_refuses_scenes_of_several_objects(config, tmp_path: Path):
    words = ["model=localizer", *WORDS[1:-2], WORDS[-1], "task.optimizer.lr=0.0001", "trainer.max_epochs=1"]
    with pytest.raises(UserError, match=r"one object an image, but they have 1 to [234]; .*data.max_objects=1"):
        run.train(config(*words), RunDir.named(tmp_path, "several"))
    result = run.train(config(*words, "data.max_objects=1"), RunDir.named(tmp_path, "single"))
    assert result["steps"] == 3
    assert "test/map" in result
