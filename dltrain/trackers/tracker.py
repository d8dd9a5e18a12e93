"""What trackers share: the id of a run, which its folder keeps, and what is sent again after a resume."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers.logger import Logger

from dltrain.disk import writing
from dltrain.errors import CheckpointError, UserError
from dltrain.ranks import is_first_process
from dltrain.stored_files import read_json

FILE = "trackers.json"
ARTIFACTS = ("config.yaml", "result.json", "metrics.csv", "command.txt", "environment.json")


def is_place(value: Any) -> bool:
    """Whether it is a step, and whether its validation was sent."""
    return type(value) is list and [*map(type, value)] == [int, bool]


class Tracker(Logger):
    """A logger of one run. `folder`: the run's, whose trackers.json has the id of the run at the tracker and the last
    step that was sent: a resumed run continues in the same one, and readings that it repeats are not sent twice."""

    library = ""

    def __init__(self, folder: Path):
        super().__init__()
        if find_spec(self.library) is None:
            raise UserError(f"trainer.loggers: {self.library} is not installed: pip install 'dltrain[{self.library}]'")
        self.folder = folder
        self.stored: dict[str, Any] = self.read()

    @property
    def name(self) -> str:
        return self.library

    @property
    def version(self) -> str:
        return str(self.stored.get("id", ""))

    def read(self) -> dict[str, Any]:
        file = self.folder / FILE
        stored = read_json(file, "delete it, and the run is tracked as a new one") if file.is_file() else {}
        own = stored.get(self.library, {})
        if type(own) is not dict or type(own.get("id", "")) is not str or not is_place(own.get("sent", [0, False])):
            raise CheckpointError(f"{file}: damaged ({self.library}); delete it, and the run is tracked as a new one")
        return own

    def keep(self, **values: Any) -> None:
        """Adds values to this tracker's in trackers.json, which need not survive a fault of the machine."""
        self.stored |= values
        file, new = self.folder / FILE, self.folder / f".{FILE}"
        others = read_json(file) if file.is_file() else {}
        with writing(file):
            new.write_text(json.dumps({**others, self.library: self.stored}, indent=1) + "\n")
            os.replace(new, file)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Sends a reading, unless it was sent before the run was resumed: that of training comes before that of the
        validation after the same step."""
        number, is_validation = int(step or 0), any(key.startswith("val/") for key in metrics)
        sent_step, sent_validation = self.stored.get("sent", (-1, False))
        if is_first_process() and (number > sent_step or (number == sent_step and is_validation > sent_validation)):
            self.send({key: float(value) for key, value in metrics.items()}, number)
            self.keep(sent=[number, is_validation])

    def log_hyperparams(self, params: Any, *_: object, **__: object) -> None:
        if is_first_process():
            self.send_parameters(dict(params))

    def add_figure(self, tag: str, figure: Any, step: int) -> None:
        """A picture (3, H, W) uint8, or text."""
        if is_first_process():
            self.send_figure(tag, figure, step)

    def finalize(self, status: str) -> None:
        """`success` also stands for the end of a training whose test follows; the run ends with its result."""
        if is_first_process() and (status != "success" or (self.folder / "result.json").is_file()):
            files = [self.folder / name for name in ARTIFACTS if (self.folder / name).is_file()]
            self.end(status == "success", files)

    # what a tracker does

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        raise NotImplementedError

    def send_parameters(self, values: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def send_figure(self, tag: str, figure: Any, step: int) -> None:
        raise NotImplementedError

    def end(self, is_done: bool, files: Sequence[Path]) -> None:
        raise NotImplementedError
