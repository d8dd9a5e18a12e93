"""`dltrain prove resume [choices]`: kills a training at random, here and now, resumes it, and compares the bits."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from dltrain.commands.stored import parse_value, take_own
from dltrain.config import compose, launch
from dltrain.config.words import full_key
from dltrain.drawing.tables import format_count, format_duration, format_table
from dltrain.errors import STORED, InterruptedRun, UserError
from dltrain.proof import killing
from dltrain.proof.verdicts import HEADER, faults_of, rows_of

HELP = """\
dltrain prove resume [choices] [key=value ...]    trains twice on this machine: once to the end, and once killed at
                                                  random moments and continued by the same command; compares weights,
                                                  optimizer, metrics.csv and result.json to the last bit

  dltrain prove resume model=char_rnn data=stdlib kills=5
  kills=3                        how often; by SIGKILL, SIGTERM, SIGHUP and SIGINT, sent to the process or to its group
                                 (as timeout and Slurm do), in steps, saves, validations and the test
  seed=0                         of the training, and of the moments
  shrink=false                   trains as long as the config says. By default two epochs of small data or a dozen steps
                                 are enough, unless a key of the length is given (epochs, steps, trainer.smoke_steps)
  keep=true                      keeps the folder with both runs, which is kept anyway if something differs

Exit codes: 0 all is equal, 4 it is not."""

KEYS = {"kills": "int >= 1", "shrink": "bool", "keep": "bool"}  # key -> its rule
LENGTHS = ("trainer.max_epochs", "trainer.max_steps", "trainer.target_steps", "trainer.smoke_steps")
FEW_STEPS = 24  # about as many as a run is shrunk to
PATIENCE_SECONDS = 3600.0


class Options(NamedTuple):
    kills: int = 3
    shrink: bool = True
    keep: bool = False


def run(words: list[str]) -> int:
    if words[:1] != ["resume"]:
        raise UserError("prove proves resume: dltrain prove resume model=resnet20 data=digits")
    options, words = take_options(words[1:])
    flags = launch.parse_flags(words)
    composed = compose.compose(flags.overrides, flags.config_dir, flags.multirun)
    config = composed.job_config()
    keys = {full_key(word.partition("=")[0]) for word in words}
    if composed.is_sweep or "study" in config:
        raise UserError("prove resume trains one run: choose a model and data, not a study or a sweep")
    if own := sorted(keys & {"name", "output_dir"}):
        raise UserError(f"{own[0]}=: prove resume trains in a temporary folder; leave it out")
    from dltrain.reporting import report  # torch from here on
    from dltrain.run_dir import RunDir

    folder = Path(tempfile.mkdtemp(prefix="dltrain-prove-"))
    for signum in (signal.SIGTERM, signal.SIGHUP):  # so that the process that trains ends with this one
        signal.signal(signum, stop)
    codes: list[int] = []

    def prove() -> None:
        more = {**frequent(keys), **(shorter(config) if options.shrink and not keys & {*LENGTHS} else {})}
        if more:
            print(f"with {' '.join(f'{key}={value}' for key, value in more.items())}")
        command = [sys.executable, "-m", "dltrain", "train", *words, f"output_dir={folder}",
                   *(f"{key}={value}" for key, value in more.items())]
        codes.append(STORED if prove_resume(command, folder, options.kills, config.seed) else 0)

    code = report(RunDir(folder), prove) or codes[0]
    if code == 0 and not options.keep:
        shutil.rmtree(folder)
    elif folder.is_dir():
        print(f"both runs, and what they printed: {folder}")
    return code


def stop(signum: int, _: object) -> NoReturn:
    raise InterruptedRun(signum, "stopped")


def take_options(words: list[str]) -> tuple[Options, list[str]]:
    """The verb's own keys, and the other words. Raises UserError."""
    given, others = take_own(words, KEYS)
    return Options(**{key: parse_value(key, text, KEYS[key]) for key, text in given.items()}), others


def frequent(keys: set[str]) -> dict[str, str]:
    """Readings and saves that are frequent enough to be met. They change no weight."""
    wanted_keys = {"trainer.log_every_n_steps": "1", "trainer.checkpoint_every_steps": "4"}
    return {key: value for key, value in wanted_keys.items() if key not in keys}


def shorter(config: compose.DictConfig) -> dict[str, str]:
    """The keys that make the run short: two epochs or more where they are small, else one of a dozen batches."""
    from dltrain.evaluation import load_data

    batches = len(load_data(config).train_dataloader())
    if batches > FEW_STEPS:
        return {"trainer.smoke_steps": str(FEW_STEPS // 2)}
    epochs = max(2, FEW_STEPS // batches)
    return {"trainer.max_epochs": str(min(epochs, config.trainer.max_epochs or epochs))}


def prove_resume(command: Sequence[str], folder: Path, count: int, seed: int) -> bool:
    """Trains with and without kills in `folder`, prints what came. Returns whether something is not as it must be."""
    from dltrain.proof.comparing import compare

    straight, killed = folder / "uninterrupted", folder / "killed"
    ending, course = killing.watch([*command, "name=uninterrupted"], straight, folder / "uninterrupted.txt",
                                   PATIENCE_SECONDS)
    if ending.code != 0:
        print(ending.output, file=sys.stderr)
        raise UserError(f"the uninterrupted training ended with exit code {ending.code}")
    print(f"uninterrupted: {format_count(course.readings[-1].step, 'step')} in {format_duration(course.ended)}",
          flush=True)
    kills = killing.plan(course, count, random.Random(seed))
    again = [*command, "name=killed"]
    endings = [killing.start_and_kill(again, killed, folder / f"killed_{number}.txt", kill)
               for number, kill in enumerate(kills, start=1)]
    endings.append(killing.finish(again, folder / "killed_last.txt", PATIENCE_SECONDS))
    print(format_table(HEADER, rows_of(kills, endings)), flush=True)
    same = compare(straight, killed)
    print("\n" + format_table(["", "uninterrupted", "killed", ""], [
        (name, *digests, difference or "equal") for name, digests, difference in same]))
    return bool(faults_of(kills, endings)) or any(compared.difference for compared in same)
