"""Whether a command continues the run that its folder holds: its config beside the run's own, value by value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dltrain.config.free_keys import DERIVED, EARLIER, FREE, READ_FROM_FILES
from dltrain.config.interpolations import to_plain
from dltrain.errors import DataError, UserError
from dltrain.ranks import world_size
from dltrain.run_dir import RunDir

LONGEST_VALUE = 60  # characters, in a message
MISSING = object()  # in place of a key that a config does not have; one that is null has None


class Change(NamedTuple):
    """A key with its value when the run began, and now."""

    key: str
    then: Any
    now: Any

    @property
    def is_free(self) -> bool:
        return self.key in FREE or self.key.partition(".")[0] in FREE

    @property
    def adds_seeds(self) -> bool:
        return self.key == "study.seeds" and list in (type(self.then), type(self.now)) and {*self.then} < {*self.now}

    def __str__(self) -> str:
        return f"{self.key} ({shorten(self.then)}, now {shorten(self.now)})"


def refuse_other_config(run_dir: RunDir, requested: DictConfig) -> None:
    """A run continues with the config it began with, except for FREE keys; an experiment may have more seeds. Raises
    UserError with the keys that differ; does nothing in a folder where no run began."""
    differ = [change for change in changes(run_dir, requested) if not change.is_free and not change.adds_seeds]
    if differ:
        more = f" and {len(differ) - 5} more" if len(differ) > 5 else ""
        longer = f"; {run_dir.describe_finished()}" if run_dir.is_finished else (
            "; a run keeps these to its end: type them as they were, choose another name=, or delete it")
        raise UserError(f"{run_dir} began with another config: {', '.join(map(str, differ[:5]))}{more}{longer}")


def has_all(run_dir: RunDir, requested: DictConfig) -> bool:
    """Whether the run is finished, and if it is an experiment with all of the requested seeds."""
    return run_dir.is_finished and not any(change.adds_seeds for change in changes(run_dir, requested))


def changes(run_dir: RunDir, requested: DictConfig) -> list[Change]:
    """The keys of the config, less those that dltrain writes, that differ from the run's own. What only the data know
    is as when the run began: that is compared when they are loaded."""
    if not run_dir.has_config:
        return []
    stored = run_dir.read_config()
    config = requested.copy()
    OmegaConf.set_struct(config, False)
    for key in run_dir.read_splits().get("sizes", READ_FROM_FILES):
        place = f"data.{key}"
        if OmegaConf.select(config, place) is None and (size := stored.get("data", {}).get(key)) is not None:
            OmegaConf.update(config, place, size)
    keep_anchors(run_dir, config)
    keep_processes(run_dir, config)
    return [change for change in differences(stored, to_plain(config)) if change.key.partition(".")[0] not in DERIVED]


def keep_anchors(run_dir: RunDir, config: DictConfig) -> None:
    """A run that continues has the anchors it began with, whatever the training boxes are now."""
    if OmegaConf.select(config, "model.anchors") == "auto" and run_dir.has_config:
        config.model.anchor_boxes = run_dir.read_config()["model"].get("anchor_boxes")


def keep_processes(run_dir: RunDir, config: DictConfig) -> None:
    """A run of several processes that continues trains as it began, in earlier versions not as one. A run of one
    process does not depend on it."""
    if "trainer" in config and run_dir.has_config:
        stored = run_dir.read_config().get("trainer", {})
        if "as_one" not in stored or world_size(config.trainer) == 1:
            config.trainer.as_one = stored.get("as_one", False)


def keep_threads(run_dir: RunDir, config: DictConfig) -> None:
    """A run that continues has as many threads as it began with, unless the command says how many: a sum over threads
    is rounded in another order. Runs of earlier versions do not have the key."""
    if OmegaConf.select(config, "trainer.threads") is None and "trainer" in config and run_dir.has_config:
        config.trainer.threads = run_dir.read_config()["trainer"].get("threads")


def differences(then: Any, now: Any, key: str = "") -> Iterator[Change]:
    """Down to the values in lists of mappings. A key that an earlier version did not have is as EARLIER says."""
    if then is MISSING:
        then = EARLIER.get(key)
    if now is MISSING:
        now = None
    if key and then is None and now == []:
        then = []
    if dict in (type(then), type(now)) and {type(then), type(now)} <= {dict, type(None)}:
        then, now = then or {}, now or {}
        for name in dict.fromkeys([*then, *now]):
            yield from differences(then.get(name, MISSING), now.get(name, MISSING),
                                   f"{key}.{name}" if key else str(name))
    elif type(then) is type(now) is list and len(then) == len(now) and dict in map(type, then):
        for number, (item, other) in enumerate(zip(then, now, strict=True)):
            yield from differences(item, other, f"{key}.{number}")
    elif then != now:
        yield Change(key, then, now)


def shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def describe_free(free: Iterable[Change]) -> str:
    """A line about keys that have another value than before, from here on; "" if there are none."""
    listed = [f"{change.key}={shorten(change.now)} ({shorten(change.then)} before)" for change in free
              if change.key not in ("name", "output_dir")]
    return f"with other values from here on: {', '.join(listed)}" if listed else ""


def forget_sizes(run_dir: RunDir, config: DictConfig) -> None:
    """The data of a run that continues say again what only they know, so that it can be compared."""
    for key in run_dir.read_splits().get("sizes", ()):
        config.data[key] = None


def check_sizes(run_dir: RunDir, config: DictConfig, keys: Iterable[str]) -> None:
    """Raises DataError where the loaded data have another size than when the run began; `keys`: those of data that
    they know."""
    stored = run_dir.read_config().get("data", {}) if run_dir.has_config else {}
    differ = [f"{key} {config.data[key]} ({stored[key]} when {run_dir} began)" for key in keys
              if stored.get(key) is not None and stored[key] != config.data[key]]
    if differ:
        raise DataError(f"the data now have {', '.join(differ)}: restore the files, or choose another name=")
