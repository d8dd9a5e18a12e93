"""The jobs that Hydra starts, one for a run, many for a sweep: a mistake is one line; a sweep ends in a table."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dltrain import run, run_dir, sweeps
from dltrain.config import compose
from dltrain.errors import MachineError, UserError


def reported(path: Path, story: Callable[[], Any]) -> int:
    """Tells the story and returns its exit code: what went wrong is one line, and a traceback in the run folder."""
    try:
        try:
            story()
            return 0
        except torch.OutOfMemoryError as error:
            raise MachineError("out of memory on the device; try a smaller data.batch_size, with "
                               "trainer.accumulate_batches to keep the step's size") from error
    except UserError as error:
        failed(path, str(error))
        return error.exit_code
    except SystemExit as error:
        failed(path, f"the code ended the program with exit code {error.code}")
        return 1
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        failed(path, f"{type(error).__name__}: {said} (traceback in {path / 'error.txt'})")
        return 1


def failed(path: Path, message: str) -> None:
    """One line on standard error, and error.txt. A folder that holds no more than the lock and the log of a run that
    was refused before it began is taken away again."""
    print(f"dltrain: error: {message}", file=sys.stderr, flush=True)
    if not path.is_dir():
        return
    if {child.name for child in path.iterdir()} <= {".lock", "log.txt"}:
        for child in path.iterdir():
            child.unlink()
        path.rmdir()
    else:
        (path / "error.txt").write_text(f"{message}\n\n{traceback.format_exc()}", encoding="utf-8")


class Jobs:
    """The function that Hydra calls, once for a run and once a job for a sweep. A failing job is reported at once and
    does not end the others; a signal does."""

    def __init__(self, path: Path, sweep: bool, config_dir: str | None, title: str = ""):
        self.path, self.sweep, self.config_dir, self.title = path, sweep, config_dir, title
        self.exit_code = 0

    def __call__(self, _: DictConfig) -> float | None:
        path = Path(os.path.relpath(HydraConfig.get().runtime.output_dir)) if self.sweep else self.path
        words = list(HydraConfig.get().overrides.task)
        self.exit_code = reported(path, lambda: self.job(words, path))
        if self.exit_code == 0:
            (path / "error.txt").unlink(missing_ok=True)
        found = sweeps.read_result(path)
        return found[found["headline"]] if "headline" in found else None

    def job(self, words: list[str], path: Path) -> None:
        if self.sweep:
            print(f"\n{path.name}: {' '.join(words)}", flush=True)
            run_dir.write(path / "overrides.txt", "\n".join(words) + "\n")
        config = compose.compose(words, self.config_dir).job_config()  # of a sweep only the first job was checked yet
        if self.sweep:
            run_dir.refuse_other_config(path, compose.to_plain(config))
        if self.sweep and config.trainer.devices > 1:  # processes of its own: they cannot be started twice from one
            run_dir.write_config(path, compose.to_plain(config))
            code = subprocess.run([sys.executable, "-m", "dltrain.cli", "resume", f"run={path}"]).returncode
            if code:
                raise UserError(f"{path} ended with exit code {code}")
            return
        run.study(config, path) if "study" in config else run.train(config, path)

    def finish(self) -> int:
        return sweeps.finish(self.path, self.title) if self.sweep else self.exit_code

    def interrupted(self) -> None:
        """What a person should know when a signal has ended a sweep."""
        if self.sweep:
            sweeps.finish(self.path, self.title)
            print("interrupted; the same words with name= of this folder below output_dir skip the jobs that are done")
