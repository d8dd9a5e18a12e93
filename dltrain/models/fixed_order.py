"""Layers whose gradients are the same to the bit in every run on a GPU.

Where torch's and torchvision's kernels add gradients by atomic operations, in no fixed order, a deterministic run
(trainer.deterministic) refuses them on CUDA: torch.use_deterministic_algorithms lists them. Here bilinear interpolation
and RoIAlign are products with a matrix of weights, points of a map are rows of an embedding, and RoI pooling adds its
gradient by an index that is sorted. They are used on CUDA in a deterministic run alone; elsewhere torch's own kernels
are faster or take less memory.

B images, C channels, H and W height and width of a map, K regions, N points, P positions on one axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx


def needs_fixed_order(x: Tensor) -> bool:
    """Whether sums of gradients of `x` must have a fixed order and its kernels give none."""
    return x.is_cuda and torch.are_deterministic_algorithms_enabled()


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def linear_weights(positions: Tensor, size: int) -> Tensor:
    """(..., P) positions in units of the places 0 to size - 1 of an axis to (..., P, size): the weight of each place in
    linear interpolation. A position beyond an end has the value at this end."""
    places = torch.arange(size, dtype=positions.dtype, device=positions.device)
    return (1 - (positions.clamp(0, size - 1)[..., None] - places).abs()).clamp_min(0)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) to (B, C, *size), as F.interpolate with mode="bilinear" and align_corners=False."""
    if not needs_fixed_order(x):
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
    with torch.autocast("cuda", enabled=False):
        values = at_least_float32(x)
        rows, columns = (linear_weights((torch.arange(new, dtype=values.dtype, device=x.device) + 0.5) * (old / new)
                                        - 0.5, old) for old, new in zip(x.shape[2:], size, strict=True))
        out: Tensor = rows @ values @ columns.T
    return out.to(x.dtype)


def values_at(map_: Tensor, grid: Tensor) -> Tensor:
    """(B, C, N): the bilinearly interpolated values of (B, C, H, W) at the points `grid` (B, N, 2), which are x, y in
    [-1, 1], as F.grid_sample with padding_mode="border" and align_corners=False."""
    if not needs_fixed_order(map_):
        return F.grid_sample(map_, grid[:, :, None], mode="bilinear", padding_mode="border",
                             align_corners=False)[..., 0]
    b, c, h, w = map_.shape
    x, y = (((grid[..., axis] + 1) * size / 2 - 0.5).clamp(0, size - 1) for axis, size in ((0, w), (1, h)))
    left, top = x.floor(), y.floor()
    first_row = torch.arange(b, device=map_.device)[:, None] * (h * w)
    rows, total = map_.permute(0, 2, 3, 1).reshape(b * h * w, c), None
    for y_place, y_weight in ((top, top + 1 - y), ((top + 1).clamp_max(h - 1), y - top)):
        for x_place, x_weight in ((left, left + 1 - x), ((left + 1).clamp_max(w - 1), x - left)):
            value = F.embedding(first_row + (y_place * w + x_place).long(), rows) * (y_weight * x_weight)[..., None]
            total = value if total is None else total + value
    assert total is not None
    return total.transpose(1, 2)


def align(maps: Tensor, boxes: list[Tensor], scale: float, size: Sequence[int], samples: int) -> Tensor:
    """(K, C, *size): torchvision's roi_align of (B, C, H, W) with aligned=False and a `sampling_ratio` above 0, as two
    products for each image. `boxes`: (Ki, 4) of each image, in its pixels, `scale` times as large on the map."""
    regions = []
    with torch.autocast("cuda", enabled=False):
        for map_, corners in zip(at_least_float32(maps), boxes, strict=True):
            (c, h, w), k = map_.shape, len(corners)
            rows, columns = (region_weights(corners[:, axis::2].to(map_.dtype) * scale, places, bins, samples)
                             for axis, places, bins in ((1, h, size[0]), (0, w, size[1])))
            strips = rows.flatten(0, 1) @ map_.transpose(0, 1).reshape(h, c * w)  # (K * bins, C * W)
            regions.append((strips.view(k, size[0] * c, w) @ columns.transpose(1, 2)).view(k, size[0], c, size[1]))
    return torch.cat(regions).transpose(1, 2).to(maps.dtype)


def region_weights(ends: Tensor, places: int, bins: int, samples: int) -> Tensor:
    """(K, 2), the first and the last position of each region on an axis, to (K, bins, places): the mean weights of the
    samples of each bin. A sample more than one place outside the map counts as zero."""
    length = (ends[:, 1] - ends[:, 0]).clamp_min(1.0)
    offsets = (torch.arange(bins * samples, dtype=ends.dtype, device=ends.device) + 0.5) / (bins * samples)
    positions = ends[:, :1] + offsets * length[:, None]
    inside = (positions >= -1) & (positions <= places)
    return (linear_weights(positions, places) * inside[..., None]).unflatten(1, (bins, samples)).mean(2)


class MaxOfRegions(torch.autograd.Function):
    """torchvision's roi_pool of (B, C, H, W), regions (K, 5) with the image's number first, to (K, C, px, px)."""

    @staticmethod
    def forward(ctx: FunctionCtx, maps: Tensor, regions: Tensor, scale: float, px: int) -> Tensor:
        out, places = torch.ops.torchvision.roi_pool(maps, regions, scale, px, px)  # place of each maximum, or -1
        ctx.save_for_backward(regions[:, 0].long(), places)
        ctx.set_materialize_grads(True)
        ctx.shape = maps.shape  # type: ignore[attr-defined]
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        image, places = ctx.saved_tensors  # type: ignore[attr-defined]
        shape: torch.Size = ctx.shape  # type: ignore[attr-defined]
        _, c, h, w = shape
        plane = image[:, None] * c + torch.arange(c, device=image.device)
        index = plane[..., None, None] * (h * w) + places.clamp_min(0).long()
        flat = gradient.new_zeros(shape.numel())
        flat.index_put_((index.flatten(),), torch.where(places < 0, 0.0, gradient).flatten(), accumulate=True)
        return flat.view(shape), None, None, None
