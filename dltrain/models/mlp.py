"""Maps images (B, C, H, W) to class logits (B, num_classes): fully connected layers of sigmoid units.

S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
2015, arXiv 1502.03167, section 4.1: three hidden layers of 100 units, weights small and Gaussian.

Differs from the paper: evaluation uses torch's running means and variances; algorithm 2 computes them once more over
the training split.

B batch, C channels, H, W height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INIT_STD = 0.1  # the paper says "small random Gaussian values" and no number


class MLP(nn.Module):
    """A hidden layer is sigmoid(BN(W u)) with norm="batch", where the shift of BN is the bias (section 3.2), and
    sigmoid(W u + b) with norm="none". Raises ValueError for another norm."""

    def __init__(self, num_inputs: int, num_classes: int = 10, hidden: int = 100, layers: int = 3, norm: str = "batch"):
        super().__init__()
        if norm not in ("batch", "none"):
            raise ValueError(f"norm must be batch or none, but is {norm}")
        linears = [nn.Linear(hidden if number else num_inputs, hidden, bias=norm == "none")
                   for number in range(layers)]
        self.hidden = nn.ModuleList(nn.Sequential(linear, *([nn.BatchNorm1d(hidden)] if norm == "batch" else []))
                                    for linear in linears)
        self.head = nn.Linear(hidden, num_classes)
        for linear in (*linears, self.head):
            nn.init.normal_(linear.weight, std=INIT_STD)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def last_inputs(self, images: Tensor) -> Tensor:
        """(B, hidden): the inputs of the sigmoids of the last hidden layer."""
        x = images.flatten(1)
        for layer in self.hidden[:-1]:
            x = torch.sigmoid(layer(x))
        return self.hidden[-1](x)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.sigmoid(self.last_inputs(images)))
