"""Segmentation: the metrics against sets of pixels, a run of each model, its figures, predict, exact resume."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dltrain import build, cli, evaluation, run
from dltrain.batches import IGNORED_PIXEL, SegmentationBatch, generator
from dltrain.config.compose import compose
from dltrain.data import scenes
from dltrain.data.images import read_image
from dltrain.data.scenes import SceneMasks
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.tasks.segmentation import Segmentation, intersection_over_union, random_places
from tests.finished_run import FinishedRun

WORDS = ["data.num_train=12", "data.batch_size=4", "data.image_px=64", "data.sizes_px=[20,40]", "trainer=cpu",
         "trainer.max_epochs=1", "recipe=none", "model.backbone.width=4", "model.hidden=8", "task.optimizer.lr=0.01"]
CLASSES = ["background", *map(str, range(10))]


@pytest.fixture(autouse=True, scope="module")
def few_scenes() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "NUM_EVAL_IMAGES", 4)
        yield


class Trained(FinishedRun):
    def restore(self) -> Segmentation:
        task = evaluation.restore(self.config, self.run_dir)
        assert isinstance(task, Segmentation)
        return task


@pytest.fixture(scope="module", params=["fcn8s", "hypercolumn", "dilated"])
def trained(request, few_scenes, tmp_path_factory) -> Trained:
    run_dir = RunDir.named(tmp_path_factory.mktemp("segmentation"), request.param)
    return Trained(run_dir, run.train(compose([f"model={request.param}", *WORDS]).job_config(), run_dir))


def test_intersection_over_union_by_sets_of_pixels():
    torch.manual_seed(0)
    truth, predicted = torch.randint(0, 4, (500,)), torch.randint(0, 4, (500,))
    matrix = torch.zeros(5, 5)
    for t, p in zip(truth, predicted, strict=True):
        matrix[t, p] += 1
    iou = intersection_over_union(matrix)
    for label in range(4):
        left, right = ({*(labels == label).nonzero()[:, 0].tolist()} for labels in (truth, predicted))
        assert float(iou[label]) == pytest.approx(len(left & right) / len(left | right))
    assert iou[4].isnan(), "a class that does not occur"


def test_a_run_ends_with_the_scores_of_the_test_split(trained):
    data = build.build_data(trained.config)
    assert isinstance(data, SceneMasks)
    with torch.no_grad():
        logits = trained.restore()(data.images["test"])
    truth, predicted = data.masks["test"], logits.argmax(1)
    masks = {name: (predicted == label, truth == label) for label, name in enumerate(CLASSES)}
    iou = {name: float((left & right).sum() / (left | right).sum()) for name, (left, right) in masks.items()
           if (left | right).any()}
    assert len(iou) > 5
    expected = {"mean_iou": sum(iou.values()) / len(iou), "pixel_accuracy": float((predicted == truth).float().mean()),
                "loss": float(F.cross_entropy(logits, truth)), **{f"iou/{name}": value for name, value in iou.items()}}
    assert {name: value for name, value in trained.result.items() if name.startswith("test/")} == pytest.approx(
        {f"test/{name}": value for name, value in expected.items()}, abs=1e-5)


def test_predict_writes_the_class_of_every_pixel(trained, monkeypatch, capsys):
    path = trained.run_dir.path
    file = path / "samples/00.png"
    monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", f"input={file}"])
    assert cli.main() == 0
    with torch.no_grad():
        expected = trained.restore()(read_image(file, 3)[None])[0].argmax(0).numpy()
    with Image.open(path / "predictions/00_mask.png") as mask:
        assert mask.mode == "P"
        assert np.array_equal(np.asarray(mask), expected)
    counts = np.bincount(expected.ravel(), minlength=11) / 64**2
    (record,) = json.loads((path / "predictions.json").read_text())
    shares = {name: round(float(count), 4) for name, count in zip(CLASSES, counts, strict=True) if count}
    assert record == {"file": str(file), "mask": "00_mask.png", "shares": shares}
    shares = record["shares"]
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
    listed = "  ".join(f"{name} {share:.1%}" for name, share in list(shares.items())[:6])
    written = f"1 input; {path}/predictions and {path}/predictions.json"
    assert capsys.readouterr().out.splitlines() == [f"00.png  {listed}", written]
    with Image.open(path / "predictions/00.png") as picture:
        assert picture.width == 256


def test_figures_of_a_run(trained):
    board = EventAccumulator(str(trained.run_dir.path), size_guidance={"images": 0}).Reload()
    assert {*board.Tags()["images"]} == {"train/augmented_batch", "val/image_truth_prediction",
                                         "test/image_truth_prediction"}
    (augmented,), (compared,) = board.Images("train/augmented_batch"), board.Images("val/image_truth_prediction")
    assert augmented.width == 4 * (192 + 6) + 6
    assert augmented.height == 2 * (192 + 6) + 6 + 24, "four images with their masks, and a line with the classes"
    assert (compared.step, compared.width) == (3, 6 * (192 + 6) + 6)


def test_pixels_that_are_not_scored_do_not_count(config):
    task = build.build_task(config("model=fcn8s", *WORDS))
    assert isinstance(task, Segmentation)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.randint(0, 11, (2, 64, 64))
    masks[:, :40] = IGNORED_PIXEL
    loss = task.training_step(SegmentationBatch(images, masks), 0)
    logits = task.model(task.augment.normalize(images))[:, :, 40:]
    torch.testing.assert_close(loss, F.cross_entropy(logits, masks[:, 40:]))
    accuracy = (logits.argmax(1) == masks[:, 40:]).float().mean().item()
    assert task.step_sums.settle()[2] == 2 * 24 * 64
    assert task.read_training_metrics() == pytest.approx({"train/loss": loss.item(), "train/pixel_accuracy": accuracy})
    without_scored_pixel = SegmentationBatch(images, torch.full_like(masks, IGNORED_PIXEL))
    assert task.training_step(without_scored_pixel, 0) == 0


def test_the_loss_of_random_pixels_is_that_of_their_logits(config):
    task = build.build_task(config("model=hypercolumn", *WORDS, "task.pixels=5"))
    assert isinstance(task, Segmentation)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    masks = torch.randint(0, 11, (2, 64, 64))
    loss = task.training_step(SegmentationBatch(images, masks), 0)
    assert task.step_sums.settle()[2] == 2 * 5
    log_p = task.model(task.augment.normalize(images)).log_softmax(1)
    places = random_places(masks, 5, generator("augment", *task.position))
    losses = [-log_p[image, masks[image, row, column], row, column]
              for image in range(2) for row, column in places[image].tolist()]
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_random_places_cover_the_whole_mask_and_differ_by_image():
    places = random_places(torch.zeros(2, 5, 7, dtype=torch.long), 4000, torch.Generator().manual_seed(0))
    assert places.shape == (2, 4000, 2)
    assert not torch.equal(places[0], places[1])
    counts = torch.bincount(places[0, :, 0] * 7 + places[0, :, 1], minlength=35)
    assert len(counts) == 35
    assert counts.min() > 70
    assert counts.max() < 165
    assert places.amax((0, 1)).tolist() == [4, 6]


def test_a_task_that_does_not_fit_masks_is_refused(config):
    with pytest.raises(UserError, match=r"task \(Segmentation\): pixels must be null: FCN classifies all pixels"):
        build.build_task(config("model=fcn8s", *WORDS, "task.pixels=5"))
    with pytest.raises(UserError, match=r"task \(Segmentation\): augment.test must be single"):
        build.build_task(config("model=fcn8s", *WORDS, "augment.test=flip"))
    with pytest.raises(UserError, match="model=fcn8s trains on SegmentationBatch, but data=digits yields"):
        config("model=fcn8s", "data=digits")


def test_a_model_of_other_classes_is_refused(config):
    composed = config("model=fcn8s", *WORDS)
    data, task = build.build_data(composed), build.build_task(config("model=fcn8s", *WORDS, "model.num_classes=3"))
    with pytest.raises(UserError, match=r"it must return logits \(2, 11, 64, 64\), but returns \(2, 3, 64, 64\)$"):
        build.check_first_step(composed, data, task)
