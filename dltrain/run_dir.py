"""The run folder: created once, locked while written to, complete enough to resume, evaluate and predict from alone.

    config.yaml        the composed config, plain values, each key with its rule as a comment
    command.txt        the command line, one line per start       log.txt           messages and warnings
    environment.json   versions, device, git commit               metrics.csv       one row per reading
    events.out.*       the same readings for TensorBoard          vocabulary.json   symbols of text, names of labels
    checkpoints/       last.ckpt, previous.ckpt, best.ckpt        result.json       one flat object, at the end
    samples/           a few test samples to predict on           error.txt         a traceback, if there was one
    splits.json        the number of samples of each split and a digest of them
    samples.tsv        a line for each sample of people's own files, to see later what has changed
    own_code.json      the sha256 of the modules of the user's own
    parent.json        the run, and the place in it, with whose checkpoint this one began
    trackers.json      the ids of the run at trackers
    paused.json        where a search has ended the training, to be continued later or not
    report.html        the run on one page, at the end
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dltrain import __version__, slurm, stored_files
from dltrain.config import schema
from dltrain.config.renamed import SHORT_FORMS
from dltrain.disk import append_text, write_text
from dltrain.dotted import flatten
from dltrain.errors import DataError, MachineError, UserError
from dltrain.run_links import stray_file
from dltrain.source import git_commit


class RunDir:
    """Reads and writes the files of one run folder."""

    def __init__(self, path: Path, accepts_changed_data: bool = False):
        self.path, self.accepts_changed_data = path, accepts_changed_data

    def __str__(self) -> str:
        return str(self.path)

    # making one

    @classmethod
    def timed(cls, parent: Path) -> RunDir:
        """A new folder below `parent`, named by the time. Two runs that start in the same second get two folders."""
        stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
        for number in range(1, 1000):
            path = parent / (stamp if number == 1 else f"{stamp}_{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise MachineError(f"cannot create the run folder {path}: {error.strerror}") from None
            return cls(path)
        raise MachineError(f"no free folder name below {parent}")

    @classmethod
    def named(cls, root: Path, name: str) -> RunDir:
        """The folder of `name=`. It may exist already: the command then continues that run."""
        path = root / name
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MachineError(f"cannot create the run folder {path}: {error.strerror}") from None
        return cls(path)

    @property
    def is_writable(self) -> bool:
        """Whether a command may add files to it: not on a read-only disk, nor in the folder of another user."""
        log_file = self.path / "log.txt"
        return os.access(self.path, os.W_OK) and (not log_file.exists() or os.access(log_file, os.W_OK))

    def writable_place(self, name: str) -> Path:
        """Where a command that reads the run writes the file or folder `name`: in the run folder; where that cannot be
        written to, beside it or in the current folder, with the name of the run before it. Raises MachineError."""
        if self.is_writable:
            return self.path / name
        for folder in (self.path.parent, Path()):
            if os.access(folder, os.W_OK):
                return folder / f"{self.path.absolute().name}-{name}"
        raise MachineError(f"cannot write to {self} or beside it, nor to the current folder; change to another folder")

    def refuse_links(self) -> None:
        """Raises UserError for a file of the run that is a link to another place."""
        if message := stray_file(self.path):
            raise UserError(message)

    # config

    @property
    def has_config(self) -> bool:
        """Whether a run began in this folder."""
        return (self.path / "config.yaml").is_file()

    def read_config(self, key: str = "run") -> dict[str, Any]:
        """config.yaml. Raises UserError if the folder, given as `key`, is not a run's, CheckpointError if the run is of
        an older version than can be read."""
        if key == "run":
            self.refuse_links()
        return stored_files.read_config(self.path, key)

    def write_config(self, config: Mapping[str, object], comments: Mapping[str, str]) -> None:
        """`comments`: the rule of a key by its dotted name, written after the value as in configs/."""
        write_text(self.path / "config.yaml", schema.dump({"version": __version__, **config}, comments))

    def comments(self) -> dict[str, str]:
        """The comments in config.yaml that state the rules of its keys; none before it is written."""
        file = self.path / "config.yaml"
        lines = schema.assignments(file) if file.is_file() else {}
        return {key: line.comment for key, line in lines.items() if schema.rule_of(line.comment)}

    # vocabulary

    def read_vocabularies(self) -> dict[str, list[str]]:
        """The run's vocabularies by name, and the names of its classes as `labels`; empty where it has none."""
        return stored_files.read_vocabularies(self.path / "vocabulary.json")

    def write_vocabularies(self, vocabularies: Mapping[str, list[str]]) -> None:
        if vocabularies:
            write_text(self.path / "vocabulary.json", json.dumps(vocabularies, ensure_ascii=False) + "\n")

    def check_vocabularies(self, vocabularies: Mapping[str, list[str]]) -> None:
        """A resumed run must see the vocabulary it began with. Raises UserError if it differs."""
        for name, stored in self.read_vocabularies().items():
            now = vocabularies.get(name, [])
            if stored != now:
                symbols = ", ".join(map(repr, sorted({*stored} ^ {*now})[:5])) or "none, but in another order"
                raise UserError(f"the vocabulary '{name}' has {len(now)} symbols, but {self} began with {len(stored)} "
                                f"(only in one of them: {symbols}): the text has changed; restore it, or choose "
                                "another name=")

    def check_class_names(self, names: Sequence[str]) -> None:
        """The data of a resumed run, and those that it is evaluated on, must have its classes, in the same order: a
        class is known by its number alone. Raises DataError if they differ."""
        stored = self.read_config().get("class_names") if self.has_config else None
        if not stored or not names or list(stored) == list(names):
            return
        only = [f"only in {place}: {', '.join(sorted(more)[:5])}" for place, more in
                ((str(self), {*stored} - {*names}), ("these data", {*names} - {*stored})) if more]
        raise DataError(f"the classes of these data are {', '.join(names[:10])}, but {self} began with "
                        f"{', '.join(stored[:10])} ({'; '.join(only) or 'in another order'}): name the folders, "
                        "or classes.txt, as they were")

    def read_splits(self) -> dict[str, Any]:
        """splits.json, written by same_data.py; {} where it is missing."""
        file = self.path / "splits.json"
        return stored_files.read_splits(file)

    # results

    @property
    def best_checkpoint(self) -> Path:
        return self.checkpoint("best")

    def checkpoint(self, name: str) -> Path:
        """`name`: best or last."""
        return self.path / "checkpoints" / f"{name}.ckpt"

    @property
    def is_finished(self) -> bool:
        return bool(self.read_result())

    def describe_finished(self) -> str:
        """A line for who starts a finished run again: what it is, and how to train longer."""
        result = self.read_result()
        if "steps" not in result:  # a study
            return f"{self} is finished, nothing to do; another name= starts another run"
        from_run = next((key for key in flatten(self.read_config()) if key.endswith("pretrained.from_run")), None)
        steps = f"{result['steps']:,} step{'s' * (result['steps'] != 1)}"
        return (f"{self} is finished after {steps}, nothing to do; dltrain extend run={self} epochs= trains longer"
                f"{f', another name= with {from_run}={self} begins anew with its weights' if from_run else ''}")

    def read_result(self) -> dict[str, Any]:
        """result.json, or an empty dict before the run has finished."""
        return stored_files.read_result(self.path / "result.json")

    def write_json(self, name: str, values: object) -> None:
        write_text(self.path / name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def read_metrics(self) -> list[dict[str, str]]:
        """The rows of metrics.csv; a metric that a reading does not have is an empty string."""
        return stored_files.read_metrics(self.path / "metrics.csv")

    def epoch_of(self, step: int) -> tuple[int, str]:
        """The epoch, from 1 on, of the last reading of metrics.csv up to a step, 0 before the first; and what is wrong
        with the file."""
        file = self.path / "metrics.csv"
        if not os.path.lexists(file):
            return 0, ""
        content = stored_files.read_rows(file)
        return max((int(row["epoch"]) for row in content.rows if row and row["epoch"] and int(row["step"]) <= step),
                   default=0), f"{file}: {content.fault}" if content.fault else ""

    def write_left_out(self, left_out: Mapping[str, Sequence[str]]) -> str:
        """Lists what the data left out in left_out.txt. Returns a line with the counts."""
        lines = [f"{reason}: {place}" for reason, places in left_out.items() for place in places]
        write_text(self.path / "left_out.txt", "\n".join(lines) + "\n")
        counts = ", ".join(f"{len(places)} x {reason}" for reason, places in left_out.items())
        return f"left out: {counts}; {self}/left_out.txt lists them"

    def write_damaged_exif(self, files: Sequence[str]) -> str:
        """Lists the photos whose EXIF data are damaged in damaged_exif.txt. Returns a line with their number."""
        write_text(self.path / "damaged_exif.txt", "\n".join(files) + "\n")
        return f"photos with damaged EXIF data, taken as upright: {len(files)}; {self}/damaged_exif.txt lists them"

    # records of a start

    def write_command(self, command: list[str] | None = None) -> None:
        """Appends a line to command.txt: the command line, or `dltrain` and `command` for a run that code starts."""
        typed = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]] if command is None else ["dltrain", *command])
        append_text(self.path / "command.txt", f"{datetime.now().isoformat(timespec='seconds')}  {typed}\n")

    def typed_keys(self) -> set[str]:
        """The keys of the command lines, and of the job of a sweep, in full."""
        files = [file for name in ("command.txt", "overrides.txt") if (file := self.path / name).is_file()]
        lines = [line for file in files for line in file.read_text(encoding="utf-8", errors="replace").splitlines()]
        words = [word for line in lines for word in split_words(line)]
        return {SHORT_FORMS.get(key := word.partition("=")[0], key) for word in words if "=" in word}

    def write_environment(self, device: str) -> None:
        import hydra
        import pytorch_lightning
        import torch
        import torchvision

        self.write_json("environment.json", {
            "dltrain": __version__, "python": platform.python_version(), "torch": torch.__version__,
            "torchvision": torchvision.__version__, "pytorch_lightning": pytorch_lightning.__version__,
            "hydra": hydra.__version__, "device": device, "cpu_threads": torch.get_num_threads(),
            "host": platform.node(), "slurm_job": slurm.job_id(), "system": platform.platform(),
            "git_commit": git_commit()})


def split_words(line: str) -> list[str]:
    """The words of a command line; none of a damaged one."""
    try:
        return shlex.split(line)
    except ValueError:
        return []
