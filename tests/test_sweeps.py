"""A sweep is a set of configs: the same command does what is missing, in folders that are named by what varies."""

import csv
import json
import math
import os
import random
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dltrain import repeats
from dltrain.config.compose import compose, to_plain
from dltrain.drawing.tables import format_values
from dltrain.errors import CheckpointError, UserError
from dltrain.runs.lines import describe_values
from dltrain.sweeps import jobs
from dltrain.sweeps.finish import finish
from tests.tiny import FewDigits

WORDS = ("model.depth=8", "trainer=smoke", "recipe=none")


def rows_of(folder: Path, name: str = "results.csv") -> list[dict[str, str]]:
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def id_of(*words: str) -> str:
    return jobs.job_id(to_plain(compose([*words]).config))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_an_id_is_that_of_what_changes_the_weights():
    assert id_of("seed=3") == id_of("seed=3", "name=x", "trainer.log_every_n_steps=7",
                                    "output_dir=elsewhere", "trainer.checkpoint_every_steps=9")
    assert id_of("lr=1") == id_of("lr=1.0")
    others = ("seed=4", "lr=0.123", "data.batch_size=64", "trainer.max_epochs=3", "augment=none", "model.depth=14",
              "trainer.accumulate_batches=2", "trainer.average=ema")
    ids = [id_of("recipe=none"), *(id_of("recipe=none", word) for word in others)]
    assert [ids.count(id_) for id_ in ids] == [1] * len(ids)


@pytest.mark.parametrize(("words", "swept", "label"), [
    ({"model": "resnet20", "task.optimizer.lr": "0.1", "seed": "3"}, ["model", "task.optimizer.lr", "seed"],
     "resnet20_lr0.1_seed3"),
    ({"data.root": "/photos/a b", "seed": "1"}, ["data.root"], "rootphotos-a-b"),
    ({"model.px": "1", "data.px": "2"}, ["model.px", "data.px"], "model-px1_data-px2"),
    ({"augment.on_pixels": "[{_target_: a:b, p: 1}]"}, ["augment.on_pixels"], "on_pixels_target_-a-b-p-1"),
    ({"seed": "1"}, [], "")])
def test_a_folder_is_named_by_what_varies(words, swept, label):
    assert jobs.label(words, swept) == label


def test_other_values_are_added_in_any_order(dltrain):
    assert dltrain("-m", "name=s", *WORDS, "lr=1e-2,0.2", "seed=1,2")[0] == 0
    folder = Path("outputs/s")
    first = {row["job"]: row for row in rows_of(folder)}
    assert {name.rpartition("-")[0] for name in first} == {
        "lr0.01_seed1", "lr0.01_seed2", "lr0.2_seed1", "lr0.2_seed2"}
    stamps = {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}
    code, out, err = dltrain("-m", "name=s", "seed=3,2", "trainer.log_every_n_steps=7", "recipe=none", "trainer=smoke",
                             "model.depth=8", "lr=0.2,0.01,0.010")
    assert (code, err) == (0, "")
    assert "2 of 4 jobs done before" in out
    assert "6 of 6 jobs done; outputs/s/results.csv" in out
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps, "none was trained twice"
    rows = {row["job"]: row for row in rows_of(folder)}
    assert {name: rows[name] for name in first} == first
    assert {row["seed"] for row in rows.values()} == {"1", "2", "3"}


def test_a_plan_starts_nothing(dltrain):
    words = ("-m", "name=s", *WORDS, "seed=1,2,3")
    code, out, _ = dltrain(*words, "plan=true")
    assert (code, Path("outputs").exists()) == (0, False)
    assert re.findall(r"seed\d-\w{8}  (\d) +about \d+ s +[\d,]+ MB +about [\d.]+ MB +(.+)", out) == [
        (seed, "to do") for seed in "123"]
    assert "left: 3 jobs, about " in out
    code, out, _ = dltrain(*words, "max_jobs=1")
    assert (code, "1 of 3 jobs done" in out) == (0, True)
    out = dltrain(*words, "plan=true")[1]
    assert re.findall(r"seed\d-\w{8} .* MB +(.+)", out) == ["done", "to do", "to do"]
    assert "left: 2 jobs, about " in out
    assert len(names_in(Path("outputs/s"))) == 1


def test_what_a_study_takes_is_not_guessed(dltrain):
    code, out, err = dltrain("-m", "experiment=rcnn_family", "seed=1,2", "plan=true")
    assert (code, err) == (0, "")
    assert out.count("not known  not known  not known  to do") == 2
    assert out.endswith("left: 2 jobs; what a study takes is not known before it runs\n")


@pytest.mark.parametrize(("word", "message"), [
    ("plan=yes", "plan=yes: must be true or false"), ("max_jobs=0", "max_jobs=0: must be an integer >= 1"),
    ("max_hours=x", "max_hours=x: must be a number > 0"), ("seed=1,2,x", "seed='x': must be an integer")])
def test_what_cannot_be_is_refused_before_anything_starts(word, message, dltrain):
    words = ["lr=0.1,0.2", word] if "seed" not in word else [word]
    code, _, err = dltrain("-m", "name=s", *WORDS, *words)
    assert (code, message in err, Path("outputs").exists()) == (2, True, False)


def test_no_job_starts_after_the_time(dltrain):
    code, out, _ = dltrain("-m", "name=s", *WORDS, "seed=1,2", "max_hours=1e-9")
    assert (code, "0 of 2 jobs done" in out) == (0, True)


def test_numbered_folders_of_earlier_versions_are_continued(dltrain):
    dltrain("-m", "name=s", *WORDS, "seed=1,2")
    folder = Path("outputs/s")
    for number, name in enumerate(sorted(names_in(folder))):
        (folder / name).rename(folder / f"{number}-resnet20-on-digits")
    (folder / jobs.FILE).unlink()
    _, out, _ = dltrain("-m", "name=s", *WORDS, "seed=2,3")
    assert "1 of 2 jobs done before" in out
    assert {name.rpartition("-")[0] for name in names_in(folder)} == {"0-resnet20-on", "1-resnet20-on", "seed3"}


def test_a_job_that_the_machine_ended_is_tried_once_more(dltrain, monkeypatch):
    load, starts = FewDigits.load, []

    def fail_twice(self):
        starts.append(1)
        if len(starts) in (1, 3):
            from dltrain.errors import MachineError
            raise MachineError("the disk is gone")
        return load(self)

    monkeypatch.setattr(FewDigits, "load", fail_twice)
    words = ("-m", "name=s", *WORDS, "seed=1,2", "data._target_=tests.tiny.FewDigits", "trust=tests")
    code, out, _ = dltrain(*words)
    assert (code, "once more: 1 job that the machine ended" in out, len(starts)) == (7, True, 3)
    assert [row["state"] for row in rows_of(Path("outputs/s"))] == ["done", "failed: the disk is gone"]
    assert dltrain(*words)[0] == 0


def test_the_folder_of_a_sweep_is_enough_to_go_on(dltrain):
    words = ("-m", "name=s", *WORDS, "lr=0.01,0.2,0.1")
    assert dltrain(*words, "max_jobs=1")[0] == 0
    folder = Path("outputs/s")
    code, out, err = dltrain("resume", "run=outputs/s", "trainer.log_every_n_steps=3")
    assert (code, err) == (0, "")
    assert "1 of 3 jobs done before" in out
    assert len(names_in(folder)) == 3
    before = rows_of(folder)
    assert dltrain(*words)[0] == 0
    assert rows_of(folder) == before
    code, out, _ = dltrain("eval", "run=outputs/s", "split=val")
    measured = {row["job"]: row["val/accuracy"] for row in rows_of(folder, "eval.csv")}
    assert (code, measured) == (0, {row["job"]: row["val/accuracy"] for row in before})
    best = before[0]["job"]
    code, out, _ = dltrain("predict", "run=outputs/s", f"input=outputs/s/{best}/samples")
    assert (code, f"{best}: the best of 3 jobs, val/accuracy {before[0]['val/accuracy']}" in out) == (0, True)
    assert (folder / best / "predictions.json").is_file()
    code, _, err = dltrain("resume", "run=outputs/s", "seed=3")
    assert (code, "seed cannot change in a sweep that has started" in err) == (2, True)


@pytest.mark.parametrize("entry", [{"folder": "../a", "words": []}, {"folder": "a"}, 5,
                                   {"folder": "a", "words": ["hydra.callbacks=[x]"]},
                                   {"folder": "a", "words": ["trust=[os]"]}])
def test_a_list_of_jobs_from_somewhere_else_is_not_trusted(entry, tmp_path):
    (tmp_path / jobs.FILE).write_text(json.dumps({"jobs": {"0123abcd": entry}}))
    with pytest.raises((UserError, CheckpointError), match=r"sweep\.json"):
        jobs.read(tmp_path)


def test_seeds_are_repeats_of_a_setting(dltrain, monkeypatch):
    """Against SciPy's paired t test and interval."""
    dltrain("-m", "name=s", *WORDS, "lr=0.01,0.2", "seed=1,2,3")
    folder = Path("outputs/s")
    values = {"0.01": (0.90, 0.92, 0.95), "0.2": (0.91, 0.95, 0.96)}
    for row in rows_of(folder):
        file = folder / row["job"] / "result.json"
        val = values[row["task.optimizer.lr"]][int(row["seed"]) - 1]
        file.write_text(json.dumps({**json.loads(file.read_text()), "val/accuracy": val, "test/accuracy": 1 - val}))
    code, out, _ = dltrain("resume", "run=outputs/s")
    assert code == 0
    best, second = rows_of(folder, "settings.csv")
    assert [(row["task.optimizer.lr"], row["seeds"], row["val/accuracy"]) for row in (best, second)] == [
        ("0.2", "3", "0.9400"), ("0.01", "3", "0.9233")]
    low, high = stats.t.interval(0.95, 2, loc=0.94, scale=stats.sem(values["0.2"]))
    assert best["val/accuracy 95 %"] == f"{low:.4f} to {high:.4f}"
    assert best["test/accuracy deviation"] == f"{np.std(values['0.2'], ddof=1):.4f}"
    test = stats.ttest_rel(values["0.2"], values["0.01"])
    assert "0.2 against 0.01, val/accuracy, 3 seeds: +0.0167" in out
    assert f"p = {test.pvalue:.2g}: no clear difference yet; about" in out
    low, high = test.confidence_interval()
    assert f"({low:+.4f} to {high:+.4f})" in out


def test_seeds_that_are_needed():
    """Against the power of the noncentral t distribution: the smallest number with 0.8, or one beside it."""
    for effect in (0.5, 1.0, 2.0):
        def power(count, effect=effect):
            return stats.nct.sf(stats.t.ppf(0.975, count - 1), count - 1, effect * count**0.5)
        exact = next(count for count in range(2, 200) if power(count) >= 0.8)
        assert repeats.seeds_needed(effect) in (exact - 1, exact, exact + 1)
    assert repeats.seeds_needed(0.001) is None
    assert repeats.compare({"1": 0.5, "2": 0.5}, {"1": 0.5, "2": 0.5}) == (0, (0, 0), 1, 2, None)
    assert repeats.compare({"1": 0.5, "2": 0.5}, {"3": 0.5, "2": 0.5}) is None


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_equal_differences_are_no_certainty(count):
    """Shares of 180 samples may well differ by the same in all seeds: then it is a sign test, and not p = 0."""
    first = {str(seed): 0.9 + seed / 180 for seed in range(count)}
    comparison = repeats.compare({seed: value + 2 / 180 for seed, value in first.items()}, first)
    assert comparison is not None
    assert comparison.p == pytest.approx(stats.binomtest(count, count).pvalue)
    assert comparison.is_clear == (count == 6)
    assert comparison.seeds_needed == 6
    words = repeats.describe(("a", "b"), "val/accuracy", comparison)
    assert words.startswith(f"a against b, val/accuracy, {count} seeds: +0.0111 (+0.0111 to +0.0111), p = ")
    assert words.endswith("a clear difference" if count == 6 else f"about {6 - count} more seed{'s' * (count < 5)} may "
                          "settle it")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_repeats_that_are_not_finite_have_no_deviation(value):
    """`statistics.stdev` of them ends in a traceback."""
    assert format_values([value, 1.0]).endswith(" ± nan")
    assert describe_values([value, 1.0], "{:.2f}".format).endswith(" ± nan")
    assert all(map(math.isnan, repeats.interval_of([value, 1.0])))
    assert repeats.compare({"0": value, "1": 1.0}, {"0": 1.0, "1": 2.0}) is None


@pytest.mark.slow
def test_a_grid_that_is_killed_at_random_and_grows_ends_in_the_same_table(tmp_path):
    """Five SIGKILLs, and values that are added in between, against a sweep that was left alone."""
    rng = random.Random(0)
    fixed = ["-m", "model.depth=8", "trainer.max_epochs=2", "recipe=none", "data.batch_size=64"]
    grid = "lr=0.01,0.05,0.2", "seed=1,2,3,4"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dltrain", *fixed]
    subprocess.run([*command, *grid, "name=alone"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    finished: dict[Path, int] = {}
    for words in (("lr=0.05", "seed=2,1"), ("lr=0.05,0.01", "seed=1,2,3"), grid, grid, ("seed=4,3,2,1", grid[0])):
        process = subprocess.Popen([*command, *words, "name=killed"], cwd=tmp_path, env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(4, 14))
        process.kill()
        process.wait()
        for file in (tmp_path / "outputs/killed").glob("*/result.json"):
            stamp = file.stat().st_mtime_ns
            assert finished.setdefault(file, stamp) == stamp, "no job is run twice"
    subprocess.run([*command, *grid, "name=killed"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {file: file.stat().st_mtime_ns for file in finished} == finished
    tables = [[{key: value for key, value in row.items() if key != "seconds"}
               for row in rows_of(tmp_path / "outputs" / name)] for name in ("alone", "killed")]
    for rows in tables:
        for row in rows:
            row["job"] = row["job"].rpartition("-")[2]
    assert len(tables[0]) == 12
    assert sorted(map(str, tables[0])) == sorted(map(str, tables[1]))


def test_a_sweep_that_ends_before_its_first_job_says_so(tmp_path, capsys):
    assert finish(tmp_path, "nothing") == 7
    assert capsys.readouterr().out == f"no job has started in {tmp_path}\n"
