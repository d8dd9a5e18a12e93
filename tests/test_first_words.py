"""The first words that people try: short forms of keys, names without their group, help, names of runs."""

import re

import pytest

from dltrain.commands.stored import parse_value
from dltrain.config import schema
from dltrain.config.compose import compose
from dltrain.config.renamed import SHORT_FORMS
from dltrain.config.words import expand, name_choices
from dltrain.errors import UserError

SMOKE = ["trainer=smoke", "model.depth=8"]


def test_short_forms_are_stored_under_the_full_key(dltrain, tmp_path):
    code, _, err = dltrain("lr=0.1", "epochs=2", "steps=7", "batch=64", "device=cpu", "name=s", *SMOKE)
    assert (code, err) == (0, "")
    text = (tmp_path / "outputs/s/config.yaml").read_text()
    for line in ("lr: 0.1 ", "max_epochs: 2 ", "max_steps: 7 ", "batch_size: 64 ", "accelerator: cpu "):
        assert line in text
    assert dltrain("eval", "run=outputs/s", "batch=8", "device=cpu")[0] == 0
    code, out, _ = dltrain("resume=outputs/s")
    assert code == 0
    assert "outputs/s is finished" in out


def test_every_short_form_is_a_key_and_can_be_swept():
    keys = compose(["data=image_folder"]).job_config()
    for short, full in SHORT_FORMS.items():
        group, *path = full.split(".")
        node = keys[group]
        for key in path:
            assert key in node, short
            node = node[key]
    composed = compose(["lr=0.1,0.2"], multirun=True)
    assert composed.words[0] == "task.optimizer.lr=0.1,0.2"


@pytest.mark.parametrize(("words", "message"), [
    (["resnet20"], "cannot read 'resnet20'; did you mean 'dltrain model=resnet20'?"),
    (["train", "resnet20", "cifar10"], "cannot read 'resnet20 cifar10'; did you mean 'dltrain model=resnet20 "
                                       "data=cifar10'?"),
    (["train", "resnet56", "lr=0.1"], "did you mean 'dltrain model=resnet56 task.optimizer.lr=0.1'?"),
    (["train", "resnet20", "cifar11"], "cannot read 'cifar11': a word is key=value, as in model=resnet56"),
    (["restnet20"], "unknown command 'restnet20'; did you mean 'model=resnet20'?"),
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["xyzzy"], "unknown command 'xyzzy'; there are: train, resume,"),
    (["name=../x"], "name='../x': must stay below output_dir"),
    (["name=a/../../x"], "must stay below output_dir"),
    (["workers=4"], "workers= is data.num_workers=, which this data does not have; leave it out"),
    (["device=cuda"], "trainer.accelerator='cuda': must be one of auto, cpu, gpu, mps"),
])
def test_a_first_try_is_answered(words, message, dltrain, tmp_path):
    code, out, err = dltrain(*words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_null_chooses_no_experiment_and_no_recipe():
    assert expand(["experiment=null", "recipe=null", "seed=3"]) == ["recipe=none", "seed=3"]
    assert compose(["experiment=null", "recipe=null"]).chosen["recipe"] == "none"


def test_names_are_guessed_in_an_order_and_each_group_once():
    assert name_choices(["digits"]) == ["data=digits"]
    assert name_choices(["digits", "digits"]) == ["data=digits", "augment=digits"]
    assert name_choices(["memory", "nothing"]) == ["experiment=memory"]


def test_text_that_is_not_ascii_is_quoted_unless_it_is_more_than_text(dltrain, tmp_path):
    assert expand(["name=é", "data.root=/home/zoë/x", "a=[é]", "b='é'", "c=é,f"]) == [
        "name='é'", "data.root='/home/zoë/x'", "a=[é]", "b='é'", "c=é,f"]
    code, _, err = dltrain("name=é", *SMOKE)
    assert (code, err) == (0, "")
    assert (tmp_path / "outputs/é/result.json").is_file()


def test_the_next_command_is_quoted(dltrain, tmp_path):
    code, out, _ = dltrain("output_dir='my runs'", "name=a", *SMOKE)
    assert code == 0
    assert "next: dltrain predict run='my runs/a' input='my runs/a'/samples\n" in out
    assert "tensorboard --logdir 'my runs'\n" in out


def test_help_comes_as_a_verb_too(dltrain):
    overview = dltrain("help")[1]
    assert overview == dltrain("--help")[1]
    assert "lr= is task.optimizer.lr=" in " ".join(overview.split())
    assert dltrain("help", "predict")[1] == dltrain("predict", "--help")[1]
    key = dltrain("help", "task.optimizer.lr", "model=resnet56", "data=cifar10")
    there = dltrain("why", "lr", "model=resnet56", "data=cifar10")[1]
    assert (key[0], key[1]) == (0, dltrain("help", "lr")[1] + "\n" + there)
    assert re.match(r"task.optimizer.lr = 0.1\n  set by \S*configs/recipe/\S+:\d+", there)
    with pytest.raises(UserError, match="unknown key"):
        compose(["lrr=1"])


@pytest.mark.parametrize("path", ["~/notes.txt", "données.txt", "a(1).txt", "a#b.txt", "x=y.txt", "a-b_c.d", "(1)/x"])
def test_paths_are_read_as_they_are_typed(path):
    assert compose(["model=char_rnn", "data=text", f"data.root={path}"]).config.data.root == path


def test_home_is_known_to_every_key_that_takes_a_folder(dltrain, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dltrain("name=first", *SMOKE)[0] == 0
    for words in (["predict", "run=~/outputs/first", "input=~/outputs/first/samples"],
                  ["eval", "run=~/outputs/first"], ["resume", "run=~/outputs/first"],
                  ["model.pretrained.from_run=~/outputs/first", "name=second", *SMOKE]):
        assert dltrain(*words)[0] == 0, words


def test_file_that_was_edited_is_read_anew(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 1e-3  # float > 0: the peak\n")
    schema.assignments(file).clear()  # changes nothing for the next reader
    assert schema.assignments(file, "task") == {"task.lr": schema.Assignment(1, 0.001, "float > 0: the peak")}
    file.write_text("\nlr: 2\n")
    assert schema.assignments(file, "task") == {"task.lr": schema.Assignment(2, 2, "")}


@pytest.mark.parametrize(("text", "value"), [("1e-1", 0.1), ("1e2", 100.0), ("2E+1", 20.0), ("0.5", 0.5)])
def test_numbers_are_read_by_every_verb_as_by_training(text, value, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("# @package _global_\n# Mine\ndefaults: [/model/resnet20]\nmodel:\n"
                                              f"  survival: {text}\n  other: {text}\n")
    assert compose([f"lr={text}"]).config.task.optimizer.lr == value
    assert schema.assignments(tmp_path / "model/mine.yaml")["model.other"].value == value
    assert schema.rule_from_default(schema.assignments(tmp_path / "model/mine.yaml")["model.other"].value) == "float"
    assert parse_value("score", text, "float > 0") == value
