"""The bench of one config: a run's trainer beside a bare loop, in turn, with the same weights and batches."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from dltrain.benchmark import settings
from dltrain.benchmark.loops import train_bare, watched
from dltrain.benchmark.peaks import peak_mb
from dltrain.benchmark.report import Report
from dltrain.benchmark.timing import COMPARED_STEPS, TOLERANCE, Split, StepClock, compare_pairs, spread, synchronize
from dltrain.errors import UserError
from dltrain.tasks.task import Task

FIRST_STEPS = 3
WARM_UP_STEPS = 3
LEAST_STEPS, MOST_STEPS = 4, 200  # of a round
TRACED_STEPS = 3
SMALL_RATE = 1e-3  # of the learning rate of a run, where the losses of two settings are compared
COMPILE_SECONDS = 60.0  # a guess, for what fits into the time

Train = Callable[[DictConfig, Any, Task, int], None]  # config, data, task, optimizer steps


class Bench:
    """`build_task`: gives another task, for settings that cannot be undone. `say`: shows what is being done."""

    def __init__(self, config: DictConfig, data: Any, task: Task, device: torch.device, train_with_trainer: Train,
                 build_task: Callable[[DictConfig], Task], say: Callable[[str], None]):
        self.config, self.data, self.task, self.device, self.say = config, data, task, device, say
        self.train_with_trainer, self.build_task = train_with_trainer, build_task
        self.weights = {name: value.clone() for name, value in task.state_dict().items()}
        self.batches_per_epoch = len(data.train_dataloader())
        self.compiled: dict[str, Task] = {}  # by trainer.compile_mode
        self.units: list[int] = []  # of the batches of the latest pass

    def run(self, seconds: float, rounds: int, tries: Sequence[str], forced: bool) -> Report:
        """`seconds`: about so long, in which slow models do fewer steps; `tries`: the dimensions of settings.py to try;
        `forced`: also those that take longer."""
        started = time.monotonic()
        self.say("the first steps")
        step_seconds, first_step = self.first_steps()
        self.say("comparing losses")
        report = self.compare_losses(compared_steps(step_seconds, seconds))
        report.first_step_seconds = first_step
        step_seconds = self.measure([], LEAST_STEPS, False).seconds
        num_steps = round_steps(step_seconds, seconds / 2, rounds)
        rounds = max(2, min(rounds, int(seconds / 2 / (2 * num_steps * step_seconds))))
        self.compare_rates(report, num_steps, rounds)
        self.say("the split of a step")
        self.split_step(report, num_steps)
        self.try_settings(report, tries, step_seconds, started + seconds - time.monotonic(), forced)
        return report

    # passes over the first batches

    def trained(self, train: Callable[[DictConfig, Task, int], None], num_steps: int, warm_up: int,
                losses: list[Tensor] | None = None, words: Sequence[str] = (),
                before: Callable[[int], None] | None = None) -> StepClock:
        """`num_steps` optimizer steps with the weights of the start. `before`: called with the index of each batch."""
        many, per_epoch = self.config.trainer.accumulate_batches, self.batches_per_epoch
        epochs, steps = divmod(num_steps, -(-per_epoch // many))
        num_batches = epochs * per_epoch + min(per_epoch, steps * many)
        clock = StepClock(per_epoch, num_batches, warm_up, self.device)
        task = self.task_for(words)
        task.load_state_dict(self.weights)
        task.read_training_metrics()  # resets the sums
        self.units = []

        def before_step(batch: Any) -> None:
            if before is not None:
                before(len(clock.starts))
            self.units.append(task.count(batch))
            clock.tick()

        with watched(task, before_step, losses):
            train(settings.changed(self.config, words), task, num_steps)
        synchronize(self.device)
        return clock

    def task_for(self, words: Sequence[str]) -> Task:
        """A task of its own for the compiled model; the others share one, which gets its layout here."""
        config = settings.changed(self.config, words)
        task = self.task
        if config.trainer.compile and not self.config.trainer.compile:
            mode = str(config.trainer.get("compile_mode"))
            task = self.compiled[mode] = self.compiled.get(mode) or self.build_task(config)
            task.total_steps, task.total_epochs = self.task.total_steps, self.task.total_epochs
        layout = torch.channels_last if config.trainer.memory_format == "channels_last" else torch.contiguous_format
        task.model.to(memory_format=layout)
        return task

    def ours(self, config: DictConfig, task: Task, num_steps: int) -> None:
        self.train_with_trainer(config, self.data, task, num_steps)

    def bare(self, config: DictConfig, task: Task, num_steps: int) -> None:
        train_bare(config, self.data, task, self.device, num_steps)

    def bare_seeded(self, config: DictConfig, task: Task, num_steps: int) -> None:
        train_bare(config, self.data, task, self.device, num_steps, seeded=True)

    def bare_slow(self, config: DictConfig, task: Task, num_steps: int) -> None:
        """With so small a learning rate that rounding errors do not grow: with that of the run, the losses of a ResNet
        differ by percents after 20 steps if a sum is taken in another order."""
        keys = task.optimizer_keys
        task.optimizer_keys = {**keys, "lr": keys["lr"] * SMALL_RATE}
        try:
            self.bare_seeded(config, task, num_steps)
        finally:
            task.optimizer_keys = keys

    def measure(self, words: Sequence[str], num_steps: int, slow: bool) -> settings.Measured:
        """The bare loop with the settings that `words` name. `slow`: as `bare_slow`."""
        losses: list[Tensor] = []
        given = dict(word.split("=", 1) for word in words)
        threads, products, tf32 = (torch.get_num_threads(), torch.get_float32_matmul_precision(),
                                   torch.backends.cudnn.allow_tf32)
        try:
            torch.set_num_threads(int(given.get(settings.THREADS, threads)))
            if settings.MATMUL in given:
                torch.set_float32_matmul_precision(given[settings.MATMUL])
                torch.backends.cudnn.allow_tf32 = True
            clock = self.trained(self.bare_slow if slow else self.bare, num_steps, warm_up_of(num_steps), losses,
                                 words)
        finally:
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(products)
            torch.backends.cudnn.allow_tf32 = tf32
        return settings.Measured(clock.step_seconds(), torch.stack(losses))

    # what is measured

    def first_steps(self) -> tuple[float, float]:
        """The seconds of the last of the first steps, and those since the command began until the first was done."""
        at: list[float] = []
        clock = self.trained(self.ours, FIRST_STEPS, 0, before=lambda index: at.append(seconds_since_start()))
        return clock.starts[-1] - clock.starts[-2], at[1]

    def compare_losses(self, num_steps: int) -> Report:
        """Raises UserError where the losses of the trainer are not those of the bare loop."""
        ours: list[Tensor] = []
        bare: list[Tensor] = []
        warm_up = warm_up_of(num_steps)
        peaks = {"ours": peak_mb(self.device, lambda: self.trained(self.ours, num_steps, warm_up, ours)),
                 "reference": peak_mb(self.device, lambda: self.trained(self.bare_seeded, num_steps, warm_up, bare))}
        difference = settings.loss_difference(torch.stack(ours), torch.stack(bare))
        if not difference <= TOLERANCE:
            step = next(index for index, (a, b) in enumerate(zip(ours, bare, strict=True))
                        if not settings.loss_difference(a[None], b[None]) <= TOLERANCE)
            raise UserError(f"the losses of the trainer and of the bare loop differ from step {step} on, "
                            f"{float(ours[step]):.8g} and {float(bare[step]):.8g}: a callback of your own changes the "
                            "training, or the model keeps something that is not in its state_dict")
        return Report(self.config, self.task.unit, self.device, peaks, len(ours), difference)

    def compare_rates(self, report: Report, num_steps: int, rounds: int) -> None:
        warm_up, pairs, epochs = warm_up_of(num_steps), list[tuple[float, float]](), list[float]()
        for number in range(rounds):
            self.say(f"round {number + 1} of {rounds}, {num_steps} steps each")
            ours = self.trained(self.ours, num_steps, warm_up)
            bare = self.trained(self.bare, num_steps, warm_up)
            pairs.append((ours.step_seconds(), bare.step_seconds()))
            epochs += ours.epoch_seconds()
        counted = self.units[warm_up:-1] or self.units
        report.num_steps, report.rounds = num_steps, rounds
        report.units_per_batch = statistics.fmean(counted)
        report.rate = compare_pairs([(report.units_per_batch / a, report.units_per_batch / b) for a, b in pairs])
        report.step_ms = compare_pairs([(1e3 * a, 1e3 * b) for a, b in pairs])
        report.framework_ms = spread([1e3 * (a - b) for a, b in pairs])
        report.epoch_ms = spread([1e3 * value for value in epochs]) if epochs else None

    def split_step(self, report: Report, num_steps: int) -> None:
        split = Split(self.device, warm_up_of(num_steps))
        augment = dict(self.task.named_children()).get("augment")
        hooks = [] if augment is None else [
            augment.register_forward_pre_hook(lambda *_: split.mark("forward")),
            augment.register_forward_hook(lambda *_: split.mark("augmentation"))]
        try:
            self.trained(lambda config, task, steps: train_bare(config, self.data, task, self.device, steps,
                                                                mark=split.mark), num_steps, 0)
        finally:
            for hook in hooks:
                hook.remove()
        report.split_ms = {name: 1e3 * value for name, value in split.seconds().items()}

    def try_settings(self, report: Report, tries: Sequence[str], step_seconds: float, seconds_left: float, forced: bool
                     ) -> None:
        """Those that fit into the time; the report names the others."""
        per_round = max(LEAST_STEPS, min(40, int(0.5 / step_seconds)))
        needed = (2 * COMPARED_STEPS + (2 * settings.ROUNDS + 1) * per_round) * step_seconds
        deadline = time.monotonic() + seconds_left
        plain: list[Tensor] = []

        def try_one(words: Sequence[str]) -> settings.Trial | None:
            cost = needed + (COMPILE_SECONDS if "trainer.compile=true" in words and not self.compiled else 0.0)
            if not forced and time.monotonic() + cost > deadline:
                report.skipped.append(f"{' '.join(words)} (about {cost:.0f} s)")
                return None
            if not plain:
                plain.append(self.measure([], COMPARED_STEPS, True).losses)
            self.say(f"trying {' '.join(words)}")
            return settings.try_words(words, self.measure, plain[0], per_round)

        choices = settings.alternatives(self.config, self.task.model, self.device)
        report.untried = [name for name in settings.DIMENSIONS if name not in tries and choices[name]]
        report.trials = settings.search({name: choices[name] for name in settings.DIMENSIONS if name in tries}, try_one)

    def trace(self, file: Path) -> None:
        """Writes a trace of some steps of the trainer, for Perfetto or chrome://tracing."""
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        schedule = torch.profiler.schedule(wait=1, warmup=1, active=TRACED_STEPS, repeat=1)
        with torch.profiler.profile(activities=activities, schedule=schedule) as profiler:
            self.trained(self.ours, TRACED_STEPS + 3, 0, before=lambda index: profiler.step())
        profiler.export_chrome_trace(str(file))


def warm_up_of(num_steps: int) -> int:
    """How many of the steps do not count; two others must be left."""
    return min(WARM_UP_STEPS, (num_steps - 1) // 3)


def compared_steps(step_seconds: float, seconds: float) -> int:
    """Both passes together take at most a quarter of the time."""
    return max(FIRST_STEPS, min(COMPARED_STEPS, int(seconds / 8 / step_seconds)))


def round_steps(step_seconds: float, seconds: float, rounds: int) -> int:
    return max(LEAST_STEPS, min(MOST_STEPS, int(seconds / (2 * rounds * step_seconds))))


def seconds_since_start() -> float:
    """Since the process began, to a hundredth; elsewhere than on Linux, its processor time."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return time.process_time()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
