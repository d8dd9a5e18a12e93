"""What the model is fed after the augment stage, without random transforms: means near 0, deviations near 1."""

from __future__ import annotations

import torch
from torch import Tensor

from dltrain.batches import generator
from dltrain.preflight.findings import FAULT, OK, SKIPPED, WARNING, Finding
from dltrain.preflight.pair import Pair

CHECK = "normalisation"
SAMPLES = 64
MEAN = (0.4, 0.7)  # of a channel, without its sign: a warning above the first, a fault above the second
LARGE, SMALL = (2.5, 5.0), (0.1, 0.02)  # deviations of a channel, likewise above and below; 0.25 is of centred pixels
FITTED = "augment.normalize=standard takes both from the training split"


def check_normalisation(pair: Pair) -> Finding:
    augment = pair.augment
    if augment is None:
        return Finding(CHECK, SKIPPED, "the inputs are no images")
    indices = pair.source.indices("train", SAMPLES)
    batch = pair.to_device(pair.source.read("train", indices))
    with torch.no_grad(), pair.without_augmentation():
        images = augment(batch, generator("check", "augment")).images
    values = torch.cat([image.flatten(1) for image in images], 1)  # (C, M)
    mean, deviation = values.mean(1), values.std(1)
    scale = name_of(pair)
    figure = f"the channels' means are {listed(mean)}, deviations {listed(deviation)} (augment.normalize={scale})"
    if not bool(values.isfinite().all()):
        return Finding(CHECK, FAULT, f"{figure}: not finite", f"look at the pixels; {FITTED}")
    if pair.is_pretrained and scale in ("imagenet", "box"):
        return Finding(CHECK, OK, f"{figure}, as the pretrained weights expect")
    offset, most, least = float(mean.abs().max()), float(deviation.max()), float(deviation.min())
    level = max(sum(offset > bound for bound in MEAN), sum(most > bound for bound in LARGE),
                sum(least < bound for bound in SMALL))
    advice = f"mean 0 and deviation 1 are usual: {FITTED}"
    if most > LARGE[1]:
        advice += "; so large values come from statistics of pixels in [0, 1] that meet pixels in [0, 255]"
    return Finding(CHECK, (OK, WARNING, FAULT)[level], figure, advice if level else "")


def name_of(pair: Pair) -> str:
    normalize = getattr(pair.augment, "normalize", None)
    return str(getattr(normalize, "kind", "own"))


def listed(values: Tensor) -> str:
    return " ".join(f"{value:.2f}" for value in values.tolist()[:4])
