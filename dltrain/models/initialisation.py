"""The initial weights that several nets share."""

from __future__ import annotations

from torch import nn


def initialise_convolutions(net: nn.Module) -> None:
    """Normal weights of variance 2 / fan_out, for layers before a ReLU (K. He et al., 2015, arXiv 1502.01852, equation
    14); biases are zero."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
