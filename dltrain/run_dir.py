"""The run folder: made once, locked while written to, complete enough to resume, evaluate and predict from alone.

    config.yaml        the whole composed config, plain          command.txt       what was typed, one line a start
    environment.json   versions, device, git commit              log.txt           what was said, and warnings
    metrics.csv        the readings                              events.out.*      the same for TensorBoard
    checkpoints/       last.ckpt, previous.ckpt, best.ckpt       result.json       one flat object, at the end
    samples/           a few test samples to predict             error.txt         a traceback, where there was one
    vocabulary.json    the symbols of the text, where there is some
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from dltrain.errors import MachineError, UserError

log = logging.getLogger("dltrain")


def timed(parent: Path) -> Path:
    """A new folder below `parent`, named by the time. Two runs started in one second get two."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for number in range(1, 1000):
        folder = parent / (stamp if number == 1 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise MachineError(f"cannot make the run folder {folder}: {error.strerror}") from None
        return folder
    raise MachineError(f"no free folder name below {parent}")


def named(root: Path, name: str) -> Path:
    """The folder of `name=`; it may be there already, and then its run goes on."""
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make the run folder {folder}: {error.strerror}") from None
    return folder


@contextmanager
def locked(folder: Path, writes: bool = True) -> Iterator[None]:
    """One writer at a time: a second one is refused by name. Also finds out at once whether the folder can be written.
    The lock ends with the process, however it ends. Nothing is locked for a process that does not write."""
    if not writes:
        yield
        return
    try:
        lock = open(folder / ".lock", "a+")  # noqa: SIM115
    except OSError as error:
        raise MachineError(f"cannot write in the run folder {folder}: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(f"run folder {folder} is in use by {lock.read().strip() or 'another process'}; choose "
                            "another name= or wait") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}")
        lock.flush()
        yield


def write(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    write(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False))


def read_vocabularies(folder: Path) -> dict[str, list[str]]:
    """The symbols that a run's text is read and written with, by their kind; empty where the run has no text."""
    file = folder / "vocabulary.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def write_vocabularies(folder: Path, vocabularies: dict[str, list[str]]) -> None:
    if vocabularies:
        write(folder / "vocabulary.json", json.dumps(vocabularies, ensure_ascii=False) + "\n")


def check_vocabularies(folder: Path, found: dict[str, list[str]]) -> None:
    """A run goes on with the symbols it was begun with. Raises UserError where the data's are others."""
    for kind, begun in read_vocabularies(folder).items():
        now = found.get(kind, [])
        if begun != now:
            other = ", ".join(map(repr, sorted({*begun} ^ {*now})[:5])) or "none, another order"
            raise UserError(f"the vocabulary of {kind} has {len(now)} symbols, but {folder} was begun with "
                            f"{len(begun)} (only in one of them: {other}): the text has "
                            "changed; give it back, or choose another name=")


def finished(folder: Path) -> bool:
    return (folder / "result.json").is_file()


def read_config(folder: Path, key: str = "run") -> dict[str, Any]:
    """Raises UserError where the folder, given as `key`, is not a run's."""
    path = folder / "config.yaml"
    if not path.is_file():
        near = sorted(str(found.parent) for found in folder.parent.glob("*/config.yaml"))[-3:]
        there = f"; there are: {', '.join(near)}" if near else "; dltrain ls runs lists the runs"
        raise UserError(f"{key}={folder}: not a run folder (it has no config.yaml){there}")
    found: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return found


FREE = {"name", "output_dir", "choices", "class_names", "data.root", "data.download", "data.num_workers",
        "trainer.log_every_n_steps", "trainer.checkpoint_every_minutes", "trainer.checkpoint_every_steps"}

# null until the data are read, and wherever these sizes go by interpolation
READ_FROM_FILES = {"num_classes", "vocab_size", "source_size", "target_size", "target_vocab_size"}


def refuse_other_config(folder: Path, asked: dict[str, Any]) -> None:
    """A run goes on with the config it was begun with. FREE keys may change, they change no weight. Raises UserError
    with the keys that differ."""
    if not (folder / "config.yaml").is_file():
        return
    begun, now = flatten(read_config(folder)), flatten(asked)
    open_yet = {key for key, value in now.items() if value is None and key.rpartition(".")[2] in READ_FROM_FILES}
    differ = [key for key in begun | now if key not in FREE and key.partition(".")[0] not in FREE
              and begun.get(key) != now.get(key) and key not in open_yet]
    if differ:
        shown = ", ".join(f"{key} ({begun.get(key)}, now {now.get(key)})" for key in differ[:5])
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        raise UserError(f"{folder} was begun with another config: {shown}{more}; choose another name=, or delete it")


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def write_command(folder: Path) -> None:
    with open(folder / "command.txt", "a", encoding="utf-8") as file:
        typed = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        file.write(f"{datetime.now().isoformat(timespec='seconds')}  {typed}\n")


def write_environment(folder: Path, device: str) -> None:
    import hydra
    import pytorch_lightning
    import torch
    import torchvision

    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
                         capture_output=True, text=True) if (here.parent / ".git").exists() else None
    found = {
        "python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
        "pytorch_lightning": pytorch_lightning.__version__, "hydra": hydra.__version__, "device": device,
        "cpu_threads": torch.get_num_threads(), "host": platform.node(), "system": platform.platform(),
        "git_commit": git.stdout.strip() if git and git.returncode == 0 else None,
    }
    write(folder / "environment.json", json.dumps(found, indent=1) + "\n")


@contextmanager
def logging_to(folder: Path, speaks: bool = True) -> Iterator[None]:
    """dltrain's own lines go to the terminal and to log.txt; every library's, warnings too, to log.txt alone."""
    file = logging.FileHandler(folder / "log.txt", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    terminal = Terminal()
    root, lightning = logging.getLogger(), logging.getLogger("pytorch_lightning")
    before = (root.handlers[:], root.level, lightning.handlers[:], log.handlers[:])
    root.handlers, lightning.handlers, lightning.propagate = [file], [], True
    lightning.setLevel(logging.WARNING)
    log.handlers = [terminal] if speaks else []
    root.setLevel(logging.INFO)
    log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, root.level, lightning.handlers, log.handlers = before
        file.close()


class Terminal(logging.Handler):
    """Prints to whatever standard output is at that moment, so that a progress bar stays below."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)

