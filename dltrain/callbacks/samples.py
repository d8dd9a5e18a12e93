"""What a net that writes has to say: a sample on TensorBoard after each validation."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from dltrain.callbacks.pictures import boards


class Samples(pl.Callback):
    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.state.fn != "fit" or not hasattr(pl_module, "sample") or not boards(trainer):
            return
        text = pl_module.sample(getattr(trainer, "datamodule", None))
        for board in boards(trainer):
            try:  # four blanks: shown as it is, not as markdown
                board.experiment.add_text("val/sample", "    " + text.replace("\n", "\n    "), trainer.global_step)
            except OSError as error:
                board.warn_once(error)
