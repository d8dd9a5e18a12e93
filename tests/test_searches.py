"""Searches: jobs that are proposed as results come, or stopped early; what continues ends in the same bits."""

import math
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dltrain import run_pause
from dltrain.commands import searching as commands
from dltrain.config.launch import SweepLoader
from dltrain.errors import CheckpointError, InterruptedRun, UserError
from dltrain.run_dir import RunDir
from dltrain.sweeps import search_words
from dltrain.sweeps.halving import Rung, hyperband, successive_halving, total_epochs
from dltrain.sweeps.space import Space
from tests.test_resume import assert_same
from tests.test_sweeps import names_in, rows_of

FEW = ("model.depth=8", "recipe=none", "data._target_=tests.tiny.FewDigits", "trust=tests", "data.batch_size=32")
RATES = "lr=tag(log, interval(1e-3, 1))"
pytestmark = pytest.mark.usefixtures("without_figures")


def readings(run_dir: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if not key.endswith("per_second")}
            for row in RunDir(run_dir).read_metrics()]


@pytest.mark.parametrize(("words", "message"), [
    (["trials=3"], "trials=: search= must be one of tpe, random, halving, hyperband"),
    (["search=bayes"], "search=bayes: search= must be one of"), (["search=tpe", "trials=0"], "an integer >= 1"),
    (["search=tpe", "prune=maybe"], "prune=maybe: must be true or false"),
    (["search=halving", "factor=1"], "factor=1: must be an integer >= 2"),
    (["search=hyperband", "trials=9"], "trials: search=hyperband does not take it"),
    (["search=random", "prune=true"], "prune: search=random does not take it")])
def test_words_that_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        search_words.search_of(words)


@pytest.mark.parametrize(("words", "message"), [
    (["search=halving", RATES, "epochs=1,2"], "trainer.max_epochs: must be one number for all jobs"),
    (["search=random", "task.optimizer.momentum=interval(0.5, 1.5)"], "task.optimizer.momentum=1.5: must be"),
    (["search=random", "lr=0.1"], "no key has several"),
    (["search=random", "task.optimizer.weight_decay=tag(log, interval(0, 1))"], "low > 0"),
    ([RATES], "interval() needs -m and a search")])
def test_what_cannot_be_is_refused_before_anything_starts(words, message, dltrain):
    code, _, err = dltrain("-m", "name=s", *FEW, *words)
    assert (code, message in err, err.count("\n"), Path("outputs").exists()) == (2, True, 1, False)


def test_the_rungs_of_halving():
    """Worked out by hand."""
    assert successive_halving(9, 9, 1, 3) == [(9, 1), (3, 3), (1, 9)]
    assert successive_halving(5, 10, 2, 2) == [(5, 2), (2, 4), (1, 8), (1, 10)]
    assert successive_halving(4, 1, 1, 3) == [(4, 1)]
    assert total_epochs([Rung(9, 1), Rung(3, 3), Rung(1, 9)]) == 9 + 3 * 2 + 6


def test_the_brackets_of_hyperband():
    """R = 81, eta = 3: s_max = 4, and n = ceil(5 * 3^s / (s + 1)) is 81, 34 (of 33.75), 15, 8 (of 7.5) and 5."""
    assert hyperband(81, 1, 3) == [
        [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)], [(34, 3), (11, 9), (3, 27), (1, 81)],
        [(15, 9), (5, 27), (1, 81)], [(8, 27), (2, 81)], [(5, 81)]]
    assert [rungs[0] for rungs in hyperband(30, 1, 3)] == [(27, 1), (12, 3), (6, 10), (4, 30)]
    assert hyperband(2, 1, 3) == [[(1, 2)]]


def test_values_that_are_drawn():
    words = [RATES, "seed=int(interval(2, 5))", "model=resnet20,plain20", "data.batch_size=range(32,65,32)", "epochs=3"]
    space = Space.of(SweepLoader(None).overrides(words))
    sampled = [dict(word.split("=") for word in space.draw(0, number)) for number in range(400)]
    logs = [math.log10(float(values["lr"])) for values in sampled]
    assert -3 <= min(logs) < -2.9
    assert -0.1 < max(logs) <= 0
    assert 160 < sum(value < -1.5 for value in logs) < 240, "half of them below the geometric mean, within 4 deviations"
    for key, values in {"seed": {"2", "3", "4", "5"}, "model": {"resnet20", "plain20"}, "epochs": {"3"},
                        "data.batch_size": {"32", "64"}}.items():
        assert {given[key] for given in sampled} == values
    assert space.draw(0, 3) == space.draw(0, 3) != space.draw(1, 3)
    assert all(len(given["lr"].strip("0.").replace(".", "")) <= 4 for given in sampled)
    assert len(space.corners()) == 8
    assert space.corners()[1] == ["epochs=3", "lr=1", "seed=2", "model=resnet20", "data.batch_size=32"]


@pytest.mark.slow
def test_a_survivor_of_halving_is_the_run_that_it_would_have_been_alone(dltrain):
    words = ("-m", "name=s", *FEW, "epochs=4", "search=halving", "factor=2", RATES, "trials=4", "search_seed=3")
    code, out, err = dltrain(*words)
    folder = Path("outputs/s")
    assert (code, err, "1 of 4 jobs done" in out) == (0, "", True)
    first, *others = rows_of(folder)
    assert sorted(row["state"].rpartition(",")[0] for row in others) == [
        "paused at epoch 1 of 4", "paused at epoch 1 of 4", "paused at epoch 2 of 4"]
    for row in others:
        at_epoch = [float(reading["val/accuracy"]) for reading in readings(folder / row["job"])
                    if reading["val/accuracy"]]
        assert f"val/accuracy {max(at_epoch):.4f}" in row["state"]
    assert dltrain("name=alone", *FEW, "epochs=4", f"lr={first['task.optimizer.lr']}")[0] == 0
    assert_same(folder / first["job"], Path("outputs/alone"))
    assert readings(folder / first["job"]) == readings(Path("outputs/alone"))
    results = [RunDir(path).read_result() for path in (folder / first["job"], Path("outputs/alone"))]
    assert {key for key in results[0] if results[0][key] != results[1][key]} <= {"seconds", "folder"}
    stamps = {file: file.stat().st_mtime_ns for file in folder.glob("*/checkpoints/*")}
    assert dltrain(*words)[0] == 0
    assert dltrain("resume", "run=outputs/s")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps, "nothing is trained twice"
    assert "paused at epoch 1 of 4" in dltrain("ls", "runs")[1]


@pytest.mark.slow
def test_the_best_of_a_rung_go_on(dltrain):
    """Ranked anew from metrics.csv."""
    words = ("-m", "name=s", *FEW, "epochs=2", "search=halving", "factor=3", "lr=0.001,0.1,0.01")
    assert dltrain(*words, "max_jobs=2")[0] == 0
    folder = Path("outputs/s")
    assert not [*folder.glob("*/result.json")]
    assert dltrain(*words)[0] == 0
    at_rung = {path.parent.name: next(float(row["val/accuracy"]) for row in readings(path.parent)
                                      if row["val/accuracy"]) for path in folder.glob("*/metrics.csv")}
    done = {path.parent.name for path in folder.glob("*/result.json")}
    assert (len(at_rung), len(done)) == (3, 1)
    assert min(at_rung[name] for name in done) >= max(at_rung[name] for name in at_rung if name not in done)


def test_another_search_needs_another_name(dltrain):
    words = ("-m", "name=s", *FEW, "trainer=smoke", "search=random", "trials=1")
    assert dltrain(*words, RATES)[0] == 0
    code, _, err = dltrain(*words, "lr=interval(0.1, 0.2)")
    assert (code, "choose another name= for this one" in err) == (2, True)
    assert dltrain(*words[:-1], "trials=2", RATES)[0] == 0
    assert len(names_in(Path("outputs/s"))) == 2


def test_a_plan_of_a_search_starts_nothing(dltrain):
    code, out, _ = dltrain("-m", *FEW, "epochs=9", "search=hyperband", RATES, "plan=true")
    assert (code, Path("outputs").exists()) == (0, False)
    assert "9 jobs: 9 to epoch 1, 3 to epoch 3, 1 to epoch 9" in out
    assert "69 epochs in all, as many as 7.7 jobs of full length" in out  # 9 + 6 + 6, 15 + 6, 27


def test_a_search_without_optuna_is_one_line(dltrain, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = dltrain("-m", "name=s", *FEW, "search=tpe", RATES)
    assert (code, Path("outputs").exists()) == (2, False)
    assert "search=tpe needs Optuna" in err
    assert "pip install 'dltrain[search]'" in err


@pytest.mark.parametrize("text", ['{"epoch": 1}', "[]", "{"])
def test_a_damaged_pause_is_one_line(text, tmp_path):
    (tmp_path / "paused.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"paused\.json"):
        run_pause.read(tmp_path)


def trials_of(folder: Path) -> list[tuple[Any, ...]]:
    optuna = pytest.importorskip("optuna")
    study = optuna.load_study(study_name="dltrain", storage=f"sqlite:///{folder}/study.db")
    return [(trial.number, trial.state.name, trial.value, trial.params, trial.intermediate_values)
            for trial in study.trials]


def kill(*_: object) -> None:
    raise InterruptedRun(signal.SIGINT, "killed")


TPE = ("-m", *FEW, "trainer=smoke", "search=tpe", RATES, "augment=none,digits")


def test_a_study_that_was_cut_and_killed_is_the_same_study(dltrain, monkeypatch):
    """Killed after a job has ended and before its trial is stored, stopped after a number of jobs, and without its
    file."""
    pytest.importorskip("optuna")
    from dltrain.sweeps.study import Study

    monkeypatch.setattr("dltrain.sweeps.study.STARTUP_TRIALS", 1)
    assert dltrain(*TPE, "trials=3", "name=alone")[0] == 0
    assert dltrain(*TPE, "trials=3", "name=s", "max_jobs=1")[0] == 0
    assert len(trials_of(Path("outputs/s"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Study, "add", kill)
        assert dltrain(*TPE, "trials=3", "name=s")[0] == 130
    stamps = {file: file.stat().st_mtime_ns for file in Path("outputs/s").glob("*/result.json")}
    assert len(stamps) == 2
    code, out, _ = dltrain("resume", "run=outputs/s")
    assert (code, "has ended before" in out) == (0, True)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    assert trials_of(Path("outputs/s")) == trials_of(Path("outputs/alone"))
    assert names_in(Path("outputs/s")) == names_in(Path("outputs/alone"))
    assert len(trials_of(Path("outputs/s"))) == 3

    study = Path("outputs/s/study.db")
    study.write_bytes(study.read_bytes()[:3000] + b"x" * 3000)
    code, _, err = dltrain("resume", "run=outputs/s")
    assert (code, err.count("\n"), "outputs/s/study.db: cannot be used" in err) == (4, 1, True)
    study.unlink()
    assert dltrain("resume", "run=outputs/s")[0] == 0
    assert trials_of(Path("outputs/s")) == trials_of(Path("outputs/alone")), "made anew from the folders of the jobs"
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


def test_a_job_is_pruned_below_the_median(tmp_path):
    """Two trials are complete: 0.2 and 0.6 after the first epoch, 0.7 and 0.9 after the second."""
    optuna = pytest.importorskip("optuna")
    from dltrain.sweeps.study import Study

    study = Study(tmp_path, Space.of(SweepLoader(None).overrides([RATES])), 0, "max")
    for number, curve in enumerate([(0.2, 0.7), (0.6, 0.9)]):
        assert not study.prunes({"lr": 0.1}, 1, 0.0)
        study.stored.add_trial(optuna.trial.create_trial(
            value=max(curve), params={"lr": 0.1}, distributions=study.distributions,
            intermediate_values=dict(enumerate(curve, 1)), user_attrs={"job": str(number), "retry": False}))
    assert [study.prunes({"lr": 0.1}, 1, best) for best in (0.39, 0.41)] == [True, False]
    assert [study.prunes({"lr": 0.1}, 2, best) for best in (0.79, 0.81)] == [True, False]


def test_a_pruned_job_is_stored_as_such_and_can_go_on(dltrain, monkeypatch):
    pytest.importorskip("optuna")
    from dltrain.sweeps.study import Study

    monkeypatch.setattr(Study, "prunes", lambda self, values, epoch, best: len(self.trials) == 1 and epoch == 2)
    code, out, err = dltrain("-m", *FEW, "epochs=3", "search=tpe", RATES, "trials=2", "name=s")
    assert (code, err, "1 of 2 jobs done" in out) == (0, "", True)
    first, second = trials_of(Path("outputs/s"))
    assert (first[1], [*first[4]], second[1], [*second[4]]) == ("COMPLETE", [1, 2, 3], "PRUNED", [1, 2])
    row = rows_of(Path("outputs/s"))[1]
    assert row["state"] == f"pruned at epoch 2 of 3, val/accuracy {second[4][2]:.4f}"
    assert dltrain("resume", f"run=outputs/s/{row['job']}")[0] == 0
    assert dltrain("name=alone", *FEW, "epochs=3", f"lr={row['task.optimizer.lr']}")[0] == 0
    assert_same(Path("outputs/s") / row["job"], Path("outputs/alone"))


def test_jobs_that_fail_and_jobs_that_diverge(dltrain, monkeypatch):
    """One that diverged is a result; one that failed is tried again by the next command."""
    pytest.importorskip("optuna")
    from dltrain.errors import DataError, DivergedError

    errors: list[UserError | None] = [None, DivergedError("no"), DataError("the photos are gone"), None]
    train = commands.Searching.launch_some

    def launch(self, todo, **until):
        error = errors.pop(0) if errors else None
        if error is None:
            return train(self, todo, **until)
        return [error.exit_code]

    monkeypatch.setattr(commands.Searching, "launch_some", launch)
    dltrain(*TPE, "trials=4", "name=s")
    assert [trial[1] for trial in trials_of(Path("outputs/s"))] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE"]
    dltrain(*TPE, "trials=4", "name=s")
    trials = trials_of(Path("outputs/s"))
    assert [trial[1] for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[4][3] == trials[2][3]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["tpe", "hyperband"])
def test_a_search_that_is_killed_at_random_ends_in_the_same_table(method, tmp_path):
    """Five SIGKILLs, against a search that was left alone."""
    if method == "tpe":
        pytest.importorskip("optuna")
    rng = random.Random(0)
    words = ["-m", "model.depth=8", "epochs=4", "recipe=none", "data.batch_size=64", RATES, f"search={method}",
             *(["trials=8"] if method == "tpe" else ["factor=2"])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dltrain", *words]
    subprocess.run([*command, "name=alone"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    for _ in range(5):
        process = subprocess.Popen([*command, "name=killed"], cwd=tmp_path, env=environment,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(5, 12))
        process.kill()
        process.wait()
    subprocess.run([*command, "name=killed"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    alone, killed = tmp_path / "outputs/alone", tmp_path / "outputs/killed"
    tables = [[{key: value for key, value in row.items() if key != "seconds"} for row in rows_of(folder)]
              for folder in (alone, killed)]
    assert tables[0] == tables[1]
    for job in names_in(alone):
        assert readings(alone / job) == readings(killed / job)
    if method == "tpe":
        assert trials_of(alone) == trials_of(killed)
