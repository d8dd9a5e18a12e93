"""`dltrain schema`: the JSON Schema accepts every yaml file and every composed config, and refuses wrong values."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from dltrain.config import compose, groups, schema
from dltrain.config.json_schema import INTERPOLATION, KINDS, json_schema, value_schema
from dltrain.config.key_index import INDEXED, KeyIndex
from tests.conftest import MODELS, TINY
from tests.test_docs import PAGES, commands_of

INDEX, SOURCES = KeyIndex(), compose.Sources()
VALIDATORS = {kind: Draft7Validator(json_schema(INDEX, kind)) for kind in KINDS}
KIND_OF_GROUP = {"trainer": "trainer", "augment": "augment", "task": "task", "model/backbone": "backbone"}


def faults(kind: str, content: object) -> list[str]:
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in
            VALIDATORS[kind].iter_errors(content)]


def read(text: str) -> Any:
    return yaml.load(text, Loader=schema.Loader)


@pytest.mark.parametrize("kind", KINDS)
def test_each_schema_is_one(kind):
    Draft7Validator.check_schema(json_schema(INDEX, kind))


@pytest.mark.parametrize("group", [*INDEXED, "model/base", "data/base", "recipe/base"])
def test_every_yaml_file_is_valid(group):
    files = sorted((groups.CONFIGS / group).glob("*.yaml"))
    assert files
    for file in files:
        kind = "config" if "@package _global_" in file.read_text() else KIND_OF_GROUP.get(group, "")
        if kind:
            assert faults(kind, read(file.read_text()) or {}) == [], file


def composed_configs() -> list[list[str]]:
    """The words of the tests, of the docs, and each model, data set, recipe and experiment."""
    words = [[], TINY, *([f"model={name}"] for name in MODELS.values())]
    words += [[f"{group}={name}"] for group in ("model", "data", "trainer", "augment", "experiment")
              for name in groups.names(group)]
    pages = [words for page in PAGES for words in commands_of(page)]
    return words + [[word for word in words if word != "train"] for words in pages
                    if all("=" in word for word in words if word != "train")]


def test_every_composed_config_is_valid():
    valid = 0
    for words in composed_configs():
        try:
            composed = compose.compose(words, sources=SOURCES)
        except Exception:  # commands of docs that are refused, or need files
            continue
        config = OmegaConf.to_container(composed.job_config())
        assert faults("config", config) == [], words
        valid += 1
    assert valid > 100


@pytest.mark.parametrize(("kind", "text", "place"), [
    ("config", "model: {depth: abc}", "model.depth"), ("config", "model: {depth: 2}", "model.depth"),
    ("config", "trainer: {accelerator: cuda}", "trainer.accelerator"),
    ("config", "trainer: {max_epoch: 3}", "trainer"), ("config", "sede: 3", ""), ("config", "seed: null", "seed"),
    ("config", "seed: -1", "seed"), ("config", "task: {optimizer: {lr: 0}}", "task.optimizer.lr"),
    ("config", "task: {optimizer: {lrr: 0.1}}", "task.optimizer"),
    ("config", "task: {schedule: {milestones: [0.5, 2]}}", "task.schedule.milestones"),
    ("config", "task: {optimizer: {name: sdg}}", "task.optimizer.name"),
    ("config", "model: {_target_: dltrain.models.cifar_resnet.CifarResNet, dept: 20}", "model"),
    ("config", "model: {kernel: 2}", "model.kernel"), ("config", "data: {batch_size: 1.5}", "data.batch_size"),
    ("config", "defaults: resnet20", "defaults"),
    ("trainer", "compile: 3", "compile"), ("trainer", "accelerater: cpu", ""),
    ("augment", "normalize: all", "normalize"),
    ("backbone", "depth: x", "depth"), ("task", "label_smoothing: 1.0", "label_smoothing")])
def test_a_wrong_value_or_key_is_refused(kind, text, place):
    places = [fault.partition(":")[0] for fault in faults(kind, read(text))]
    assert places == [place]


@pytest.mark.parametrize(("kind", "text"), [
    ("config", "model: {_target_: mine.Net, anything: [1]}"), ("config", "model: {num_classes: '${data.num_classes}'}"),
    ("config", "task: {optimizer: {name: torch.optim.NAdam, lr: 1e-3, momentum_decay: 0.1}}"),
    ("config", "defaults: [/task: classification, override /data: mine, _self_]\nmodel: {width: 3}"),
    ("config", "task: {optimizer: {lr: '${model.lr}'}}"), ("trainer", "defaults: [auto, _self_]\nmax_epochs: null")])
def test_what_a_user_may_write_is_accepted(kind, text):
    assert faults(kind, read(text)) == []


RULES = sorted({setting.rule for chains in INDEX.settings.values() for chain in chains.values() for setting in chain
                if setting.rule})
SAMPLES = [None, True, False, -1, 0, 1, 2, 3, 5, 8, 9, 10, 14, 16, 20, 32, 2007, "2007", 0.0, 0.1, 0.5, 1.5, 2.5, 300.0,
           1e-5, "a", "sgd", "torch.optim.Adam", "auto", "none", [], [1], [0], [0.5], [2.5], ["a"], [-1], {}, {"a": 1}]


@pytest.mark.parametrize("rule", RULES)
def test_a_schema_of_a_rule_judges_as_the_rule(rule):
    """Of every rule that a yaml states. A schema takes 300.0 for an integer, and knows few remainders."""
    validator = Draft7Validator({"definitions": {"interpolation": INTERPOLATION}, **value_schema(rule)})
    for value in SAMPLES:
        if type(value) is float and value.is_integer():
            continue
        is_valid = schema.violation(rule, value) is None
        if not is_valid and " mod " in rule and type(value) is int and validator.is_valid(value):
            assert schema.violation(rule.partition(", =")[0], value) is None
            continue
        assert validator.is_valid(value) == is_valid, value


def test_keys_have_their_sentence_and_their_default(dltrain):
    printed = json.loads(dltrain("schema")[1])
    lr = printed["properties"]["task"]["properties"]["optimizer"]["properties"]["lr"]
    assert (lr["description"], lr["default"]) == ("float > 0: the peak of the schedule", 0.1)
    choices = printed["properties"]["defaults"]["items"]["anyOf"][1]["properties"]["override /data"]["anyOf"][0]["enum"]
    assert choices == groups.names("data")


def test_files_are_written(dltrain, tmp_path):
    assert dltrain("schema", "output=a/b.json") == (0, "a/b.json\n", "")
    assert (tmp_path / "a/b.json").read_text() == dltrain("schema")[1]
    code, out, _ = dltrain("schema", "output=conf/schema/")
    assert (code, out.split()) == (0, [f"conf/schema/{kind}.json" for kind in KINDS])
    trainer = json.loads((tmp_path / "conf/schema/trainer.json").read_text())
    assert trainer["properties"]["max_epochs"]["default"] == 30


def test_own_keys_and_choices_are_in_it(dltrain, tmp_path):
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/mine.yaml").write_text(
        "# @package _global_\n# Mine\nmodel:\n  sides: 3  # int >= 3: of it\n")
    own = json.loads(dltrain("schema", "--config-dir", "conf")[1])
    validator = Draft7Validator(own)
    assert own["properties"]["model"]["properties"]["sides"]["description"] == "int >= 3: of it"
    assert not validator.is_valid({"model": {"sides": 2}})


def test_new_names_the_schema_where_there_is_one(dltrain, tmp_path):
    dltrain("new", "model=a")
    assert "yaml-language-server" not in (tmp_path / "conf/model/a.yaml").read_text()
    dltrain("schema", "output=conf/schema/")
    for kind, schema_kind in (("model", "config"), ("data", "config"), ("task", "task")):
        assert dltrain("new", f"{kind}=b_{kind}")[0] == 0
        file = tmp_path / f"conf/{kind}/b_{kind}.yaml"
        line = next(line for line in file.read_text().splitlines() if "$schema=" in line)
        target = file.parent / line.partition("$schema=")[2]
        assert target.resolve() == Path(tmp_path / f"conf/schema/{schema_kind}.json").resolve()
        assert Draft7Validator(json.loads(target.read_text())).is_valid(read(file.read_text()))
        assert "yaml-language-server" not in groups.describe(file)


@pytest.mark.parametrize(("words", "message"), [
    (["traner"], "did you mean 'trainer'?"), (["output="], "cannot read 'output='"),
    (["kind=x"], "it takes output=FILE")])
def test_other_words_are_refused(words, message, dltrain, tmp_path):
    code, out, err = dltrain("schema", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())
