"""dltrain ls runs: what it says of each run, which runs, in which order, and how wide."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from statistics import mean, stdev

import pytest
from rich.cells import cell_len

from dltrain import run_lock, run_parent, run_pause, stored_files
from dltrain.runs import reading, states
from dltrain.runs.layout import Column, fit, in_encoding
from tests.conftest import TINY

FIXTURES = Path(__file__).parent / "fixtures"
TEXTS = ("config.yaml", "result.json", "metrics.csv", "command.txt", "log.txt", "splits.json")
Make = Callable[..., Path]


@pytest.fixture
def make(tiny_run: Path, dltrain) -> Make:
    """make("b", lr=0.1, result={"test/accuracy": 0.9}) -> outputs/b: the files of a finished run that are texts, with
    other values; result=None for one that is not done. The current folder is a new one."""

    def create(name: str, *, result: dict[str, object] | None = {}, **values: object) -> Path:  # noqa: B006
        folder = Path("outputs", name)
        folder.mkdir(parents=True)
        for file in TEXTS:
            shutil.copy(tiny_run / file, folder / file)
        text = (folder / "config.yaml").read_text()
        for key, value in {"name": name, **values}.items():
            indent = "" if key in ("name", "seed") else " +"
            text, count = re.subn(rf"(?m)^({indent}{key}: )[^ \n]+", rf"\g<1>{value}", text, count=1)
            assert count, key
        (folder / "config.yaml").write_text(text)
        if result is None:
            (folder / "result.json").unlink()
        else:
            stored = json.loads((folder / "result.json").read_text())
            (folder / "result.json").write_text(json.dumps({**stored, **result}))
        return folder

    return create


def listed(dltrain, *words: str) -> list[str]:
    """The lines of the table but the first, and of the summary."""
    code, out, err = dltrain("ls", "runs", *words)
    assert (code, err) == (0, "")
    return out.splitlines()[1:]


def names(dltrain, *words: str) -> list[str]:
    """The folders in the order of the table."""
    return [match[1] for line in listed(dltrain, *words) if (match := re.match(r"[ ├└│]+outputs/(\S+)", line))]


def column(dltrain, title: str, *words: str) -> dict[str, str]:
    """The cells of a column by the name of the run; its right end is that of the title."""
    code, out, _ = dltrain("ls", "runs", *words)
    assert code == 0
    header, *lines = [line for line in out.splitlines() if line.startswith("  ")]
    end = header.index(title) + len(title)
    cells = {line.split("outputs/")[1].split()[0]: line[:end].split("  ")[-1].strip() for line in lines}
    return {name: cell for name, cell in cells.items() if cell}


# states


def diverge(folder: Path) -> None:
    (folder / "error.txt").write_text("loss is nan at step 7 with lr 9; try a smaller one\n\nTraceback (most recent "
                                      "call last):\n  File ...\ndltrain.errors.DivergedError: loss is nan at step 7\n")


def diverge_in_a_rank(folder: Path) -> None:
    (folder / "error.txt").write_text("rank 1: weights are not finite at step 7; try a smaller rate\n\nTraceback (most "
                                      "recent call last):\ndltrain.processes.RankError: rank 1: weights are not\n")


def fail(folder: Path) -> None:
    (folder / "error.txt").write_text("KeyError: 'x'\n\nTraceback (most recent call last):\n  loss is nan\nKeyError\n")


def fail_before_the_last_start(folder: Path) -> None:
    fail(folder)
    hour_ago = time.time() - 3600
    os.utime(folder / "error.txt", (hour_ago, hour_ago))
    with open(folder / "command.txt", "a") as file:
        file.write(f"{datetime.now().isoformat(timespec='seconds')}  dltrain resume\n")


def pause(folder: Path, pruned: bool = False) -> None:
    run_pause.write(folder, run_pause.Paused(2, 27, 6, pruned, "val/accuracy", "max", 0.4321))


def prune(folder: Path) -> None:
    pause(folder, pruned=True)


def damage(folder: Path) -> None:
    (folder / "config.yaml").write_text("task: [\n")


def leave(folder: Path) -> None:
    pass


PLANTED = {"stopped": (leave, "stopped at epoch 3 of 3"), "diverged": (diverge, "diverged at epoch 3 of 3"),
           "diverged in a process": (diverge_in_a_rank, "diverged at epoch 3 of 3"),
           "failed": (fail, "failed at epoch 3 of 3"), "paused": (pause, "paused at epoch 2 of 27"),
           "failed and started again": (fail_before_the_last_start, "stopped at epoch 3 of 3"),
           "pruned": (prune, "pruned at epoch 2 of 27"), "damaged": (damage, "cannot be read")}


@pytest.mark.parametrize("name", PLANTED)
def test_the_state_is_that_of_the_folder(name, make, dltrain):
    plant, text = PLANTED[name]
    plant(make("a", result=None))
    make("b", lr=0.1)
    lines = listed(dltrain)
    assert re.match(rf"  outputs/a +(sdresnet56 on digits|\?) +{text}(  |$)", lines[0])
    assert re.match(r"  outputs/b +sdresnet56 on digits +done  ", lines[1])
    state = text.partition(" at ")[0].replace("cannot be read", "unreadable")
    assert names(dltrain, f"state={state}") == ["a"]
    assert names(dltrain, "state!=done", f"state!={state}") == []


def test_the_errors_stand_below(make, dltrain):
    fail(make("a", result=None))
    diverge(make("b", result=None))
    damage(make("c"))
    text = "\n".join(listed(dltrain))
    assert "\noutputs/a failed: KeyError: 'x'\noutputs/b diverged: loss is nan at step 7 with lr 9; try a" in text
    assert "\noutputs/c/config.yaml: damaged (" in text
    assert text.endswith("3 runs: 1 diverged, 1 failed, 1 unreadable")


def test_a_run_that_really_diverges_is_listed_so(dltrain, without_figures):
    assert dltrain("name=a", *TINY, "task.optimizer.lr=1e30")[0] == 5
    assert "diverged" in listed(dltrain)[0]


def test_a_finished_run_is_done_whatever_an_evaluation_left(make, dltrain):
    fail(make("a"))
    assert "  done  " in listed(dltrain)[0]


@pytest.fixture
def live(make) -> Iterator[Path]:
    """outputs/a, whose lock another process has."""
    folder = make("a", result=None)
    code = ("import sys, time; from pathlib import Path; from dltrain.run_lock import locked\n"
            "with locked(Path(sys.argv[1])):\n    print('locked', flush=True); time.sleep(100)")
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield folder
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_live_run_is_running_and_is_left_alone(live, dltrain, monkeypatch):
    diverge(live)  # of an earlier start
    before = {file: file.stat() for file in [live, *live.iterdir()]}
    monkeypatch.setattr(run_lock.fcntl, "lockf", lambda *_: pytest.fail("took the lock"))
    assert "running at epoch 3 of 3" in listed(dltrain)[0]
    after = {file: file.stat() for file in [live, *live.iterdir()]}
    assert {file: (stat.st_size, stat.st_mtime_ns) for file, stat in before.items()} == {
        file: (stat.st_size, stat.st_mtime_ns) for file, stat in after.items()}


def test_a_killed_run_is_stopped(live, dltrain):
    (live / ".lock").write_text(f"process 1 on {os.uname().nodename}\nbegun at 5\n")  # the lock is still taken
    assert "running" in listed(dltrain)[0]
    shutil.copytree(live, "outputs/killed")  # with the record, without the lock
    assert re.match(r"  outputs/killed .* stopped at epoch 3 of 3", listed(dltrain, "killed")[0])


# progress


@pytest.mark.parametrize(("limits", "log", "text"), [
    ({"max_epochs": "null", "target_steps": 900}, "resuming", "stopped at epoch 3"),
    ({"max_epochs": "null", "target_steps": 900}, "dltrain: 1,257 train; 9,000 steps in 1,800 epochs on cpu",
     "stopped at epoch 3 of 1800"),
    ({"max_steps": 4}, "dltrain: 4 steps in 2 epochs on cpu", "stopped at epoch 3 of 2"),
    ({"max_epochs": 12}, "9 steps in 3 epochs", "stopped at epoch 3 of 12"),
    ({"max_steps": 400}, "begins after epoch 3, step 9 of outputs/k; 10 more steps, to epoch 7; learning rate",
     "stopped at epoch 3 of 7")])
def test_the_length_is_that_of_the_config_or_of_the_log(limits, log, text, make, dltrain):
    folder = make("a", result=None, **limits)
    (folder / "log.txt").write_text(f"2026-11-27 02:23:42 {log}\n")
    assert re.search(rf"{text}(\n|  |$)", listed(dltrain)[0])


def test_no_reading_is_no_epoch_and_half_a_row_is_none(make, dltrain):
    folder = make("a", result=None)
    with open(folder / "metrics.csv", "a") as file:
        file.write("100,9")
    assert "stopped at epoch 3 of 3" in listed(dltrain)[0]
    (folder / "metrics.csv").unlink()
    assert re.search(r"stopped(  |$)", listed(dltrain)[0])


def test_a_run_that_is_not_done_has_its_best_reading(make, dltrain):
    """Of the metric that is the headline of another run of the same task."""
    make("a", result={"val/accuracy": 0.99})
    folder = make("b", result=None, lr=0.1)
    with open(folder / "metrics.csv", newline="") as file:
        best = max(float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"])
    assert column(dltrain, "val/accuracy") == {"a": "0.9900", "b": f"{best:.4f}"}
    assert states.best_reading(folder, "val/accuracy", "max") == best


# seeds


def test_jobs_that_differ_in_the_seed_alone_are_one_line(make, dltrain):
    accuracies = [0.91, 0.94, 0.90]
    for seed, accuracy in enumerate(accuracies):
        make(f"lr0.05_seed{seed}", seed=seed,
             result={"test/accuracy": accuracy, "val/accuracy": accuracy / 2, "seconds": 60 + seed})
    make("lr0.1_seed0", lr=0.1, result={"test/accuracy": 0.5})
    first, second, total = listed(dltrain)
    assert first.startswith("  outputs/lr0.05_seed0 +2  ")
    assert f"3 seeds  {mean(accuracies):.4f} ± {stdev(accuracies):.4f}" in first
    halves = [accuracy / 2 for accuracy in accuracies]
    assert f"{mean(halves):.4f} ± {stdev(halves):.4f}  1:01 min" in first
    assert re.match(r"  outputs/lr0.1_seed0 .* 0\.1 +0 +0\.5000", second)
    assert total == "4 runs: 4 done"
    assert len(names(dltrain, "seeds=each")) == 4


@pytest.mark.parametrize("change", ["lr", "not done", "same seed", "other folder", "has a child", "model"])
def test_other_runs_are_not_joined(change, make, dltrain):
    make("s/0", seed=0)
    folder = make("t/1" if change == "other folder" else "s/1", seed=0 if change == "same seed" else 1,
                  lr=0.3 if change == "lr" else 0.05, result=None if change == "not done" else {})
    if change == "has a child":
        run_parent.write(make("c", seed=1), run_parent.Parent("../s/1", 2, 6, {}))
    if change == "model":
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("model: sdresnet56", "model: mine"))
    assert len(names(dltrain)) == (3 if change == "has a child" else 2)


def test_free_keys_and_their_absence_do_not_keep_jobs_apart(make, dltrain):
    make("s/0", seed=0)
    folder = make("s/1", seed=1, checkpoint_every_minutes=9)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(re.sub(r"(?m)^ +(extended|callbacks|nodes): .*\n", "", text))
    assert listed(dltrain)[0].startswith("  outputs/s/0 +1  ")


# tree


@pytest.fixture
def family(make) -> None:
    """c is the parent of b and d, d that of a."""
    values = {"c": (0.05, 0.5), "d": (0.01, 0.7), "b": (0.02, 0.9), "a": (0.04, 0.6), "z": (0.3, 0.1)}
    for name, (lr, accuracy) in values.items():
        make(name, lr=lr, result={"test/accuracy": accuracy, "seconds": 100 * accuracy})
    for name, parent, epoch in (("b", "c", 1), ("d", "c", 2), ("a", "d", 3)):
        run_parent.write(Path("outputs", name), run_parent.Parent(f"../{parent}", epoch, 3 * epoch, {}))


def test_runs_stand_below_their_parents(family, dltrain):
    lines = listed(dltrain)
    assert [line.partition("  sd")[0].rstrip() for line in lines[:5]] == [
        "  outputs/c", "  ├ outputs/b", "  └ outputs/d", "    └ outputs/a", "  outputs/z"]
    assert [line.rpartition("  ")[2] for line in lines[1:4]] == ["epoch 1", "epoch 2", "epoch 3"]


def test_a_parent_that_is_not_listed_is_named(family, dltrain):
    lines = listed(dltrain, "test/accuracy>=0.6")
    assert [line[:14].rstrip() for line in lines[:3]] == ["  outputs/b", "  outputs/d", "  └ outputs/a"]
    assert lines[0].endswith("  epoch 1 of outputs/c")


def test_runs_that_are_their_own_ancestors_are_listed(family, dltrain):
    run_parent.write(Path("outputs/c"), run_parent.Parent("../a", 1, 3, {}))
    run_parent.write(Path("outputs/z"), run_parent.Parent("../z", 1, 3, {}))
    assert sorted(names(dltrain)) == ["a", "b", "c", "d", "z"]


# order


@pytest.mark.parametrize(("words", "expected"), [
    (["sort=test/accuracy"], "bdacz"), (["sort=-test/accuracy"], "zcadb"), (["sort=lr"], "dbacz"),
    (["sort=-lr"], "zcabd"), (["sort=time"], "zcadb"), (["sort=name"], "cbdaz"), (["sort=-name"], "zcdab")])
def test_the_order(words, expected, family, dltrain):
    assert "".join(names(dltrain, *words)) == expected


def test_a_metric_that_is_best_where_it_is_smallest(make, dltrain):
    for name, error in (("a", 0.2), ("b", 0.1), ("c", 0.3)):
        make(name, lr=error, result={"headline": "val/error", "headline_mode": "min", "val/error": error,
                                     "test/error": error})
    make("none", result=None)
    assert names(dltrain, "sort=test/error") == ["b", "a", "c", "none"]
    assert names(dltrain, "sort=-test/error") == ["c", "a", "b", "none"]
    assert names(dltrain, "sort=val/error") == ["b", "a", "c", "none"]


def test_names_are_in_the_order_of_their_numbers(make, dltrain):
    for name in ("lr0.1", "lr0.05", "lr0.1_seed10", "lr0.1_seed9", "resnet110", "resnet20", "1²2"):
        make(name, lr=len(name) / 100, seed=len(name))
    assert names(dltrain) == ["1²2", "lr0.05", "lr0.1", "lr0.1_seed9", "lr0.1_seed10", "resnet20", "resnet110"]


# conditions


@pytest.fixture
def several(make) -> None:
    make("a1", lr=0.1, result={"test/accuracy": 0.8, "seconds": 30})
    make("a2", lr=0.01, depth=14, result={"test/accuracy": 0.9, "seconds": 90})
    make("b1", lr=0.001, batch_size=64, result=None)


@pytest.mark.parametrize(("words", "expected"), [
    (["a*"], "a1 a2"), (["?1"], "a1 b1"), (["a1"], "a1"), (["state=done"], "a1 a2"),
    (["state=done,stopped"], "a1 a2 b1"),
    (["lr=0.1"], "a1"), (["task.optimizer.lr=1e-1"], "a1"), (["lr<0.1"], "a2 b1"), (["lr<=0.1", "lr>0.001"], "a1 a2"),
    (["lr!=0.1"], "a2 b1"), (["batch=64"], "b1"), (["batch_size=64"], "b1"), (["depth>=14"], "a2"),
    (["model.depth=14,9"], "a2"), (["test/accuracy>0.85"], "a2"), (["test/accuracy>0"], "a1 a2"), (["time<60"], "a1"),
    (["model=sdresnet56", "data=digits"], "a1 a2 b1"), (["model=resnet20"], ""), (["name=a2"], "a2"),
    (["trainer.compile=false", "trainer.max_steps=null", "b*"], "b1"), (["nesterov=False"], "")])
def test_conditions(words, expected, several, dltrain):
    assert " ".join(names(dltrain, *words)) == expected
    assert " ".join(names(dltrain, "outputs", *words)) == expected


def test_no_run_that_fulfils_them(several, dltrain):
    assert dltrain("ls", "runs", "1")[1] == ("  none of the 3 runs below outputs fulfils 1; '*1*' matches a folder "
                                             "that has it in its name\n")
    assert dltrain("ls", "runs", "nothing/here")[1] == "  no runs below nothing/here; `dltrain` makes one\n"


@pytest.mark.parametrize(("word", "message"), [
    ("lrr=0.1", "ls runs: unknown key 'lrr'; did you mean 'lr'?"),
    ("sort=test/acuracy", "unknown key 'test/acuracy'; did you mean 'test/accuracy'?"),
    ("state=finished", "state=finished: unknown state 'finished'; there are: done, running"),
    ("state=runing", "unknown state 'runing'; did you mean 'running'?"),
    ("lr<x", "'lr<x': must be a number after <"), ("seeds=all", "ls runs: seeds=all: must be one of joined, each"),
    ("num_classes=10", "'num_classes' may be data.num_classes or model.num_classes or task.num_classes; write one"),
    ("json=2", "ls runs: json=2: must be true or false"),
    ("task.transfer.statistics=x", "it is now task.freezing.batch_norm=frozen")])
def test_words_that_mean_nothing_are_refused(word, message, several, dltrain):
    code, out, err = dltrain("ls", "runs", word)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


# columns


def test_the_columns_are_the_values_that_differ(make, dltrain):
    make("a", lr=0.1, weight_decay=0.01)
    make("b", lr=0.2, weight_decay=0.01, checkpoint_every_minutes=9)
    (header, *_), out = dltrain("ls", "runs")[1].splitlines(), dltrain("ls", "runs", "sort=test/loss")[1]
    assert header.split() == ["run", "model", "on", "data", "state", "lr", "test/accuracy", "val/accuracy", "time"]
    assert "test/loss" in out
    assert "weight_decay" in dltrain("ls", "runs", "weight_decay>0")[1]


def test_what_a_choice_determines_is_not_repeated(dltrain, without_figures):
    for name, augment in (("a", "none"), ("b", "digits")):
        assert dltrain(f"name={name}", *TINY, f"augment={augment}", "trainer.max_epochs=1")[0] == 0
    header = dltrain("ls", "runs")[1].splitlines()[0]
    assert header.split() == ["run", "model", "on", "data", "state", "augment", "test/accuracy", "val/accuracy", "time"]


def test_runs_of_earlier_versions_are_listed(make, dltrain):
    make("a")
    for name in ("digits_0.2", "text_0.2"):
        shutil.copytree(FIXTURES / name, Path("outputs", name))
    assert names(dltrain) == ["a", "digits_0.2", "text_0.2"]
    assert "tiny_mlp on digits" in "".join(listed(dltrain, "digits*"))


@pytest.mark.parametrize("width", [40, 60, 80, 120, 300])
def test_the_table_fits_the_terminal(width, make, dltrain, monkeypatch):
    for number in range(3):
        make(f"a_long_name_of_a_sweep/lr{number}_weight_decay0.001_of_a_long_name_seed{number}", seed=number,
             lr=0.1 * (number + 1), weight_decay=0.01 * number, batch_size=32 * (number + 1), momentum=0.1 * number)
    fail(make("b", result=None, lr=0.7))
    run_parent.write(Path("outputs/b"), run_parent.Parent("../c", 1, 3, {}))
    whole = dltrain("ls", "runs")[1]
    monkeypatch.setattr("dltrain.runs.listing.terminal_width", lambda: width)
    out = dltrain("ls", "runs")[1]
    assert max(cell_len(line) for line in out.splitlines()) <= width
    assert [line.split()[1] for line in whole.splitlines()[1:4]] == ["sdresnet56"] * 3
    assert "test/accuracy" in out or width < 60
    assert "seed0" in out
    assert "seed2" in out
    assert ("left out for the width" in out) == (width < 300)
    assert out == whole or width < 300


def test_columns_are_shortened_before_they_are_left_out():
    columns = [Column("run", ["outputs/a_run_of_a_long_name", "b"], 0, is_path=True),
               Column("state", ["stopped at epoch 3 of 9", "done"], 5, short=["stopped 3/9", "done"]),
               Column("lr", ["0.1", "0.25"], 20, right=True), Column("empty", ["", ""], 1)]
    assert fit(columns, 80).lines == ["  run                           state                      lr",
                                      "  outputs/a_run_of_a_long_name  stopped at epoch 3 of 9   0.1",
                                      "  b                             done                     0.25"]
    assert fit(columns, 50).lines[1] == "  outputs/a_run_of_a_long_name  stopped 3/9   0.1"
    assert fit(columns, 45).lines[1] == "  …/a_run_of_a_long_name  stopped 3/9   0.1"
    assert fit(columns, 38).left_out == ["lr"]
    assert fit(columns, 15).lines[1] == "  outputs/a_ru…"


def test_an_encoding_without_the_signs_has_plain_ones():
    assert in_encoding("├ a  0.5 ± 0.1\n└ …/b é", "ascii") == "| a  0.5 +-0.1\n` ~/b \\xe9"
    assert in_encoding("├ a  0.5 ± 0.1", "utf-8") == "├ a  0.5 ± 0.1"


def test_a_config_that_lacks_a_node_is_damaged(make, dltrain):
    file = make("a") / "config.yaml"
    file.write_text(file.read_text().replace("\nchoices:", "\nchoices_:"))
    assert "outputs/a/config.yaml: it has no key 'choices'; restore it" in "\n".join(listed(dltrain))


def test_checkpoints_without_a_config_are_named(make, dltrain):
    make("a")
    Path("outputs/b/checkpoints").mkdir(parents=True)
    assert "outputs/b: it has checkpoints, but no config.yaml; restore it" in "\n".join(listed(dltrain))


# other programs


def test_rows_for_other_programs(several, dltrain):
    rows = json.loads(dltrain("ls", "runs", "json=true", "sort=test/accuracy")[1])
    assert [row["run"] for row in rows] == ["outputs/a2", "outputs/a1", "outputs/b1"]
    assert (rows[0]["test/accuracy"], rows[0]["seconds"], rows[0]["task.optimizer.lr"]) == (0.9, 90, "0.01")
    assert (rows[2]["state"], rows[2]["epoch"], rows[2]["epochs"], rows[2]["test/accuracy"]) == ("stopped", 3, 3, None)
    assert dltrain("ls", "runs", "csv=runs.csv", "a*")[1] == "runs.csv: 2 runs\n"
    with open("runs.csv", newline="") as file:
        assert [(row["run"], row["test/accuracy"]) for row in csv.DictReader(file)] == [("outputs/a1", "0.8"),
                                                                                       ("outputs/a2", "0.9")]


def test_configs_that_differ_in_plain_values_are_read_once_in_full(make, monkeypatch):
    for number in range(5):
        make(f"r{number}", lr=0.1 * (number + 1))
    calls, read = [], stored_files.read_config

    def count(folder: Path) -> dict[str, object]:
        calls.append(folder)
        return read(folder)

    monkeypatch.setattr(stored_files, "read_config", count)
    assert len(reading.read_runs(Path("outputs"))) == 5
    assert calls == [Path("outputs/r0")]
