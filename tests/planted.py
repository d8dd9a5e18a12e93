"""Data and models with one fault each, for `dltrain check`."""

import torch
from torch import nn

from dltrain.batches import generator
from dltrain.data.classification import Split
from dltrain.data.digits import Digits
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.models.recurrent import CharRNN


class ShuffledDigits(Digits):
    """The labels of each split are permuted."""

    def load(self) -> None:
        super().load()
        self.splits = {split: Split(images, labels[torch.randperm(len(labels), generator=generator("planted", split))])
                       for split, (images, labels) in self.splits.items()}


class LeakingDigits(Digits):
    """A quarter of the validation images are training images, `brighter` or as they are."""

    def __init__(self, *, brighter: bool = False, **keys):
        super().__init__(**keys)
        self.brighter = brighter

    def load(self) -> None:
        super().load()
        images, labels = (values.clone() for values in self.splits["val"])
        copied = self.splits["train"].images[:45]
        images[:45] = copied // 2 + 100 if self.brighter else copied
        self.splits["val"] = Split(images, labels)


class FewOfOneClass(Digits):
    """Two training images of the class 3, and more than a hundred of each other one."""

    def load(self) -> None:
        super().load()
        images, labels = self.splits["train"]
        kept = (labels != 3) | ((labels == 3).cumsum(0) <= 2)
        self.splits["train"] = Split(images[kept], labels[kept])


class FrozenNet(CifarResNet):
    def __init__(self, **keys):
        super().__init__(**keys)
        self.head.requires_grad_(False)


class UnconnectedNet(CifarResNet):
    def __init__(self, **keys):
        super().__init__(**keys)
        self.forgotten = nn.Linear(3, 3)


class MixingNet(CifarResNet):
    """Normalises over the batch in evaluation mode too."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits - logits.mean(0)


class ShufflingNet(CifarResNet):
    """Gives each sample the answer of another one, in training mode."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits.roll(1, 0) if self.training else logits


class LoudNet(CifarResNet):
    """Its last layer has far too large weights."""

    def __init__(self, **keys):
        super().__init__(**keys)
        self.head.weight.data *= 30


class LookingAheadRNN(CharRNN):
    """Reads the symbol after next too."""

    def forward(self, tokens, state=None):
        logits, state = super().forward(tokens, state)
        return logits + logits.roll(-1, 1), state


class StatisticsOfUnitRange:
    """Undoes the normalisation, and does it with statistics of pixels in [0, 1] on pixels in [0, 255]."""

    def __call__(self, batch, rng):
        return batch._replace(images=(batch.images * 96 - 0.31) / 0.38)
