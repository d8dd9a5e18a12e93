"""Sweeps whose jobs run in other processes: the same folders, threads and bits, and nothing is left when they stop."""

import csv
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from omegaconf import OmegaConf

from dltrain import machine, same_config, trust
from dltrain.config import launchers as chosen
from dltrain.run_dir import RunDir
from dltrain.signals import Signals
from dltrain.sweeps import launchers, remote_job, submitit_launcher
from dltrain.sweeps.launchers import LOST, JoblibLauncher
from dltrain.sweeps.ray_launcher import RayLauncher
from dltrain.sweeps.remote_job import RemoteJob
from dltrain.sweeps.submitit_launcher import SubmititLauncher
from tests.remote_calls import end_or_answer

WORDS = ["model.depth=8", "trainer=smoke", "recipe=none"]
ELSEWHERE = {  # launcher -> its words
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "ray": ["hydra/launcher=ray"],
    "local": ["hydra/launcher=submitit_slurm", "hydra.launcher.cluster=local"],
    "debug": ["hydra/launcher=submitit_slurm", "hydra.launcher.cluster=debug"]}
LIBRARY = {"joblib": "joblib", "ray": "ray", "local": "submitit", "debug": "submitit"}
EVERY = [pytest.param(name, marks=pytest.mark.skipif(find_spec(LIBRARY[name]) is None, reason="not installed"))
         for name in ELSEWHERE]


def threads_in(folder: Path) -> int:
    return int(json.loads((folder / "environment.json").read_text())["cpu_threads"])


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize(("launcher", "num_jobs", "threads"), [
    (JoblibLauncher(3), 9, 2), (JoblibLauncher(), 9, 1), (JoblibLauncher(), 2, 4), (JoblibLauncher(20), 20, 1),
    (RayLauncher(num_cpus=3), 9, 3), (SubmititLauncher("local"), 4, 2), (SubmititLauncher(cpus_per_task=6), 4, 6)])
def test_jobs_divide_the_cores(launcher, num_jobs, threads, monkeypatch):
    """Of eight cores."""
    monkeypatch.setattr(launchers, "usable_cores", lambda: 8)
    monkeypatch.setattr(submitit_launcher, "usable_cores", lambda: 8)
    assert launcher.threads(num_jobs) == threads


def test_a_control_group_can_grant_less_than_the_cores(monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    for granted, cores in ((2.5, 2), (0.5, 1), (None, 8), (16.0, 8)):
        monkeypatch.setattr(machine, "group_limits", lambda granted=granted: machine.Limits(granted, None, None))
        assert machine.usable_cores() == cores


def test_submitit_gets_the_parameters_of_slurm_by_its_names():
    launcher = SubmititLauncher(partition="gpu", timeout_min=5, gres=None, additional_parameters={}, setup=["true"])
    assert launcher.parameters == {"slurm_partition": "gpu", "timeout_min": 5, "slurm_setup": ["true"]}


def test_a_process_that_is_killed_loses_no_other_job(tmp_path):
    pytest.importorskip("joblib")
    calls = [([], "a"), ([str(tmp_path / "b")], "b"), ([], "c"), (["always"], "d"), ([], "e")]
    assert JoblibLauncher(2).call(end_or_answer, calls) == ["a", "b", "c", LOST, "e"]


def test_lines_of_a_job_begin_with_its_name():
    stream = io.StringIO()
    lines = remote_job.NamedLines(stream, "a")
    for text in ("one\ntw", "o\n\n", "a: three", "\nno end"):
        lines.write(text)
    assert stream.getvalue() == "a: one\na: two\na: three\n"
    assert not lines.isatty()


def test_slurm_gets_arrays_of_a_size_that_it_takes(monkeypatch, tmp_path):
    arrays: list[int] = []

    class Executor(SimpleNamespace):
        def update_parameters(self, **parameters):
            pass

        @contextmanager
        def batch(self):
            arrays.append(0)
            yield

        def submit(self, job, *call):
            arrays[-1] += 1
            return SimpleNamespace(done=lambda: True, result=lambda: call)

    library = SimpleNamespace(AutoExecutor=lambda *_, **keys: Executor())
    errors = SimpleNamespace(FailedJobError=OSError, UncompletedJobError=OSError)
    for name, module in {"submitit": library, "submitit.core": None, "submitit.core.utils": errors}.items():
        monkeypatch.setitem(sys.modules, name, module or SimpleNamespace())
    monkeypatch.setattr(submitit_launcher, "MOST_IN_ARRAY", 3)
    job, calls = SimpleNamespace(folder=str(tmp_path)), [([str(number)], "") for number in range(7)]
    assert SubmititLauncher().call(cast(RemoteJob, job), calls) == calls
    assert arrays == [3, 3, 1]


@pytest.mark.parametrize("name", ["joblib", "ray", "submitit_slurm"])
def test_a_library_that_is_missing_is_one_line(name, dltrain, monkeypatch):
    monkeypatch.setattr(chosen, "find_spec", lambda _: None)
    code, _, err = dltrain("-m", "name=s", *WORDS, "seed=1,2", f"hydra/launcher={name}")
    library, extra = {"joblib": ("joblib", "joblib"), "ray": ("ray", "ray"),
                      "submitit_slurm": ("submitit", "slurm")}[name]
    assert err == f"dltrain: error: hydra/launcher={name} needs the library {library}: pip install 'dltrain[{extra}]'\n"
    assert (code, Path("outputs").exists()) == (2, False)


@pytest.mark.parametrize(("words", "message"), [
    (["hydra/launcher=joblip"], "unknown hydra/launcher 'joblip'; did you mean 'joblib'?"),
    (["hydra/launcher=joblib", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: must be an integer >= 1 or null"),
    (["hydra/launcher=joblib", "hydra.launcher.jobs=2"], "Could not override 'hydra.launcher.jobs'")])
def test_a_launcher_that_cannot_be_is_refused_before_anything_starts(words, message, dltrain, monkeypatch):
    monkeypatch.setattr(chosen, "find_spec", lambda _: True)
    code, _, err = dltrain("-m", "name=s", *WORDS, "seed=1,2", *words)
    assert (code, message in err, Path("outputs").exists()) == (2, True, False)


def test_a_run_keeps_the_threads_that_its_config_names(dltrain, without_figures):
    before = torch.get_num_threads()
    assert dltrain("-m", "name=s", *WORDS, "trainer.threads=3", "seed=1")[0] == 0
    run_dir = RunDir(next(Path("outputs/s").glob("*/")))
    assert (threads_in(run_dir.path), torch.get_num_threads()) == (3, before)
    config = OmegaConf.create({"trainer": {"threads": None, "devices": 1}})
    same_config.keep_threads(run_dir, config)
    assert config.trainer.threads == 3
    config.trainer.threads = 5
    same_config.keep_threads(run_dir, config)
    assert config.trainer.threads == 5


def test_threads_of_a_job_are_divided_among_its_processes(tmp_path):
    from dltrain.sweeps.running import SweepJob

    job = SweepJob(print, False)
    job.threads = 6
    config = OmegaConf.create({"trainer": {"threads": None, "devices": 2}})
    job.fix_threads(config, RunDir(tmp_path))
    assert config.trainer.threads == 3


def test_signals_are_recorded_anew_in_another_process():
    signals = Signals()
    signals.received = 15
    assert pickle.loads(pickle.dumps(signals)).received is None


def test_a_signal_to_the_command_is_written_for_its_jobs(tmp_path):
    """And taken away when they have ended: the next command starts its jobs."""
    signals = Signals()
    (tmp_path / remote_job.STOP).write_text("2")  # of a command that was killed
    with remote_job.relaying(signals, tmp_path):
        assert remote_job.stop_signal(tmp_path) is None
        signals.received = signal.SIGTERM
        until = time.monotonic() + 10
        while remote_job.stop_signal(tmp_path) is None and time.monotonic() < until:
            time.sleep(0.01)
        assert remote_job.stop_signal(tmp_path) == signal.SIGTERM
    assert remote_job.stop_signal(tmp_path) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_every_launcher_gives_the_same_table(name, dltrain, monkeypatch):
    """To the last digit, with a module of the user's own, which only the guards of the command let through."""
    Path(f"own_data_{name}.py").write_text(
        "from dltrain.data.digits import Digits\n\n\nclass Mine(Digits):\n    pass\n")
    words = ["-m", *WORDS, f"data._target_=own_data_{name}.Mine", "trainer.threads=1", "seed=1,2"]
    monkeypatch.setattr(trust, "trusted", set())
    assert dltrain(*words, "name=here")[0] == 0
    one = ["hydra.launcher.n_jobs=1"] if name == "joblib" else []  # a process takes seconds to import torch
    code, out, err = dltrain(*words, "name=there", *ELSEWHERE[name], *one)
    assert (code, "2 of 2 jobs done" in out) == (0, True), err
    assert table(Path("outputs/there")) == table(Path("outputs/here"))
    for folder in Path("outputs/here").glob("*/"):
        there = Path("outputs/there") / folder.name
        assert threads_in(there) == 1
        weights = [torch.load(path / "checkpoints/last.ckpt", weights_only=False)["state_dict"]
                   for path in (folder, there)]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def command(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """A sweep as the head of a process group of its own."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "dltrain", "-m", "model.depth=8", "recipe=none", *words], cwd=folder,
                            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def output_of(process: "subprocess.Popen[str]") -> str:
    """Waits for its end, whose exit code must be 0."""
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return out


def wait_for(folder: Path, pattern: str) -> Path:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        if files := [*folder.glob(pattern)]:
            return files[0]
        time.sleep(0.02)
    raise AssertionError(f"no {folder}/{pattern}")


def processes_of(folder: Path) -> list[str]:
    """The commands of the processes whose current folder it is."""
    left = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(place / "cwd")) == folder and (place / "cmdline").read_bytes():
                left.append((place / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return left


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGINT to all", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("name", EVERY[:3])
def test_jobs_side_by_side_save_and_stop_and_end_in_the_same_table(name, how, tmp_path):
    """Also when the command is killed; no process is left."""
    words = ["trainer.max_epochs=4", "seed=1,2,3", "trainer.threads=1"]
    output_of(command(tmp_path, *words, "name=alone"))
    process = command(tmp_path, *words, "name=s", *ELSEWHERE[name])
    wait_for(tmp_path / "outputs/s", "*/checkpoints/last.ckpt")
    signum = getattr(signal, how.split()[0])
    (os.killpg if how.endswith("all") else os.kill)(process.pid, signum)
    out = process.communicate(timeout=120)[0] if signum != signal.SIGKILL else ""
    process.wait()
    until = time.monotonic() + 120  # Ray's own agents end a minute after a cluster that was killed
    while (left := processes_of(tmp_path)) and time.monotonic() < until:
        time.sleep(0.2)
    assert left == []
    if signum != signal.SIGKILL:
        assert process.returncode == 128 + signum, out
        assert "interrupted; the same command with name=s, or dltrain resume run=outputs/s, goes on" in out
        assert "of 3 jobs done; outputs/s/results.csv" in out
        assert "resource_tracker" not in out
    assert not (tmp_path / "outputs/s" / remote_job.STOP).exists()
    output_of(command(tmp_path, *words, "name=s", *ELSEWHERE[name]))
    assert table(tmp_path / "outputs/s") == table(tmp_path / "outputs/alone")


@pytest.mark.slow
def test_jobs_of_two_processes_each(tmp_path):
    """Two folders, one table, also side by side by joblib."""
    pytest.importorskip("joblib")
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.smoke_steps=2", "seed=1,2"]
    for name, launcher in (("here", []), ("there", ELSEWHERE["joblib"])):
        out = output_of(command(tmp_path, *words, f"name={name}", "trainer.threads=1", *launcher))
        assert f"2 of 2 jobs done; outputs/{name}/results.csv" in out
    assert len([*(tmp_path / "outputs/there").glob("*/result.json")]) == 2
    assert table(tmp_path / "outputs/there") == table(tmp_path / "outputs/here")


@pytest.mark.slow
def test_a_job_that_is_preempted_continues_in_its_folder(tmp_path):
    """By the signal that Slurm sends before the time of a job is over."""
    pytest.importorskip("submitit")
    words = ["trainer.max_epochs=6", "seed=1", "trainer.threads=1"]
    output_of(command(tmp_path, *words, "name=alone"))
    process = command(tmp_path, *words, "name=s", *ELSEWHERE["local"])
    run_dir = wait_for(tmp_path / "outputs/s", "*/checkpoints/last.ckpt").parents[1]
    job = int((run_dir / ".lock").read_text().split()[1])
    os.kill(job, signal.SIGUSR1)
    output_of(process)
    log = wait_for(tmp_path / "outputs/s", ".submitit/*/*_log.out").read_text()
    assert "this job is preempted" in log
    assert f"resuming outputs/s/{run_dir.name} from step" in log
    assert table(tmp_path / "outputs/s") == table(tmp_path / "outputs/alone")


@pytest.mark.slow
def test_jobs_on_two_nodes_of_a_ray_cluster(tmp_path):
    """Whose processes start in another folder."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    words = ["trainer=smoke", "seed=1,2,3", "trainer.threads=1"]
    output_of(command(tmp_path, *words, "name=alone"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        there = ["hydra/launcher=ray", f"hydra.launcher.address={cluster.address}"]
        output_of(command(tmp_path, *words, "name=s", *there))
    finally:
        cluster.shutdown()
    assert table(tmp_path / "outputs/s") == table(tmp_path / "outputs/alone")
