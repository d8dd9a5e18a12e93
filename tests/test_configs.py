"""Every file below configs/ keeps its promises: rules, headers, pairs, batch types."""

import re

import hydra.utils
import pytest
from omegaconf import OmegaConf

from dltrain.commands.why import explain
from dltrain.config import groups, schema
from dltrain.config.compose import compose, compose_unchecked

FILES = sorted(groups.CONFIGS.rglob("*.yaml"))
RECIPES = [name for name in groups.names("recipe") if name != "none"]


def test_every_value_that_a_person_may_change_states_its_rule():
    """A number, text or bool in model, data, task, trainer or train.yaml has a rule where it is first given."""
    stated = set()
    for file in FILES:
        for key, found in schema.assignments(file).items():
            if schema.rule_of(found.comment):
                stated.add(key.rpartition(".")[2])
    fixed = {"_target_", "batch_type", "channels", "num_classes", "image_px", "features", "source", "padding_px", "p"}
    for file in FILES:
        if file.parts[-2] in ("recipe", "experiment"):
            continue
        for key, found in schema.assignments(file).items():
            name = key.rpartition(".")[2]
            interpolated = isinstance(found.value, str) and "${" in found.value
            if not isinstance(found.value, dict | list) and not interpolated and name not in fixed:
                assert name in stated, f"{file}: {key}"


@pytest.mark.parametrize(("rule", "good", "bad"), [
    ("int >= 1", [1, 7], [0, 1.5, "1", True, None]),
    ("float in (0, 1]", [1, 0.5], [0, 1.1, "a", None]),
    ("float > 0 or null", [None, 2], [0, -1.0]),
    ("int >= 8, = 2 mod 6", [8, 20], [2, 9]),
    ("one of a | b | 3", ["a", "b", 3], ["c", None]),
    ("bool", [True, False], [0, "true"]),
    ("list of float in (0, 1)", [[0.5], []], [[1.0], 0.5, ["a"]]),
    ("str or null", ["a", None], [3]),
])
def test_rules_hold(rule, good, bad):
    for value in good:
        assert schema.violation(rule, value) is None, (rule, value)
    for value in bad:
        assert schema.violation(rule, value), (rule, value)


def test_defaults_obey_their_own_rules():
    for file in FILES:
        for key, found in schema.assignments(file).items():
            if rule := schema.rule_of(found.comment):
                assert schema.violation(rule, found.value) is None, f"{file}:{found.line} {key}"


@pytest.mark.parametrize("model", groups.names("model"))
def test_every_model_composes_with_its_natural_data(model):
    composed = compose([f"model={model}"])
    assert composed.config.task.batch_type == composed.config.data.batch_type


@pytest.mark.parametrize("backbone", groups.names("model/backbone"))
def test_every_backbone_composes_and_is_among_the_choices(backbone):
    composed = compose(["model=localizer", f"model/backbone={backbone}"])
    assert composed.job_config().choices["model/backbone"] == backbone
    assert {*composed.config.model.backbone.pretrained} == {"from_run", "weights", "rename"}


def test_backbones_of_a_user_are_found_and_an_experiment_may_choose_one(tmp_path):
    for name, text in (("model/backbone/tiny", "# A backbone of a user\n_target_: own.Tiny\n"),
                       ("experiment/small", "# @package _global_\n# Is it good?\ndefaults:\n"
                                            "  - override /model: localizer\n  - override /model/backbone: tiny\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / f"{name}.yaml").write_text(text)
    search_path = [f"hydra.searchpath=[{tmp_path}]"]
    choice = ["model=fcn8s", "model/backbone=tiny"]
    for words, folder in ((choice, str(tmp_path)), (["experiment=small"], str(tmp_path)),
                          ([*choice, *search_path], None)):
        composed = compose(words, folder)
        assert composed.chosen["model/backbone"] == "tiny"
        assert composed.config.model.backbone == {"_target_": "own.Tiny"}
    multirun = compose(["model=fcn8s", "model/backbone=vgg,lite0"], multirun=True)
    assert multirun.chosen["model/backbone"] == "vgg"


def test_where_the_keys_of_pretrained_weights_come_from():
    for key, words in (("model.pretrained.weights", ["model=resnet50"]),
                       ("model.backbone.pretrained.weights", ["model=faster_rcnn_vgg16"])):
        value, source, rule = explain(key, words).splitlines()
        assert value == f"{key} = null"
        assert re.search(r"configs/model/base/pretrained.yaml:\d+  null", source)
        assert rule.startswith("  # str or null: file of named tensors")


def test_where_a_backbone_comes_from():
    answer = explain("model/backbone", ["model=faster_rcnn_lite0", "model/backbone=cifar"])
    assert answer.startswith("model/backbone = cifar\n  set by the command line")
    assert re.search(r"over   .*faster_rcnn_lite0.yaml:\d+ .*lite0\n", answer)
    assert answer.endswith("its keys are model.backbone.*)")


@pytest.mark.parametrize("group", ["task", "data"])
def test_batch_type_in_yaml_is_the_class_own(group):
    for name in groups.names(group):
        content = groups.content(groups.CONFIGS / f"{group}/{name}.yaml")
        batch_type = content.get("data", content)["batch_type"]
        target = compose_unchecked([f"data={name}"]).config.data._target_ if group == "data" else content["_target_"]
        assert hydra.utils.get_class(target).batch_type.__name__ == batch_type, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_found_by_its_pair_and_has_its_header(recipe):
    model, _, data = recipe.partition("-on-")
    assert compose([f"model={model}", f"data={data}"]).chosen["recipe"] == recipe
    lines = (groups.CONFIGS / f"recipe/{recipe}.yaml").read_text().splitlines()
    fields = [match[1] for line in lines[1:6] if (match := re.match(r"# (\w+): \S", line))]
    assert fields == ["Source", "Result", "Cost", "Differs", "Run"]
    words = lines[5].partition("Run: dltrain")[2].split()
    assert compose(words).chosen["recipe"] == recipe, "the Run line must take this recipe"


def test_papers_recipes_hold_the_papers_numbers():
    he = compose(["model=resnet56", "data=cifar10"]).config
    assert (he.trainer.max_steps, he.trainer.max_epochs, he.data.batch_size) == (64000, None, 128)
    assert (he.task.optimizer.lr, he.task.optimizer.momentum, he.task.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert [share * he.trainer.max_steps for share in he.task.schedule.milestones] == [32000, 48000]
    assert he.data.num_val == 5000
    warm = compose(["model=resnet110", "data=cifar10"]).config.task.schedule
    assert (warm.warmup_steps, warm.warmup, warm.warmup_factor) == (400, "constant", 0.1)
    huang = compose(["model=sdresnet110", "data=cifar100"]).config
    assert (huang.trainer.max_epochs, huang.model.survival, huang.task.optimizer.nesterov) == (500, 0.5, True)


def test_precedence():
    """command line > recipe > model, data, trainer > task."""
    assert compose(["model=resnet56", "data=cifar10"]).config.trainer.max_steps == 64000
    assert compose(["model=resnet56", "data=cifar10", "recipe=none"]).config.trainer.max_steps is None
    assert compose(["model=resnet56", "data=cifar10", "trainer.max_steps=5"]).config.trainer.max_steps == 5
    assert compose(["data=cifar10"]).chosen["augment"] == "cifar"
    assert compose(["data=cifar10", "augment=none"]).chosen["augment"] == "none"


def test_train_yaml_stays_short():
    assert len((groups.CONFIGS / "train.yaml").read_text().splitlines()) < 15


@pytest.mark.parametrize("name", groups.names("experiment"))
def test_every_experiment_composes_and_says_what_it_asks(name):
    assert groups.describe(groups.CONFIGS / f"experiment/{name}.yaml").endswith("?") or ":" in groups.describe(
        groups.CONFIGS / f"experiment/{name}.yaml")
    composed = compose([f"experiment={name}"])
    assert composed.chosen["experiment"] == name
    for key in composed.swept or {}:
        assert key in groups.GROUPS or OmegaConf.select(composed.config, key) is not None, key
