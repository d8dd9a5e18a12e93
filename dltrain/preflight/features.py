"""Features of inputs and of targets, for a linear probe: simple ones that need no training and take a second.

N images or sequences, M places of an image, C channels, F features, K values of a target, V symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import END, generator

PIXELS_PX, PATCHED_PX, MOST_PX = 8, 32, 64  # sides of the images that are read as pixels, by patches, place by place
PATCH_PX, NUM_FILTERS = 6, 64
PLACES = 48  # of an image
BUCKETS = 256  # of symbols: a larger vocabulary is folded into so many


class Association(NamedTuple):
    """inputs (G, M, F) and targets (G, M, K): M rows of each of G samples. `is_stream`: the samples are one running
    text, whose targets can only be moved along it."""

    inputs: Tensor
    targets: Tensor
    is_stream: bool = False


def image_features(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 to (N, F): the pixels of a small copy, and how well 6 x 6 patches of the images themselves,
    whitened, fit at the best place and on average (A. Coates, H. Lee, A. Ng, 2011, section 3.2)."""
    pixels = images.float() / 255
    small = shrink(pixels, PIXELS_PX).flatten(1)
    scaled = shrink(pixels, PATCHED_PX)
    if min(scaled.shape[2:]) < PATCH_PX + 2:
        return small
    rng = generator("check", "patches")
    patches = F.unfold(scaled[:200], PATCH_PX).transpose(1, 2).reshape(-1, scaled.shape[1] * PATCH_PX**2)
    patches = normalised(patches[torch.randint(len(patches), (4000,), generator=rng)])
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    whitening = vectors / (values.clamp_min(0) + 0.1).sqrt() @ vectors.T
    filters = F.normalize((patches[:NUM_FILTERS] - mean) @ whitening, dim=1) @ whitening
    fits = []
    for some in scaled.split(64):
        unfolded = normalised(F.unfold(some, PATCH_PX).transpose(1, 2)) - mean
        response = unfolded @ filters.T
        fits.append(torch.cat([response.amax(1), response.amin(1), response.relu().mean(1)], 1))
    return torch.cat([small, torch.cat(fits)], 1)


def shrink(pixels: Tensor, px: int) -> Tensor:
    """(N, C, H, W) with sides of at most `px`."""
    size = [min(px, side) for side in pixels.shape[2:]]
    return F.interpolate(pixels, size, mode="bilinear", antialias=True) if size != [*pixels.shape[2:]] else pixels


def normalised(patches: Tensor) -> Tensor:
    """Each patch (..., F) with mean 0 and deviation 1, but where it is nearly flat."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()


def place_features(images: Tensor) -> Tensor:
    """(N, C, H, W) uint8 to (N, 6 C, H, W): each pixel, means and deviations around it, and its place in the colours of
    the image."""
    pixels = images.float() / 255
    means = [F.avg_pool2d(F.pad(pixels, (px // 2,) * 4, mode="replicate"), px, 1) for px in (3, 9)]
    squares = F.avg_pool2d(F.pad(pixels.square(), (4,) * 4, mode="replicate"), 9, 1)
    spread = (squares - means[1].square()).clamp_min(0).sqrt()
    centred = pixels - pixels.mean((2, 3), keepdim=True)
    return torch.cat([pixels, *means, spread, centred, centred.abs()], 1)


def places(images: Tensor, masks: Tensor, ignored: int) -> Association:
    """Random places of each image, with the class of the mask (N, H, W) there; a class that is not scored has zeros."""
    stride = max(1, -(-max(images.shape[2:]) // MOST_PX))
    images, masks = images[:, :, ::stride, ::stride], masks[:, ::stride, ::stride]
    inputs = place_features(images).flatten(2).transpose(1, 2)
    chosen = torch.randint(inputs.shape[1], (PLACES,), generator=generator("check", "places"))
    labels = masks.flatten(1)[:, chosen]
    classes = labels.unique()
    return Association(inputs[:, chosen], (labels[..., None] == classes[classes != ignored]).float())


def crops(images: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Association | None:
    """What is inside each box (x1, y1, x2, y2), with its label; None where there are no boxes."""
    inside, classes = [], []
    for image, some, of_image in zip(images, boxes, labels, strict=True):
        for box, label in zip(some.round().long().tolist(), of_image.tolist(), strict=True):
            left, top = (min(max(0, low), side - 1) for low, side in zip(box[:2], (image.shape[2], image.shape[1]),
                                                                         strict=True))
            cut = image[None, :, top : max(box[3], top + 1), left : max(box[2], left + 1)]
            inside.append(F.interpolate(cut.float(), (2 * PIXELS_PX,) * 2, mode="bilinear", antialias=True)[0])
            classes.append(label)
    if not inside:
        return None
    pixels = torch.stack(inside)
    grey = pixels.mean(1)
    features = torch.cat([image_features(pixels), normalised(grey.flatten(1) / 255)], 1)
    return Association(features[:, None], one_hot(torch.tensor(classes))[:, None])


def one_hot(labels: Tensor) -> Tensor:
    """(..., K) float: a column for each label that occurs."""
    return (labels[..., None] == labels.unique()).float()


def folded(tokens: Tensor, buckets: int = BUCKETS) -> Tensor:
    """(..., buckets) float: one-hot, after the symbols are folded into the buckets."""
    return F.one_hot(tokens % buckets, min(buckets, int(tokens.max()) + 1)).float()


def bag(tokens: Tensor, length: int, buckets: int = BUCKETS) -> Tensor:
    """(buckets,): the share of each symbol among the first `length`."""
    return torch.bincount(tokens[:length] % buckets, minlength=buckets).float() / max(1, length)


def sequence_features(tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """Symbols (N, T): the share of each, and the first and the last one. Vectors (N, T, F): all values where the
    sequences are short and equally long, else the mean, the deviation, the first and the last."""
    if tokens.is_floating_point():
        if len({*lengths}) == 1 and tokens[0].numel() <= 4 * BUCKETS:
            return tokens.flatten(1)
        return torch.stack([torch.cat([row[:n].mean(0), row[:n].std(0, correction=0), row[0], row[n - 1]])
                            for row, n in zip(tokens, lengths, strict=True)])
    ends = torch.stack([torch.stack([row[0], row[n - 1]]) for row, n in zip(tokens, lengths, strict=True)])
    bags = torch.stack([bag(row, n) for row, n in zip(tokens, lengths, strict=True)])
    return torch.cat([bags, F.one_hot(ends % 64, 64).float().flatten(1)], 1)


def neighbours(tokens: Tensor, targets: Tensor) -> Association:
    """Sequences of symbols with a target each, (N,) one after the other: the symbol and those beside it."""
    inputs = torch.cat([folded(tokens.roll(shift)) for shift in (0, 1, -1)], 1)
    return Association(inputs[:, None], one_hot(targets)[:, None], is_stream=True)


def following(tokens: Tensor, targets: Tensor) -> Association:
    """Running text (N,): a symbol, and the one that follows it."""
    return Association(folded(tokens)[:, None], folded(targets, 64)[:, None], is_stream=True)


def words_of(captions: Tensor) -> Tensor:
    """(N, R, T) to (N, K) float: which words the captions of an image have, folded into BUCKETS."""
    words = F.one_hot(captions % BUCKETS, min(BUCKETS, int(captions.max()) + 1)).flatten(1, 2).amax(1)
    return words[:, END + 1 :].float()
