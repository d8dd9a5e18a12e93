"""What batch normalisation does to a small net of sigmoid units, at several learning rates.

S. Ioffe, C. Szegedy, 2015, arXiv 1502.03167, section 4.1 and figure 1: test accuracy by step, and the 15th, 50th and
85th percentiles of the input to one typical sigmoid of the last hidden layer, with and without batch normalisation.
There: MNIST, batches of 60, 50,000 steps.

Differs from the paper: several learning rates (it names none), plain SGD, grey values in [0, 1] instead of binary
images; the typical unit is the one whose drift is the median of the layer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import ClassificationBatch, seed_of
from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.datamodule import DataModule
from dltrain.drawing.style import colour, new_figure, save_figure
from dltrain.drawing.tables import format_table, format_values, write_csv
from dltrain.errors import UserError
from dltrain.models.mlp import MLP
from dltrain.run import StudyContext
from dltrain.studies.claims import Verdict, judge_excesses, print_verdicts

NORMS = {"none": "without", "batch": "with"}
PERCENTILES = (0.15, 0.5, 0.85)


class History(NamedTuple):
    """What was measured on the test split after each of T steps: accuracy (T,), and percentiles (T, 3, units) of the
    inputs to the sigmoids of the last hidden layer."""

    accuracy: Tensor
    percentiles: Tensor

    def drift(self) -> Tensor:
        """(units,): the range of the median over the steps, divided by the distance from the 15th to the 85th
        percentile at the last step."""
        median = self.percentiles[:, 1]
        return (median.amax(0) - median.amin(0)) / (self.percentiles[-1, 2] - self.percentiles[-1, 0])

    def typical_unit(self) -> Tensor:
        """(T, 3): the percentiles of the unit whose drift is the median of all; of an even number the lower one."""
        return self.percentiles[:, :, int(self.drift().median(dim=0).indices)]


Histories = dict[tuple[str, float], History]  # by norm and learning rate


def study(context: StudyContext, data: str, root: str | None, steps: int, batch_size: int, lrs: list[float],
          evaluations: int, target: float, seeds: list[int]) -> dict[str, Any]:
    """Writes accuracy.csv, percentiles.csv and results.png, all of the first seed; returns the means over the seeds
    that are printed, and what the seeds say of the paper's claims."""
    if not lrs:
        raise UserError("study.lrs: must not be empty")
    eval_steps = sorted({round(steps * number / evaluations) for number in range(evaluations + 1)})
    repeats: list[Histories] = []
    for seed in context.all_seeds(seeds):
        overrides = [f"data={data}", f"data.batch_size={batch_size}", f"seed={seed}", "recipe=none"]
        overrides += [f"data.root={root}"] if root else []
        module = build_data(compose(overrides, context.config_dir).job_config())
        histories: Histories = {}
        for norm, word in NORMS.items():
            for lr in lrs:
                print(f"{word} batch normalisation, lr {lr:g}, seed {seed}", flush=True)
                histories[norm, lr] = train(module, norm, lr, eval_steps, seed)
        repeats.append(histories)
    numbers, first = summarise(repeats, eval_steps, target), repeats[0]
    best = max(lrs, key=lambda lr: mean_last(repeats, "none", lr))  # the fairest to the net without
    write_histories(context.folder, first, eval_steps, best)
    draw(first, eval_steps, target, best, context.folder / "results.png")
    verdicts, drift = judge(repeats, eval_steps, target, best)
    outcomes = print_verdicts(verdicts)
    print(f"\n{context.folder}/results.png")
    return {**numbers, **outcomes, **{f"drift, {NORMS[norm]}": mean(values) for norm, values in drift.items()}}


def mean_last(repeats: Sequence[Histories], norm: str, lr: float) -> float:
    return mean(float(histories[norm, lr].accuracy[-1]) for histories in repeats)


def summarise(repeats: Sequence[Histories], eval_steps: Sequence[int], target: float) -> dict[str, Any]:
    """Prints the table of all nets; returns the means over the seeds. The steps are None unless all seeds reach it."""
    title, numbers, rows = f"steps to {target:g}", dict[str, Any](), []
    for norm, lr in repeats[0]:
        name = f"{NORMS[norm]}, lr {lr:g}"
        accuracies = [histories[norm, lr].accuracy for histories in repeats]
        steps = [steps_to(target, histories[norm, lr], eval_steps) for histories in repeats]
        reached = [count for count in steps if count is not None]
        best, last = ([float(value) for value in values] for values in (
            map(torch.max, accuracies), (accuracy[-1] for accuracy in accuracies)))
        numbers |= {f"best accuracy, {name}": mean(best), f"last accuracy, {name}": mean(last),
                    f"{title}, {name}": mean(reached) if len(reached) == len(steps) else None}
        some = f" in {len(reached)} of {len(steps)}" if 0 < len(reached) < len(steps) else ""
        rows.append([name, format_values(best), format_values(last),
                     f"{format_values(reached)}{some}" if reached else "not reached"])
    print("\n" + format_table(["", "best accuracy", "last", title], rows, [1, 2, 3]))
    return numbers


def train(module: DataModule, norm: str, lr: float, eval_steps: Sequence[int], seed: int) -> History:
    """A net trained by plain SGD, measured after each of the `eval_steps`."""
    batches = list(module.test_dataloader())
    images = as_floats(torch.cat([batch.images for batch in batches]))
    labels = torch.cat([batch.labels for batch in batches])
    torch.manual_seed(seed_of("init", seed))
    net = MLP(images[0].numel(), len(module.class_names), norm=norm)
    sgd = torch.optim.SGD(net.parameters(), lr=lr)
    accuracy, percentiles = [], []
    training = endless_batches(module)
    for step in range(eval_steps[-1] + 1):
        if step in eval_steps:
            correct, inputs = measure(net, images, labels)
            accuracy.append(correct)
            percentiles.append(inputs)
        batch = next(training)
        sgd.zero_grad()
        F.cross_entropy(net(as_floats(batch.images)), batch.labels).backward()
        sgd.step()
    return History(torch.stack(accuracy), torch.stack(percentiles))


def endless_batches(module: DataModule) -> Iterator[ClassificationBatch]:
    """Training batches from the first epoch on, the same for every net."""
    loader = module.train_dataloader()
    loader.batches_done = 0
    for _ in count():
        yield from loader


def as_floats(images: Tensor) -> Tensor:
    return images.float() / 255


@torch.no_grad()
def measure(net: MLP, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy (), and percentiles (3, units) of the inputs to the last sigmoids, both in evaluation mode."""
    net.eval()
    inputs = net.last_inputs(images)
    accuracy = (net.head(torch.sigmoid(inputs)).argmax(1) == labels).double().mean()
    net.train()
    return accuracy, inputs.quantile(torch.tensor(PERCENTILES), dim=0)


def steps_to(target: float, history: History, eval_steps: Sequence[int]) -> int | None:
    """The first evaluated step whose accuracy is at least `target`; None if there is none."""
    reached = (history.accuracy >= target).nonzero()
    return eval_steps[int(reached[0])] if len(reached) else None


def judge(repeats: Sequence[Histories], eval_steps: Sequence[int], target: float, best: float
          ) -> tuple[list[Verdict], dict[str, list[float]]]:
    """What the seeds say of the paper's three claims, and of each seed the median drift of the units with each norm. A
    net that does not reach the target counts as one that needs all steps."""
    fewest, highest, drift = ({norm: list[float]() for norm in NORMS} for _ in range(3))
    for histories in repeats:
        lrs = list(dict.fromkeys(lr for _, lr in histories))
        for norm in NORMS:
            reached = [steps_to(target, histories[norm, lr], eval_steps) for lr in lrs]
            fewest[norm].append(min((steps for steps in reached if steps is not None), default=eval_steps[-1]))
            highest[norm].append(max((lr for lr in lrs if float(histories[norm, lr].accuracy[-1]) >= target),
                                     default=0.0))
            drift[norm].append(float(histories[norm, best].drift().median()))
    sides = {name: (format_values(values["batch"]), format_values(values["none"]))
             for name, values in (("fewest", fewest), ("highest", highest), ("drift", drift))}
    return [
        judge_excesses("reaches the accuracy in fewer steps", subtract(fewest["none"], fewest["batch"]), sides=(
            "{} steps with, {} without, each at the learning rate that takes fewest".format(*sides["fewest"]))),
        judge_excesses("allows higher learning rates", subtract(highest["batch"], highest["none"]), sides=(
            "the highest that ends at {:g} or more is {} with, {} without".format(target, *sides["highest"]))),
        judge_excesses("the unit's input moves less", subtract(drift["none"], drift["batch"]), sides=(
            "its median moves {} of its last spread with, {} without, lr {:g}".format(*sides["drift"], best)))], drift


def subtract(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(left, right, strict=True)]


def write_histories(folder: Path, histories: Histories, eval_steps: Sequence[int], best: float) -> None:
    write_csv(folder / "accuracy.csv", ["step", *(f"{NORMS[norm]}, lr {lr:g}" for norm, lr in histories)],
              [[step, *(float(history.accuracy[row]) for history in histories.values())]
               for row, step in enumerate(eval_steps)])
    rows = torch.cat([histories[norm, best].typical_unit() for norm in NORMS], 1).tolist()
    write_csv(folder / "percentiles.csv",
              ["step", *(f"{word}, {100 * p:g}" for word in NORMS.values() for p in PERCENTILES)],
              [[step, *row] for step, row in zip(eval_steps, rows, strict=True)])


def draw(histories: Histories, eval_steps: Sequence[int], target: float, best: float, file: Path) -> None:
    figure = new_figure(15, 4.4)
    left, *others = figure.subplots(1, 3)
    lrs = list(dict.fromkeys(lr for _, lr in histories))
    for number, lr in enumerate(lrs):
        for norm, line in (("batch", "-"), ("none", "--")):
            left.plot(eval_steps, histories[norm, lr].accuracy, line, color=colour(number), linewidth=1.2,
                      label=f"{NORMS[norm]}, lr {lr:g}")
    left.axhline(target, color="0.6", linewidth=0.8, zorder=0)
    left.set(title="test accuracy, with batch normalisation and without", xlabel="step", ylim=(0, 1.02))
    left.legend(fontsize=8, ncols=len(lrs), loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for axes, (norm, word) in zip(others, NORMS.items(), strict=True):
        rows = histories[norm, best].typical_unit()
        axes.fill_between(eval_steps, rows[:, 0], rows[:, 2], color=colour(0), alpha=0.15)
        for place, p in enumerate(PERCENTILES):
            axes.plot(eval_steps, rows[:, place], color=colour(0), linewidth=1.6 if p == 0.5 else 0.9)
        axes.set(title=f"input to a typical sigmoid, {word}, lr {best:g}",
                 xlabel="step\n15th, 50th and 85th percentile over the test split")
    limits = [axes.get_ylim() for axes in others]
    for axes in others:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    save_figure(figure, file)
