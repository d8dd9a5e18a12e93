"""Images (B, C, H, W) to the class logits of every pixel (B, K, H, W): a classifier of hypercolumns.

M. Mostajabi, P. Yadollahpour, G. Shakhnarovich, "Feedforward semantic segmentation with zoom-out features", 2015, arXiv
1412.0774; B. Hariharan et al., 2014, 1411.5752, where the name is from. A pixel's hypercolumn is what the maps of all
stages, enlarged to the image, have there, one on another; a net of two hidden layers reads the class off it (the deck:
h_fc1, h_fc2, cls). In training a few pixels of each image are classified, all of them in evaluation.

Differs from the paper: pixels and not superpixels; bilinear and not nearest; no subwindow or whole-image features but
the coarsest map's.

The first hidden layer is linear in the hypercolumn, and so is enlargement: W up(m_1, ..., m_S) = sum_s up(W_s m_s).
Evaluation multiplies on the small maps and enlarges H values, not the sum of all channels.

K classes, N pixels of an image, S stages, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.models.backbones import behead, maps, shapes


class Hypercolumn(nn.Module):
    """`taps`: the names of the stages whose maps are read, all where it is empty. Raises ValueError for another."""

    def __init__(self, encoder: Any, num_classes: int, in_channels: int, taps: Sequence[str], hidden: int,
                 dropout: float):
        super().__init__()
        found = shapes(encoder, in_channels)
        names = [stage.name for stage in found]
        if unknown := [tap for tap in taps if tap not in names]:
            raise ValueError(f"taps must be among {', '.join(names)}, the stages of {type(encoder).__name__}, but has "
                             f"{', '.join(unknown)}")
        self.places = [place for place, name in enumerate(names) if not taps or name in taps]
        self.widths = [found[place].channels for place in self.places]
        self.encoder = behead(encoder)
        self.fc1 = nn.Linear(sum(self.widths), hidden)
        self.rest = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, hidden),
                                  nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def tapped(self, images: Tensor) -> list[Tensor]:
        found = maps(self.encoder, images)
        return [found[place] for place in self.places]

    def at(self, images: Tensor, places: Tensor) -> Tensor:
        """The logits (B, N, K) of the pixels `places` (B, N, 2), row and column, int64."""
        h, w = images.shape[2:]
        grid = (2 * places.flip(2) + 1) / places.new_tensor([w, h]) - 1  # (B, N, 2): x, y from -1 to 1
        columns = columns_at(self.tapped(images), grid.to(images.dtype))
        logits: Tensor = self.rest(self.fc1(columns))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        total: Tensor | None = None
        bias: Tensor | None = self.fc1.bias  # a constant is enlarged to itself: it goes in with the first map
        for map_, weight in zip(self.tapped(images), self.fc1.weight.split(self.widths, 1), strict=True):
            part = F.interpolate(F.conv2d(map_, weight[:, :, None, None], bias), size=images.shape[2:],
                                 mode="bilinear", align_corners=False)
            total, bias = part if total is None else total.add_(part), None
        assert total is not None
        logits: Tensor = self.rest(total.permute(0, 2, 3, 1))
        return logits.permute(0, 3, 1, 2)


def columns_at(tapped: Sequence[Tensor], grid: Tensor) -> Tensor:
    """(B, N, sum of channels): what each map has at the places (B, N, 2), between its pixels by bilinear weights."""
    read = [F.grid_sample(map_, grid[:, :, None], mode="bilinear", padding_mode="border", align_corners=False)
            for map_ in tapped]
    return torch.cat(read, 1)[..., 0].transpose(1, 2)
