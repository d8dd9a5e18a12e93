"""Train deep learning's classic systems from one command, or from Python: `train`, `compose` and `load`."""

from __future__ import annotations

import sys

if sys.argv[:1] == ["-m"] and not sys.flags.safe_path:  # `python -m dltrain` looks into the current folder first
    folder = sys.path.pop(0)
    if not any(word.startswith("dltrain") for word in sys.orig_argv):  # else own_modules.py adds it at the end
        sys.path.append(folder)

TYPE_CHECKING = False  # without typing and pathlib the first line of the command is reached in half the time
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from omegaconf import DictConfig

    from dltrain.loaded import LoadedRun

__version__ = "0.2.0"


def train(*overrides: str, config_dir: str | Path | None = None) -> LoadedRun:
    """`dltrain train OVERRIDES`: trains and tests one run, or continues it, and loads it.

    `config_dir`: a folder of your own configs. Raises dltrain.errors.UserError as the command would print it; an
    exception of your own code arrives as it is."""
    from dltrain.commands.train import open_run_dir, start
    from dltrain.config.compose import compose as composed_of
    from dltrain.errors import UserError
    from dltrain.loaded import LoadedRun
    from dltrain.run_lock import remove_if_empty
    from dltrain.same_data import take_word

    words, accept = take_word(overrides)
    composed = composed_of(words, None if config_dir is None else str(config_dir))
    if composed.is_sweep:
        raise UserError("dltrain.train trains one run, but this is a sweep: call it for each job, or use the command")
    run_dir = open_run_dir(composed)
    run_dir.accepts_changed_data = accept
    try:
        start(composed, run_dir, None if config_dir is None else str(config_dir), ["train", *overrides])
    except BaseException:
        remove_if_empty(run_dir.path)
        raise
    return LoadedRun(run_dir.path)


def compose(*overrides: str, config_dir: str | Path | None = None) -> DictConfig:
    """The config that `train` would use, composed and checked, without torch. Raises dltrain.errors.UserError."""
    from dltrain.config.compose import compose as composed_of

    return composed_of(list(overrides), None if config_dir is None else str(config_dir)).job_config()


def load(run: str | Path, trust: Sequence[str] = ()) -> LoadedRun:
    """A run that has a best checkpoint, ready to predict and to be evaluated. `trust`: packages whose classes its
    config may name, beside what docs/trust.md lists. Raises dltrain.errors.UserError."""
    from pathlib import Path

    from dltrain.loaded import LoadedRun
    from dltrain.trust import trusted

    trusted.update(trust)
    return LoadedRun(Path(run))
