"""Faults of the disk, and two runs in one folder: rows 6 and 11 to 15, and the lock of row 10."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dltrain import checkpoints, disk, run_lock
from dltrain.callbacks.checkpointing import Checkpointing
from dltrain.callbacks.metrics import TensorBoard, TensorBoardLogger
from dltrain.errors import CheckpointError, MachineError
from dltrain.run_dir import RunDir
from dltrain.run_lock import FolderInUse, locked
from tests.conftest import TINY
from tests.test_resume import crash, load_last, train
from tests.tiny import FewDigits

pytestmark = pytest.mark.usefixtures("without_figures")

FULL: list[Callable[[str], bool]] = []  # while it has a rule, opening such a file to write is an error of a full disk
WRITES = os.O_WRONLY | os.O_RDWR


def refuse_on_full_disk(event: str, arguments: tuple[Any, ...]) -> None:
    if FULL and event == "open" and arguments[2] & WRITES and FULL[0](os.fsdecode(arguments[0])):
        raise OSError(28, "No space left on device")


sys.addaudithook(refuse_on_full_disk)


@contextmanager
def full_disk_for(name: str) -> Iterator[None]:
    """No file with `name` in its path can be opened to write."""
    FULL.append(lambda path: name in path)
    try:
        yield
    finally:
        FULL.clear()


@contextmanager
def no_file_beyond(num_bytes: int) -> Iterator[None]:
    """A write beyond `num_bytes` of a file fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


# row 6


def save_by_a_thread(checkpoint: dict[str, Any], path: Path) -> None:
    io = checkpoints.DurableIO()
    io.save_checkpoint(checkpoint, path)
    io.wait()


def save_in_place(checkpoint: dict[str, Any], path: Path) -> None:
    """A megabyte at a time, as to a slow disk."""
    content = path.with_name("content")
    torch.save({**checkpoint, "dltrain": {"version": checkpoints.__version__}}, content)
    with open(content, "rb") as source, open(path, "wb") as file:
        while piece := source.read(1_000_000):
            file.write(piece)
            file.flush()
            time.sleep(0.003)


def row_06(save: Callable[[dict[str, Any], Path], None], folder: Path) -> None:
    """Ten kills, spread over the duration of a save, each of a forked child, so that the save starts at once."""
    path = folder / checkpoints.LAST
    big = {"x": torch.arange(4_000_000, dtype=torch.float32)}
    started_at = time.monotonic()
    save(big, path)
    seconds = time.monotonic() - started_at
    for number in range(10):
        child = os.fork()
        if child == 0:
            try:
                save(big, path)
            finally:
                os._exit(0)
        time.sleep(seconds * (0.1 + 0.1 * number))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest, _ = checkpoints.find_newest(folder)
        assert newest is not None
        assert torch.equal(checkpoints.load(newest)["x"], big["x"])
        assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("save", [checkpoints.save, save_by_a_thread])
def test_row_06_a_kill_during_a_save_leaves_a_complete_file(save, tmp_path):
    """A run killed while it saves continues from the last good checkpoint; its temporary file is removed."""
    row_06(save, tmp_path)


def test_row_06_control_in_place(tmp_path):
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        row_06(save_in_place, tmp_path)


# row 10: the lock


def row_10_lock(folder: Path) -> None:
    """The owner has forked a child that outlives it."""
    ready, child_ready = os.pipe()
    owner = os.fork()
    if owner == 0:
        with locked(folder):
            worker = os.fork()
            if worker == 0:
                os.write(child_ready, f"{os.getpid():9}".encode())
                time.sleep(60)
                os._exit(0)
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(ready, 9))
    try:
        with pytest.raises(FolderInUse, match=rf"is in use by process {owner} on {os.uname().nodename}; wait, or"):
            locked(folder).__enter__()
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        os.kill(worker, 0)  # it is alive
        with locked(folder):
            assert f"process {os.getpid()} on" in (folder / ".lock").read_text()
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(ready)
        os.close(child_ready)


def test_row_10_lock_ends_with_its_owner_whatever_its_children_do(tmp_path):
    """A second start in the folder of a live run is refused with its process and machine; after a kill of the run the
    same command continues at once, also while its loader processes are still there."""
    row_10_lock(tmp_path)


def test_row_10_lock_control_flock_is_inherited(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "lockf", fcntl.flock)
    with pytest.raises(FolderInUse):
        row_10_lock(tmp_path)


def row_10_refused(dltrain, folder: Path) -> None:
    """The first run has its folder and reads its data still: nothing but the lock and the log is there."""
    with locked(folder):
        (folder / "log.txt").touch()
        before = {path.name: path.stat() for path in folder.iterdir()}
        code, _, err = dltrain("name=a", *TINY)
        assert (code, err.count("\n")) == (2, 1), err
        assert f"outputs/a is in use by process {os.getpid()} on {os.uname().nodename}" in err
        assert {path.name: path.stat() for path in folder.iterdir()} == before


def test_row_10_refused_start_leaves_the_folder_alone(dltrain, tmp_path):
    """A second start that is refused changes nothing in the folder of the first, even if that still reads its data."""
    row_10_refused(dltrain, tmp_path / "outputs/a")


def test_row_10_refused_control(dltrain, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.reporting.FolderInUse", ZeroDivisionError)  # a failure like any other
    monkeypatch.setattr("dltrain.reporting.locked", lambda folder: nullcontext())
    with pytest.raises(AssertionError):
        row_10_refused(dltrain, tmp_path / "outputs/a")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_goes_by_the_record(tmp_path, monkeypatch, code):
    def refuse_locks(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(run_lock.fcntl, "lockf", refuse_locks)
    record = tmp_path / ".lock"
    with locked(tmp_path):
        assert record.read_text() == run_lock.record_of(os.getpid())
    assert record.read_text() == ""
    for owner in (run_lock.record_of(os.getppid()), "process 1 on elsewhere\nbegun at 5\n"):
        record.write_text(owner)
        with pytest.raises(FolderInUse, match=f"in use by {owner.splitlines()[0]}; wait.* delete {record}"):
            locked(tmp_path).__enter__()
    child = subprocess.Popen(["true"])
    child.wait()
    host = os.uname().nodename
    for owner in (f"process {child.pid} on {host}\nbegun at 5\n",  # has ended
                  f"process {os.getppid()} on {host}\nbegun at 5\n"):  # its number is another's now
        record.write_text(owner)
        with locked(tmp_path):
            pass


def test_a_lock_is_taken_anew_where_a_refused_run_removed_the_folder(tmp_path, monkeypatch):
    folder, take = tmp_path / "a", run_lock.take

    def take_late(descriptor: int, path: Path) -> None:
        monkeypatch.setattr(run_lock, "take", take)
        assert run_lock.remove_if_empty(path)  # by the first run, between the second's open and its lock
        take(descriptor, path)

    monkeypatch.setattr(run_lock, "take", take_late)
    with locked(folder):
        assert "process" in (folder / ".lock").read_text()


# row 11


def row_11(dltrain, folder: Path, monkeypatch) -> None:
    """The disk is full from step 5 on."""
    ended = Checkpointing.on_train_batch_end
    full_disk = no_file_beyond(20_000)

    def fill(self, trainer, *arguments):
        if trainer.global_step == 5:
            trainer.strategy.checkpoint_io.wait()  # the thread has written that of step 4
            full_disk.__enter__()
        ended(self, trainer, *arguments)

    monkeypatch.setattr(Checkpointing, "on_train_batch_end", fill)
    try:
        code, _, err = dltrain("name=a", *TINY, "trainer.checkpoint_every_steps=1")
    finally:
        full_disk.__exit__(None, None, None)
        monkeypatch.setattr(Checkpointing, "on_train_batch_end", ended)
    assert (code, err.count("\n")) == (6, 1), err
    assert "cannot save outputs/a/checkpoints/last.ckpt: File too large (needs 0.6" in err
    assert "MB free); the previous checkpoint is kept; free some disk space" in err
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt",
                                                                                "previous.ckpt"]
    assert load_last(folder)["global_step"] == 4
    assert dltrain("name=a", *TINY, "trainer.checkpoint_every_steps=1")[0] == 0
    assert load_last(folder)["global_step"] == 9


def test_row_11_a_full_disk_keeps_the_checkpoint(dltrain, tmp_path, monkeypatch):
    """A disk that is full while a checkpoint is saved ends the run with one line that names the file, the space that it
    needs and what is kept (exit 6); with space again, the same command continues."""
    row_11(dltrain, tmp_path / "outputs/a", monkeypatch)


def test_row_11_control_in_place(dltrain, tmp_path, monkeypatch):
    def save(checkpoint, path):
        path.parent.mkdir(exist_ok=True)
        with disk.writing(path):
            torch.save(checkpoint, open(path, "wb"))  # noqa: SIM115

    monkeypatch.setattr(checkpoints, "save", save)
    with pytest.raises((AssertionError, RuntimeError)):
        row_11(dltrain, tmp_path / "outputs/a", monkeypatch)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(MachineError, match=r"cannot save .*/a: Input/output error"):
        disk.write_text(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


FILES = [".lock", "log.txt", "config.yaml", "command.txt", "environment.json", "splits.json", "metrics.csv", "samples",
         "result.json"]  # in the order in which a run writes them


def row_11_b(dltrain, names: list[str]) -> None:
    for name in names:
        with full_disk_for(name):
            code, _, err = dltrain("name=a", *TINY, "trainer.max_epochs=1")
        assert (code, err.count("\n")) == (6, 1), (name, err)
        assert f"cannot save outputs/a/{name}: No space left on device (" in err
        assert "MB free); " in err
        assert "kept" in err or "nothing is changed" in err
    assert dltrain("name=a", *TINY, "trainer.max_epochs=1")[0] == 0
    assert not list(Path("outputs").rglob("*.tmp"))


def test_row_11_b_every_file_of_a_run_is_named(dltrain):
    """A full disk is one such line for every file of a run: its lock, log, config, metrics, samples and result."""
    row_11_b(dltrain, FILES)


def test_row_11_b_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.disk.writing", lambda *_, **__: nullcontext())
    monkeypatch.setattr("dltrain.reporting.naming_full_disk", nullcontext)
    with pytest.raises(AssertionError):
        row_11_b(dltrain, ["config.yaml"])


def test_a_disk_that_fills_within_a_row_leaves_whole_rows(tmp_path):
    from dltrain.callbacks.metrics import MetricsFile

    file = MetricsFile(tmp_path / "metrics.csv")
    file.log_metrics({"train/loss": 1.0, "epoch": 1}, 1)
    intact = (tmp_path / "metrics.csv").read_bytes()
    with no_file_beyond(len(intact) + 3), pytest.raises(MachineError, match=r"metrics.csv: File too large"):
        file.log_metrics({"train/loss": 0.5, "epoch": 1}, 2)
    assert (tmp_path / "metrics.csv").read_bytes() == intact == b"step,epoch,train/loss\r\n1,1,1\r\n"


def test_a_full_disk_elsewhere_in_a_command_is_one_line(dltrain):
    with full_disk_for("outputs/show"):
        code, _, err = dltrain("show", "data=digits", "recipe=none")
    assert code == 6
    assert err.startswith("dltrain: error: cannot save ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_run_on_a_disk_of_no_space_at_all(tmp_path):
    """A real file system, as far as this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk]).returncode:
        pytest.skip("needs a user that may mount")
    try:
        subprocess.run(["dd", "if=/dev/zero", f"of={disk}/filler"], stderr=subprocess.DEVNULL, check=False)
        done = subprocess.run([sys.executable, "-m", "dltrain", "name=a", *TINY], cwd=disk, capture_output=True,
                              text=True, check=False, timeout=120,
                              env={**os.environ, "PYTHONPATH": os.getcwd()})
    finally:
        subprocess.run(["umount", disk], check=True)
    assert done.returncode == 6
    assert done.stderr == ("dltrain: error: cannot save outputs/a/.lock: No space left on device (0.000 MB free); "
                           "nothing is changed; free some disk space and run the same command again\n")


# row 12


def row_12(dltrain, folder: Path) -> None:
    with full_disk_for("events.out"):
        code, out, err = dltrain("name=a", *TINY)
    assert (code, err) == (0, "")
    assert out.count("dltrain: warning: cannot write TensorBoard's outputs/a/events.out") == 1
    assert load_last(folder)["global_step"] == 9
    assert RunDir(folder).is_finished


def test_row_12_tensorboard_alone_costs_a_warning(dltrain, tmp_path):
    """If the disk refuses TensorBoard's file only, a warning is printed, and training and checkpoints go on."""
    row_12(dltrain, tmp_path / "outputs/a")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_row_12_control_with_the_writer_of_lightning(dltrain, tmp_path, monkeypatch):
    monkeypatch.setattr(TensorBoard, "experiment", TensorBoardLogger.experiment)
    with pytest.raises(AssertionError):
        row_12(dltrain, tmp_path / "outputs/a")


def test_the_event_file_is_read_up_to_the_failure_and_has_no_record_after_it(tmp_path, capsys):
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    board = TensorBoard(tmp_path, name="", version="", purge_step=3)
    board.log_metrics({"train/loss": 1.0, "epoch": 1}, 3)
    board.finalize("success")
    file = next(tmp_path.glob("events.out.*"))
    with no_file_beyond(file.stat().st_size + 10):
        board.log_metrics({"train/loss": 2.0}, 4)
        board.finalize("success")
    board.log_metrics({"train/loss": 3.0}, 5)
    board.finalize("success")
    events = [*EventFileLoader(str(file)).Load()]
    assert [event.step for event in events] == [0, 3, 3, 3]
    assert events[2].session_log.status == events[2].session_log.START
    assert events[3].summary.value[0].tag == "train/loss"
    assert capsys.readouterr().out.count("warning") == 1


# row 13


def row_13(dltrain, monkeypatch) -> None:
    """The checkpoints are another user's: nothing can be renamed there."""
    train(Path("outputs/a"))
    Path("outputs/a/result.json").unlink()
    FewDigits.history.clear()
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if "checkpoints" in str(target):
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    code, _, err = dltrain("name=a", *TINY)
    assert (code, err.count("\n")) == (6, 1), err
    assert "cannot save outputs/a/checkpoints/.probe: Permission denied" in err
    assert not FewDigits.history


def test_row_13_a_folder_that_cannot_be_written_ends_before_training(dltrain, tmp_path, monkeypatch):
    """A run folder that cannot be written to ends the command before training, with the file and reason (exit 6)."""
    Path("outputs").mkdir()
    row_13(dltrain, monkeypatch)


def test_row_13_control_without_the_probe(dltrain, tmp_path, monkeypatch):
    Path("outputs").mkdir()
    monkeypatch.setattr(run_lock, "probe", lambda folder: None)
    with pytest.raises(AssertionError):
        row_13(dltrain, monkeypatch)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize(("mode", "file"), [(0o755, ".lock"), (0o777, "metrics.csv")])
def test_row_13_b_as_another_user(mode, file):
    """Also in a folder of another user, and with a file of another user in it."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "a")
        os.chmod(parent, 0o755)
        folder.mkdir()
        folder.chmod(mode)
        (folder / "metrics.csv").touch(0o644)
        ready, answer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setuid(65534)
            try:
                with locked(folder):
                    os.write(answer, b"no error")
            except MachineError as error:
                os.write(answer, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        message = os.read(ready, 1000).decode()
        os.close(ready)
        os.close(answer)
    assert message.startswith(f"cannot save {folder}/{file}: Permission denied; nothing is changed")


def row_13_c(dltrain, monkeypatch, place: Path) -> None:
    """The folder of a run is moved to `place` after its fifth step, and continued there."""
    ended = Checkpointing.on_train_batch_end

    def move(self, trainer, *args):
        ended(self, trainer, *args)
        if trainer.global_step == 5:
            Path("outputs/a").rename(place)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointing, "on_train_batch_end", move)
        code, _, err = dltrain("name=a", *TINY)
    assert (code, err.count("\n")) == (6, 1)
    assert re.search(r"cannot \w+ outputs/a/\S+: its folder is gone, moved or deleted while it was in use", err)
    assert dltrain("resume", f"run={place}")[0] == 0


def test_row_13_c_a_folder_that_is_moved_continues_where_it_is(dltrain, monkeypatch, tmp_path):
    """A run whose folder is moved or deleted while it trains ends with one line; `resume` continues it at its new
    place, to the same bits."""
    place = tmp_path / "moved"
    row_13_c(dltrain, monkeypatch, place)
    dltrain("name=straight", *TINY)
    straight, moved = (load_last(folder)["state_dict"] for folder in (tmp_path / "outputs/straight", place))
    assert all(torch.equal(straight[key], moved[key]) for key in straight)


def test_row_13_c_control(dltrain, monkeypatch, tmp_path):
    for module in ("reporting", "disk"):  # whichever file is opened or written first
        monkeypatch.setattr(f"dltrain.{module}.FOLDER_GONE", "")
    with pytest.raises(AssertionError):
        row_13_c(dltrain, monkeypatch, tmp_path / "moved")


def test_eval_and_predict_of_a_read_only_run_write_beside_it(dltrain, tmp_path, monkeypatch):
    dltrain("name=a", *TINY, "trainer.max_epochs=1")
    before = {path: path.stat().st_mtime_ns for path in Path("outputs/a").rglob("*")}
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode == os.W_OK and Path(path) == Path("outputs/a")))
    code, out, err = dltrain("eval", "run=outputs/a")
    assert (code, err) == (0, "")
    assert out.endswith("; outputs/a-eval.json\n")
    code, out, err = dltrain("predict", "run=outputs/a", "input=outputs/a/samples")
    assert (code, err) == (0, "")
    assert "outputs/a is read-only: results go to outputs/a-predictions; output=FOLDER chooses another place" in out
    assert Path("outputs/a-predictions.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in Path("outputs/a").rglob("*")} == before


# row 14


def row_14(folder: Path) -> None:
    """Sixteen threads, in the same instant."""
    barrier, paths = threading.Barrier(16), list[Path]()

    def start() -> None:
        barrier.wait()
        paths.append(RunDir.timed(folder).path)

    threads = [threading.Thread(target=start) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 16
    assert len({*paths}) == 16


def test_row_14_runs_of_the_same_second_get_two_folders(tmp_path):
    """Two runs that start in the same second get two folders."""
    row_14(tmp_path)


def test_row_14_control_a_folder_that_may_exist(tmp_path, monkeypatch):
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, parents=False, exist_ok=True: mkdir(path, 0o777, parents, True))
    with pytest.raises(AssertionError):
        row_14(tmp_path)


# row 15


def row_15(folder: Path, monkeypatch) -> None:
    """Three steps an epoch; a crash in step 8; after the first epoch no value is the best."""
    ended = Checkpointing.on_validation_end

    def end(self, trainer, pl_module):
        ended(self, trainer, pl_module)
        self.best = 2.0  # of an accuracy

    monkeypatch.setattr(Checkpointing, "on_validation_end", end)
    crash(monkeypatch, folder, "on_train_batch_end", 8)
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 3
    assert load_last(folder)["global_step"] == 6


def test_row_15_last_is_fresh_whatever_the_metric_does(tmp_path, monkeypatch):
    """last.ckpt is at most an epoch old, also if the metric never improves."""
    row_15(tmp_path / "run", monkeypatch)


def test_row_15_control_a_last_that_follows_the_metric(tmp_path, monkeypatch):
    save = Checkpointing.save_last
    monkeypatch.setattr(Checkpointing, "save_last", lambda self, trainer: (
        save(self, trainer) if trainer.global_step == 3 * self.best_epoch else None))
    with pytest.raises(AssertionError):
        row_15(tmp_path / "run", monkeypatch)


# one writer

WATCH = '''
import os, sys

def refuse(event, arguments):
    if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR) and "outputs/a" in os.fsdecode(arguments[0]):
        print("OPENED", arguments[0], file=sys.stderr)
        raise AssertionError(f"the second process writes {arguments[0]}")

if os.environ.get("LOCAL_RANK", "0") == os.environ["WATCHED_RANK"]:
    sys.addaudithook(refuse)
'''


def one_writer(folder: Path, watched_rank: int) -> None:
    """Two processes over gloo; the one that is watched fails when it opens a file of the run to write."""
    (folder / "sitecustomize.py").write_text(WATCH)
    words = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "model.depth=8", "recipe=none",
             "trainer.log_every_n_steps=2", "name=a"]
    done = subprocess.run([sys.executable, "-m", "dltrain", *words], cwd=folder, capture_output=True, text=True,
                          timeout=300, check=False, env={
                              **os.environ, "CUDA_VISIBLE_DEVICES": "", "WATCHED_RANK": str(watched_rank),
                              "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])})
    assert "OPENED" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
    rows = RunDir(folder / "outputs/a").read_metrics()
    assert [row["step"] for row in rows if row["train/loss"]] == ["2", "4", "5"]
    assert len([*(folder / "outputs/a").glob("events.out.*")]) == 1


@pytest.mark.slow
def test_of_two_processes_one_writes(tmp_path):
    one_writer(tmp_path, 1)


@pytest.mark.slow
def test_of_two_processes_one_writes_control(tmp_path):
    with pytest.raises(AssertionError, match=r"OPENED outputs/a/\.lock"):
        one_writer(tmp_path, 0)
