"""What batch normalisation does to a small net of sigmoid units, at several learning rates.

S. Ioffe, C. Szegedy, 2015, arXiv 1502.03167, section 4.1 and figure 1: test accuracy by step, and the 15th, 50th and
85th percentiles of the input to one typical sigmoid of the last hidden layer, with and without. There: MNIST, batches
of 60, 50,000 steps.

Differs from the paper: several learning rates (it names none), plain SGD, grey values in [0, 1] in place of binary
images; the typical unit is the one whose drift is the median of the layer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import ClassificationBatch, seed_of
from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.models.mlp import MLP
from dltrain.studies.comparison import config_dir, shown_as, write_csv

NORMS = {"none": "without", "batch": "with"}
PERCENTILES = (0.15, 0.5, 0.85)


class Found(NamedTuple):
    """accuracy (T,) on the test split after each of T steps looked at; percentiles (T, 3, units) over the test split of
    the inputs to the last hidden layer's sigmoids."""

    accuracy: Tensor
    percentiles: Tensor

    def drift(self) -> Tensor:
        """(units,): how far the median moves over the steps, in units of the last distance of 15th and 85th."""
        median = self.percentiles[:, 1]
        return (median.amax(0) - median.amin(0)) / (self.percentiles[-1, 2] - self.percentiles[-1, 0])

    def typical(self) -> int:
        """The unit whose drift is the median of all; of an even number the lower one."""
        return int(self.drift().median(dim=0).indices)


Runs = dict[tuple[str, float], Found]  # by norm and learning rate


def study(folder: Path, seed: int, data: str, root: str | None, steps: int, batch_size: int, lrs: list[float],
          looks: int, target: float) -> dict[str, Any]:
    """Writes accuracy.csv, percentiles.csv and results.png; returns the numbers of the table and whether the paper's
    claims held."""
    module = build_data(compose([f"data={data}", f"data.batch_size={batch_size}", f"seed={seed}", "recipe=none",
                                 *([f"data.root={root}"] if root else [])], config_dir()).job_config())
    at = sorted({round(steps * look / looks) for look in range(looks + 1)})
    runs: Runs = {}
    print(f"\n  {'':<22}{'best accuracy':>14}{'last':>9}{f'steps to {target:g}':>14}")
    for norm, word in NORMS.items():
        for lr in lrs:
            runs[norm, lr] = found = trained(module, norm, lr, at, seed)
            print(f"  {f'{word}, lr {lr:g}':<22}{float(found.accuracy.max()):>14.4f}{float(found.accuracy[-1]):>9.4f}"
                  f"{shown_steps(steps_to(target, found, at)):>14}", flush=True)
    best = max(lrs, key=lambda lr: float(runs["none", lr].accuracy[-1]))  # the fairest to the net without
    write_csv(folder / "accuracy.csv", ["step", *(f"{NORMS[norm]}, lr {lr:g}" for norm, lr in runs)],
              [[step, *(float(found.accuracy[row]) for found in runs.values())] for row, step in enumerate(at)])
    write_csv(folder / "percentiles.csv", ["step", *(f"{word}, {100 * p:g}" for word in NORMS.values()
                                                     for p in PERCENTILES)],
              [[step, *(value for norm in NORMS for value in unit_of(runs[norm, best])[row].tolist())]
               for row, step in enumerate(at)])
    claims = judged(runs, at, target, best)
    draw(runs, at, target, best, folder / "results.png")
    print(f"\n{folder}/results.png")
    return {**{f"{key}, {NORMS[norm]}, lr {lr:g}": value for (norm, lr), found in runs.items() for key, value in (
        ("best accuracy", float(found.accuracy.max())), ("last accuracy", float(found.accuracy[-1])),
        (f"steps to {target:g}", steps_to(target, found, at)))}, **claims}


def trained(module: Any, norm: str, lr: float, at: list[int], seed: int) -> Found:
    """A net trained by plain SGD for at[-1] steps, looked at after each of the steps `at`."""
    test = list(module.test_dataloader())
    images, labels = as_floats(torch.cat([batch.images for batch in test])), torch.cat([batch.labels for batch in test])
    torch.manual_seed(seed_of("init", seed))
    net = MLP(images[0].numel(), module.num_classes, norm=norm)
    sgd = torch.optim.SGD(net.parameters(), lr=lr)
    accuracy, percentiles = [], []
    batches = endless(module)
    for step in range(at[-1] + 1):
        if step in at:
            right, inputs = looked_at(net, images, labels)
            accuracy.append(right)
            percentiles.append(inputs)
        batch = next(batches)
        sgd.zero_grad()
        F.cross_entropy(net(as_floats(batch.images)), batch.labels).backward()
        sgd.step()
    return Found(torch.stack(accuracy), torch.stack(percentiles))


def endless(module: Any) -> Iterator[ClassificationBatch]:
    """Training batches from the first epoch on, the same for every net."""
    loader = module.train_dataloader()
    loader.position = 0
    for _ in count():
        yield from loader


def as_floats(images: Tensor) -> Tensor:
    return images.float() / 255


@torch.no_grad()
def looked_at(net: MLP, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy (), and percentiles (3, units) of the last sigmoids' inputs, both as in inference."""
    net.eval()
    inputs = net.last_inputs(images)
    right = (net.head(torch.sigmoid(inputs)).argmax(1) == labels).float().mean()
    net.train()
    return right, inputs.quantile(torch.tensor(PERCENTILES), dim=0)


def unit_of(found: Found) -> Tensor:
    """(T, 3): the percentiles of its typical unit."""
    return found.percentiles[:, :, found.typical()]


def steps_to(target: float, found: Found, at: list[int]) -> int | None:
    """The first step looked at whose accuracy is `target` or more; None where there is none."""
    reached = (found.accuracy >= target).nonzero()
    return at[int(reached[0])] if len(reached) else None


def shown_steps(steps: int | None) -> str:
    return "not reached" if steps is None else f"{steps:,}"


def judged(runs: Runs, at: list[int], target: float, best: float) -> dict[str, Any]:
    """Says and returns whether the paper's three claims held."""
    lrs = list(dict.fromkeys(lr for _, lr in runs))
    reached = {norm: [steps for lr in lrs if (steps := steps_to(target, runs[norm, lr], at)) is not None]
               for norm in NORMS}
    fewest = {norm: min(steps, default=None) for norm, steps in reached.items()}
    highest = {norm: max((lr for lr in lrs if float(runs[norm, lr].accuracy[-1]) >= target), default=0.0)
               for norm in NORMS}
    drift = {norm: float(runs[norm, best].drift().median()) for norm in NORMS}
    fewer = fewest["batch"] is not None and (fewest["none"] is None or fewest["batch"] < fewest["none"])
    said = {
        "reaches the accuracy in fewer steps": (
            fewer, f"{shown_steps(fewest['batch'])} steps with, {shown_steps(fewest['none'])} without, each with the "
                   "learning rate that takes fewest"),
        "allows higher learning rates": (
            highest["batch"] > highest["none"],
            f"the highest that ends at {target:g} or more is {highest['batch']:g} with, {highest['none']:g} without"),
        "the unit's input moves less": (
            drift["batch"] < drift["none"],
            f"its median moves {shown_as(drift['batch'])} of its last spread with, {shown_as(drift['none'])} without, "
            f"lr {best:g}")}
    print()
    for claim, (holds, why) in said.items():
        print(f"  {'held' if holds else 'did not hold'}: {claim}: {why}")
    return {**{f"claim, {claim}": holds for claim, (holds, _) in said.items()},
            **{f"drift, {NORMS[norm]}": value for norm, value in drift.items()}}


def draw(runs: Runs, at: list[int], target: float, best: float, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.4), dpi=110, layout="constrained")
    left, *others = figure.subplots(1, 3)
    lrs = list(dict.fromkeys(lr for _, lr in runs))
    for number, lr in enumerate(lrs):
        for norm, line in (("batch", "-"), ("none", "--")):
            left.plot(at, runs[norm, lr].accuracy, line, color=f"C{number}", linewidth=1.2,
                      label=f"{NORMS[norm]}, lr {lr:g}")
    left.axhline(target, color="0.6", linewidth=0.8, zorder=0)
    left.set(title="test accuracy, with batch normalisation and without", xlabel="step", ylim=(0, 1.02))
    left.legend(fontsize=8, ncols=len(lrs), loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for axes, (norm, word) in zip(others, NORMS.items(), strict=True):
        rows = unit_of(runs[norm, best])
        axes.fill_between(at, rows[:, 0], rows[:, 2], color="C0", alpha=0.15)
        for place, p in enumerate(PERCENTILES):
            axes.plot(at, rows[:, place], color="C0", linewidth=1.6 if p == 0.5 else 0.9)
        axes.set(title=f"input to a typical sigmoid, {word}, lr {best:g}",
                 xlabel="step\n15th, 50th and 85th percentile over the test split")
    limits = [axes.get_ylim() for axes in others]
    for axes in others:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes in (left, *others):
        axes.grid(alpha=0.25)
    figure.savefig(file)
