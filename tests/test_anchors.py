"""Anchors from the training boxes: against scikit-learn's k-means, torchvision's IoU and its scaling of images."""

import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from sklearn.cluster import KMeans
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from dltrain import build, evaluation
from dltrain.batches import generator
from dltrain.data import scenes
from dltrain.data.scenes import SceneBoxes
from dltrain.errors import UserError
from dltrain.models.anchors import anchor_sizes, fit_anchors, mean_best_iou, scale_boxes, size_iou
from dltrain.run_dir import RunDir
from tests.test_voc import load_boxes, photos  # noqa: F401  # a fixture

SMALL = ["model=faster_rcnn", "data.num_train=16", "data.batch_size=4", "recipe=none", "model.hidden=16",
         "trainer=smoke"]


def some_sizes(count: int) -> torch.Tensor:
    """Three clear clusters of (width, height), by increasing area."""
    centres = torch.tensor([[10.0, 30], [60, 20], [100, 120]]).double()
    noise = torch.randn(count, 2, generator=generator("sizes")).double()
    return centres[torch.arange(count) % 3] * (1 + 0.05 * noise)


def test_the_iou_of_sizes_is_that_of_boxes_with_one_centre():
    sizes, anchors = some_sizes(9), some_sizes(30)[20:]
    expected = box_iou(torch.cat([-sizes, sizes], 1) / 2, torch.cat([-anchors, anchors], 1) / 2)
    assert torch.allclose(size_iou(sizes, anchors), expected)
    best = [max(float(iou) for iou in row) for row in expected]
    assert mean_best_iou(sizes, anchors) == pytest.approx(sum(best) / 9)


def test_clear_clusters_are_those_of_scikit_learn():
    sizes = some_sizes(300)
    fitted = fit_anchors(sizes, 3, generator("anchors", 0))
    expected = torch.from_numpy(KMeans(3, n_init=5, random_state=0).fit(sizes.numpy()).cluster_centers_)
    assert torch.allclose(fitted, expected[expected.prod(1).argsort()])
    assert torch.equal(fitted, fit_anchors(sizes, 3, generator("anchors", 0)))
    assert torch.equal(fit_anchors(sizes[:2], 2, generator("anchors", 0)), sizes[:2]), "each box is a cluster"
    with pytest.raises(ValueError, match="have 3 different sizes, fewer than 4 anchors"):
        fit_anchors(sizes[:3].repeat(5, 1), 4, generator("anchors", 0))


def test_they_fit_better_than_any_of_many_random_choices():
    """Clusters without a gap, where the IoU matters: small boxes count as much as large ones."""
    rng = generator("spread")
    sizes = torch.exp(2 + 2 * torch.rand(500, 2, generator=rng)).double()
    fitted = mean_best_iou(sizes, fit_anchors(sizes, 6, generator("anchors", 0)))
    assert fitted > max(mean_best_iou(sizes, sizes[torch.randperm(500, generator=rng)[:6]]) for _ in range(50))
    euclidean = torch.from_numpy(KMeans(6, n_init=5, random_state=0).fit(sizes.numpy()).cluster_centers_)
    assert fitted > mean_best_iou(sizes, euclidean) + 0.02


@pytest.mark.parametrize("shape", [(480, 640), (300, 1600), (64, 50)])
def test_boxes_are_scaled_as_the_detector_scales_them(shape):
    h, w = shape
    targets = [{"boxes": torch.tensor([[10.0, 20, 40, 60]])}]
    _, scaled = GeneralizedRCNNTransform(200, 333, [0.0], [1.0])([torch.zeros(1, h, w)], targets)
    (box,) = scaled[0]["boxes"]
    sizes = scale_boxes(torch.tensor([[30.0, 40, w, h]]), 200, 333)
    assert sizes[0].tolist() == pytest.approx((box[2:] - box[:2]).tolist(), rel=0.01), "which rounds to whole pixels"


def test_the_default_is_torchvisions_grid_of_sides_and_ratios(config):
    model = build.build_task(config(*SMALL)).model
    (cell,) = model.net.rpn.anchor_generator.cell_anchors
    expected = [(round(w / 2), round(h / 2)) for w, h in anchor_sizes([12, 20, 30], [1, 2]).tolist()]
    assert sorted(map(tuple, cell.tolist())) == sorted((-w, -h, w, h) for w, h in expected)


def test_each_map_of_a_pyramid_has_anchors_of_its_size(config):
    sizes = [[number, 2 * number] for number in range(8, 18)]
    words = [*SMALL, "model.pyramid=true", "model/backbone=googlenet", "model.anchor_px=[8,16,32,64,128]"]
    task = build.build_task(config(*words, f"model.anchor_boxes={sizes}"))
    cells = task.model.net.rpn.anchor_generator.cell_anchors
    assert [(cell[:, 2:] - cell[:, :2]).tolist() for cell in cells] == [sizes[i : i + 2] for i in range(0, 10, 2)]
    anchors = task.model.eval().proposals([torch.rand(3, 64, 64)])[1][0]
    assert {tuple(size) for size in (anchors[:, 2:] - anchors[:, :2]).tolist()} == {tuple(size) for size in sizes}


@pytest.mark.parametrize(("word", "message"), [
    ("model.anchor_boxes=[[4,5]]", r"anchor_boxes must be 6 sizes \[width, height\] above 0"),
    ("model.anchors=auto", "anchors=auto needs the training boxes, which are not read here"),
])
def test_anchors_that_do_not_fit_the_model_are_refused(word, message, config):
    with pytest.raises(UserError, match=message):
        build.build_task(config(*SMALL, word))


def test_a_run_writes_them_and_needs_no_data_afterwards(dltrain, without_figures, monkeypatch):
    """Its weights are trained with them, though the boxes in the files may change."""
    monkeypatch.setattr(scenes, "NUM_EVAL_IMAGES", 4)
    code, out, err = dltrain(*SMALL, "model.anchors=auto", "name=a")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("anchors fitted to the training boxes: mean best ")]
    config = RunDir(Path("outputs/a")).read_config("run")
    sizes = config["model"]["anchor_boxes"]
    assert line.endswith("; " + ", ".join(f"{width:g} x {height:g}" for width, height in sizes) + " px")
    assert len(sizes) == 6
    fitted, fixed = (float(number) for number in re.findall(r"0\.\d{3}", line))
    assert fitted > fixed > 0
    assert "outputs/a is finished" in dltrain(*SMALL, "model.anchors=auto", "name=a")[1]
    assert "model.anchors (auto, now fixed)" in dltrain(*SMALL, "name=a")[2]
    model = evaluation.restore(OmegaConf.create(config), RunDir(Path("outputs/a"))).model
    (cell,) = model.net.rpn.anchor_generator.cell_anchors
    assert (cell[:, 2:] - cell[:, :2]).tolist() == [pytest.approx(size) for size in sizes]
    (Path("outputs/a") / "result.json").unlink()
    others = torch.tensor([[side, 9, 64, 64] for side in range(5, 40)])
    monkeypatch.setattr(SceneBoxes, "training_boxes", lambda _: others)
    assert dltrain(*SMALL, "model.anchors=auto", "name=a")[0] == 0
    assert RunDir(Path("outputs/a")).read_config()["model"]["anchor_boxes"] == sizes


def test_ignored_objects_are_no_training_boxes(photos):  # noqa: F811
    data = load_boxes(photos)
    data.photos["train"] += data.photos["val"]
    assert sorted(data.training_boxes().tolist()) == [[11, 21, 40, 60], [20, 30, 60, 40], [31, 36, 60, 40],
                                                      [60, 40, 60, 40]]
