"""Transforms that mix pairs of samples. The labels become class probabilities (B, num_classes) that sum to 1. Partners
are a random permutation of the batch, so a sample may be its own partner and then stays as it is."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.augment.geometry import to_device
from dltrain.augment.pipeline import Transform
from dltrain.batches import ClassificationBatch


class MixingTransform(Transform):
    """Base class: keeps `alpha` (> 0) of the distribution Beta(alpha, alpha), and the number of classes."""

    num_classes: int

    def __init__(self, alpha: float, num_classes: int):
        if alpha <= 0:
            raise ValueError(f"alpha must be > 0, but is {alpha}")
        self.alpha, self.num_classes = alpha, num_classes

    def mix_labels(self, labels: Tensor, partner: Tensor, weight: Tensor) -> Tensor:
        """weight * own label + (1 - weight) * partner's label; labels are (B,) int64 or (B, num_classes) float."""
        probabilities = labels if labels.dim() == 2 else F.one_hot(labels, self.num_classes).float()
        return weight[:, None] * probabilities + (1 - weight[:, None]) * probabilities[partner]


class Mixup(MixingTransform):
    """Replaces each image x by l x + (1 - l) x', where x' is another image of the batch, and its label likewise; l is
    sampled from Beta(alpha, alpha) for each image (Zhang et al. 2017, arXiv 1710.09412, equation 1; the paper's code
    samples one l per batch)."""

    def __call__(self, batch: ClassificationBatch, rng: torch.Generator  # type: ignore[override]  # needs labels
                 ) -> ClassificationBatch:
        partner = to_device(torch.randperm(batch.size, generator=rng), batch.images)
        weight = to_device(sample_beta(self.alpha, batch.size, rng), batch.images)
        pixels = weight[:, None, None, None]
        return batch._replace(images=pixels * batch.images + (1 - pixels) * batch.images[partner],
                              labels=self.mix_labels(batch.labels, partner, weight))


class CutMix(MixingTransform):
    """Pastes a window of the partner into each image and mixes the labels by the window's true area. The window's sides
    are sqrt(1 - l) of the image's, its centre is uniform, and l is sampled from Beta(alpha, alpha) for each sample (Yun
    et al. 2019, 1905.04899, section 3.1)."""

    def __call__(self, batch: ClassificationBatch, rng: torch.Generator  # type: ignore[override]  # needs labels
                 ) -> ClassificationBatch:
        partner = to_device(torch.randperm(batch.size, generator=rng), batch.images)
        cut = (1 - sample_beta(self.alpha, batch.size, rng)).sqrt()
        centre = torch.rand(batch.size, 2, generator=rng)
        images, weight = paste_windows(batch.images, batch.images[partner], to_device(cut, batch.images),
                                       to_device(centre, batch.images))
        return batch._replace(images=images, labels=self.mix_labels(batch.labels, partner, weight))


def sample_beta(alpha: float, count: int, rng: torch.Generator) -> Tensor:
    """(count,) samples of Beta(alpha, alpha) on the CPU, by NumPy: torch's sampler takes no generator."""
    seed = int(torch.randint(0, 2**62, (), generator=rng))
    return torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, count)).float()


def paste_windows(images: Tensor, partners: Tensor, cut: Tensor, centre: Tensor) -> tuple[Tensor, Tensor]:
    """Pastes a window of `partners` into `images`, both (B, C, H, W). `cut` (B,): the window's sides as a fraction of
    the image's; `centre` (B, 2): its centre (y, x), as fractions too. Also returns (B,) the fraction of the pixels that
    is left of each image."""
    inside = []
    for axis, dim in ((0, 2), (1, 3)):
        side = images.shape[dim]
        first = (centre[:, axis] * side - cut * side / 2).round().clamp(0, side)
        last = (centre[:, axis] * side + cut * side / 2).round().clamp(0, side)
        positions = torch.arange(side, device=images.device)
        inside.append((positions >= first[:, None]) & (positions < last[:, None]))
    window = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(window, partners, images), 1 - window.float().mean((1, 2, 3))
