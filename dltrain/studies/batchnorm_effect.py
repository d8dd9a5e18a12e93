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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import ClassificationBatch, seed_of
from dltrain.build import build_data
from dltrain.config.compose import compose
from dltrain.data.datamodule import DataModule
from dltrain.drawing.curves import new_figure, save_figure
from dltrain.drawing.tables import format_number, format_table, write_csv
from dltrain.models.mlp import MLP
from dltrain.run import StudyContext
from dltrain.studies.claims import Verdict, print_verdicts

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
          evaluations: int, target: float) -> dict[str, Any]:
    """Writes accuracy.csv, percentiles.csv and results.png; returns the numbers that are printed, and whether the
    paper's claims held."""
    overrides = [f"data={data}", f"data.batch_size={batch_size}", f"seed={context.seed}", "recipe=none"]
    overrides += [f"data.root={root}"] if root else []
    module = build_data(compose(overrides, context.config_dir).job_config())
    eval_steps = sorted({round(steps * number / evaluations) for number in range(evaluations + 1)})
    histories: Histories = {}
    for norm, word in NORMS.items():
        for lr in lrs:
            print(f"{word} batch normalisation, lr {lr:g}", flush=True)
            histories[norm, lr] = train(module, norm, lr, eval_steps, context.seed)
    title = f"steps to {target:g}"
    print("\n" + format_table(["", "best accuracy", "last", title], [
        [f"{NORMS[norm]}, lr {lr:g}", f"{float(history.accuracy.max()):.4f}", f"{float(history.accuracy[-1]):.4f}",
         format_steps(steps_to(target, history, eval_steps))] for (norm, lr), history in histories.items()], [1, 2, 3]))
    best = max(lrs, key=lambda lr: float(histories["none", lr].accuracy[-1]))  # the fairest to the net without
    write_histories(context.folder, histories, eval_steps, best)
    draw(histories, eval_steps, target, best, context.folder / "results.png")
    verdicts, drift = judge(histories, eval_steps, target, best)
    held = print_verdicts(verdicts)
    print(f"\n{context.folder}/results.png")
    numbers: dict[str, Any] = {}
    for (norm, lr), history in histories.items():
        name = f"{NORMS[norm]}, lr {lr:g}"
        numbers |= {f"best accuracy, {name}": float(history.accuracy.max()),
                    f"last accuracy, {name}": float(history.accuracy[-1]),
                    f"{title}, {name}": steps_to(target, history, eval_steps)}
    return {**numbers, **held, **{f"drift, {NORMS[norm]}": value for norm, value in drift.items()}}


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
    accuracy = (net.head(torch.sigmoid(inputs)).argmax(1) == labels).float().mean()
    net.train()
    return accuracy, inputs.quantile(torch.tensor(PERCENTILES), dim=0)


def steps_to(target: float, history: History, eval_steps: Sequence[int]) -> int | None:
    """The first evaluated step whose accuracy is at least `target`; None if there is none."""
    reached = (history.accuracy >= target).nonzero()
    return eval_steps[int(reached[0])] if len(reached) else None


def format_steps(steps: int | None) -> str:
    return "not reached" if steps is None else f"{steps:,}"


def judge(histories: Histories, eval_steps: Sequence[int], target: float, best: float
          ) -> tuple[list[Verdict], dict[str, float]]:
    """Whether the paper's three claims held, and the median drift of the units with each norm."""
    lrs = list(dict.fromkeys(lr for _, lr in histories))
    reached = {norm: [steps for lr in lrs if (steps := steps_to(target, histories[norm, lr], eval_steps)) is not None]
               for norm in NORMS}
    fewest = {norm: min(steps, default=None) for norm, steps in reached.items()}
    highest = {norm: max((lr for lr in lrs if float(histories[norm, lr].accuracy[-1]) >= target), default=0.0)
               for norm in NORMS}
    drift = {norm: float(histories[norm, best].drift().median()) for norm in NORMS}
    fewer = fewest["batch"] is not None and (fewest["none"] is None or fewest["batch"] < fewest["none"])
    return [
        Verdict("reaches the accuracy in fewer steps", fewer,
                f"{format_steps(fewest['batch'])} steps with, {format_steps(fewest['none'])} without, each at the "
                "learning rate that takes fewest"),
        Verdict("allows higher learning rates", highest["batch"] > highest["none"],
                f"the highest that ends at {target:g} or more is {highest['batch']:g} with, {highest['none']:g} "
                "without"),
        Verdict("the unit's input moves less", drift["batch"] < drift["none"],
                f"its median moves {format_number(drift['batch'])} of its last spread with, "
                f"{format_number(drift['none'])} without, lr {best:g}")], drift


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
            left.plot(eval_steps, histories[norm, lr].accuracy, line, color=f"C{number}", linewidth=1.2,
                      label=f"{NORMS[norm]}, lr {lr:g}")
    left.axhline(target, color="0.6", linewidth=0.8, zorder=0)
    left.set(title="test accuracy, with batch normalisation and without", xlabel="step", ylim=(0, 1.02))
    left.legend(fontsize=8, ncols=len(lrs), loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for axes, (norm, word) in zip(others, NORMS.items(), strict=True):
        rows = histories[norm, best].typical_unit()
        axes.fill_between(eval_steps, rows[:, 0], rows[:, 2], color="C0", alpha=0.15)
        for place, p in enumerate(PERCENTILES):
            axes.plot(eval_steps, rows[:, place], color="C0", linewidth=1.6 if p == 0.5 else 0.9)
        axes.set(title=f"input to a typical sigmoid, {word}, lr {best:g}",
                 xlabel="step\n15th, 50th and 85th percentile over the test split")
    limits = [axes.get_ylim() for axes in others]
    for axes in others:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    for axes in (left, *others):
        axes.grid(alpha=0.25)
    save_figure(figure, file)
