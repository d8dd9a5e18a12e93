"""What of the image one pixel's class depends on, and how much: measured by gradients.

W. Luo et al., "Understanding the Effective Receptive Field", 2016, arXiv 1701.04128: the gradient of an output pixel
with respect to the image, its absolute values averaged over images, falls off like a Gaussian, so the field that counts
is much smaller than the one that the layers reach. The deck, slides 32 and 33: a fully convolutional net has a large
stride; hypercolumns read low layers beside high ones, and dilation takes the stride out and keeps the field.

Of each net: reach, the side of what has any gradient at all; effective field, the side of a square of as many pixels as
have more than 4.55 % of the largest gradient (section 3.1: two standard deviations of a Gaussian); half, the radius
around the pixel that half of all gradient lies in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain import verbs
from dltrain.batches import generator, seed_of
from dltrain.build import build
from dltrain.config.compose import compose
from dltrain.studies.comparison import table, write_csv

SHARE = 0.0455  # of the largest gradient
TITLES = {"reach_px": "reach, px", "effective_px": "effective, px", "half_px": "half within, px"}


def study(folder: Path, seed: int, nets: dict[str, list[str]], image_px: int, images: int) -> dict[str, Any]:
    """`nets`: name -> words that choose a model that labels pixels, or run=FOLDER for a trained one. Writes fields.csv
    and results.png."""
    fields = {}
    for name, words in nets.items():
        model, channels = made(words, seed)
        fields[name] = field(model, image_px, images, channels, seed)
        print(f"  {name}: {image_px} px, mean of {images} images", flush=True)
    found = {name: measured(one) for name, one in fields.items()}
    write_csv(folder / "fields.csv", ["net", *TITLES], [[name, *(row[key] for key in TITLES)]
                                                         for name, row in found.items()])
    print("\n" + table("net", TITLES.values(), [[name, *([row[key]] for key in TITLES)]
                                                for name, row in found.items()]))
    held = claims(found)
    draw(fields, found, folder / "results.png")
    print(f"\n{folder}/results.png")
    return {**{f"{key}, {name}": value for name, row in found.items() for key, value in row.items()},
            **{f"claim, {text}": holds for text, holds in held.items()}}


def made(words: list[str], seed: int) -> tuple[nn.Module, int]:
    """The net and the channels that it reads."""
    if words[0].startswith("run="):
        config, path = verbs.saved_config({"run": words[0].removeprefix("run=")}, ())
        return verbs.restored(config, path).model.cpu(), config.data.channels
    config = compose(words).job_config()
    torch.manual_seed(seed_of("init", seed))
    return build(config.model, "model"), config.data.channels


def field(model: nn.Module, px: int, count: int, channels: int, seed: int) -> Tensor:
    """(px, px): the absolute gradient of the middle pixel's logits, each with a random weight, summed over channels and
    averaged over random images."""
    model.eval()
    draws = generator("receptive field", seed)
    total = torch.zeros(px, px)
    for _ in range(count):
        image = torch.randn(1, channels, px, px, generator=draws).requires_grad_()
        logits = model(image)[0, :, px // 2, px // 2]
        weights = torch.randn(len(logits), generator=draws)
        (gradient,) = torch.autograd.grad(logits @ weights, image)
        total += gradient[0].abs().sum(0)
    return total / count


def measured(found: Tensor) -> dict[str, float]:
    rows, columns = found.any(1).nonzero()[:, 0], found.any(0).nonzero()[:, 0]
    reach = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
    middle = len(found) // 2
    y, x = torch.meshgrid(*(2 * [torch.arange(len(found)) - float(middle)]), indexing="ij")
    radius = (x.square() + y.square()).sqrt().flatten()
    order = radius.argsort()
    mass = found.flatten()[order].double().cumsum(0)
    half = float(radius[order][(mass >= mass[-1] / 2).nonzero()[0, 0]])
    return {"reach_px": reach, "effective_px": float((found > SHARE * found.max()).sum()) ** 0.5, "half_px": half}


def claims(found: dict[str, dict[str, float]]) -> dict[str, bool]:
    """What the deck says of the three nets, where they are there, and whether it held."""
    said = {"dilation keeps the reach of the strided net": ("dilated", "reach_px", 0.9, "strided"),
            "a hypercolumn reaches as far as the strided net": ("hypercolumn", "reach_px", 0.9, "strided"),
            "a hypercolumn depends on nearer pixels than the strided net": ("strided", "half_px", 1.0, "hypercolumn")}
    held = {}
    print()
    for text, (one, key, factor, other) in said.items():
        if {one, other} <= found.keys():
            held[text] = found[one][key] >= factor * found[other][key]
            print(f"  {'held' if held[text] else 'did not hold'}: {text}: {TITLES[key]} {found[one][key]:.4g} of "
                  f"{one}, {found[other][key]:.4g} of {other}")
    return held


def draw(fields: dict[str, Tensor], found: dict[str, dict[str, float]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(fields), 4.9), dpi=110, layout="constrained")
    for axes, (name, one) in zip(figure.subplots(1, len(fields), squeeze=False)[0], fields.items(), strict=True):
        axes.imshow((one / one.max()).sqrt(), cmap="magma", vmin=0, vmax=1)
        axes.plot(len(one) // 2, len(one) // 2, "c+", markersize=9)
        row = found[name]
        axes.set_title(f"{name}\nreach {row['reach_px']:.0f} px, effective {row['effective_px']:.0f} px,\n"
                       f"half within {row['half_px']:.0f} px", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.supxlabel("gradient of the middle pixel's class with respect to the image, square root", fontsize=9)
    figure.savefig(file)
