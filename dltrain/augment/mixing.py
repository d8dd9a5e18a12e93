"""Transforms that mix samples. Labels become mixtures (B, num_classes) that sum to 1; nothing is mixed with itself on
purpose, but a sample may draw itself as its partner."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.augment.geometry import to_device
from dltrain.batches import ClassificationBatch


def beta(alpha: float, count: int, draws: torch.Generator) -> Tensor:
    """(B,) draws of Beta(alpha, alpha)."""
    seed = int(torch.randint(0, 2**62, (), generator=draws))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def as_mixtures(labels: Tensor, num_classes: int) -> Tensor:
    return labels if labels.dim() == 2 else F.one_hot(labels, num_classes).float()


def positive(alpha: float) -> float:
    if alpha <= 0:
        raise ValueError(f"alpha must be > 0, but is {alpha}")
    return alpha


class Mixup:
    """x = l x + (1 - l) x', and the labels alike, l from Beta(alpha, alpha) for each sample (Zhang et al. 2017,
    1710.09412, equation 1; the paper's code draws one l a batch)."""

    def __init__(self, alpha: float, num_classes: int):
        self.alpha, self.num_classes = positive(alpha), num_classes

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        partner = to_device(torch.randperm(batch.size, generator=draws), batch.images)
        share = to_device(beta(self.alpha, batch.size, draws), batch.images)
        labels = as_mixtures(batch.labels, self.num_classes)
        pixels = share[:, None, None, None]
        return batch._replace(images=pixels * batch.images + (1 - pixels) * batch.images[partner],
                              labels=share[:, None] * labels + (1 - share[:, None]) * labels[partner])


class CutMix:
    """A window of a partner is pasted in; the labels are mixed by its true area. Its sides are sqrt(1 - l) of the
    image's, its centre uniform, l from Beta(alpha, alpha) for each sample (Yun et al. 2019, 1905.04899,
    section 3.1)."""

    def __init__(self, alpha: float, num_classes: int):
        self.alpha, self.num_classes = positive(alpha), num_classes

    def __call__(self, batch: ClassificationBatch, draws: torch.Generator) -> ClassificationBatch:
        partner = to_device(torch.randperm(batch.size, generator=draws), batch.images)
        cut = (1 - beta(self.alpha, batch.size, draws)).sqrt()
        centre = torch.rand(batch.size, 2, generator=draws)
        images, share = pasted(batch.images, batch.images[partner], to_device(cut, batch.images),
                               to_device(centre, batch.images))
        labels = as_mixtures(batch.labels, self.num_classes)
        return batch._replace(images=images, labels=share[:, None] * labels + (1 - share[:, None]) * labels[partner])


def pasted(images: Tensor, others: Tensor, cut: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Window of `cut` of each side about `centre` (B, 2), in shares of the side, taken from `others`; and the share of
    each image that is left."""
    inside = []
    for axis, dim in ((0, 2), (1, 3)):
        side = images.shape[dim]
        first = (centre[:, axis] * side - cut * side / 2).round().clamp(0, side)
        last = (centre[:, axis] * side + cut * side / 2).round().clamp(0, side)
        places = torch.arange(side, device=images.device)
        inside.append((places >= first[:, None]) & (places < last[:, None]))
    window = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(window, others, images), 1 - window.float().mean((1, 2, 3))
