"""Every file below configs/: rules, headers, recipes found by pair and by family, pairs of model and data."""

import re
import shlex
from pathlib import Path

import hydra.utils
import pytest
from omegaconf import DictConfig, OmegaConf

from dltrain.commands.why import explain
from dltrain.config import groups, schema
from dltrain.config.compose import Composed, Sources, compose, to_plain
from dltrain.config.yaml_files import YamlFolder
from dltrain.errors import UserError
from dltrain.run import StudyContext
from dltrain.run_dir import RunDir
from dltrain.studies import comparison
from tests.conftest import MODELS

FILES = sorted(groups.CONFIGS.rglob("*.yaml"))
RECIPES = [name for name in groups.names("recipe") if name != "none"]
FAMILIES = {model: family for model in groups.names("model")
            if (family := groups.stated(groups.CONFIGS / f"model/{model}.yaml", "recipe_family"))}
# What data say about themselves, and what a class says about itself: not for a user to change.
FIXED = {"channels", "num_classes", "image_px", "features", "vocab_size", "words", "_target_", "batch_type"}


# rules


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
def test_a_rule_accepts_and_refuses(rule, good, bad):
    assert [schema.violation(rule, value) for value in good] == [None] * len(good)
    assert [value for value in bad if schema.violation(rule, value) is None] == []


@pytest.mark.parametrize(("rule", "value", "message"), [
    ("int >= 8, = 2 mod 6", 9, "must be an integer >= 8, = 2 mod 6"),
    ("float > 0 or null", 0, "must be a number > 0 or null"),
    ("one of a | 3", "c", "must be one of a, 3"),
    ("list of int >= 1", 3, "must be a list of int, as [a, b]"),
    ("list of int >= 1", [2, 0], "each must be an integer >= 1"),
])
def test_a_refusal_says_what_a_value_must_be(rule, value, message):
    assert schema.violation(rule, value) == message


def test_defaults_obey_their_own_rules():
    checked = 0
    for file in FILES:
        for key, line in schema.assignments(file).items():
            if rule := schema.rule_of(line.comment):
                assert schema.violation(rule, line.value) is None, f"{file}:{line.line} {key}"
                checked += 1
    assert checked > 300


def test_every_choice_is_described_in_its_first_line():
    for group in groups.GROUPS:
        for name in groups.names(group):
            assert re.match(r"\S+ ?\S", groups.describe(groups.CONFIGS / f"{group}/{name}.yaml")), f"{group}/{name}"


def test_train_yaml_stays_short():
    assert len((groups.CONFIGS / "train.yaml").read_text().splitlines()) < 15


# pairs of model and data


def keys_without_rule(composed: Composed) -> set[str]:
    """Numbers, texts and lists that a user may change, but whose yaml does not say what they must be."""
    comments = composed.comments()

    def visit(node: DictConfig, prefix: str) -> set[str]:
        keys: set[str] = set()
        for name in map(str, node):
            if OmegaConf.is_interpolation(node, name):
                continue
            if isinstance(value := node[name], DictConfig):
                keys |= visit(value, f"{prefix}{name}.")
            elif name not in FIXED and not schema.rule_of(comments.get(f"{prefix}{name}", "")):
                keys.add(f"{prefix}{name}")
        return keys

    return visit(composed.config, "")


@pytest.mark.parametrize("model", groups.names("model"))
def test_a_model_composes_with_its_natural_data_and_every_key_has_a_rule(model):
    composed = compose([f"model={model}"])
    assert composed.config.task.batch_type == composed.config.data.batch_type
    assert keys_without_rule(composed) <= {"recipe_family"}


@pytest.mark.parametrize("data", groups.names("data"))
def test_data_compose_every_key_has_a_rule_and_the_batch_type_is_that_of_the_class(data):
    batch_type = groups.batch_type_of_data(data)
    assert batch_type in MODELS
    composed = compose([f"data={data}", f"model={MODELS[batch_type]}"])
    assert keys_without_rule(composed) == set()
    assert hydra.utils.get_object(composed.config.data._target_).batch_type.__name__ == batch_type


@pytest.mark.parametrize("group", ["augment", "trainer"])
def test_every_pipeline_and_trainer_composes(group):
    for name in groups.names(group):
        composed = compose(["data=cifar10", f"{group}={name}"])
        assert composed.chosen[group] == name
        assert keys_without_rule(composed) == set(), name


def test_the_batch_type_of_a_task_is_that_of_its_class():
    tasks = {name: groups.content(groups.CONFIGS / f"task/{name}.yaml") for name in groups.names("task")}
    assert {content["batch_type"] for content in tasks.values()} == {*MODELS}
    for name, content in tasks.items():
        assert hydra.utils.get_object(content["_target_"]).batch_type.__name__ == content["batch_type"], name


def test_a_model_is_refused_with_data_of_another_batch_type():
    with pytest.raises(UserError) as caught:
        compose(["model=seq2seq", "data=digits"])
    assert str(caught.value) == ("model=seq2seq trains on PairBatch, but data=digits yields ClassificationBatch. Data "
                                 "that fits: dates, pairs.")


# backbones


@pytest.mark.parametrize("backbone", groups.names("model/backbone"))
def test_a_backbone_composes_and_is_among_the_choices(backbone):
    composed = compose(["model=localizer", f"model/backbone={backbone}"])
    assert composed.job_config().choices["model/backbone"] == backbone
    assert {*composed.config.model.backbone.pretrained} == {"from_run", "weights", "rename"}


def test_backbones_of_a_user_are_listed_and_an_experiment_may_choose_one(tmp_path):
    write(tmp_path / "model/backbone/tiny.yaml", "# A backbone of a user\n_target_: own.Tiny\n")
    write(tmp_path / "experiment/small.yaml", "# @package _global_\n# Is it good?\ndefaults:\n"
                                              "  - override /model: localizer\n  - override /model/backbone: tiny\n")
    search_path = [f"hydra.searchpath=[{tmp_path}]"]
    choice = ["model=fcn8s", "model/backbone=tiny"]
    for words, folder in ((choice, str(tmp_path)), (["experiment=small"], str(tmp_path)),
                          ([*choice, *search_path], None)):
        composed = compose(words, folder)
        assert composed.chosen["model/backbone"] == "tiny"
        assert composed.config.model.backbone == {"_target_": "own.Tiny"}
    multirun = compose(["model=fcn8s", "model/backbone=vgg,lite0"], multirun=True)
    assert multirun.chosen["model/backbone"] == "vgg"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_where_the_keys_of_pretrained_weights_come_from():
    for key, words in (("model.pretrained.weights", ["model=resnet50"]),
                       ("model.backbone.pretrained.weights", ["model=faster_rcnn_vgg16"])):
        value, source, rule = explain(key, words).splitlines()
        assert value == f"{key} = null"
        assert re.fullmatch(r"  set by \S*configs/model/base/pretrained.yaml:\d+  null", source)
        assert rule.startswith("  # str or null: file of named tensors")


def test_where_a_backbone_comes_from():
    answer = explain("model/backbone", ["model=faster_rcnn_lite0", "model/backbone=cifar"])
    assert answer.startswith("model/backbone = cifar\n  set by the command line")
    assert re.search(r"over   .*faster_rcnn_lite0.yaml:\d+ .*lite0\n", answer)
    assert answer.endswith("its keys are model.backbone.*)")


# recipes


def read_header(file: Path, fields: list[str]) -> tuple[list[str], dict[str, str]]:
    """The comment lines between `# @package _global_` and the first field, and the fields that follow each other. A
    line that begins with `#   ` continues the field above it."""
    first, *lines = file.read_text().splitlines()
    assert first == "# @package _global_"
    before: list[str] = []
    header: dict[str, str] = {}
    for line in lines:
        name, _, text = line.removeprefix("# ").partition(": ")
        if name in fields:
            header[name] = text
        elif header and line.startswith("#   "):
            header[[*header][-1]] += f" {line[1:].strip()}"
        elif header or not line.startswith("# "):
            break
        else:
            before.append(line.removeprefix("# "))
    return before, header


def assert_result_is_honest(header: dict[str, str]) -> None:
    """A measured number comes with its seed; what was not measured to the end says so."""
    assert re.search(r"\bseeds? \d|\bnot\b", header["Result"], re.IGNORECASE), header["Result"]


def words_of(run: str) -> list[str]:
    """The words behind `dltrain` of a Run line."""
    program, *words = shlex.split(run)
    assert program == "dltrain"
    return words


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_found_by_the_command_in_its_header(recipe):
    fields = ["Source", "Result", "Cost", "Differs", "Run"]
    before, header = read_header(groups.CONFIGS / f"recipe/{recipe}.yaml", fields)
    assert before == []
    assert [name for name, text in header.items() if text] == fields
    assert_result_is_honest(header)
    name, _, data = recipe.partition("-on-")
    chosen = compose(words_of(header["Run"])).chosen
    assert chosen["recipe"] == recipe
    if recipe != "fine_tuning":
        assert chosen["data"] == data
        assert name in (chosen["model"], FAMILIES.get(chosen["model"]), chosen["task"])


def test_every_model_of_a_family_takes_its_recipe():
    assert {*FAMILIES.values()} == {"cifar_resnet", "cifar_resnet_deep", "cifar_sdresnet", "without_norm"}
    assert FAMILIES["plain20"] == FAMILIES["resnet56"] == "cifar_resnet"
    for model, family in FAMILIES.items():
        data = "image_folder" if family == "without_norm" else "cifar10"
        assert compose([f"model={model}", f"data={data}"]).chosen["recipe"] == f"{family}-on-{data}"


def test_the_recipe_of_a_pair_goes_before_that_of_the_family(tmp_path):
    write(tmp_path / "model/mine.yaml", "# @package _global_\n# Eight layers\ndefaults: [/model/base/cifar_resnet]\n"
                                        "model: {depth: 8}\n")
    words, folder = ["model=mine", "data=cifar10"], str(tmp_path)
    composed = compose(words, folder)
    assert composed.chosen["recipe"] == "cifar_resnet-on-cifar10"
    assert composed.config.trainer.max_steps == 64000
    assert composed.words == [*words, "recipe=cifar_resnet-on-cifar10"]
    assert compose([*words, "recipe=none"], folder).chosen["recipe"] == "none"
    assert compose(["model=mine", "data=svhn"], folder).chosen["recipe"] == "none"
    write(tmp_path / "recipe/mine-on-cifar10.yaml", "# @package _global_\n# Mine\ntrainer: {max_steps: 7}\n")
    own = compose(words, folder)
    assert own.chosen["recipe"] == "mine-on-cifar10"
    assert own.config.trainer.max_steps == 7


def test_papers_recipes_hold_the_papers_numbers():
    he = compose(["model=resnet56", "data=cifar10"]).config
    assert (he.trainer.max_steps, he.trainer.max_epochs, he.data.batch_size) == (64000, None, 128)
    assert (he.task.optimizer.lr, he.task.optimizer.momentum, he.task.optimizer.weight_decay) == (0.1, 0.9, 1e-4)
    assert [fraction * he.trainer.max_steps for fraction in he.task.schedule.milestones] == [32000, 48000]
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
    assert compose(["model=faster_rcnn_vgg16"]).config.task.freezing.until == "conv2"  # null in the task


# experiments


class ReadyToTrain(Exception):
    """Raised in the place of the first training of a comparison."""


@pytest.mark.parametrize("name", groups.names("experiment"))
def test_an_experiment_composes_by_the_command_in_its_header(name, tmp_path, monkeypatch):
    fields = ["Source", "Result", "Differs", "Run"]
    before, header = read_header(groups.CONFIGS / f"experiment/{name}.yaml", fields)
    assert [line for line in before if "?" in line] == before
    assert len(before) == 1
    assert [field for field, text in header.items() if text] == fields
    assert_result_is_honest(header)
    words = words_of(header["Run"])
    monkeypatch.chdir(tmp_path)
    if any(word.endswith("=outputs/cifar") for word in words):  # a run that the experiment starts from
        (tmp_path / "outputs/cifar/checkpoints").mkdir(parents=True)
        source = RunDir(tmp_path / "outputs/cifar")
        source.write_config(to_plain(compose(["data=cifar10"]).job_config()), {})
        source.best_checkpoint.touch()
    composed = compose(words)
    assert composed.chosen["experiment"] == name
    assert composed.is_sweep == (composed.experiment_sweep is not None)
    for key, values in (composed.experiment_sweep or {}).items():
        for value in values.split(","):
            job = compose([*words, f"{key}={value}"])
            assert str(job.chosen.get(key, OmegaConf.select(job.config, key))) == value
    if "study" in composed.config and composed.config.study._target_ == "dltrain.studies.comparison.study":
        assert_every_run_composes(composed.config.study, tmp_path, monkeypatch)


def assert_every_run_composes(node: DictConfig, folder: Path, monkeypatch) -> None:
    """Calls a comparison up to its first training: by then all runs, metrics and claims have been checked."""

    def refuse(*args: object) -> None:
        raise ReadyToTrain

    monkeypatch.setattr(comparison, "train_all", refuse)
    keys = {key: value for key, value in to_plain(node).items() if key != "_target_"}
    with pytest.raises(ReadyToTrain):
        comparison.study(StudyContext(folder, 0, None), **keys)


def test_yaml_is_read_as_omegaconf_reads_it(tmp_path):
    """Numbers, dates and text of a user's file, and all of dltrain's own."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("{a: 1e-5, b: 1E5, c: 2020-01-01, d: 1_000, e: .5, f: 0x10, g: yes, h: 1:30, i: ~, j: .inf}")
    for file in (mine, *groups.CONFIGS.rglob("*.yaml")):
        expected = OmegaConf.to_container(OmegaConf.load(file))
        folder = YamlFolder("test", str(file.parent))
        assert repr(OmegaConf.to_container(folder.load_config(file.stem).config)) == repr(expected), file


@pytest.mark.parametrize("word", ["output_dir=s3://bucket/runs", "data.root=gs://bucket/photos"])
def test_an_address_is_no_folder(word):
    with pytest.raises(UserError, match=rf"^{re.escape(word)}: must be a folder of a file system; mount the store"):
        compose(["model=resnet20", "data=image_folder", word])


def test_jobs_of_a_sweep_are_composed_as_if_each_were_alone():
    """Hydra notes in what it has read from the files which choices led there."""
    sources = Sources()
    for words in (["model=resnet20"], ["model=captioner"], ["model=char_rnn"], ["model=resnet20", "data=cifar10"],
                  ["model=resnet20", "seed=3"], ["model=captioner", "recipe=none"], ["model=resnet20"]):
        shared, alone = (compose(words, sources=kept) for kept in (sources, None))
        assert to_plain(shared.job_config()) == to_plain(alone.job_config())
        assert (shared.places, shared.words, shared.reasons) == (alone.places, alone.words, alone.reasons)


@pytest.mark.parametrize("word", ["task.class_weights={cat: 2}", "task.class_weights.cat=2"])
def test_names_of_classes_can_be_typed_into_a_mapping(word):
    config = compose(["model=resnet20", "data=digits", word]).config
    assert to_plain(config)["task"]["class_weights"] == {"cat": 2}
    with pytest.raises(UserError, match="unknown key"):
        compose(["model=seq2seq", "data=dates", word])


@pytest.mark.parametrize("word", ["task.class_weights=3", "task.class_weights=null"])
def test_a_mapping_is_not_replaced_by_a_value(word):
    with pytest.raises(UserError, match=f"^{re.escape(word)}: must be a mapping"):
        compose(["model=resnet20", "data=digits", word])


def test_of_two_wrong_values_the_one_that_was_typed_is_named():
    """The other one, model.hidden, is computed from it, and null where it has no entry."""
    with pytest.raises(UserError, match=r"^size=100: must be one of 64, 128, 256$"):
        compose(["experiment=cells_on_text", "data.root=x", "size=100"])
