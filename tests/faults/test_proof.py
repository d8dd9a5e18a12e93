"""prove resume, verify and replay: that they see what is there, and that they see what is wrong."""

import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml

import dltrain
from dltrain import checkpoints, processes, rank, run, step_record
from dltrain.build import build_task
from dltrain.commands.stored import load_config
from dltrain.config.compose import compose as composed_of
from dltrain.errors import CheckpointError, UserError
from dltrain.proof import killing, verdicts
from dltrain.proof.comparing import compare
from dltrain.proof.first_steps import Verdict
from dltrain.proof.layers import Statistics, Sums
from dltrain.proof.replay import add_up
from dltrain.proof.rerun import replay, verify
from dltrain.run_dir import RunDir
from dltrain.step_record import FILE
from tests.conftest import TINY

pytestmark = pytest.mark.usefixtures("without_figures")

# A stand-in for a training, without torch: two readings, a validation, a test; it saves at SIGTERM and dies of SIGHUP.
RUN = """
import os, signal, subprocess, sys, time
folder, mode = sys.argv[1:]
os.makedirs(folder + "/checkpoints", exist_ok=True)
def save(number, frame):
    print("saved", flush=True)
    sys.exit(1 if mode == "broken" else 143)
signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "deaf" else save)
if mode == "parent":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(folder + "/command.txt", "a").write("start\\n")
print("resuming run from step 2 of 2" if os.path.exists(folder + "/metrics.csv") else "1 parameters; 2", flush=True)
rows = open(folder + "/metrics.csv", "w")
for line in ("step,epoch,train/loss,val/loss", "1,1,0.5,", "2,1,0.4,", "2,1,,0.3"):
    rows.write(line + "\\n")
    rows.flush()
    time.sleep(0.05)
time.sleep(0.1 if mode == "whole" else 60)
"""
WATCHED = killing.Course([*map(killing.Reading, (1, 2, 2), (False, False, True), (5.0, 6.0, 8.0))], 4.0, 9.0)


def kill_stand_in(tmp_path: Path, mode: str, name: str, to_group: bool = False) -> killing.Ending:
    command = [sys.executable, "-c", RUN, str(tmp_path / "run"), mode]
    kill = killing.Kill("step", 2, 0.0, signal.Signals[f"SIG{name}"], to_group)
    return killing.start_and_kill(command, tmp_path / "run", tmp_path / "out.txt", kill, patience=3.0)


def fault(tmp_path: Path, mode: str, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(killing, "LEFT_ALONE_SECONDS", 0.1)
    ending = kill_stand_in(tmp_path, mode, name)
    following = killing.Ending(0, None, 0.0, 0, "resuming run from step 2 of 2")
    return verdicts.fault_of(killing.Kill("step", 2, 0.0, signal.Signals[f"SIG{name}"], False), ending, following)


def test_a_process_is_killed_at_its_moment_and_leaves_none_behind(tmp_path):
    ending = kill_stand_in(tmp_path, "long", "KILL")
    assert (ending.code, ending.sent_at, ending.left) == (137, 2, 0)
    assert ending.continued_from == "the start"
    ending = kill_stand_in(tmp_path, "long", "TERM", to_group=True)
    assert (ending.code, ending.continued_from, ending.output.split()[-1]) == (143, "step 2", "saved")
    ending, course = killing.watch([sys.executable, "-c", RUN, str(tmp_path / "new"), "whole"], tmp_path / "new",
                                   tmp_path / "out.txt", patience=20.0)
    assert ending.code == 0
    assert [(reading.step, reading.is_validation) for reading in course.readings] == [(1, False), (2, False), (2, True)]
    assert 0 < course.start <= course.readings[0].seconds < course.readings[2].seconds < course.ended


def test_what_is_wrong_after_a_kill_is_named(tmp_path, monkeypatch):
    assert fault(tmp_path, "long", "TERM", monkeypatch) == ""
    assert fault(tmp_path, "broken", "TERM", monkeypatch) == "the exit code must be 143: saved"
    assert fault(tmp_path, "parent", "KILL", monkeypatch) == "1 of its processes did not end"
    kill = killing.Kill("step", 2, 0.0, signal.SIGTERM, False)
    deaf = [sys.executable, "-c", RUN, str(tmp_path / "run"), "deaf"]
    ending = killing.start_and_kill(deaf, tmp_path / "run", tmp_path / "out.txt", kill, patience=0.5)
    assert verdicts.fault_of(kill, ending, ending) == "did not end"
    lost = killing.Ending(143, 12, 0.0, 0, "")
    assert "continued from step 9" in verdicts.fault_of(kill, lost, lost._replace(
        output="resuming outputs/a from step 9 of 40\n"))
    late = lost._replace(code=137, sent_at=0)  # ended before it could say anything
    resumed = lost._replace(code=0, output="resuming outputs/a from step 12 of 40\n")
    assert verdicts.faults_of([kill, kill._replace(signum=9)], [lost, late, resumed]) == []
    failed = lost._replace(code=1, output="Traceback (most recent call last):\nKeyError: 1\n")
    assert verdicts.faults_of([kill], [failed, failed]) == ["the exit code must be 143: KeyError: 1",
                                                            "the last start failed: KeyError: 1"]
    early = killing.Kill("start", 0, 0.01, signal.SIGINT, True)
    text = 'Traceback (most recent call last):\n  File "<frozen site>", line 73, in <module>\nKeyboardInterrupt\n'
    python = killing.Ending(1, 0, 0.01, 0, text)
    assert verdicts.fault_of(early, python, python) == verdicts.EARLY
    ours = python._replace(output=text.replace("<frozen site>", "dltrain/run.py"))
    assert verdicts.fault_of(early, ours, ours) == "the exit code must be 130: KeyboardInterrupt"
    caught = early._replace(signum=signal.SIGTERM)
    assert verdicts.fault_of(caught, python, python).startswith("the exit code must be 143")


def test_kills_come_from_a_seed_and_are_spread_over_places_and_signals():
    plan = killing.plan(WATCHED, 40, random.Random(1), ("start", *killing.PLACES))
    assert plan == killing.plan(WATCHED, 40, random.Random(1), ("start", *killing.PLACES))
    assert plan != killing.plan(WATCHED, 40, random.Random(2), ("start", *killing.PLACES))
    assert {(kill.place, kill.rows) for kill in plan} == {("start", 0), ("step", 1), ("save", 1), ("validation", 2),
                                                          ("test", 3)}
    assert [kill.rows for kill in plan] == sorted(kill.rows for kill in plan)
    for place, most in (("start", 4.0), ("step", 1.0), ("save", 0.0), ("validation", 2.0), ("test", 1.0)):
        waits = [kill.wait for kill in plan if kill.place == place]
        assert len(waits) == 8
        assert most / 2 <= max(waits) <= most
    assert [sum(kill.signum == signum for kill in plan) for signum in (9, 15, 1, 2)] == [10] * 4
    assert all(signal.SIGKILL in {kill.signum for kill in killing.plan(WATCHED, 2, random.Random(seed))}
               for seed in range(9))


# a finished run of nine steps, and what is made of it


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "finished"
    path.mkdir()
    words = [*TINY, "trainer.log_every_n_steps=2", "trainer.checkpoint_every_steps=1", "task.optimizer.momentum=0",
             "task.optimizer.weight_decay=0", "seed=3"]
    save = checkpoints.save

    def save_and_keep(checkpoint: checkpoints.Checkpoint, file: Path) -> None:
        save(checkpoint, file)
        if checkpoint["global_step"] == 8 and file.name == "last.ckpt":
            shutil.copyfile(file, path.parent / "eight.ckpt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_keep)
        patch.setattr("dltrain.trainer.Figures", lambda *_: pl.Callback())
        run.train(composed_of(words).job_config(), RunDir(path))
    return path


def copy_of(folder: Path, tmp_path: Path) -> RunDir:
    subprocess.run(["cp", "-r", str(folder), str(tmp_path / "copy")], check=True)
    return RunDir(tmp_path / "copy")


def test_two_runs_are_compared_to_the_last_bit(finished, tmp_path):
    other = copy_of(finished, tmp_path)
    assert [one.difference for one in compare(finished, other.path)] == [""] * 7
    last = other.checkpoint("last")
    saved = torch.load(last, weights_only=True)
    saved["state_dict"]["model.head.weight"].view(torch.int32)[0, 0] ^= 1
    torch.save(saved, last)
    table = other.path / "metrics.csv"
    rows = [line.split(",") for line in table.read_text().splitlines()]
    rows[2][rows[0].index("images_per_second")] = "1"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    differ = {one.name: one.difference for one in compare(finished, other.path) if one.difference}
    assert list(differ) == ["final weights"]
    assert differ["final weights"].startswith("model.head.weight: 1 of 2560 bytes, by up to ")
    rows[2][rows[0].index("train/loss")] = "9"
    with open(table, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    (other.path / ".config.yaml.tmp").touch()
    differ = {one.name: one.difference for one in compare(finished, other.path) if one.difference}
    assert differ["metrics.csv"].startswith("row 2, train/loss: ")
    assert differ["files"] == ".config.yaml.tmp: only in the second"


def test_a_run_records_its_first_steps(finished):
    record = json.loads((finished / FILE).read_text())
    rows = [row for row in RunDir(finished).read_metrics() if row["train/loss"]]
    losses = record["losses"]
    assert len(losses) == 9
    assert [float(row["train/loss"]) for row in rows[:1]] == pytest.approx([fmean(losses[:2])], rel=1e-5)
    assert set(record["weights"]) == {"0"}, "fewer than twenty steps"
    assert {"dltrain/build.py", "tests/tiny.py"} <= record["code"].keys()


def verdict_of(run_dir: RunDir) -> Verdict:
    return verify(load_config(run_dir, {}, ()), run_dir, None)


def test_verify_gives_the_first_steps_again(finished):
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    verdict = verdict_of(RunDir(finished))
    assert (verdict.exit_code, verdict.parted) == (0, "")
    assert verdict.equal == ["the first batch", "the weights before the first step", "9 losses",
                             "9 readings of metrics.csv"]
    assert {file: file.stat().st_mtime_ns for file in finished.rglob("*")} == before


def change(file: Path, key: str, value: object) -> None:
    values = yaml.safe_load(file.read_text())
    values[key] = value
    file.write_text(yaml.safe_dump(values) if file.suffix == ".yaml" else json.dumps(values))


def test_verify_says_where_the_steps_part_and_why(finished, tmp_path):
    other = copy_of(finished, tmp_path)
    change(other.path / "config.yaml", "seed", 4)
    verdict = verdict_of(other)
    assert verdict.exit_code == 2
    assert verdict.parted.startswith("the first batch")
    assert verdict.reasons["config"] == ["seed (3 then, 4 now)"]
    change(other.path / "config.yaml", "seed", 3)
    record = json.loads((other.path / FILE).read_text())
    record["losses"][4] *= 1.5
    record["code"]["dltrain/build.py"] = "0"
    (other.path / FILE).write_text(json.dumps(record))
    change(other.path / "environment.json", "cpu_threads", 99)
    verdict = verdict_of(other)
    assert verdict.parted.startswith("step 5: loss ")
    assert verdict.exit_code == 6, "before the code, which differs too"
    assert verdict.reasons["code"] == ["dltrain/build.py"]
    assert verdict.reasons["environment"] == [f"cpu_threads (99 then, {torch.get_num_threads()} now)"]
    splits = json.loads((other.path / "splits.json").read_text())
    change(other.path / "splits.json", "val", {**splits["val"], "digest": "0"})
    verdict = verdict_of(other)
    assert (verdict.exit_code, verdict.reasons["data"]) == (3, ["the val split has other samples"])
    (other.path / FILE).unlink()
    assert verdict_of(other).equal == ["1 reading of metrics.csv"], "as a run of an earlier version"
    with pytest.raises(UserError, match="nothing up to step 1 to compare with; its first reading is at step 2"):
        verify(load_config(other, {}, ()), other, 1)


def test_statistics_of_a_layer():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 5)).astype(np.float32)
    values[0, :3] = 0
    finite = [float(value) for value in values.flatten()]
    spoiled = torch.from_numpy(values.copy())
    spoiled = torch.cat([spoiled.flatten(), torch.tensor([np.nan, np.inf])])
    expected = (fmean(finite), pstdev(finite), max(map(abs, finite)), 3 / 20)
    result = Statistics.of(Sums.of(spoiled[:7]) + Sums.of(spoiled[7:]))
    assert result[:4] == pytest.approx(expected)
    assert result.non_finite == 2


def test_replay_gives_a_step_again_from_a_checkpoint_and_from_the_start(finished, tmp_path):
    """Plain gradient descent: the gradient of step 9 is the difference of the weights around it by the rate."""
    run_dir = copy_of(finished, tmp_path)
    shutil.copyfile(finished.parent / "eight.ckpt", run_dir.path / "checkpoints/previous.ckpt")
    config = load_config(run_dir, {}, ())
    made = replay(config, run_dir, 9, tmp_path / "nine")
    assert made.source == "given again from previous.ckpt at step 8"
    assert (made.record.losses, made.parted) == (json.loads((finished / FILE).read_text())["losses"][8:], "")
    again = replay(config, run_dir, 9, tmp_path / "again", from_start=True)
    assert "9 losses" in again.agreement
    assert (again.record.losses, again.record.layers) == (made.record.losses, made.record.layers)
    weights = [torch.load(run_dir.path / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
               for name in ("previous", "last")]
    head = torch.cat([((weights[0][name] - weights[1][name]) / made.record.lr).flatten()
                      for name in ("model.head.weight", "model.head.bias")]).double()
    gradient = next(layer.gradient for layer in made.record.layers if layer.name == "head")
    assert gradient is not None
    assert gradient.deviation == pytest.approx(float(head.std(correction=0)), rel=1e-3)
    assert gradient.max == pytest.approx(float(head.abs().max()), rel=1e-3)
    rows = list(csv.DictReader((tmp_path / "nine/layers.csv").read_text().splitlines()))
    assert [row["layer"] for row in rows] == [layer.name for layer in made.record.layers]
    assert {"layers.png", "augmented_batch.png"} <= {file.name for file in (tmp_path / "nine").iterdir()}


def test_outputs_of_several_processes_count_together():
    """As those of one batch with the samples of both; a block that one process drops is the other's alone."""
    rng = np.random.default_rng(1)
    first, second = (torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)) for n in (4, 2))
    total = add_up([{"a": Sums.of(first)}, {"a": Sums.of(second), "b": Sums.of(second)}])
    assert Statistics.of(total["a"]) == pytest.approx(Statistics.of(Sums.of(torch.cat([first, second]))))
    assert Statistics.of(total["b"]) == Statistics.of(Sums.of(second))


def test_the_command_sends_its_processes_the_steps(finished, tmp_path, monkeypatch):
    """With one process in the place of two, which gets what they would: the step is that of a run of one process."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("dltrain.proof.replay.draw_layers", lambda *_: None)  # which takes the most time
    ends = socket.socketpair()
    started = []

    def watch(keys: Any, timeout_seconds: float, work: dict[str, Any]) -> None:
        work = json.loads(json.dumps(work))
        work["config"] = work["config"].replace("devices: 2", "devices: 1")
        started.append((keys.devices, rank.train(processes.Channel(ends[0]), **work)))

    monkeypatch.setattr(processes, "watch", watch)
    config = load_config(RunDir(finished), {}, ())
    alone = replay(config, RunDir(finished), 2, tmp_path / "alone", from_start=True)
    config.trainer.nodes = 2  # whose processes are all on this machine then
    made = replay(config, RunDir(finished), 2, tmp_path / "ranks", from_start=True)
    assert started == [(2, 0)]
    assert made[:-1] == alone[:-1]
    for end in ends:
        end.close()


@pytest.mark.slow
def test_steps_of_two_processes_are_given_again(tmp_path, monkeypatch):
    """After one step of plain gradient descent the weights have moved by the rate times the mean gradient of both."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    words = [*TINY, "trainer.devices=2", "trainer.log_every_n_steps=1", "trainer.max_steps=1", "seed=3",
             "task.optimizer.momentum=0", "task.optimizer.weight_decay=0"]
    config, run_dir = composed_of(words).job_config(), RunDir(tmp_path / "two")
    run_dir.path.mkdir()
    run.train(config, run_dir)
    verdict = verify(load_config(run_dir, {}, ()), run_dir, None)
    assert (verdict.parted, verdict.reasons["data"]) == ("", [])
    assert verdict.equal == ["the first batch", "the weights before the first step", "1 loss",
                             "2 readings of metrics.csv"]
    made = replay(load_config(run_dir, {}, ()), run_dir, 1)
    assert (made.parted, made.record.processes, len(made.record.losses)) == ("", 2, 2)
    assert made.record.losses[0] == json.loads((run_dir.path / FILE).read_text())["losses"][0]
    assert made.record.losses[0] != made.record.losses[1]
    before = build_task(config).state_dict()
    after = torch.load(run_dir.path / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    head = torch.cat([((before[name] - after[name]) / made.record.lr).flatten()
                      for name in ("model.head.weight", "model.head.bias")]).double()
    gradient = next(layer.gradient for layer in made.record.layers if layer.name == "head")
    assert gradient is not None
    assert gradient.deviation == pytest.approx(float(head.std(correction=0)), rel=1e-3)
    pictures = [run_dir.path / f"replay/step_1/augmented_batch_rank_{rank}.png" for rank in (0, 1)]
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
    record = json.loads((run_dir.path / FILE).read_text())
    record["losses"][0] *= 1.5
    (run_dir.path / FILE).write_text(json.dumps(record))
    assert verify(load_config(run_dir, {}, ()), run_dir, None).parted.startswith("step 1: loss ")


def test_a_run_that_diverges_replays_the_step_itself(dltrain):
    code, _, err = dltrain(*TINY, "name=far", "lr=1e30")
    assert code == 5
    assert "dltrain replay run=outputs/far step=2" in err
    rows = list(csv.DictReader(Path("outputs/far/replay/step_2/layers.csv").read_text().splitlines()))
    assert sum(int(row["output_non_finite"] or 0) for row in rows) > 0
    code, out, err = dltrain("replay", "run=outputs/far", "step=nonfinite", "output=mine")
    assert (code, err) == (0, "")
    assert out.startswith("step 2, given again from the start: loss nan, lr ")
    assert dltrain("replay", "run=outputs/far")[0] == 2


def test_words_of_prove_are_refused_in_a_line(dltrain):
    for words, message in ((["model=resnet20"], "prove proves resume"), (["resume", "name=a"], "name=: prove resume"),
                           (["resume", "kills=0"], "kills=0: must be an integer >= 1"),
                           (["resume", "-m", "seed=0,1"], "one run")):
        code, out, err = dltrain("prove", *words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("is_sound", [True, False])
def test_prove_resume_in_processes_of_its_own(is_sound, tmp_path):
    """With the positions of a resumed run taken away, it says which file differs."""
    (tmp_path / "sitecustomize.py").write_text("" if is_sound else (
        "from dltrain.data.loader import SplitLoaders, TrainLoader\n"
        "SplitLoaders.load_state_dict = TrainLoader.load_state_dict = lambda *_: None\n"))
    words = ["prove", "resume", "model=sdresnet56", "model.depth=8", "data=digits", "kills=2", "trainer=cpu"]
    paths = f"{tmp_path}{os.pathsep}{Path(dltrain.__file__).parents[1]}"
    done = subprocess.run([sys.executable, "-m", "dltrain", *words], cwd=tmp_path, capture_output=True, text=True,
                          timeout=600, check=False, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == (0 if is_sound else 4), done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "final weights" in line)
    assert line.endswith("equal") is is_sound


@pytest.mark.parametrize("text", [
    '{"code": {}, "bat', "[]", '{"code": {}, "batch": null, "weights": {"a": "b"}, "losses": []}',
    '{"code": {}, "batch": null, "weights": {}, "losses": ["x"]}'])
def test_a_damaged_record_of_the_first_steps_is_named(tmp_path, text):
    (tmp_path / "first_steps.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"first_steps.json: damaged; delete it"):
        step_record.read(tmp_path / "first_steps.json")
