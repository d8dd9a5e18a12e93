"""How well nets recognise blurred, noisy or rotated images, with and without such images in their training.

I. Vasiljevic, A. Chakrabarti, G. Shakhnarovich, "Examining the Impact of Blur on Recognition by Convolutional
Networks", 2016, arXiv 1611.05760: a net trained on sharp images fails on blurred ones; with blurred images in training
it recognises both. Shakhnarovich 2016, slide 12.

Differs from the paper: Gaussian blur, while it has camera shake and lack of focus too; nets are trained from random
weights, and not fine-tuned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from dltrain import evaluation
from dltrain.augment.pipeline import BatchTransform, to_unit_range
from dltrain.batches import ClassificationBatch, generator
from dltrain.build import build_data
from dltrain.data.datamodule import DataModule
from dltrain.drawing.curves import draw_bars
from dltrain.drawing.style import new_figure, save_figure
from dltrain.errors import UserError
from dltrain.results import print_table, write_values
from dltrain.run import StudyContext
from dltrain.studies.claims import judge, parse_claims, print_verdicts
from dltrain.studies.named_runs import plan_runs, train_all
from dltrain.tasks.task import Task

AT_ONCE = 100  # images
EXAMPLES = 4  # images that the picture shows, each in every version


def study(context: StudyContext, common: list[str], runs: Mapping[str, Any], more: list[str], seeds: list[int],
          corruptions: Mapping[str, Sequence[BatchTransform]], claims: list[str]) -> dict[str, Any]:
    """`runs` as in comparison.py; `corruptions`: name -> transforms of pixels in [0, 1] through which the test images
    go. Each claim compares the accuracy on one of them. Writes comparison.csv and results.png; returns the means over
    the seeds and the outcomes of the claims."""
    for key, value in (("runs", runs), ("corruptions", corruptions)):
        if not value:
            raise UserError(f"study.{key}: must not be empty")
    if empty := [name for name, transforms in corruptions.items() if transforms is None]:
        raise UserError(f"study.corruptions.{empty[0]}: must be a list of transforms, [] for none")
    plans = plan_runs(context.config_dir, common, runs, more)
    for name, plan in plans.items():
        if (batch_type := plan.composed.config.data.batch_type) != ClassificationBatch.__name__:
            raise UserError(f"study.runs.{name}: must classify images, but its data yield {batch_type}")
    parsed = parse_claims(claims, list(plans), corruptions)
    all_seeds = context.all_seeds(seeds)
    values: dict[str, dict[str, list[float]]] = {name: {run: [] for run in plans} for name in corruptions}
    examples: dict[str, Tensor] = {}
    for name, seed, config, run_dir in train_all(context, plans, all_seeds):
        module, task = build_data(config), evaluation.restore(config, run_dir)
        for corruption, transforms in corruptions.items():
            values[corruption][name].append(accuracy_of(task, module, transforms, seed))
            examples.setdefault(corruption, corrupted(module, torch.arange(EXAMPLES), transforms, seed).images)
    write_values(context.folder / "comparison.csv", all_seeds, values)
    print_table("test accuracy, trained on", {name: name for name in corruptions}, values)
    file = context.folder / "results.png"
    draw(examples, values, file)
    outcomes = print_verdicts([judge(claim, values[claim.metric]) for claim in parsed])
    print(f"\n{file}")
    return {**{f"{name}, {run}": mean(repeats) for name, of_runs in values.items()
               for run, repeats in of_runs.items()}, **outcomes}


def corrupted(module: DataModule, indices: Tensor, transforms: Sequence[BatchTransform], seed: int) -> Any:
    """The test images at `indices` after the transforms, as a batch with pixels in [0, 1]. Their random numbers depend
    on the seed and on the first index."""
    (batch,) = module.read("test", [indices])
    batch = batch._replace(images=to_unit_range(batch.images))
    rng = generator("corruption", seed, int(indices[0]))
    for transform in transforms:
        batch = transform(batch, rng)
    return batch


@torch.inference_mode()
def accuracy_of(task: Task, module: DataModule, transforms: Sequence[BatchTransform], seed: int) -> float:
    correct = []
    for indices in torch.arange(module.num_samples("test")).split(AT_ONCE):
        batch = corrupted(module, indices, transforms, seed)
        correct.append((task(batch.images).argmax(1) == batch.labels).float())
    return float(torch.cat(correct).mean())


def draw(examples: Mapping[str, Tensor], values: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> None:
    """For each version of the test images some of them, and below a bar per run."""
    runs = next(iter(values.values()))
    figure = new_figure(3.4 * len(values), 2.4 + 0.35 * len(runs))
    panels = figure.subplots(2, len(values), squeeze=False, height_ratios=[1.0, 0.55 + 0.35 * len(runs)])
    for place, (name, images) in enumerate(examples.items()):
        row = torch.cat(list(images), dim=2).permute(1, 2, 0).clamp(0, 1).numpy()
        panels[0, place].imshow(row if row.shape[2] == 3 else row[..., 0], cmap=None if row.shape[2] == 3 else "gray")
        panels[0, place].set_axis_off()
        panels[0, place].set_title(name)
        bars = panels[1, place]
        draw_bars(bars, values[name])
        bars.set(xlabel="test accuracy", xlim=(0, 1.15), xticks=(0, 0.5, 1))
        if place:
            bars.set_yticklabels([])
    save_figure(figure, file)
