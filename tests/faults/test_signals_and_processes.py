"""Rows 4, 5, 10, 19, 20, 22 and 23: signals, Slurm, and processes that die or hang.

Runs in this process, stopped by a signal to itself; ranks that are small scripts in the place of a training; and,
marked slow, whole commands.
"""

import os
import queue
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dltrain import processes, signals, slurm
from dltrain.batches import ClassificationBatch
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.data.decoded import decode_batches
from dltrain.data.loader import TrainLoader
from dltrain.errors import InterruptedRun, MachineError
from dltrain.image_files import scan_images
from dltrain.processes import RankError
from dltrain.signals import SIGNALS, Signals
from tests.conftest import TINY
from tests.test_resume import assert_same, load_last, train
from tests.tiny import FewDigits

pytestmark = pytest.mark.usefixtures("without_figures")


def send(signum: int, recorder: Signals) -> None:
    """Sends this process a signal, and waits until it is recorded."""
    os.kill(os.getpid(), signum)
    wait_for(lambda: recorder.received is not None)


def wait_for(is_so: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.002)


def stop_run(monkeypatch, path: Path, hook: str, stage: str, signum: int, *words: str, batches: int = 4
             ) -> InterruptedRun:
    """Trains the tiny run until `hook` of `stage`, fit or test, with so many batches done or more; there the process
    sends itself a signal."""
    ended = getattr(Checkpointing, hook)

    def stop(self, trainer, *args, **keys):
        due = trainer.train_dataloader.batches_done >= batches if stage == "fit" and trainer.train_dataloader else True
        if trainer.state.fn == stage and due and self.signals.received is None:
            send(signum, self.signals)
        ended(self, trainer, *args, **keys)

    handlers = [signal.getsignal(number) for number in SIGNALS]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, hook, stop)
        with pytest.raises(InterruptedRun) as caught:
            train(path, *words)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    return caught.value


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """The folder of a tiny run that nothing stopped."""
    path = tmp_path_factory.mktemp("runs") / "straight"
    train(path)
    return path


# 4: SIGTERM


def saves(monkeypatch, tmp_path, signum):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_train_batch_end", "fit", signum)
    assert str(stop) == (f"{signum.name}: saved {tmp_path}/run/checkpoints/last.ckpt at step 4; dltrain resume "
                         f"run={tmp_path}/run continues it")
    assert stop.exit_code == 128 + signum
    assert load_last(tmp_path / "run")["global_step"] == 4


def row_04(monkeypatch, tmp_path, straight):
    saves(monkeypatch, tmp_path, signal.SIGTERM)
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def test_row_04_a_signal_saves_after_the_step(monkeypatch, tmp_path, straight):
    """SIGTERM, SIGINT and SIGHUP save after the step that is under way; the run resumes to the same bits."""
    row_04(monkeypatch, tmp_path, straight)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_the_other_signals_save_the_same(signum, monkeypatch, tmp_path):
    saves(monkeypatch, tmp_path, signum)


def test_row_04_control(monkeypatch, tmp_path, straight):
    """Without the save the run continues from the end of the epoch."""
    monkeypatch.setattr(Checkpointing, "save_and_stop", Checkpointing.stop)
    with pytest.raises(AssertionError):
        row_04(monkeypatch, tmp_path, straight)


ACCUMULATION = ("trainer.accumulate_batches=2", "task.optimizer.lr=0.2")


def row_04_b(monkeypatch, tmp_path):
    train(tmp_path / "straight", *ACCUMULATION)
    # 3 batches an epoch make 2 steps; batch 4 is the first half of step 3
    stop_run(monkeypatch, tmp_path / "run", "on_train_batch_end", "fit", signal.SIGTERM, *ACCUMULATION)
    assert load_last(tmp_path / "run")["global_step"] == 3
    train(tmp_path / "run", *ACCUMULATION)
    assert_same(tmp_path / "run", tmp_path / "straight")


def test_row_04_b_a_signal_while_gradients_accumulate(monkeypatch, tmp_path):
    """With trainer.accumulate_batches a signal saves after the whole step, not between its batches."""
    row_04_b(monkeypatch, tmp_path)


def test_row_04_b_control(monkeypatch, tmp_path):
    """Saved at once, the run loses the gradients of half a step."""
    monkeypatch.setattr("dltrain.step_loop.StepLoop._should_accumulate", lambda self: False)
    with pytest.raises(AssertionError):
        row_04_b(monkeypatch, tmp_path)


def row_04_c():
    process = subprocess.Popen(["sleep", "60"])
    try:
        for signum in SIGNALS:
            process.send_signal(signum)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
    finally:
        process.kill()
        process.wait()


def test_row_04_c_processes_of_a_run_do_not_receive_signals():
    """A signal to the whole process group does not end the processes that load data; dltrain decides what it means."""
    with signals.caught():
        row_04_c()


def test_row_04_c_control():
    with pytest.raises(pytest.fail.Exception):
        row_04_c()


def test_a_signal_in_a_validation_saves_and_the_validation_is_repeated(monkeypatch, tmp_path, straight):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_validation_batch_end", "fit", signal.SIGTERM)
    assert "last.ckpt at step 6; " in str(stop)
    saved = load_last(tmp_path / "run")
    assert saved["callbacks"]["Checkpointing"]["validation_due"] is True
    train(tmp_path / "run")
    assert_same(tmp_path / "run", straight)


def test_a_signal_in_the_test_stops_and_the_test_is_repeated(monkeypatch, tmp_path, straight):
    stop = stop_run(monkeypatch, tmp_path / "run", "on_test_batch_end", "test", signal.SIGTERM)
    assert str(stop) == ("SIGTERM: training is complete, but the test is not; dltrain resume "
                         f"run={tmp_path}/run continues it")
    assert not (tmp_path / "run/result.json").exists()
    assert_same(tmp_path / "run", straight)
    assert train(tmp_path / "run")["steps"] == 9
    assert_same(tmp_path / "run", straight)


# 5: Ctrl-C


@pytest.fixture
def exits(monkeypatch) -> list[int]:
    """The codes with which this process would have ended."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(signals, "end_children", lambda: None)
    return codes


def row_05(exits, capfd, seconds=1.0):
    with Signals() as recorder:
        recorder.record()
        send(signal.SIGTERM, recorder)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)
        assert (recorder.received, exits) == (signal.SIGTERM, [])
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: exits, seconds)
    assert exits == [130]
    assert capfd.readouterr().err == "dltrain: SIGINT: stopped at once\n"


def test_row_05_a_second_interrupt_ends_at_once(exits, capfd):
    """Ctrl-C while a run is already stopping ends it at once, with exit code 130."""
    row_05(exits, capfd)


def test_row_05_another_process_of_the_run_may_tell_of_an_interrupt_before_it_arrives(exits):
    """Ctrl-C reaches all processes of a group: one of them telling the command of it does not make the command's own
    a second one."""
    with Signals() as recorder:
        recorder.record()
        events: queue.Queue[processes.Event] = queue.Queue()
        watch = processes.Watch([], events, recorder, 900)
        watch.handle(processes.Event(1, {"signal": signal.SIGINT}))
        assert (recorder.received, recorder.is_own) == (signal.SIGINT, False)
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: recorder.is_own or exits)
        assert exits == []
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: exits)
    assert exits == [130]


def test_row_05_control(monkeypatch, exits, capfd):
    monkeypatch.setattr(signals, "end_process", lambda *_: None)
    with pytest.raises(AssertionError):
        row_05(exits, capfd, seconds=0.1)


def row_05_b(exits, capfd, monkeypatch):
    with signals.caught():
        os.kill(os.getpid(), signal.SIGHUP)
        wait_for(lambda: exits, 1)
    assert exits == [129]
    assert capfd.readouterr().err == "dltrain: SIGHUP: stopped\n"


def test_row_05_b_a_signal_before_the_training_ends_at_once(exits, capfd, monkeypatch):
    """A signal while data load, or to a command that does not train, ends it at once with one line."""
    row_05_b(exits, capfd, monkeypatch)


def test_row_05_b_control(exits, capfd, monkeypatch):
    """Under nohup the signal of a closed terminal is ignored, before and after."""
    monkeypatch.setattr(time, "monotonic", iter([0.0, 0.5, 9.0]).__next__)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(AssertionError):
            row_05_b(exits, capfd, monkeypatch)
        assert exits == []
    finally:
        signal.signal(signal.SIGHUP, before)


# 10: Slurm


@pytest.fixture
def slurm_job(monkeypatch, tmp_path) -> Path:
    """Slurm's variables of job 123, and a scontrol that writes its arguments into the file that is returned."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    return tmp_path / "calls"


JOB = (*TINY, "recipe=none")


def stop_command(dltrain, monkeypatch, signum: int, *words: str) -> tuple[int, str, str]:
    """`dltrain TINY words`, with a signal after step 4."""
    ended = Checkpointing.on_train_batch_end

    def stop(self, trainer, *args, **keys):
        if trainer.global_step == 4:
            send(signum, self.signals)
        ended(self, trainer, *args, **keys)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_train_batch_end", stop)
        return dltrain(*JOB, *words)


def row_10(dltrain, monkeypatch, slurm_job, straight):
    code, _, err = stop_command(dltrain, monkeypatch, signal.SIGUSR1)
    assert code == 138
    assert re.fullmatch(r"dltrain: SIGUSR1: saved outputs/\S+/last.ckpt at step 4; dltrain resume run=outputs/\S+ "
                        r"continues it; Slurm starts job 123 again\n", err)
    assert slurm_job.read_text() == "requeue 123\n"
    (folder,) = Path("outputs/sdresnet56-on-digits").iterdir()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, out, _ = dltrain(*JOB)
    assert code == 0
    assert f"resuming {folder} from step 4 of 9" in out
    assert_same(folder, straight)


def test_row_10_a_slurm_job_is_started_again_and_continues(dltrain, monkeypatch, slurm_job, straight):
    """SIGUSR1 before a Slurm job's time limit saves and requeues the job, which continues in the same folder."""
    row_10(dltrain, monkeypatch, slurm_job, straight)


def test_row_10_control(dltrain, monkeypatch, slurm_job, straight):
    """A job that does not know its folder begins a second run."""
    monkeypatch.setattr("dltrain.slurm.folders_of_job", lambda _: [])
    with pytest.raises(AssertionError):
        row_10(dltrain, monkeypatch, slurm_job, straight)


@pytest.mark.parametrize("text", ["", "{", "[1]", "null"])
def test_a_damaged_record_of_another_run_does_not_stop_a_job(tmp_path, slurm_job, monkeypatch, text):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    for name, content in (("a", text), ("b", '{"slurm_job": "123"}')):
        (tmp_path / f"runs/{name}").mkdir(parents=True)
        (tmp_path / f"runs/{name}/environment.json").write_text(content)
    assert slurm.folders_of_job(tmp_path / "runs") == [tmp_path / "runs/b"]


def row_10_b(dltrain, monkeypatch, slurm_job):
    code, _, err = stop_command(dltrain, monkeypatch, signal.SIGTERM, "trainer.requeue=true", "name=a")
    assert (code, err.count("Slurm starts job 123 again")) == (143, 1)
    code, _, err = stop_command(dltrain, monkeypatch, signal.SIGTERM, "name=b")
    assert (code, err.count("Slurm")) == (143, 0)
    assert slurm_job.read_text() == "requeue 123\n"


def test_row_10_b_sigterm_requeues_a_job_where_the_run_says_so(dltrain, monkeypatch, slurm_job):
    """SIGTERM, which scancel sends too, requeues a Slurm job only with trainer.requeue=true."""
    row_10_b(dltrain, monkeypatch, slurm_job)


# 19 and 20: processes and files that are read


class Items(Dataset[Any]):
    """The samples of a split. A worker dies at the first that is not of the trial of two samples."""

    def __init__(self, split: Any):
        self.split = split

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: int) -> Any:
        if index > 1 and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.split.images[index], self.split.labels[index]


class InProcesses(FewDigits):
    """Digits that torch's DataLoader reads in one process."""

    def read(self, split, batches):
        samplers = [batch.tolist() for batch in batches]
        for images, labels in DataLoader(Items(self.splits[split]), batch_sampler=samplers, num_workers=1):
            yield ClassificationBatch(images, labels)

    def pixel_batches(self, at_most):
        yield self.splits["train"].images


def row_19(dltrain):
    code, _, err = dltrain(*JOB, f"data._target_={__name__}.InProcesses", "name=a")
    assert code == 6, err
    error = Path("outputs/a/error.txt").read_text().splitlines()[0]
    assert re.fullmatch(r"DataLoader worker \(pid \d+\) is killed by signal: Killed, when the next was a batch of the "
                        r"train split of InProcesses, samples \d+, \d+, \d+, \d+ and 28 more; if the system was out of "
                        r"memory, use a smaller data.num_workers or data.batch_size", error)


def test_row_19_a_killed_worker_is_named(dltrain):
    """A process that reads data and is killed ends the run with exit code 6, its signal, the data set and samples."""
    row_19(dltrain)


def test_row_19_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.data.loader.DEAD_WORKER", "no such text")
    monkeypatch.setattr("dltrain.reporting.DEAD_WORKER", "no such text")
    with pytest.raises(AssertionError):
        row_19(dltrain)


def row_20(tmp_path, seconds=3.0):
    paths = [tmp_path / f"{index}.png" for index in range(8)]
    is_over = threading.Event()

    def decode(path: Path) -> int:
        if path.stem == "5":
            is_over.wait(seconds)
        return int(path.stem)

    loader = TrainLoader(lambda batches: decode_batches(paths, decode, batches, 2, torch.tensor), 8, 2, seed=0,
                         shuffled=False)
    loader.timeout_seconds = 0.2
    numbers = []
    try:
        with pytest.raises(MachineError) as caught:
            numbers += [batch.tolist() for batch in loader]
    finally:
        is_over.set()
    assert str(caught.value) == (
        f"data.timeout_seconds=0.2: a batch of the training split, samples 4, 5 was not read in that time; being read: "
        f"{paths[5]}; see whether the disk answers")
    assert caught.value.exit_code == 6


def test_row_20_a_file_that_does_not_come_is_named(tmp_path):
    """A batch that is not read within data.timeout_seconds ends the run with exit code 6 and the names of the files."""
    row_20(tmp_path)


def test_row_20_control(tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.data.loader.fail", lambda *_: None)
    monkeypatch.setattr("signal.getsignal", lambda _: signal.SIG_DFL)
    with pytest.raises(pytest.fail.Exception):
        row_20(tmp_path, seconds=0.5)


def row_20_b(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "x.png")
    images, others = scan_images(tmp_path)
    assert images == [tmp_path / "a.png"]
    assert others == {"no regular file, but a pipe, a socket or a device": [tmp_path / "x.png"]}


def test_row_20_b_a_pipe_is_no_photo(tmp_path):
    """A pipe named x.png, which nobody writes to, is left out and counted."""
    row_20_b(tmp_path)


def test_row_20_b_control(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "mkfifo", lambda path: path.write_text(""))
    with pytest.raises(AssertionError):
        row_20_b(tmp_path)


# 22 and 23: several processes. Small scripts stand for the ranks: {number: code}.

SCRIPT = """
import glob, os, sys, time
from dltrain.processes import CHANNEL, Channel
from dltrain import rank
import socket, threading
number = int(os.environ["LOCAL_RANK"])
channel = Channel(socket.socket(fileno=int(os.environ[CHANNEL])))
next(channel.lines)
threading.Thread(target=rank.obey, args=(channel,), daemon=True).start()
open(f"{os.environ['READY']}/ready{number}", "w").close()
while len(glob.glob(os.environ["READY"] + "/ready*")) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
def fail(text, is_lost):
    channel.send(failure=text, code=8, is_lost=is_lost, traceback="the traceback")
    sys.exit(8)
"""


@pytest.fixture
def train_ranks(monkeypatch, tmp_path) -> Callable[..., None]:
    """train_ranks("code of rank 0", ...): `processes.watch` with a script for each rank."""
    pids: list[int] = []
    popen = subprocess.Popen

    def start(command, env, pass_fds):
        code = (tmp_path / f"{env['LOCAL_RANK']}.py").read_text()
        process = popen([sys.executable, "-c", SCRIPT + code], pass_fds=pass_fds,
                        env={**env, "PYTHONPATH": os.pathsep.join(sys.path), "READY": str(tmp_path)})
        pids.append(process.pid)
        return process

    def run(*codes: str) -> None:
        for number, code in enumerate(codes):
            (tmp_path / f"{number}.py").write_text(textwrap.dedent(code))
        try:
            processes.watch({"devices": len(codes)}, 5, {})
        finally:
            for pid in pids:  # none is left, not even as a zombie
                with pytest.raises(ProcessLookupError):
                    os.kill(pid, 0)

    monkeypatch.setattr(processes.subprocess, "Popen", start)
    monkeypatch.setattr(processes, "SECONDS_TO_BLAME", 1)
    return run


FAILS = "fail('ValueError: the first error', is_lost=False)"
IS_LOST = "time.sleep(0.1); fail('gloo: connection closed by peer', is_lost=True)"
WAITS = "time.sleep(60)"


def row_22(train_ranks):
    with pytest.raises(RankError) as caught:
        train_ranks(IS_LOST, WAITS, FAILS)
    assert str(caught.value) == "rank 2: ValueError: the first error"
    assert caught.value.exit_code == 8
    assert caught.value.__notes__ == ["the traceback"]


def test_row_22_the_message_has_the_first_error_and_its_rank(train_ranks):
    """Of several processes, one that fails ends all; the message has its error and its rank."""
    row_22(train_ranks)


def test_row_22_control(train_ranks, monkeypatch):
    """If that one could not reach another is an error like others, the message has the wrong one."""
    handle = processes.Watch.handle
    monkeypatch.setattr(processes.Watch, "handle", lambda self, event: handle(
        self, event._replace(message={**event.message, "is_lost": False})))
    with pytest.raises(AssertionError):
        row_22_b(train_ranks)


def row_22_b(train_ranks):
    with pytest.raises(RankError) as caught:
        train_ranks("fail('gloo: connection closed by peer', is_lost=True)",
                    "time.sleep(0.15); os.kill(os.getpid(), 9)")
    assert str(caught.value) == ("rank 1 was killed by SIGKILL: if the system was out of memory, use a smaller "
                                 "data.batch_size; the same command continues the run")
    assert caught.value.exit_code == 6


def test_row_22_b_a_process_that_is_killed_ends_all(train_ranks):
    """Of several processes, one that is killed ends all, with exit code 6, its rank and the signal."""
    row_22_b(train_ranks)


def row_22_c(train_ranks):
    with pytest.raises(InterruptedRun, match=r"^SIGTERM: stopped$") as caught:
        train_ranks(WAITS, "channel.send(signal=15); time.sleep(60)")
    assert caught.value.exit_code == 143


def test_row_22_c_a_signal_to_any_process_stops_rank_0(train_ranks):
    """A signal to any of several processes stops the run, with the exit code of the signal."""
    row_22_c(train_ranks)


def test_row_22_c_control(train_ranks, monkeypatch):
    monkeypatch.setattr(processes.Channel, "send", lambda self, **message: self.end.sendall(b'{"none": 0}\n'))
    monkeypatch.setattr(processes, "SECONDS_TO_END", 0.1)
    events: list[Any] = []
    monkeypatch.setattr(processes.Watch, "handle", lambda self, event: events.append(event))

    def give_up(self, timeout):
        if len(events) == 0:
            raise TimeoutError
        raise queue.Empty

    monkeypatch.setattr(queue.Queue, "get", give_up)
    with pytest.raises(TimeoutError):
        row_22_c(train_ranks)


def row_22_g(dltrain, monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.setenv(name, "1")
    code, out, err = dltrain(*TINY, "trainer=smoke", "name=a")
    assert (code, err) == (0, "")
    assert "parameters" in out
    assert {"config.yaml", "log.txt", "result.json", ".lock"} <= {file.name for file in Path("outputs/a").iterdir()}
    assert not {"LOCAL_RANK", "RANK", "SLURM_PROCID"} & os.environ.keys()


def test_row_22_g_a_command_started_as_one_of_several_is_a_run_of_its_own(dltrain, monkeypatch):
    """A command that torchrun or Slurm numbers as one of several processes still writes, and locks, the files of its
    run."""
    row_22_g(dltrain, monkeypatch)


def test_row_22_g_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.ranks.OTHER_STARTERS", ())
    with pytest.raises(AssertionError):
        row_22_g(dltrain, monkeypatch)


def row_23(train_ranks, monkeypatch):
    monkeypatch.setattr(processes, "SECONDS_TO_BLAME", 0.2)  # for the one that hangs says nothing, however long
    with pytest.raises(RankError) as caught:
        train_ranks(IS_LOST, "def read_a_photo():\n    time.sleep(60)\nread_a_photo()", IS_LOST)
    assert re.fullmatch(r"rank 1 did not answer within trainer.dist_timeout_seconds=5: File \"<string>\", line \d+, in "
                        r"read_a_photo", str(caught.value))
    assert caught.value.exit_code == 6


def test_row_23_a_process_that_hangs_is_named(train_ranks, monkeypatch):
    """Of several processes, one that does not answer for trainer.dist_timeout_seconds ends all, with rank and line."""
    row_23(train_ranks, monkeypatch)


def test_row_23_control(train_ranks, monkeypatch):
    """Without the stacks the line is not known."""
    monkeypatch.setattr(processes.Watch, "ask", lambda *_: {})
    with pytest.raises(AssertionError):
        row_23(train_ranks, monkeypatch)


# in processes of their own

COMMAND = [sys.executable, "-m", "dltrain", "seed=3", "trainer.max_epochs=6", "trainer=cpu", "data.batch_size=100",
           "trainer.checkpoint_every_steps=7", "model.depth=8"]


def start(cwd: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, f"name={name}"], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})


def finish(cwd: Path, name: str) -> str:
    process = start(cwd, name)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def wait_for_checkpoint(cwd: Path, name: str) -> None:
    last = cwd / f"outputs/{name}/checkpoints/last.ckpt"
    for _ in range(9000):  # 3 minutes: a busy machine starts slowly
        if last.exists():
            return
        time.sleep(0.02)
    raise AssertionError("no checkpoint appeared")


def load_tensors(cwd: Path, name: str) -> dict[str, Any]:
    saved = torch.load(cwd / f"outputs/{name}/checkpoints/last.ckpt", weights_only=True)
    momenta = {f"momentum.{k}": v["momentum_buffer"] for k, v in saved["optimizer_states"][0]["state"].items()}
    return {**saved["state_dict"], **momenta}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("runs")
    finish(cwd, "uninterrupted")
    return cwd


def assert_same_bits(cwd: Path, name: str) -> None:
    a, b = load_tensors(cwd, "uninterrupted"), load_tensors(cwd, name)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_a_killed_run_is_resumed_by_the_same_command(uninterrupted):
    process = start(uninterrupted, "killed")
    wait_for_checkpoint(uninterrupted, "killed")
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (uninterrupted / "outputs/killed/result.json").exists()
    out = finish(uninterrupted, "killed")
    assert re.search(r"resuming outputs/killed from step \d+ of 78", out)
    assert_same_bits(uninterrupted, "killed")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_and_sets_the_exit_code_of_a_process(signum, code, uninterrupted):
    name = f"signal{code}"
    process = start(uninterrupted, name)
    wait_for_checkpoint(uninterrupted, name)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert re.fullmatch(rf"dltrain: {signum.name}: saved outputs/{name}/checkpoints/last.ckpt at step \d+; "
                        rf"dltrain resume run=outputs/{name} continues it\n", err)
    finish(uninterrupted, name)
    assert_same_bits(uninterrupted, name)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["the group", "rank 0", "rank 1"])
def test_row_22_d_a_signal_to_two_processes(to, tmp_path):
    """Of two processes on the CPU, a signal to any or to all saves; the same command continues to the same bits."""
    words = [*COMMAND, "trainer.devices=2", "recipe=none", "name=a"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder in (straight, stopped):
        folder.mkdir()
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
        if folder == stopped:
            wait_for_checkpoint(folder, "a")
            ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            if to == "the group":
                os.killpg(process.pid, signal.SIGTERM)
            else:
                os.kill(int(ranks[int(to[-1])]), signal.SIGTERM)
            _, err = process.communicate(timeout=120)
            assert process.returncode == 143, err
            assert re.fullmatch(r"dltrain: SIGTERM: saved outputs/a/checkpoints/last.ckpt at step \d+; .*\n", err)
            process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    ends = [torch.load(folder / "outputs/a/checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for folder in (straight, stopped)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_line_of_own_code_stands_below_the_error_of_a_rank():
    error = RankError("rank 1: KeyError: 'a\x1b[2J'\n  mine.py:3, in read\n    raise", 8)
    assert str(error) == "rank 1: KeyError: 'a\\x1b[2J'\n  mine.py:3, in read\n    raise"


class Hanging(FewDigits):
    """Rank 1 hangs in its second batch."""

    def read(self, split, batches):
        for number, batch in enumerate(super().read(split, batches)):
            if self.rank == 1 and number:
                time.sleep(100)
            yield batch


class Failing(FewDigits):
    """Rank 1 fails in its second batch."""

    def read(self, split, batches):
        for number, batch in enumerate(super().read(split, batches)):
            if self.rank == 1 and number:
                raise KeyError("a photo")
            yield batch


@pytest.mark.slow
@pytest.mark.parametrize(("data", "code", "message"), [
    ("Hanging", 6, r"rank 1 did not answer within trainer.dist_timeout_seconds=5: File \S+, line \d+, in read\n"),
    ("Failing", 8, r"rank 1: KeyError: 'a photo'\n  \S+:\d+, in read\n .*\n"),
])
def test_row_23_b_two_processes(data, code, message, tmp_path):
    """Of two processes on the CPU, one that hangs or fails ends both, and is named."""
    words = [sys.executable, "-m", "dltrain", *JOB, "trainer.devices=2", "trainer.dist_timeout_seconds=5",
             "data.batch_size=8", f"data._target_={__name__}.{data}", "name=a"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert re.match(rf"dltrain: error: {message}", done.stderr)
    assert "gloo" not in done.stderr


@pytest.mark.slow
def test_two_processes_train_the_same_in_a_run_and_in_a_sweep(tmp_path):
    """DistributedDataParallel over gloo: the second process joins the folder of the run, whatever the user typed."""
    overrides = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=2", "model.depth=8",
                 "recipe=none"]
    for more in (["name=single", "seed=1"], ["-m", "name=sweep", "seed=1,2"]):
        command = [sys.executable, "-m", "dltrain", *overrides, *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
                              env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
        assert done.returncode == 0, done.stderr
    single = torch.load(tmp_path / "outputs/single/checkpoints/last.ckpt", weights_only=True)
    folder = next((tmp_path / "outputs/sweep").glob("seed1-*"))
    job = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert single["global_step"] == 10  # 628 samples per process in batches of 128, 2 epochs
    assert all(torch.equal(single["state_dict"][key], job["state_dict"][key]) for key in single["state_dict"])
