"""What a bench measured, as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig

from dltrain.benchmark.environment import describe_environment
from dltrain.benchmark.settings import FASTER, Trial, best
from dltrain.benchmark.timing import Spread
from dltrain.drawing.tables import format_number, format_table

PHASES = ("data", "augmentation", "forward", "backward", "optimizer")
INPUT_SHARE = 1 / 3  # of a step: from there on the input is what a run waits for


@dataclass
class Report:
    """Rates are in `unit` a second, `ours` those of a run's trainer, `reference` those of the bare loop; times in ms of
    a batch; memory in MB, that of the whole process on a CPU and of the tensors on a GPU."""

    config: DictConfig
    unit: str
    device: torch.device
    peak_mb: dict[str, float]
    compared_steps: int
    loss_difference: float  # the largest relative one between the two
    first_step_seconds: float = 0.0
    num_steps: int = 0
    rounds: int = 0
    units_per_batch: float = 0.0
    rate: dict[str, Spread] = field(default_factory=dict)
    step_ms: dict[str, Spread] = field(default_factory=dict)
    framework_ms: Spread | None = None
    epoch_ms: Spread | None = None  # the end of an epoch without validation, beside a step; None: none was measured
    split_ms: dict[str, float] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # words for which there was no time
    untried: list[str] = field(default_factory=list)  # dimensions that were not requested

    def plain(self) -> dict[str, object]:
        """For JSON."""
        keys = self.config.trainer
        return {
            **describe_environment(), "model": self.config.choices.model, "data": self.config.choices.data,
            "batch_size": self.config.data.batch_size, "device": self.device.type,
            "settings": {name: keys[name] for name in ("memory_format", "precision", "compile", "deterministic")},
            "steps": self.num_steps, "rounds": self.rounds, f"{self.unit}_per_batch": self.units_per_batch,
            f"{self.unit}_per_second": self.rate, "step_ms": self.step_ms, "framework_ms": self.framework_ms,
            "split_ms": self.split_ms, "epoch_end_ms": self.epoch_ms, "peak_mb": self.peak_mb,
            "first_step_seconds": self.first_step_seconds,
            "losses": {"compared_steps": self.compared_steps, "largest_difference": self.loss_difference},
            "trials": [{**trial._asdict(), "keeps_numbers": trial.keeps_numbers} for trial in self.trials],
            "fastest": best(self.trials).words, "fastest_with_other_numbers": best(self.trials, keeping=False).words,
            "skipped": self.skipped, "not_requested": self.untried}

    def lines(self) -> Iterator[str]:
        """The tables and sentences for the terminal."""
        ours, bare, ratio = (self.rate[name] for name in ("ours", "reference", "ratio"))
        steps, memory = self.step_ms, self.peak_mb
        same = "to the bit" if not self.loss_difference else f"within {self.loss_difference:.0e}"
        yield format_table(["", "dltrain", "bare loop", "ratio"], [
            [f"{self.unit}/s", show(ours), show(bare), show(ratio, 3)],
            ["ms a batch", show(steps["ours"]), show(steps["reference"]), show(steps["ratio"], 3)],
            ["peak memory, MB", f"{memory['ours']:,.0f}", f"{memory['reference']:,.0f}",
             f"{memory['ours'] / memory['reference']:.2f}"],
            ["the first losses", f"{self.compared_steps} equal {same}", "", ""]], right=(1, 2, 3))
        yield (f"medians of {self.rounds} rounds of {self.num_steps} steps in turn, in brackets the smallest and the "
               f"largest; {self.first_step_seconds:.1f} s from the command to the end of the first step")
        yield ""
        yield from self.split_lines()
        yield ""
        yield from self.settings_lines()

    def split_lines(self) -> Iterator[str]:
        times = {name: self.split_ms[name] for name in PHASES if name in self.split_ms}
        total = sum(times.values()) + self.framework["median"]
        rows = [[name, f"{value:.2f}", f"{value / total:.0%}"] for name, value in times.items()]
        rows.append(["framework", show(self.framework, 2), f"{self.framework['median'] / total:.0%}"])
        yield format_table(["a batch", "ms", "share"], rows, right=(1, 2))
        yield "forward includes the loss, optimizer the clipping; framework: dltrain less the bare loop"
        if self.epoch_ms is not None:
            yield f"the end of an epoch without validation: {show(self.epoch_ms)} ms"

    @property
    def framework(self) -> Spread:
        assert self.framework_ms is not None
        return self.framework_ms

    @property
    def input_share(self) -> float:
        """The share of the data in a step of the bare loop."""
        return self.split_ms.get("data", 0.0) / max(sum(self.split_ms.values()), 1e-9)

    def settings_lines(self) -> Iterator[str]:
        if self.trials:
            rows = [[" ".join(trial.words), trial.error or f"{show(trial.ratio, 2)}", format_difference(trial)]
                    for trial in self.trials]
            yield format_table(["setting", "rate", "difference of the losses"], rows, right=(1,))
        fastest, other = best(self.trials), best(self.trials, keeping=False)
        if fastest.words:
            yield f"the fastest that keeps the numbers, {fastest.rate:.2f}x: {' '.join(fastest.words)}"
        elif self.trials:
            yield f"nothing that was tried is faster by {FASTER - 1:.0%} and keeps the numbers"
        if other.words and other.rate >= fastest.rate * FASTER:
            yield (f"faster, but with other numbers (losses differ by {other.difference:.0e}), {other.rate:.2f}x: "
                   f"{' '.join(other.words)}")
        if self.skipped:
            yield f"no time for: {', '.join(self.skipped)}; seconds=... gives more"
        if self.untried:
            yield f"not tried: {', '.join(self.untried)}; try={','.join(self.untried)} does"


def show(spread: Spread | None, digits: int | None = None) -> str:
    """`4,797 (4,700 to 4,850)`."""
    if spread is None:
        return "-"
    median, low, high = (format_number(value) if digits is None else f"{value:.{digits}f}"
                         for value in (spread["median"], spread["low"], spread["high"]))
    return f"{median} ({low} to {high})" if spread["n"] > 1 else median


def format_difference(trial: Trial) -> str:
    if trial.difference is None:
        return "-"
    return "0" if not trial.difference else f"{trial.difference:.0e}{'' if trial.keeps_numbers else ', other numbers'}"
