"""`dltrain extend run=FOLDER epochs=120 schedule=continue`: a new run that trains longer than another one."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from dltrain.commands import fork
from dltrain.commands.stored import load_config, parse_pairs, parse_value, run_dir_of
from dltrain.errors import UserError

HELP = """\
dltrain extend run=FOLDER epochs=N schedule=HOW    a new run that continues where another one has ended, to epoch N;
                                                   the other run stays as it is

  dltrain extend run=outputs/a epochs=120 schedule=continue
  epochs=120, steps=50000        of the longer run in all, those of the other one included
  schedule=                      what the learning rate does from there on; it is said when the run begins
    continue                     stays as it was in the last step; where it was constant all along, the longer run ends
                                 in the same bits as one that was so long from its start
    stretch                      has the values that a run of the whole length has: of step and cosine it rises again
    warm                         its schedule, with its warm-up, begins again over the epochs that are added
  name=b                         its folder; if it is not given, FOLDER_epochs120_continue, beside the other run

The best weights are the best of both. The same command again continues the run; dltrain resume does too."""

SCHEDULES = ("continue", "stretch", "warm")
CHANGEABLE = ("trainer.keep_checkpoints.", "trainer.checkpoint_every_", "data.num_workers")
LIMITS = ("max_epochs", "max_steps", "target_steps")


def run(words: list[str]) -> int:
    pairs = parse_pairs("extend", words)
    run_dir, how = run_dir_of(pairs), pairs.pop("schedule", None)
    name, output_dir = pairs.pop("name", None), pairs.pop("output_dir", None)
    lengths = {short: parse_value(short, pairs.pop(key), "int >= 1")
               for short, key in (("epochs", "trainer.max_epochs"), ("steps", "trainer.max_steps")) if key in pairs}
    if len(lengths) != 1:
        raise UserError("extend needs epochs=N, or steps=N: the length of the longer run in all")
    changes = {key: text for key, text in pairs.items() if key != "run"}
    config = load_config(run_dir, changes, CHANGEABLE, fork.trainer_keys())
    if how not in SCHEDULES:
        if how is not None or config.task.schedule.name != "constant":
            raise UserError(f"schedule={how or ''}: must be one of {', '.join(SCHEDULES)}; dltrain extend --help says "
                            "what the learning rate then does")
        how = "continue"
    (key, count), = lengths.items()
    suffix = f"{key}{count}" + (f"_{how}" if config.task.schedule.name != "constant" else "")
    lengthen(config, run_dir.path.name, key, count, how)
    changed = [*changes, "trainer.max_epochs" if key == "epochs" else "trainer.max_steps", "trainer.extended"]
    name = name or f"{fork.default_name(run_dir.path)}_{suffix}"
    return fork.begin(run_dir, "last", config, changed, name, output_dir)


def lengthen(config: DictConfig, run: str, key: str, count: int, how: str) -> None:
    """Sets the length of the longer run. `at`, the step where it continues, is filled in by `branches.begin`."""
    keys = config.trainer
    limits: dict[str, Any] = {name: keys.get(name) for name in LIMITS}
    if keys.smoke_steps is not None:
        raise UserError(f"run={run} has trainer.smoke_steps={keys.smoke_steps}: it only shows that it runs, and cannot "
                        "be extended")
    before = [{**OmegaConf.to_container(entry)} for entry in keys.get("extended") or []]  # type: ignore[dict-item]
    OmegaConf.update(config, "trainer.extended", [*before, {"at": None, **limits, "schedule": how}], force_add=True)
    changed = {"max_epochs": count if key == "epochs" else None, "max_steps": count if key == "steps" else None}
    for name, value in {**changed, "target_steps": None}.items():
        OmegaConf.update(config, f"trainer.{name}", value, force_add=True)
