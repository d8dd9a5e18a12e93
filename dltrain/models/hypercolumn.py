"""Maps images (B, C, H, W) to the class logits of every pixel (B, K, H, W): a classifier of hypercolumns.

M. Mostajabi, P. Yadollahpour, G. Shakhnarovich, "Feedforward semantic segmentation with zoom-out features", 2015, arXiv
1412.0774; B. Hariharan et al., 2014, 1411.5752, which gave hypercolumns their name. The hypercolumn of a pixel is the
stack of the values that the maps of all stages, enlarged to the image, have at this pixel. A net of two hidden layers
classifies it (Shakhnarovich 2016: h_fc1, h_fc2, cls). In training a few pixels of each image are classified, in
evaluation all.

Differs from the papers: pixels and not superpixels; bilinear and not nearest interpolation; no features of subwindows
or of the whole image besides the coarsest map.

The first hidden layer and the enlargement are both linear: W up(m_1, ..., m_S) = sum_s up(W_s m_s). So evaluation
applies W_s to each small map and enlarges H channels, not the channels of all stages.

K classes, N pixels of an image, S stages, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.contracts import Backbone
from dltrain.models.backbones import remove_head, stage_maps, stage_shapes
from dltrain.models.fixed_order import enlarge, values_at


class Hypercolumn(nn.Module):
    """`taps`: the names of the stages whose maps are read; all where it is empty. Raises ValueError for an unknown
    stage."""

    def __init__(self, backbone: Backbone, num_classes: int, in_channels: int, taps: Sequence[str], hidden: int,
                 dropout: float):
        super().__init__()
        stages = stage_shapes(backbone, in_channels)
        names = [stage.name for stage in stages]
        if unknown := [tap for tap in taps if tap not in names]:
            raise ValueError(f"taps must be among {', '.join(names)}, the stages of {type(backbone).__name__}, but has "
                             f"{', '.join(unknown)}")
        self.tap_indices = [index for index, name in enumerate(names) if not taps or name in taps]
        self.widths = [stages[index].channels for index in self.tap_indices]
        self.backbone = remove_head(backbone)
        self.fc1 = nn.Linear(sum(self.widths), hidden)
        self.fc2_and_classes = nn.Sequential(
            nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(hidden, num_classes))

    def tapped_maps(self, images: Tensor) -> list[Tensor]:
        maps = stage_maps(self.backbone, images)
        return [maps[index] for index in self.tap_indices]

    def classify_pixels(self, images: Tensor, places: Tensor) -> Tensor:
        """The logits (B, N, K) of the pixels `places` (B, N, 2), row and column, int64."""
        h, w = images.shape[2:]
        y, x = places.unbind(2)
        grid = torch.stack([(2 * x + 1) / w - 1, (2 * y + 1) / h - 1], 2)  # (B, N, 2): x, y from -1 to 1
        columns = columns_at(self.tapped_maps(images), grid.to(images.dtype))
        logits: Tensor = self.fc2_and_classes(self.fc1(columns))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        total: Tensor | None = None
        bias: Tensor | None = self.fc1.bias  # enlarging keeps a constant as it is: added once, to the first map
        for map_, weight in zip(self.tapped_maps(images), self.fc1.weight.split(self.widths, 1), strict=True):
            term = enlarge(F.conv2d(map_, weight[:, :, None, None], bias), images.shape[2:])
            total, bias = term if total is None else total.add_(term), None
        assert total is not None
        logits: Tensor = self.fc2_and_classes(total.permute(0, 2, 3, 1))
        return logits.permute(0, 3, 1, 2)


def columns_at(maps: Sequence[Tensor], grid: Tensor) -> Tensor:
    """(B, N, sum of channels): the bilinearly interpolated values of all maps at the points `grid` (B, N, 2), which are
    x, y in [-1, 1] as grid_sample takes them."""
    return torch.cat([values_at(map_, grid) for map_ in maps], 1).transpose(1, 2)
