"""Sizes of anchors from the boxes of a training split, by k-means with the IoU as similarity.

J. Redmon, A. Farhadi, "YOLO9000" (YOLOv2), 2016, arXiv 1612.08242, section 2, "Dimension clusters": the distance of a
box to a centre is 1 - IoU of the two with a common centre, so that large boxes count no more than small ones.

N boxes, K anchors; a size is (width, height) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST_BOXES = 20_000  # so many are clustered, a random choice of more
MOST_ROUNDS, STARTS = 300, 5


def scale_boxes(boxes: Tensor, short_px: int, long_px: int) -> Tensor:
    """Sizes (N, 2) of `boxes` (N, 4), each with its width and height and those of its image, as a detector sees them:
    the short side of the image scaled to `short_px`, unless its long side would then be above `long_px`."""
    sides = boxes[:, 2:].double()
    scale = torch.minimum(short_px / sides.amin(1), long_px / sides.amax(1))
    return boxes[:, :2].double() * scale[:, None]


def anchor_sizes(sides: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Sizes (K, 2) of anchors with the areas of the squares of these `sides`, each in the `ratios` height : width."""
    return torch.tensor([[side / ratio**0.5, side * ratio**0.5] for side in sides for ratio in ratios]).double()


def size_iou(sizes: Tensor, anchors: Tensor) -> Tensor:
    """IoU (N, K) of sizes (N, 2) and anchors (K, 2) with a common centre."""
    common = torch.minimum(sizes[:, None], anchors).prod(2)
    return common / (sizes.prod(1)[:, None] + anchors.prod(1) - common)


def mean_best_iou(sizes: Tensor, anchors: Tensor) -> float:
    """The IoU of each box with its best anchor, averaged over the boxes (the paper's table 1)."""
    return float(size_iou(sizes, anchors).amax(1).mean())


def fit_anchors(sizes: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Sizes (count, 2) of anchors, by increasing area: the best of several starts of k-means on `sizes` (N, 2). Raises
    ValueError for fewer different sizes than anchors."""
    if len(sizes.unique(dim=0)) < count:
        raise ValueError(f"the training boxes have {len(sizes.unique(dim=0))} different sizes, fewer than {count} "
                         "anchors; list fewer model.anchor_px or model.ratios")
    sizes = sizes[torch.randperm(len(sizes), generator=rng)[:MOST_BOXES]]
    candidates = [cluster(sizes, first_centres(sizes, count, rng)) for _ in range(STARTS)]
    best = max(candidates, key=lambda anchors: mean_best_iou(sizes, anchors))
    return best[best.prod(1).argsort()]


def first_centres(sizes: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Boxes that lie apart: each next one is chosen with a probability in proportion to its squared distance to the
    nearest one before (k-means++, D. Arthur and S. Vassilvitskii, 2007)."""
    centres = sizes[torch.randint(len(sizes), (1,), generator=rng)]
    while len(centres) < count:
        distance = 1 - size_iou(sizes, centres).amax(1)
        centres = torch.cat([centres, sizes[torch.multinomial(distance.clamp_min(0) ** 2, 1, generator=rng)]])
    return centres


def cluster(sizes: Tensor, centres: Tensor) -> Tensor:
    """Lloyd's rounds until no box changes its centre. A centre without boxes stays where it is."""
    nearest = None
    for _ in range(MOST_ROUNDS):
        before, nearest = nearest, size_iou(sizes, centres).argmax(1)
        if before is not None and torch.equal(nearest, before):
            break
        counts = torch.bincount(nearest, minlength=len(centres))
        sums = torch.zeros_like(centres).index_add(0, nearest, sizes)
        centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
    return centres
