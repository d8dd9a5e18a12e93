"""Images (B, C, H, W) to class logits (B, num_classes): any classifier of the package timm, by its name there.

timm is imported only when such a net is built: nothing else needs it.
"""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, nn


class TimmModel(nn.Module):
    """`pretrained`: with the published weights, downloaded where they are not yet. `features` gives what timm's
    forward_features gives: of a convolutional net (B, out_channels, h, w). Raises ValueError without timm, for a name
    that timm does not have, and where it cannot get the weights."""

    def __init__(self, name: str, num_classes: int, in_channels: int = 3, pretrained: bool = False):
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ValueError("it needs the package timm: pip install dltrain[timm]") from None
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ValueError(f"timm has no model '{name}'; near it: {', '.join(near) or 'none'} (timm.list_models())")
        try:
            net: Any = timm.create_model(name, pretrained=pretrained, num_classes=num_classes,
                                         in_chans=in_channels)
        except (OSError, RuntimeError) as error:  # no network, no such weights
            raise ValueError(f"timm cannot make '{name}': {' '.join(str(error).split())[:200]}") from None
        self.net = net
        self.out_channels: int = net.num_features

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = self.net.forward_features(images)
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
