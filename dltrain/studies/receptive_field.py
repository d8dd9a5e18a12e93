"""On which pixels of the image the class of one pixel depends, and how much: measured by gradients.

W. Luo et al., "Understanding the Effective Receptive Field", 2016, arXiv 1701.04128: the gradient of an output pixel
with respect to the image, its absolute values averaged over images, falls off like a Gaussian, so the effective field
is much smaller than the theoretical one. Shakhnarovich 2016, slides 32 and 33: a fully convolutional net has a large
stride; hypercolumns read low layers beside high ones; dilation removes the stride and keeps the field.

For each net: reach, the side of the square outside which the gradient is zero; effective field, the side of a square
with as many pixels as have more than 4.55 % of the largest gradient (section 3.1: two standard deviations of a
Gaussian); half, the radius of the circle around the pixel that contains half of the summed gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from dltrain import evaluation, run
from dltrain.batches import SegmentationBatch, generator, seed_of
from dltrain.build import build
from dltrain.drawing.style import new_figure, save_figure
from dltrain.drawing.tables import format_table, format_values, write_csv
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.stored_files import refuse_incomplete_config
from dltrain.studies.claims import Verdict, judge_excesses, print_verdicts
from dltrain.studies.named_runs import compose_run

SHARE = 0.0455  # of the largest gradient
COLUMNS = {"reach_px": "reach, px", "effective_px": "effective, px", "half_px": "half within, px"}
# Claims of Shakhnarovich 2016 about the nets: text, net, column, least ratio, other net.
CLAIMS = [("dilation keeps the reach of the strided net", "dilated", "reach_px", 0.9, "strided"),
          ("a hypercolumn reaches as far as the strided net", "hypercolumn", "reach_px", 0.9, "strided"),
          ("a hypercolumn depends on nearer pixels than the strided net", "strided", "half_px", 1.0, "hypercolumn")]

Sizes = Mapping[str, Mapping[str, float]]  # net -> column -> value


def study(context: run.StudyContext, nets: dict[str, list[str]], image_px: int, images: int, seeds: list[int]
          ) -> dict[str, Any]:
    """`nets`: name -> overrides that choose a model that labels pixels, or run=FOLDER for a trained one. Writes
    fields.csv and results.png, which shows the first seed; returns the means over the seeds."""
    if not nets:
        raise UserError("study.nets: must not be empty")
    configs = {name: read_config(name, words, context.config_dir) for name, words in nets.items()}
    fields: dict[str, Tensor] = {}
    repeats: list[Sizes] = []
    for seed in context.all_seeds(seeds):
        sizes = {}
        for name, words in nets.items():
            net, channels = build_net(words, configs[name], seed), configs[name].data.channels
            field = gradient_field(net, image_px, images, channels, seed)
            fields.setdefault(name, field)
            sizes[name] = measure(field)
            print(f"  {name}: {image_px} px, mean of {images} images, seed {seed}", flush=True)
        repeats.append(sizes)
    write_csv(context.folder / "fields.csv", ["net", "seed", *COLUMNS],
              [[name, context.seed + number, *(row[key] for key in COLUMNS)]
               for number, sizes in zip(seeds, repeats, strict=True) for name, row in sizes.items()])
    values = {name: {key: [sizes[name][key] for sizes in repeats] for key in COLUMNS} for name in nets}
    print("\n" + format_table(["net", *COLUMNS.values()], [
        [name, *(format_values(row[key]) for key in COLUMNS)] for name, row in values.items()], [1, 2, 3]))
    draw(fields, repeats[0], context.folder / "results.png")
    outcomes = print_verdicts(judge(values))
    print(f"\n{context.folder}/results.png")
    return {**{f"{key}, {name}": mean(row[key]) for name, row in values.items() for key in row}, **outcomes}


def read_config(name: str, words: list[str], config_dir: str | None) -> DictConfig:
    """That of a net of `nets`. Raises UserError for one that does not label pixels."""
    if not words:
        raise UserError(f"study.nets.{name}: must name a model, as [model=fcn32s], or a run, as [run=outputs/x]")
    if words[0].startswith("run="):
        run_dir = RunDir(Path(words[0].removeprefix("run=")))
        stored = run_dir.read_config()
        refuse_incomplete_config(stored, run_dir.path / "config.yaml")
        config = OmegaConf.create(stored)
    else:
        config = compose_run(name, words, config_dir, "nets").job_config()
    if (batch_type := config.data.batch_type) != SegmentationBatch.__name__:
        raise UserError(f"study.nets.{name}: must be a model that labels pixels, but its data yield {batch_type}")
    return config


def build_net(words: list[str], config: DictConfig, seed: int) -> nn.Module:
    if words[0].startswith("run="):
        return evaluation.restore(config, RunDir(Path(words[0].removeprefix("run=")))).model.cpu()
    torch.manual_seed(seed_of("init", seed))
    return build(config.model, "model")


def gradient_field(model: nn.Module, px: int, count: int, channels: int, seed: int) -> Tensor:
    """(px, px): the absolute gradient of the middle pixel's logits, each with a random weight, summed over channels and
    averaged over `count` random images."""
    model.eval()
    rng = generator("receptive field", seed)
    total = torch.zeros(px, px)
    for _ in range(count):
        image = torch.randn(1, channels, px, px, generator=rng).requires_grad_()
        logits = model(image)[0, :, px // 2, px // 2]
        weights = torch.randn(len(logits), generator=rng)
        (gradient,) = torch.autograd.grad(logits @ weights, image)
        total += gradient[0].abs().sum(0)
    return total / count


def measure(field: Tensor) -> dict[str, float]:
    """The columns of one field (px, px)."""
    rows, columns = field.any(1).nonzero()[:, 0], field.any(0).nonzero()[:, 0]
    reach = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    middle = len(field) // 2
    y, x = torch.meshgrid(*(2 * [torch.arange(len(field)) - float(middle)]), indexing="ij")
    radius = (x.square() + y.square()).sqrt().flatten()
    order = radius.argsort()
    mass = field.flatten()[order].double().cumsum(0)
    half = float(radius[order][(mass >= mass[-1] / 2).nonzero()[0, 0]])
    return {"reach_px": reach, "effective_px": float((field > SHARE * field.max()).sum()) ** 0.5, "half_px": half}


def judge(values: Mapping[str, Mapping[str, Sequence[float]]]) -> list[Verdict]:
    """`values`: net -> column -> value of each seed. The claims about the nets that were measured."""
    return [judge_excesses(text, [one - ratio * least for one, least in zip(
                               values[net][key], values[other][key], strict=True)], is_strict=False,
                           sides=f"{COLUMNS[key]} {format_values(values[net][key])} of {net}, "
                                f"{format_values(values[other][key])} of {other}")
            for text, net, key, ratio, other in CLAIMS if {net, other} <= values.keys()]


def draw(fields: Mapping[str, Tensor], sizes: Sizes, file: Path) -> None:
    figure = new_figure(3.6 * len(fields), 4.7)
    for axes, (name, field) in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
        axes.imshow((field / field.max()).sqrt(), cmap="magma", vmin=0, vmax=1)
        axes.plot(len(field) // 2, len(field) // 2, "c+", markersize=9)
        row = sizes[name]
        axes.set_title(f"{name}\nreach {row['reach_px']:.0f} px, effective {row['effective_px']:.0f} px,\n"
                       f"half within {row['half_px']:.0f} px", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.set_layout_engine("compressed")  # else the titles of square axes are cut off
    figure.supxlabel("gradient of the middle pixel's class\nwith respect to the image, square root", fontsize=9)
    save_figure(figure, file)
