"""`dltrain bench [choices]`: measures how fast a config trains, beside a bare loop, and looks for faster settings."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dltrain.commands.bench_words import Options, take_options
from dltrain.config import compose, launch
from dltrain.disk import write_text
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.run_log import logging_to

if TYPE_CHECKING:
    import torch

    from dltrain.benchmark.measure import Bench

HELP = """\
dltrain bench [choices] [key=value ...]    measures how fast a model trains on this machine: a run's trainer beside a
                                           bare loop of the same model, data, augmentation, loss and batch, in turn,
                                           from the same weights; the split of a step; and which settings are faster

  dltrain bench model=resnet20 data=cifar10
  seconds=30                     about so long, after the start
  rounds=5                       pairs of ours and the bare loop
  try=threads,compile            settings to try: threads, memory_format, compile, precision; all; none. By default,
                                 as far as there is time, all but compile, which takes a minute; what is named is tried
  json=true                      writes all figures into outputs/bench/<model>-on-<data>.json; json=FILE: elsewhere
  trace=true                     writes steps as torch.profiler sees them into ...trace.json, for ui.perfetto.dev

Training is that of a run, with its checkpoints, but without validation; nothing of it is kept. Other work on the
machine slows both sides alike: the ratios hold, the rates do not. The losses of both are compared and must be equal.
A setting keeps the numbers if 20 losses differ by at most 1e-5 from the plain ones, at a thousandth of the learning
rate, where rounding errors do not grow."""


def run(words: list[str]) -> int:
    options, others = take_options(words)
    config, _ = compose_one("bench", others)
    folder = Path(config.output_dir) / "bench"
    print(f"{config.choices.model} on {config.choices.data}, batches of {config.data.batch_size}", flush=True)
    from dltrain.reporting import report  # torch from here on

    return report(RunDir(folder), lambda: bench(config, options, folder))


def compose_one(verb: str, words: list[str]) -> tuple[DictConfig, list[str]]:
    """The config of the one run that a verb measures, and its overrides. Raises UserError for a study or a sweep."""
    flags = launch.parse_flags(words)
    composed = compose.compose(flags.overrides, flags.config_dir, flags.multirun)
    config = composed.job_config()
    if composed.is_sweep or "study" in config:
        raise UserError(f"{verb} measures the training of one run: choose a model and data, not a study or a sweep")
    return config, flags.overrides


def bench(config: DictConfig, options: Options, folder: Path) -> None:
    import tempfile

    from dltrain.benchmark.report import INPUT_SHARE

    with tempfile.TemporaryDirectory(prefix="dltrain-bench-") as logs, logging_to(Path(logs, "log"), False):
        line = StatusLine()
        line("data and model")
        made = prepare(config, line)
        report = made.run(options.seconds, options.rounds, options.tries, options.forced)
        title = f"{config.choices.model}-on-{config.choices.data}"
        trace = file_of(options.trace, folder / f"{title}.trace.json")
        if trace is not None:
            line("the trace")
            made.trace(trace)
        line("")
    for text in report.lines():
        print(text)
    if report.input_share > INPUT_SHARE:
        print(made.data.input_advice(report.input_share))
    written = file_of(options.json, folder / f"{title}.json")
    if written is not None:
        write_text(written, json.dumps(report.plain(), indent=1) + "\n")
    for path in filter(None, (written, trace)):
        print(path)


def prepare(config: DictConfig, say: Callable[[str], None]) -> Bench:
    """As a run begins, without its folder."""
    from dltrain.benchmark.measure import Bench
    from dltrain.benchmark.trainer_run import train_with_trainer
    from dltrain.build import build_task, check_first_step
    from dltrain.devices import place_on_gpu
    from dltrain.evaluation import load_data

    data = load_data(config)
    task = build_task(config, data.vocabularies)
    check_first_step(config, data, task)
    task.fit_statistics(data)
    device = device_of(config)
    place_on_gpu(config.trainer, data, task, device)
    return Bench(config, data, task, device, train_with_trainer,
                 partial(build_task, vocabularies=data.vocabularies), say)


def device_of(config: DictConfig) -> torch.device:
    """Where a run would train."""
    import torch

    name = config.trainer.accelerator
    if name == "auto":
        name = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device({"gpu": "cuda"}.get(name, name), *([0] if name == "gpu" else []))


def file_of(text: str | None, default: Path) -> Path | None:
    """The file of `json` or `trace`, in a folder that is there."""
    if text is None:
        return None
    file = default if text == "true" else Path(text).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


class StatusLine:
    """Shows what is measured: one line that changes in a terminal, plain lines elsewhere."""

    def __init__(self) -> None:
        self.in_terminal = sys.stdout.isatty()

    def __call__(self, text: str) -> None:
        if self.in_terminal:
            print(f"\r\x1b[2K{text}", end="", flush=True)
        elif text:
            print(f"  {text}", flush=True)
