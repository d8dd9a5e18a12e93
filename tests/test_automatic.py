"""Choices that a command leaves open: by the size of a person's photos, for weights to be fine-tuned, by families."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from dltrain.config.compose import compose
from dltrain.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Writes a folder of photos of two classes, with the short side in the first place."""

    def write(*sides, folder="photos", count=4):
        root = tmp_path / folder
        for name in ("cat", "dog"):
            (root / name).mkdir(parents=True)
            for index in range(count):
                side = sides[index % len(sides)]
                pixels = np.random.default_rng(index).integers(0, 255, (side, side + 7 * index, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / f"{name}/{index}.png")
        return root

    return write


def words(*typed):
    reasons = compose(["data=image_folder", *typed]).reasons
    return [word for word in reasons if not word.startswith("recipe=")]


@pytest.mark.parametrize(("side", "expected"), [
    (8, ["model=resnet20", "augment=digits", "data.image_px=8"]),
    (23, ["model=resnet20", "augment=digits", "data.image_px=23"]),
    (32, ["model=resnet20", "augment=cifar", "data.image_px=32"]),
    (50, ["model=resnet18", "augment=photos", "data.image_px=64"]),
    (140, ["model=resnet18", "augment=photos", "data.image_px=128"]),
    (255, ["model=resnet18", "augment=photos", "data.image_px=224"]),
    (256, ["model=resnet18", "augment=imagenet"])])
def test_model_pipeline_and_size_suit_the_photos(side, expected, photos):
    assert words(f"data.root={photos(side)}") == expected


def test_what_is_typed_stands(photos):
    root = photos(140)
    assert words(f"data.root={root}", "model=resnet20") == ["augment=photos", "data.image_px=64"]
    assert words(f"data.root={root}", "augment=none", "model=resnet18") == ["data.image_px=128"]
    assert words(f"data.root={root}", "augment=imagenet") == ["model=resnet18"]
    assert words(f"data.root={root}", "augment=strong", "data.image_px=48", "model=vgg11") == []
    assert words(f"data.root={root}", "recipe=none", "model=lite0") == ["augment=photos", "data.image_px=128"]


def test_the_median_counts_and_files_that_are_no_images_do_not(photos, tmp_path):
    root = photos(140, 40, 140, 140)
    (root / "cat/broken.png").write_bytes(b"")
    composed = compose(["data=image_folder", f"data.root={root}"])
    assert composed.reasons["model=resnet18"] == "photos of 140 px, the median short side of 8"
    assert composed.config.data.image_px == 128
    (tmp_path / "none/cat").mkdir(parents=True)
    for place in ("nowhere", "none"):
        assert words(f"data.root={tmp_path / place}") == []


def test_a_split_has_its_photos_in_train(photos):
    root = photos(32, folder="all/train")
    photos(300, folder="all/test")
    assert words(f"data.root={root.parent}")[0] == "model=resnet20"


def test_weights_are_fine_tuned_unless_a_recipe_says_otherwise(photos, tmp_path):
    root = photos(140)
    tuned = compose(["model=lite0", f"data.root={root}", "model.pretrained.weights=x.pth"])
    assert tuned.chosen["recipe"] == "fine_tuning"
    assert tuned.config.task.optimizer.lr < 1e-3
    assert compose(["model=lite0", f"data.root={root}", "model.pretrained.weights=x.pth", "lr=0.5"]
                   ).config.task.optimizer.lr == 0.5
    assert compose(["data=digits", "model.pretrained.weights=x.pth"]).chosen["recipe"] == "fine_tuning"
    for typed in ("none", "resnet20-on-digits"):
        assert compose(["model.pretrained.weights=x.pth", f"recipe={typed}"]).chosen["recipe"] == typed
    assert "recipe=fine_tuning" not in compose(["model=fcn8s", "data=mask_folder", "model/backbone=lite0",
                                                "model.backbone.pretrained.weights=x.pth"]).reasons


def test_a_classifier_of_own_photos_has_a_recipe_by_its_task_or_family():
    for model, rate in (("resnet18", 1e-3), ("resnet20", 1e-3), ("timm", 1e-3), ("vgg11", 1e-4), ("alexnet", 1e-4)):
        config = compose([f"model={model}", "data=image_folder"]).config
        assert (config.task.optimizer.lr, config.task.optimizer.name) == (rate, "adam")
        assert config.trainer.target_steps == 1000


def test_the_size_is_that_of_the_run_whose_weights_are_taken(photos, dltrain, tmp_path):
    dltrain("model.depth=8", "trainer=smoke", "name=digits")
    tuned = compose(["data=image_folder", f"data.root={photos(140)}", "model=resnet20", "data.channels=1",
                     f"model.pretrained.from_run={tmp_path / 'outputs/digits'}"])
    assert tuned.config.data.image_px == 8
    assert tuned.chosen["recipe"] == "fine_tuning"


def test_the_choice_is_announced_explained_and_stored(photos, dltrain, tmp_path):
    root = photos(32, count=8)
    command = ["data=image_folder", f"data.root={root}", "model.depth=8", "trainer=smoke", "batch=4", "name=a"]
    code, out, err = dltrain(*command)
    assert (code, err) == (0, "")
    assert ("chosen by photos of 32 px, the median short side of 16: model=resnet20 augment=cifar data.image_px=32"
            ) in out
    config = yaml.safe_load((tmp_path / "outputs/a/config.yaml").read_text())
    assert (config["choices"]["augment"], config["data"]["image_px"]) == ("cifar", 32)
    assert "data.image_px=32" in (tmp_path / "outputs/a/command.txt").read_text() or config["data"]["image_px"] == 32
    assert "set by photos of 32 px" in dltrain("why", "augment", *command[:2])[1]
    assert "is finished" in dltrain(*command)[1]
    assert dltrain("eval", "run=outputs/a")[0] == 0
    assert "test/accuracy" in json.loads((tmp_path / "outputs/a/result.json").read_text())


def test_every_job_of_a_sweep_chooses_for_itself(photos, dltrain, tmp_path):
    root = photos(32, count=8)
    code, _, _ = dltrain("-m", "data=image_folder", f"data.root={root}", "model=resnet20,plain20", "model.depth=8",
                         "trainer=smoke", "batch=4", "name=s")
    assert code == 0
    sizes = [yaml.safe_load(file.read_text())["data"]["image_px"] for file in
             (tmp_path / "outputs/s").glob("*/config.yaml")]
    assert sizes == [32, 32]


@pytest.mark.parametrize(("typed", "message"), [
    (["recipe=googlenet_cifar-on-scene_digits"], "googlenet_cifar-on-scene_digits.yaml:8), which model=resnet20 does"),
    (["recipe=cifar_resnet-on-cifar10"], "sets data.num_val"),
    (["model=char_rnn", "data=text", "recipe=seq_classifier-on-labelled_text"], "sets model.bidirectional"),
])
def test_a_recipe_for_other_data_or_another_model_names_the_key(typed, message):
    with pytest.raises(UserError, match=r"recipe=none trains without a recipe") as error:
        compose(typed)
    assert message in str(error.value)
