"""dltrain diff: in what two runs differ, kind by kind, and where they part."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dltrain import run_parent
from dltrain.digests import digest
from dltrain.runs.parting import compare_losses, compare_readings
from tests.conftest import TINY

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = ["parent", "config", "choices", "code", "versions", "data", "metrics", "steps"]
EQUAL_STEPS = ["the first batch, as it is read, is equal", "the weights before the first step are equal",
               "the losses of the first 9 steps are equal", "readings at 3 steps, to step 9, are equal"]
Twin = Callable[..., Path]


@pytest.fixture
def twin(finished_run: Path) -> Twin:
    """twin("b") -> a copy of outputs/a, as outputs/b, with an edited file: twin("b", "config.yaml", old, new)."""

    def copy(name: str, file: str = "", old: str = "", new: str = "") -> Path:
        folder = Path(shutil.copytree(finished_run, finished_run.parent / name))
        if file:
            text = (folder / file).read_text()
            assert old in text
            (folder / file).write_text(text.replace(old, new, 1))
        return folder

    return copy


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def compare(dltrain, a: str = "outputs/a", b: str = "outputs/b") -> dict[str, list[str]]:
    """The lines of each kind."""
    code, out, err = dltrain("diff", a, b)
    assert (code, err) == (0, "")
    kinds: dict[str, list[str]] = {}
    for line in out.splitlines():
        if line[:1] != " ":
            kinds[line] = []
        elif kinds:
            kinds[list(kinds)[-1]].append(" ".join(line.split()))
    assert list(kinds) == KINDS
    return kinds


def differing(kinds: dict[str, list[str]]) -> set[str]:
    return {kind for kind, lines in kinds.items() if kind != "steps" and lines != ["none"]}


def test_a_copy_differs_in_nothing(twin, dltrain):
    twin("b")
    kinds = compare(dltrain)
    assert differing(kinds) == set()
    assert kinds["steps"] == EQUAL_STEPS


PLANTED = {
    "a value": ("config.yaml", "lr: 0.05 ", "lr: 0.1 ", "config", "task.optimizer.lr 0.05 0.1"),
    "a free key": ("config.yaml", "eval_batch_size: null", "eval_batch_size: 7", "config",
                   "trainer.eval_batch_size null 7 changes no weights"),
    "a key that is not there": ("config.yaml", "    nesterov: false", "    nesterov_: false", "config",
                                "task.optimizer.nesterov false -"),
    "a choice": ("config.yaml", "  recipe: none", "  recipe: mine", "choices", "recipe none mine"),
    "a class": ("config.yaml", "class_names: ['0', '1'", "class_names: ['0', 'one'", "data", "class names ['0', '1', "),
    "a version": ("environment.json", '"hydra": "', '"hydra": "9', "versions", "hydra "),
    "a commit": ("environment.json", '"git_commit": "', '"git_commit": "x', "code", "git commit "),
    "a file of dltrain": ("first_steps.json", '"dltrain/optim.py": "', '"dltrain/optim.py": "x', "code",
                          "differ: dltrain/optim.py"),
    "a split": ("splits.json", '"samples": 40', '"samples": 39', "data", "val 40 samples, digest"),
    "a metric": ("result.json", '"best_epoch": ', '"best_epoch": 1', "metrics", "best_epoch "),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_the_only_one(name, twin, dltrain):
    file, old, new, kind, line = PLANTED[name]
    twin("b", file, old, new)
    kinds = compare(dltrain)
    assert differing(kinds) == {kind}
    assert any(text.startswith(line) for text in kinds[kind])
    assert kinds["steps"] == EQUAL_STEPS


def test_the_difference_of_a_metric(twin, dltrain):
    edit_json(twin("b") / "result.json", lambda result: result.update({"test/accuracy": 0.5}))
    edit_json(twin("c") / "result.json", lambda result: result.update({"test/accuracy": 0.75}))
    assert compare(dltrain, "outputs/b", "outputs/c")["metrics"] == ["A B B - A", "test/accuracy 0.5 0.75 +0.25"]


def test_keys_that_change_no_weights_come_last(twin, dltrain):
    folder = twin("b", "config.yaml", "eval_batch_size: null", "eval_batch_size: 7")
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace("\nseed: 0", "\nseed: 5"))
    assert compare(dltrain)["config"] == ["A B", "seed 0 5", "trainer.eval_batch_size null 7 changes no weights"]


def test_own_code_and_samples_are_compared(twin, dltrain):
    for name, digit, lines in (("b", "1", ["cat.png\tc1\t0", "dog.png\td1\t1"]),
                               ("c", "2", ["cat.png\tc1\t1", "cow.png\te1\t2"])):
        folder = twin(name)
        (folder / "own_code.json").write_text(json.dumps({"net.py": digit * 64, "same.py": "0" * 64}))
        (folder / "samples.tsv").write_text("\n".join(["split\tname\tcontent\ttarget",
                                                       *(f"train\t{line}" for line in lines), ""]))
    kinds = compare(dltrain, "outputs/b", "outputs/c")
    assert kinds["code"] == ["A B", "own code: net.py 11111111 22222222"]
    assert kinds["data"] == ["from A to B: 1 relabelled in train (cat.png), 1 removed from train (dog.png), 1 added to "
                             "train (cow.png)"]
    assert compare(dltrain, "outputs/a", "outputs/b")["code"] == [
        "A B", "own code: net.py - 11111111", "own code: same.py - 00000000", "own code (own_code.json) not recorded "
        "in A"]


def test_readings_that_part_are_named(twin, dltrain):
    folder = twin("b")
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows[2]["train/loss"], rows[2]["images_per_second"] = "1.25", "7"
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    with open("outputs/a/metrics.csv", newline="") as file:
        loss = list(csv.DictReader(file))[2]["train/loss"]
    assert compare(dltrain)["steps"] == [
        *EQUAL_STEPS[:3], f"readings are equal to step 3; they part at step 6: train/loss {loss} against 1.25"]


def test_first_steps_that_part_are_named(twin, dltrain):
    folder = twin("b")
    losses = json.loads((folder / "first_steps.json").read_text())["losses"]
    edit_json(folder / "first_steps.json", lambda record: record["losses"].__setitem__(4, 1.25))
    edit_json(folder / "first_steps.json", lambda record: record["weights"].update({"0": digest({"a": 1})}))
    edit_json(folder / "first_steps.json", lambda record: record.update(batch="x"))
    assert compare(dltrain)["steps"][:3] == [
        "the first batch, as it is read, is another", "the weights before the first step differ",
        f"the first 4 losses are equal; losses part at step 5: {losses[4]:.6g} against 1.25"]


@pytest.mark.parametrize(("a", "b", "line"), [
    ([1.0, 2.0], [1.0, 2.0, 3.0], "the losses of the first 2 steps are equal"),
    ([1.0], [2.0], "losses part at step 1: 1 against 2"),
    ([1.0, float("nan")], [1.0, float("nan")], "the losses of the first 2 steps are equal"),
    ([1.0, 1.0], [1.0, 1.5], "the first loss is equal; losses part at step 2: 1 against 1.5")])
def test_losses(a, b, line):
    assert compare_losses(a, b) == [line]


@pytest.mark.parametrize(("a", "b", "line"), [
    ({5: {"x": "1"}, 10: {"x": "2"}}, {10: {"x": "2"}}, "readings at 1 step, to step 10, are equal"),
    ({5: {"x": "1"}, 10: {"x": "2"}}, {5: {"x": "1"}}, "readings at 1 step, to step 5, are equal; A has more"),
    ({5: {"x": "1"}}, {6: {"x": "1"}}, "no readings at the same step: the first are at 5 and 6"),
    ({5: {"x": "1", "y": "2"}}, {5: {"x": "3", "y": "4"}}, "readings part at step 5: x 1 against 3 and 1 more"),
    ({5: {"x": "1", "epoch": "2"}}, {5: {"z": "3", "epoch": "1"}}, "readings at 1 step, to step 5, are equal")])
def test_readings(a, b, line):
    assert compare_readings(a, b) == [line]


def test_a_fork_and_its_parent_part_where_it_begins(dltrain, without_figures):
    assert dltrain("name=a", *TINY, "trainer.keep_checkpoints.every_epochs=1")[0] == 0
    assert dltrain("fork", "run=outputs/a", "at=epoch:2", "task.optimizer.lr=0.01", "name=b")[0] == 0
    assert dltrain("fork", "run=outputs/a", "at=epoch:1", "seed=3", "name=c")[0] == 0
    kinds = compare(dltrain)
    assert kinds["parent"] == ["B begins after epoch 2, step 6 of outputs/a, with task.optimizer.lr=0.01",
                               "the same up to epoch 2, step 6 of A, where they part"]
    assert kinds["config"] == ["A B", "task.optimizer.lr 0.05 0.01"]
    assert kinds["steps"][0] == "first steps (first_steps.json) not recorded in B"
    assert kinds["steps"][1].startswith("readings are equal to step 6; they part at step 9: ")
    kinds = compare(dltrain, "outputs/c", "outputs/b")
    assert kinds["parent"][2] == "the same up to epoch 1, step 3 of outputs/a, where they part"
    assert kinds["steps"][1].startswith("readings are equal to step 3; they part at step 6: ")


def test_relatives_further_away(twin, dltrain):
    for name in "bcd":
        twin(name)
    for name, parent, epoch in (("b", "a", 2), ("c", "b", 3), ("d", "a", 1)):
        run_parent.write(Path("outputs", name), run_parent.Parent(f"../{parent}", epoch, 3 * epoch, {}))
    assert compare(dltrain, "outputs/c", "outputs/a")["parent"][-1] == (
        "the same up to epoch 2, step 6 of B, where they part")
    assert compare(dltrain, "outputs/c", "outputs/d")["parent"][-1] == (
        "the same up to epoch 1, step 3 of outputs/a, where they part")
    run_parent.write(Path("outputs/d"), run_parent.Parent("../elsewhere", 1, 3, {}))
    assert compare(dltrain, "outputs/c", "outputs/d")["parent"][-1] == "they have no run in common"
    run_parent.write(Path("outputs/a"), run_parent.Parent("../b", 1, 3, {}))  # in a circle
    assert len(compare(dltrain, "outputs/c", "outputs/d")["parent"]) == 3


def test_what_an_earlier_version_did_not_keep_is_not_recorded(twin, dltrain):
    shutil.copytree(FIXTURES / "digits_0.2", "outputs/b")
    kinds = compare(dltrain)
    assert kinds["code"][-2:] == ["git commit not recorded in B", "digests of the code (first_steps.json) not recorded "
                                  "in B"]
    assert kinds["versions"] == ["environment.json not recorded in B"]
    assert "digests of the splits not recorded in B" in kinds["data"]
    assert kinds["metrics"] == ["not recorded in B: no result.json, the run is not done"]
    assert "trainer.as_one true false" in kinds["config"], "what runs did before they had the key"
    assert "trainer.compile_mode default -" in kinds["config"]
    assert not any(line.startswith("trainer.callbacks") for line in kinds["config"]), "none and no key are the same"


def test_a_damaged_file_costs_its_own_kind(twin, dltrain):
    folder = twin("b")
    (folder / "environment.json").write_text("{")
    (folder / "first_steps.json").write_text("[]")
    (folder / "metrics.csv").write_text("x")
    kinds = compare(dltrain)
    assert kinds["versions"][0].startswith("cannot be read: outputs/b/environment.json: damaged (not JSON")
    assert kinds["steps"][0].startswith("cannot be read: outputs/b/first_steps.json: damaged")
    assert kinds["metrics"] == ["none"]


@pytest.mark.parametrize(("words", "message"), [
    (["outputs/a"], "diff takes the folders of two runs, as in dltrain diff outputs/a outputs/b"),
    (["outputs/aa", "outputs/a"], "outputs/aa: not a run folder (there is no such folder); did you mean 'outputs/a'?"),
    (["outputs", "outputs/a"], "outputs: not a run folder (it has no config.yaml)"),
    (["outputs/s", "outputs/a"], "outputs/s is a sweep; name one of its jobs, as outputs/s/job")])
def test_a_folder_that_is_no_run_is_one_line(words, message, twin, dltrain):
    (twin("s/job") / "overrides.txt").write_text("seed=1\n")
    code, out, err = dltrain("diff", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
