"""Maps images (B, C, H, W) to class logits (B, num_classes): any classifier of the package timm, by its name there.

timm is imported only when such a net is built: nothing else needs it.
"""

from __future__ import annotations

import difflib
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


class TimmModel(nn.Module):
    """`features` gives the output of timm's forward_features: for a convolutional net (B, out_channels, h, w). Raises
    ValueError where timm is not installed, has no model of this name, or cannot build it with these arguments."""

    def __init__(self, name: str, num_classes: int, in_channels: int = 3):
        super().__init__()
        try:
            import timm
        except ImportError:
            raise ValueError("it needs the package timm: pip install dltrain[timm]") from None
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise ValueError(f"timm has no model '{name}'; near it: {', '.join(near) or 'none'} (timm.list_models())")
        self.name, self.num_classes, self.in_channels = name, num_classes, in_channels
        try:
            self.net: Any = self.create(pretrained=False)
        except RuntimeError as error:
            raise ValueError(f"timm cannot build '{name}': {' '.join(str(error).split())[:200]}") from None
        self.out_channels: int = self.net.num_features

    def create(self, pretrained: bool) -> Any:  # timm's classes have no type in common
        import timm

        return timm.create_model(self.name, pretrained=pretrained, num_classes=self.num_classes,
                                 in_chans=self.in_channels)

    def published_weights(self) -> dict[str, Tensor]:
        """The tensors of this model with timm's published weights, downloaded where they are not yet. A classifier for
        another number of classes than the published one keeps its own. Raises OSError without a network, RuntimeError
        where timm has no weights for the model."""
        with torch.random.fork_rng(devices=[]):  # the global generator is left as it was
            published = self.create(pretrained=True)
        tensors = {f"net.{name}": value for name, value in published.state_dict().items()}
        if published.pretrained_cfg["num_classes"] != self.num_classes:
            classifiers = published.pretrained_cfg["classifier"] or ()
            kept = [classifiers] if isinstance(classifiers, str) else list(classifiers)
            prefixes = tuple(f"net.{name}." for name in kept)
            tensors |= {name: value for name, value in self.state_dict().items() if name.startswith(prefixes)}
        return tensors

    def stages(self) -> NoReturn:
        raise ValueError("TimmModel has no stages: timm's nets do not list which layers compute their features")

    def features(self, images: Tensor) -> Tensor:
        features: Tensor = self.net.forward_features(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)
