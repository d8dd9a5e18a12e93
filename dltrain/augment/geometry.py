"""Transforms that move pixels, and masks and boxes with them: their base class, pad-and-crop, and the horizontal flip.

Each sample has its own random parameters. They are sampled on the CPU and then copied to the device, so that the host
never waits for the device.

Shapes: B batch, C channels, H, W height and width, N boxes of an image. Coordinates are in pixels from the upper left
corner of the image: the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_area, clip_boxes_to_image

from dltrain import batches
from dltrain.augment.pipeline import BatchT, Images, Transform, map_images
from dltrain.batches import IGNORED_PIXEL

MIN_VISIBLE = 0.25  # a box is dropped if less than this fraction of its area stays inside the image
LARGE = 10_000  # values of an image: from here on a CPU is faster with one image after the other


def to_device(parameters: Tensor, images: Images) -> Tensor:
    """Copies `parameters` from the CPU to the device of `images` without waiting for the device."""
    return batches.to_device(parameters, images[0].device)


def sample_uniform(low: float, high: float, count: int, rng: torch.Generator) -> Tensor:
    """(count,) floats in [low, high) on the CPU."""
    return low + (high - low) * torch.rand(count, generator=rng)


def check_unit_interval(name: str, value: float) -> float:
    """Returns `value`; raises ValueError if it is not in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], but is {value}")
    return value


def one_by_one(images: Tensor) -> bool:
    """Whether images (B, C, H, W) are better changed one after the other: each of them then stays in the cache of the
    CPU, where the whole batch would be written to memory and read again for each operation."""
    return images.is_cpu and images[0].numel() >= LARGE


def image_sizes(images: Images) -> Tensor:
    """(B, 2) float on the CPU: height and width of each image."""
    if isinstance(images, Tensor):
        return torch.tensor(images.shape[-2:], dtype=torch.float32).expand(len(images), 2)
    return torch.tensor([tuple(image.shape[-2:]) for image in images], dtype=torch.float32)


class GeometricTransform(Transform):
    """Moves the images of a batch, its `masks` (B, H, W) and the boxes of its `targets`, if the batch has them.

    A subclass defines `sample_parameters`, `transform_images` and `make_matrices`. Masks take the nearest pixel, and
    IGNORED_PIXEL outside the old image. A box becomes the smallest upright box around its moved corners, clipped to the
    image; it is dropped, with its label, if less than MIN_VISIBLE of its area is left."""

    @abstractmethod
    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        """(B, ...) on the CPU: the random parameters of each sample, whose image has the height and width `sizes`
        (B, 2)."""

    @abstractmethod
    def transform_images(self, images: Tensor, parameters: Tensor, nearest: bool = False) -> Tensor:
        """(B, C, H, W) to (B, C, H', W'), with zeros outside the old image. `nearest`: no interpolation, for masks."""

    @abstractmethod
    def make_matrices(self, sizes: Tensor, parameters: Tensor) -> Tensor:
        """(B, 2, 3) on the CPU: map an old position (x, y, 1) to the new position (x, y)."""

    def __call__(self, batch: BatchT, rng: torch.Generator) -> BatchT:
        sizes = image_sizes(batch.images)
        parameters = self.sample_parameters(sizes, rng)
        fields, images = batch._asdict(), map_images(self.transform_images, batch.images, parameters)
        changed: dict[str, object] = {"images": images}
        if "masks" in fields:
            shifted = (fields["masks"][:, None] - IGNORED_PIXEL).float()  # zeros from outside become IGNORED_PIXEL
            masks = self.transform_images(shifted, parameters, nearest=True)[:, 0]
            changed["masks"] = masks.round().long() + IGNORED_PIXEL
        if "targets" in fields:
            rows = zip(fields["targets"], self.make_matrices(sizes, parameters), image_sizes(images), strict=True)
            changed["targets"] = [transform_target(*row) for row in rows]
        return batch._replace(**changed)


def transform_target(target: dict[str, Tensor], matrix: Tensor, size: Tensor) -> dict[str, Tensor]:
    """Moves the boxes (N, 4) by `matrix` (2, 3), clips them to `size` (height, width) and drops those of which too
    little is left; every other tensor of the target, (N, ...), loses the same rows."""
    boxes = target["boxes"]
    x, y = boxes[:, [0, 2, 2, 0]], boxes[:, [1, 1, 3, 3]]
    corners = torch.stack([x, y, torch.ones_like(x)], dim=2) @ to_device(matrix.T.to(boxes.dtype), [boxes])  # (N, 4, 2)
    hulls = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    height, width = size.int().tolist()
    clipped = clip_boxes_to_image(hulls, (height, width))
    kept = box_area(clipped) >= MIN_VISIBLE * box_area(hulls).clamp_min(1e-6)
    return {name: (clipped if name == "boxes" else value)[kept] for name, value in target.items()}


def affine_matrices(xx: Tensor | float, xy: Tensor | float, x: Tensor | float,
                    yx: Tensor | float, yy: Tensor | float, y: Tensor | float) -> Tensor:
    """(B, 2, 3) with the rows (xx, xy, x) and (yx, yy, y); each entry is (B,) or a number for all samples."""
    entries = torch.broadcast_tensors(*(torch.as_tensor(entry) for entry in (xx, xy, x, yx, yy, y)))
    return torch.stack(entries, dim=1).reshape(-1, 2, 3)


class PadCrop(GeometricTransform):
    """Pads each side by `padding_px` (>= 0) and crops a window of the old size, each of the (2 * padding_px + 1)^2
    positions with equal probability. `mode`: pad with "zero" or by reflection, "reflect" (He et al. 2015, section 4.2:
    zeros, 4 px for images of 32 px)."""

    def __init__(self, padding_px: int, mode: str = "zero"):
        if padding_px < 0:
            raise ValueError(f"padding_px must be >= 0, but is {padding_px}")
        if mode not in ("zero", "reflect"):
            raise ValueError(f"mode must be zero or reflect, but is {mode}")
        self.padding_px, self.mode = padding_px, mode

    def check(self, channels: int, image_px: int) -> None:
        if self.mode == "reflect" and self.padding_px >= image_px:
            raise ValueError(f"padding_px must be less than the image's {image_px} px with mode=reflect, "
                             f"but is {self.padding_px}")

    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        """(B, 2) int64: row and column of the window in the padded image."""
        return torch.randint(0, 2 * self.padding_px + 1, (len(sizes), 2), generator=rng)

    def transform_images(self, images: Tensor, parameters: Tensor, nearest: bool = False) -> Tensor:
        return pad_and_crop(images, self.padding_px, parameters, self.mode)

    def make_matrices(self, sizes: Tensor, parameters: Tensor) -> Tensor:
        y, x = (self.padding_px - parameters.float()).unbind(1)
        return affine_matrices(1.0, 0.0, x, 0.0, 1.0, y)


def pad_and_crop(images: Tensor, padding_px: int, offsets: Tensor, mode: str = "zero") -> Tensor:
    """Pads (B, C, H, W) and crops each sample to its old shape from row offsets[i, 0] and column offsets[i, 1] on.
    `offsets` (B, 2) are on the CPU. The host does not wait for the device."""
    if mode == "zero" and one_by_one(images):
        return shift_images(images, (padding_px - offsets).tolist())
    h, w = images.shape[2:]
    padded = F.pad(images, (padding_px,) * 4, mode="constant" if mode == "zero" else "reflect")
    windows = padded.unfold(2, h, 1).unfold(3, w, 1)  # (B, C, rows, columns, H, W), a view
    rows, columns = to_device(offsets, images).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, rows, columns]


def shift_images(images: Tensor, shifts: list[list[int]]) -> Tensor:
    """Moves each image down and to the right by its two numbers of pixels; zeros come in from outside."""
    h, w = images.shape[2:]
    shifted = torch.zeros_like(images)
    for old, new, (down, right) in zip(images, shifted, shifts, strict=True):
        y, x = min(max(down, -h), h), min(max(right, -w), w)
        new[:, max(y, 0) : h + min(y, 0), max(x, 0) : w + min(x, 0)] = old[
            :, max(-y, 0) : h - max(y, 0), max(-x, 0) : w - max(x, 0)]
    return shifted


class HorizontalFlip(GeometricTransform):
    """Swaps left and right with probability `p` in [0, 1]."""

    def __init__(self, p: float = 0.5):
        self.p = check_unit_interval("p", p)

    def sample_parameters(self, sizes: Tensor, rng: torch.Generator) -> Tensor:
        """(B,) bool: which samples are flipped."""
        return torch.rand(len(sizes), generator=rng) < self.p

    def transform_images(self, images: Tensor, parameters: Tensor, nearest: bool = False) -> Tensor:
        indices = parameters.nonzero().flatten()  # on the CPU: no wait for the device
        if one_by_one(images):
            mirrored = images.clone()
            for index in indices.tolist():
                mirrored[index] = images[index].flip(2)
            return mirrored
        flipped = to_device(indices, images)
        return images.index_copy(0, flipped, images[flipped].flip(3))

    def make_matrices(self, sizes: Tensor, parameters: Tensor) -> Tensor:
        sign = 1 - 2 * parameters.float()
        return affine_matrices(sign, 0.0, parameters * sizes[:, 1], 0.0, 1.0, 0.0)
