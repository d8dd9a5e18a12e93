"""Regions that a detector is trained with, sampled by several processes as by one with the images of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.parallel.as_one import AsOne

Sampled = tuple[list[Tensor], list[Tensor]]  # the positive and the negative regions of each image, as masks or indices


class SamplerOfAll:
    """In the place of a sampler of the regions in the loss, which draws image by image: how many numbers it takes for
    an image depends on the regions of that image, so all images are gone through, in the order of the batch of all. Of
    those of other processes the numbers of positive and of negative regions are enough.

    `weights`: of losses of this process that are means over its sampled regions (`of_sampled`), or over the positive
    ones among them (`of_positive`), in the mean over the images of all."""

    def __init__(self, sampler: Callable[[list[Tensor]], Sampled], as_one: AsOne, of_sampled: Iterable[str],
                 of_positive: Iterable[str]):
        self.sampler, self.as_one = sampler, as_one
        self.of_sampled, self.of_positive = of_sampled, of_positive
        self.weights: dict[str, float] = {}

    def __call__(self, labels: list[Tensor]) -> Sampled:
        """`labels` of the regions of each image: 1 and above positive, 0 negative, below not sampled."""
        all_rows, processes, rank = self.as_one.all_rows, self.as_one.processes, self.as_one.rank
        if not all_rows:  # outside of a training step
            return self.sampler(labels)
        own_counts = torch.stack([torch.stack([(one >= 1).sum(), (one == 0).sum()]) for one in labels])
        missing = -(-all_rows // processes) - len(labels)  # of the images of the process that has most
        counts = self.as_one.join(F.pad(own_counts, (0, 0, 0, missing)))
        chosen, totals = (list[Tensor](), list[Tensor]()), [0, 0]
        for number, (num_positive, num_negative) in enumerate(counts.tolist()):
            index, owner = divmod(number, processes)
            is_own = owner == rank and index < len(labels)
            if number >= all_rows and not is_own:
                continue
            sampled = self.sampler([labels[index] if is_own else like(labels[0], num_positive, num_negative)])
            for kind, ([of_image], kept) in enumerate(zip(sampled, chosen, strict=True)):
                totals[kind] += count(of_image) if number < all_rows else 0
                kept.extend([of_image] if is_own else [])
        own = [sum(map(count, of_images)) for of_images in chosen]
        shares = [number * all_rows / max(1, total * len(labels)) for number, total in (
            (sum(own), sum(totals)), (own[0], totals[0]))]
        self.weights = {**dict.fromkeys(self.of_sampled, shares[0]), **dict.fromkeys(self.of_positive, shares[1])}
        return chosen


class ChoiceOfAll:
    """In the place of torchvision's random choice of a size for each image, one after the other."""

    def __init__(self, choice: Callable[[Sequence[int]], int], as_one: AsOne):
        self.choice, self.as_one = choice, as_one
        self.own: list[int] = []  # that of each image to come

    def __call__(self, sizes: Sequence[int]) -> int:
        if not self.as_one.all_rows:  # outside of a training step
            return self.choice(sizes)
        if not self.own:
            of_all = torch.tensor([self.choice(sizes) for _ in range(self.as_one.all_rows)])
            self.own = self.as_one.own(of_all).tolist()
        return self.own.pop(0)


def count(sampled: Tensor) -> int:
    """Regions in a mask, or in indices (int64)."""
    return len(sampled) if sampled.dtype == torch.int64 else int(sampled.sum())


def like(labels: Tensor, num_positive: int, num_negative: int) -> Tensor:
    """Labels of an image with so many positive and negative regions."""
    return torch.cat([labels.new_ones(num_positive), labels.new_zeros(num_negative)])


def share_samplers(model: nn.Module, as_one: AsOne) -> list[SamplerOfAll]:
    """Replaces the samplers of torchvision's region proposal network and of its heads, those of windows, and the choice
    of a size, in a model. Returns the samplers in their place."""
    samplers = []
    for module in model.modules():
        owner: Any = module
        if "fg_bg_sampler" in vars(module):
            names = ("loss_objectness", "loss_rpn_box_reg") if hasattr(module, "anchor_generator") else (
                "loss_classifier", "loss_box_reg")
            owner.fg_bg_sampler = SamplerOfAll(owner.fg_bg_sampler, as_one, names, ())
            samplers.append(owner.fg_bg_sampler)
        elif "window_sampler" in vars(module):
            owner.window_sampler = SamplerOfAll(owner.window_sampler, as_one, ["loss_classifier"], ["loss_box_reg"])
            samplers.append(owner.window_sampler)
        elif hasattr(module, "torch_choice"):
            owner.torch_choice = ChoiceOfAll(owner.torch_choice, as_one)
    return samplers
