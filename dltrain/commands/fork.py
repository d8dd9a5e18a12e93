"""`dltrain fork run=FOLDER at=epoch:81 key=value`: a new run that continues from a checkpoint of another one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from dltrain.commands.stored import load_config, parse_pairs, parse_value, run_dir_of
from dltrain.config import groups, schema
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.sweeps.jobs import is_sweep, label

HELP = """\
dltrain fork run=FOLDER [at=PLACE] [key=value ...]    a new run that continues from a checkpoint of another one, with
                                                      other values from there on; the other run stays as it is

  dltrain fork run=outputs/a at=epoch:81 task.optimizer.lr=0.01
  at=epoch:81                    a whole checkpoint of that epoch: last (if it is not given), best, or one that
                                 trainer.keep_checkpoints has kept, as epoch:81
  task.optimizer.lr=0.01         any key of task, augment, trainer, data and model that changes neither the shapes of
                                 the weights nor the batches of an epoch; seed too
  name=b                         its folder; if it is not given, FOLDER_from81_lr0.01, beside the other run

What the optimizer has accumulated is kept, unless task.optimizer.name or the weights that it trains change. The same
command again continues the fork; dltrain resume does too. dltrain ls runs shows forks below their parents."""

CHANGEABLE = ("task.", "augment.", "trainer.", "data.", "model.", "seed")
PLACE = re.compile(r"last|best|epoch:[1-9]\d*")


def run(words: list[str]) -> int:
    pairs = parse_pairs("fork", words)
    run_dir, at = run_dir_of(pairs), pairs.pop("at", "last")
    if not PLACE.fullmatch(at):
        raise UserError(f"at={at}: must be last, best or epoch:N, as epoch:81")
    name, output_dir = pairs.pop("name", None), pairs.pop("output_dir", None)
    changes = {key: text for key, text in pairs.items() if key != "run"}
    config = load_config(run_dir, changes, CHANGEABLE, trainer_keys())
    number = at.rpartition(":")[2]
    suffix = f"{f'from{number}' if number.isdigit() else 'fork'}_{label(changes, list(changes))}".rstrip("_")
    return begin(run_dir, at, config, list(changes), name or f"{default_name(run_dir.path)}_{suffix}", output_dir)


def trainer_keys() -> dict[str, schema.Assignment]:
    """Those of this version."""
    return schema.assignments(groups.CONFIGS / "trainer/auto.yaml", "trainer")


def default_name(folder: Path) -> str:
    """Of a run, or of the sweep and its job."""
    folder = folder.absolute()
    return f"{folder.parent.name}-{folder.name}" if is_sweep(folder.parent) else folder.name


def begin(parent: RunDir, at: str, config: DictConfig, changed: list[str], name: str, output_dir: str | None) -> int:
    """Makes the folder of the new run and trains in it. Returns the exit code."""
    above = parent.path.absolute().parent
    place = Path(output_dir) if output_dir else parent.path.parent if not is_sweep(above) else parent.path.parent.parent
    if parse_value("name", name, "str") in ("", ".", "..") or "/" in name:
        raise UserError(f"name={name}: must be the name of a folder")
    run_dir = RunDir(place / name)
    if run_dir.path.absolute() == parent.path.absolute():
        raise UserError(f"name={name}: is the run itself; choose another")
    OmegaConf.update(config, "name", name)
    if output_dir:
        OmegaConf.update(config, "output_dir", output_dir)
    print(f"{config.choices.model} on {config.choices.data}; folder {shlex.quote(str(run_dir))}", flush=True)
    from dltrain import branches, run  # torch from here on
    from dltrain.proof.rerun import explained
    from dltrain.reporting import report

    def train() -> None:
        if run_dir.is_finished:
            branches.refuse_other(parent, at, run_dir, config, changed)
        else:
            branches.begin(parent, branches.find_place(parent, at), run_dir, config, changed)
        with explained(run_dir), branches.removed_if_refused(run_dir):
            run.train(config, run_dir)

    return report(run_dir, train)
