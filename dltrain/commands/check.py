"""`dltrain check [choices]`: examines a model and data before they are trained for hours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dltrain.config import compose, launch
from dltrain.errors import CHECK_FAILED, UserError
from dltrain.run_dir import RunDir
from dltrain.run_log import logging_to

if TYPE_CHECKING:
    from dltrain.preflight.pair import Pair

HELP = """\
dltrain check [choices] [key=value ...]    examines a model and data in some seconds, before they are trained for hours

  dltrain check model=resnet20 data=cifar10
  dltrain check model=mine data=image_folder data.root=photos task.optimizer.lr=0.01

Each line is a check: ok, warning or fault, or - where there is nothing to examine; the figure; what to do.
  loss at the start   near ln C, that of a model that knows nothing of C classes
  overfits a batch    a few samples are learned by heart, by the run's optimizer, without augmentation and dropout
  gradients           every parameter that the config does not freeze gets a gradient
  samples alone       in evaluation mode no sample changes the output of another one
  no future           what is predicted does not depend on later symbols
  labels              a linear probe predicts the targets better than shuffled ones
  leaks               no sample is in two splits
  normalisation       the channels have means near 0 and deviations near 1
  class counts        no class has ten times as many samples as another one
Then a table: batch, bytes, parameters, multiply-adds, memory, the time of a step, an epoch and the run. What is trained
is thrown away, and nothing is written. Exit codes: 0 no fault, 9 a fault, 2 command or config, 3 data, 6 machine."""


def run(words: list[str]) -> int:
    flags = launch.parse_flags(words)
    composed = compose.compose(flags.overrides, flags.config_dir, flags.multirun)
    config = composed.job_config()
    if composed.is_sweep or "study" in config:
        raise UserError("check examines one model and its data: choose these, not a study or a sweep")
    print(f"{config.choices.model} on {config.choices.data}, batches of {config.data.batch_size}", flush=True)
    from dltrain.reporting import report  # torch from here on

    faults: list[str] = []
    code = report(RunDir(Path(config.output_dir) / "check"), lambda: faults.extend(check(config)))
    return code or (CHECK_FAILED if faults else 0)


def check(config: DictConfig) -> list[str]:
    """Prints the findings. Returns the names of the checks that found a fault."""
    from dltrain.commands.bench import StatusLine
    from dltrain.devices import threads_of
    from dltrain.drawing.tables import format_table
    from dltrain.preflight.checks import examine, summary
    from dltrain.preflight.findings import FAULT, Finding
    from dltrain.preflight.samples import Clock

    clock, line = Clock(), StatusLine()
    findings: list[Finding] = []
    facts: list[tuple[str, str]] = []
    with logging_to(None, False), threads_of(config.trainer):
        if line.in_terminal:
            line("data and model")
        for finding in examine(prepare(config), facts, line if line.in_terminal else lambda text: None):
            findings.append(finding)
            if line.in_terminal:
                line("")
            print(finding.line(), flush=True)
    if line.in_terminal:
        line("")
    print(format_table(["", ""], facts))
    print(summary(findings, clock.seconds))
    return [finding.check for finding in findings if finding.status == FAULT]


def prepare(config: DictConfig) -> Pair:
    """As a run begins, without its folder, on one device, not compiled."""
    from dltrain.build import build_task, check_first_step
    from dltrain.commands.bench import device_of
    from dltrain.evaluation import load_data
    from dltrain.preflight.kinds import kind_of
    from dltrain.preflight.pair import Pair
    from dltrain.pretrained import nodes, pretrained_of
    from dltrain.trainer import planned_steps

    config.trainer.compile = False
    data = load_data(config)
    task = build_task(config, data.vocabularies)
    check_first_step(config, data, task)
    task.fit_statistics(data)
    length = planned_steps(config, len(data.train_dataloader()))
    sources = [pretrained_of(node, key) for key, node in nodes(config.model, "model")]
    is_pretrained = any(source and (source.weights or source.from_run) for source in sources)
    return Pair(config, data, task, kind_of(task), device_of(config), is_pretrained, *length)
