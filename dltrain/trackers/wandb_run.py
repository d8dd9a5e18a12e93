"""Weights & Biases: `trainer.loggers=[wandb]`, offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torchvision.transforms.functional import to_pil_image

from dltrain.trackers.tracker import Tracker


class Wandb(Tracker):
    """`project`: its name there. The files of an offline run are in the run folder, below wandb/; `wandb sync` sends
    them. The run is named as its folder."""

    library = "wandb"

    def __init__(self, save_dir: str, project: str = "dltrain"):
        super().__init__(Path(save_dir))
        self.project = project
        self._run: Any = None

    @property
    def run(self) -> Any:
        if self._run is None:
            import wandb

            if "id" not in self.stored:
                self.keep(id=secrets.token_hex(4))
            self._run = wandb.init(project=self.project, id=self.stored["id"], name=self.folder.absolute().name,
                                   dir=str(self.folder), mode=os.environ.get("WANDB_MODE", "offline"),
                                   resume="allow", settings=wandb.Settings(silent=True, console="off"))
            self._run.define_metric("*", step_metric="step")
        return self._run

    def send(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log({**metrics, "step": step})

    def send_parameters(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(values, allow_val_change=True)

    def send_figure(self, tag: str, figure: Any, step: int) -> None:
        import wandb

        value = wandb.Html(f"<pre>{escape(figure)}</pre>") if isinstance(figure, str) else wandb.Image(
            to_pil_image(figure))
        self.run.log({tag: value, "step": step})

    def end(self, is_done: bool, files: Sequence[Path]) -> None:
        for file in files:
            self.run.save(str(file.absolute()), base_path=str(self.folder.absolute()), policy="now")
        self.run.finish(exit_code=0 if is_done else 1)
        self._run = None
