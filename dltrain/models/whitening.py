"""Maps images (B, C, H, W) to whitened patches (B, 2 C k^2, H', W'): a first layer whose filters are set from the data.

D. Page, "How to train your ResNet", 2018, part 8; T. Balsam, hlb-CIFAR10, 2023; K. Jordan, "94% on CIFAR-10 in 3.29
seconds on a single GPU", 2024, arXiv 2404.00498.

The filters are the eigenvectors of the covariance of all k x k patches of training images, each divided by the root of
its eigenvalue plus EPSILON, and their negatives, so that an activation after them loses nothing. They are not trained
but saved with the weights, as buffers; a bias of each filter is trained.

B batch, C channels, H, W height and width, k side of a patch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 5e-4  # added to the eigenvalues of patches of normalised pixels: directions with less variance stay small


class PatchWhitening(nn.Module):
    """`patch_px`: k. A patch of odd side keeps H and W by zeros around the image; one of even side is not padded and
    gives H - k + 1 rows and W - k + 1 columns, as in the papers, where k is 2."""

    weight: Tensor

    def __init__(self, in_channels: int, patch_px: int):
        super().__init__()
        values = in_channels * patch_px**2
        self.out_channels, self.patch_px = 2 * values, patch_px
        identity = torch.eye(values).view(values, in_channels, patch_px, patch_px)
        self.register_buffer("weight", torch.cat([identity, -identity]))
        self.bias = nn.Parameter(torch.zeros(2 * values))

    def fit_patches(self, images: Tensor) -> None:
        """Sets the filters from normalised training images (N, C, H, W). Those of a pretrained net stay as they are."""
        k, values = self.patch_px, self.out_channels // 2
        if not torch.equal(self.weight[:values].flatten(1), torch.eye(values).to(self.weight)):
            return
        covariance = torch.zeros(values, values, dtype=torch.float64)
        count = 0
        for chunk in images.split(256):
            patches = F.unfold(chunk, k).transpose(1, 2).reshape(-1, values).double()
            covariance += (patches.T @ patches).cpu()
            count += len(patches)
        eigenvalues, vectors = torch.linalg.eigh(covariance / count)  # ascending; a column each
        filters = (vectors / (eigenvalues + EPSILON).sqrt()).flip(1).T.reshape(self.weight[:values].shape)
        self.weight.copy_(torch.cat([filters, -filters]))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight, self.bias, padding=self.patch_px // 2 if self.patch_px % 2 else 0)


def whitening_layers(in_channels: int, patch_px: int | None) -> tuple[list[nn.Module], int]:
    """What a net of ReLUs has before its first convolution, and how many channels that convolution gets: a whitening
    layer and an activation, or nothing if `patch_px` is None."""
    if patch_px is None:
        return [], in_channels
    layer = PatchWhitening(in_channels, patch_px)
    return [layer, nn.ReLU()], layer.out_channels
