"""A classifier of windows that sees a whole image at once: its fully connected layers are convolutions.

P. Sermanet et al., "OverFeat", 2013, arXiv 1312.6229, section 3.5 and figure 5. Neighbouring windows share almost all
of their computation; a layer that is fully connected over a window's map is a convolution over a larger one.

Differs from the paper: two convolutions in the place of five, none of them padded, so that a window's outputs do not
depend on where it stands; one offset in the place of nine, so windows lie `stride` = 4 px apart.

B images, C channels, K classes; a map of h x w windows.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class OverFeat(nn.Module):
    """Raises ValueError for a window whose maps do not divide evenly: window_px must be 4n, at least 16."""

    stride = 4

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16, hidden: int = 128, window_px: int = 32):
        super().__init__()
        if window_px % 4 or window_px < 16:
            raise ValueError(f"window_px must be a multiple of 4, at least 16, but is {window_px}")
        self.window_px, self.map_px = window_px, window_px // 4 - 2
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 5), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3), nn.ReLU(), nn.MaxPool2d(2))
        self.hidden = nn.Linear(2 * width * self.map_px**2, hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, windows: Tensor) -> Tensor:
        """(B, C, window_px, window_px) to logits (B, K)."""
        return self.head(F.relu(self.hidden(self.features(windows).flatten(1))))

    def dense(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to the logits (B, K, h, w) of every window, 4 px apart: [.., i, j] is that of the window whose
        upper left corner is at (4 i, 4 j)."""
        maps = F.relu(convolved(self.features(images), self.hidden, self.map_px))
        return convolved(maps, self.head, 1)


def convolved(maps: Tensor, layer: nn.Linear, px: int) -> Tensor:
    """The fully connected layer on each px x px piece of (B, C, h, w): its weights as a kernel."""
    return F.conv2d(maps, layer.weight.view(layer.out_features, -1, px, px), layer.bias)


def windows_of(images: Tensor, px: int, stride: int) -> Tensor:
    """(B, C, H, W) to every window, (B * h * w, C, px, px), in the order of `dense`."""
    cut = images.unfold(2, px, stride).unfold(3, px, stride)  # (B, C, h, w, px, px)
    return cut.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
