"""What the auxiliary classifiers of GoogLeNet do: the gradient that reaches each stage with and without them.

C. Szegedy et al., "Going Deeper with Convolutions", 2014, arXiv 1409.4842, section 5: classifiers on the maps of 4a and
4d, with 0.3 as the factor of their losses, should carry more gradient to the lower layers, and regularise.
Shakhnarovich 2016, slides 14 and 15. The same authors found later that they change little early in training, and help
near its end (1512.00567, section 4).

Of the net with them, at the start and at the end of its training, on one training batch: the norm of the gradient of
each stage's parameters from the main loss, from the auxiliary losses with their factor, and from both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

from dltrain import evaluation
from dltrain.batches import ClassificationBatch, seed_of
from dltrain.build import build_data, build_task
from dltrain.contracts import auxiliary_weight
from dltrain.drawing.curves import draw_bars
from dltrain.drawing.style import new_figure, save_figure
from dltrain.drawing.tables import format_table, format_values
from dltrain.errors import UserError
from dltrain.models.googlenet import GoogLeNet
from dltrain.results import all_numbers, print_table, write_values
from dltrain.run import StudyContext
from dltrain.studies.claims import judge, judge_excesses, parse_claim, print_verdicts
from dltrain.studies.named_runs import compose_run, plan_runs, train_all
from dltrain.tasks.task import Task

RUNS = {"with": [], "without": ["model.auxiliary_weight=0"]}
TIMES = ("at the start", "at the end")
LOSSES = ("main", "auxiliary", "both")
COLUMNS = {"test/accuracy": "test accuracy", "train/loss": "training loss", "seconds": "seconds"}
CLAIMS = ["test/accuracy: with >= without"]

Norms = dict[str, dict[str, float]]  # of each stage and loss


def study(context: StudyContext, common: list[str], more: list[str], seeds: list[int]) -> dict[str, Any]:
    """`common`, `more`: a run of a GoogLeNet, as on the command line. Writes comparison.csv, gradients.csv and
    results.png; returns the means over the seeds and the outcomes of the claims."""
    chosen = compose_run("with", [*(common or []), *(more or [])], context.config_dir).config
    if not OmegaConf.select(chosen, "model.auxiliary_weight"):
        raise UserError("study.common: must choose a GoogLeNet with auxiliary losses, as model=googlenet_cifar with a "
                        f"model.auxiliary_weight above 0, but the model is {chosen.model._target_}")
    plans = plan_runs(context.config_dir, common, RUNS, more)
    all_seeds = context.all_seeds(seeds)
    values: dict[str, dict[str, list[float]]] = {metric: {name: [] for name in RUNS} for metric in COLUMNS}
    norms: dict[str, list[Norms]] = {time: [] for time in TIMES}
    for name, seed, config, run_dir in train_all(context, plans, all_seeds):
        numbers = all_numbers(run_dir)
        for metric in COLUMNS:
            values[metric][name].append(numbers[metric])
        if name == "with":
            data = build_data(config)
            batch = cast(ClassificationBatch, next(iter(data.train_dataloader())))
            torch.manual_seed(seed_of("init", seed))
            config.class_names = data.class_names
            fresh = build_task(config)
            fresh.fit_statistics(data)
            for time, task in zip(TIMES, (fresh, evaluation.restore(config, run_dir, "last")), strict=True):
                norms[time].append(measure(task, batch, seed))
    write_values(context.folder / "comparison.csv", all_seeds, values)
    print_table("auxiliary losses", COLUMNS, values)
    ratios = {time: ratio_of(repeats) for time, repeats in norms.items()}
    print(format_table(["both / main", *TIMES], [
        [stage, *(format_values(ratios[time][stage]) for time in TIMES)] for stage in ratios[TIMES[0]]], [1, 2]))
    draw(ratios, values["test/accuracy"], context.folder / "results.png")
    outcomes = print_verdicts([
        *(judge_excesses(f"the lowest layer gets more gradient {time}", [ratio - 1 for ratio in of_stages["conv1"]],
                         sides=f"{format_values(of_stages['conv1'])} times that of the main loss")
          for time, of_stages in ratios.items()),
        *(judge(claim, values[claim.metric]) for claim in (parse_claim(text, list(RUNS)) for text in CLAIMS))])
    print(f"\n{context.folder}/results.png")
    return {**{f"{metric}, {name}": mean(repeats) for metric, of_runs in values.items()
               for name, repeats in of_runs.items()},
            **{f"ratio {time}, {stage}": mean(repeats) for time, of_stages in ratios.items()
               for stage, repeats in of_stages.items()}, **outcomes}


def measure(task: Task, batch: ClassificationBatch, seed: int) -> Norms:
    """The norms of the gradients of one batch in training mode, without augmentation; dropout depends on the seed."""
    model = cast(GoogLeNet, task.model)
    torch.manual_seed(seed_of("dropout", seed))
    logits, *others = model.train()(cast(Any, task).augment.normalize(batch.images))
    main = F.cross_entropy(logits, batch.labels)
    auxiliary = auxiliary_weight(model) * torch.stack([F.cross_entropy(other, batch.labels) for other in others]).sum()
    return {stage: {loss: norm_of(value, parameters_of(layers)) for loss, value in zip(
        LOSSES, (main, auxiliary, main + auxiliary), strict=True)} for stage, layers in model.stages().items()}


def parameters_of(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [parameter for layer in layers for parameter in layer.parameters()]


def norm_of(loss: Tensor, parameters: Sequence[Tensor]) -> float:
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return float(torch.cat([gradient.flatten() for gradient in gradients if gradient is not None] or [
        torch.zeros(1)]).norm())


def ratio_of(repeats: Sequence[Norms]) -> dict[str, list[float]]:
    """Of each stage, for each seed: the norm from both losses, divided by that from the main loss."""
    return {stage: [norms[stage]["both"] / norms[stage]["main"] for norms in repeats] for stage in repeats[0]}


def draw(ratios: Mapping[str, Mapping[str, Sequence[float]]], accuracies: Mapping[str, Sequence[float]], file: Path
         ) -> None:
    figure = new_figure(13, 3.8)
    panels = figure.subplots(1, len(ratios) + 1)
    for axes, (time, of_stages) in zip(panels, ratios.items(), strict=False):
        draw_bars(axes, of_stages)
        axes.axvline(1, color="0.4", linewidth=0.8, linestyle="--")
        axes.set(title=f"gradient {time}", xlabel="norm with the auxiliary losses / without")
    draw_bars(panels[-1], accuracies)
    panels[-1].set(title="auxiliary losses", xlabel="test accuracy")
    save_figure(figure, file)
