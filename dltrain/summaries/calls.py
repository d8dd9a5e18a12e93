"""A model of each kind computes once, without numbers: what is one of, and what it costs.

Images: one of the data's size. Sequences: one and two symbols, so that what is computed for each symbol is separated
from what is computed once. A detector is followed until its operations depend on numbers, which is after its heads; its
proposals are replaced by the first of its anchors, as many as evaluation takes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from dltrain.contracts import backbone_of
from dltrain.errors import UserError
from dltrain.summaries.trace import Trace, mark_at

IMAGE_PX = 224  # of data that state no size


class Cost(NamedTuple):
    """`multiply_adds`: for one of each unit, by the name of a weight or module, see Trace."""

    multiply_adds: dict[str, Counter[str]]
    trace: Trace
    subject: str  # what one of it is, in words
    is_image: bool
    is_complete: bool = True  # all that evaluation computes was followed


def image_of(config: DictConfig) -> Tensor:
    """(1, C, H, W) on the meta device."""
    px = config.data.get("image_px") or IMAGE_PX
    return torch.empty(1, config.data.get("channels") or 3, px, px, device="meta")


def follow(model: nn.Module, config: DictConfig) -> Cost:
    """Raises UserError for a kind of problem that is not known here, and for a model that cannot be followed."""
    kinds: dict[str, Callable[[Any, DictConfig], Cost]] = {
        "ClassificationBatch": of_images, "SegmentationBatch": of_images, "DetectionBatch": of_detector,
        "CaptionBatch": of_captioner, "TokenBatch": of_language_model, "LabelledBatch": of_sequences,
        "TaggedBatch": of_sequences, "PairBatch": of_translation}
    kind = str(config.task.batch_type)
    if kind not in kinds:
        raise UserError(f"summary: the task's {kind} is not known to it; it knows {', '.join(kinds)}")
    try:
        return kinds[kind](model.eval(), config)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        size = "" if "image_px" not in config.data else f" with data.image_px={config.data.image_px}"
        raise UserError(f"summary: {type(model).__name__} cannot compute{size}: "
                        f"{str(error).splitlines()[0].rpartition('. ')[2]}") from error


def of_images(model: nn.Module, config: DictConfig) -> Cost:
    images, trace = image_of(config), Trace(model)
    with trace.following():
        trace.mark_image(images)
        model(images)
    return Cost({"image": trace.multiply_adds}, trace, describe_image(images), True)


def of_detector(model: Any, config: DictConfig) -> Cost:
    images, trace = image_of(config), Trace(model)
    replace_choices(model)
    first = first_layer(model)
    ends, is_complete = mark_at(trace, first) if first is not None else None, True
    try:
        with trace.following():
            model.detect([images[0]])
    except NotImplementedError:  # of torch's meta device: how many boxes there are depends on numbers
        is_complete = all(f"{trace.names[module]}.box_head" in trace.outputs for module in heads_of(model))
    finally:
        if ends is not None:
            ends()
    return Cost({"image": trace.multiply_adds}, trace, describe_image(images) + describe_regions(model, trace), True,
                is_complete)


def describe_regions(model: nn.Module, trace: Trace) -> str:
    """What the backbone reads, if that is not the image as it is, and how many regions the head classifies."""
    count, *shape = trace.image_shape or (1,)
    crops = f"{count} crops of " if count > 1 else ""
    reads = f"; the backbone reads {crops}{' x '.join(map(str, shape))}" if shape and backbone_of(model) else ""
    regions = [trace.outputs[name].shape[0] for module in heads_of(model)
               if (name := f"{trace.names[module]}.box_head") in trace.outputs]
    return reads + "".join(f", the head {number:,} regions" for number in regions)


def heads_of(model: nn.Module) -> list[RoIHeads]:
    return [module for module in model.modules() if isinstance(module, RoIHeads)]


def replace_choices(model: nn.Module) -> None:
    """Replaces what depends on numbers, in place: which anchors are proposed, and the level that a region is read
    from."""
    for module in model.modules():
        if isinstance(module, RegionProposalNetwork):
            module.filter_proposals = first_proposals(module)
        if isinstance(module, MultiScaleRoIAlign) and len(module.featmap_names) > 1:
            module.forward = empty_regions(module)


def empty_regions(pool: MultiScaleRoIAlign) -> Callable[..., Tensor]:
    """In the place of pooling from several levels: maps of the same shape."""
    def read(maps: dict[str, Tensor], boxes: list[Tensor], *_: object) -> Tensor:
        first = next(iter(maps.values()))
        return first.new_empty(sum(map(len, boxes)), first.shape[1], *pool.output_size)

    return read


def first_proposals(network: RegionProposalNetwork) -> Callable[..., tuple[list[Tensor], list[Tensor]]]:
    """In the place of the network's choice of proposals, which depends on numbers."""
    def choose(proposals: Tensor, *_: object) -> tuple[list[Tensor], list[Tensor]]:
        return [of_image[: network.post_nms_top_n()] for of_image in proposals], []

    return choose


def first_layer(model: nn.Module) -> nn.Module | None:
    """The layer that reads the image: the first of the backbone, or the first convolution."""
    backbone: Any = backbone_of(model) or model
    return next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)


def of_captioner(model: Any, config: DictConfig) -> Cost:
    images, trace = image_of(config), Trace(model)
    with trace.following():
        trace.mark_image(images)
        state = model.begin(images)
        of_image, trace.multiply_adds = trace.multiply_adds, Counter()
        model.step(tokens(1)[:, 0], state)
    return Cost({"image": of_image, "word": trace.multiply_adds}, trace, describe_image(images), True)


def of_language_model(model: Any, config: DictConfig) -> Cost:
    return per_symbol(model, lambda count: model(tokens(count)), "symbol")


def of_sequences(model: Any, config: DictConfig) -> Cost:
    features = config.model.get("features")

    def call(count: int) -> object:
        x = tokens(count) if features is None else torch.empty(1, count, features, device="meta")
        return model(x, [count])

    return per_symbol(model, call, "symbol" if features is None else "step")


def of_translation(model: Any, config: DictConfig) -> Cost:
    source = per_symbol(model, lambda count: model.begin(tokens(count), [count]), "source")
    trace = source.trace
    state = model.begin(tokens(1), [1])
    trace.multiply_adds = Counter()
    with trace.following():
        model.step(tokens(1)[:, 0], state)
    costs = {**source.multiply_adds, "target": trace.multiply_adds}
    return Cost(costs, trace, "one symbol of the source and one of the target", False)


def per_symbol(model: nn.Module, call: Callable[[int], object], unit: str) -> Cost:
    """The cost of two symbols less that of one is that of a symbol; what one symbol costs beyond it is the
    sequence's."""
    once = []
    for count in (2, 1):
        trace = Trace(model)
        with trace.following():
            call(count)
        once.append(trace.multiply_adds)
    two, one = once
    costs = {unit: two - one, "sequence": one - (two - one)}
    kept = {name: +counts for name, counts in costs.items() if +counts}
    return Cost(kept, trace, f"one {unit}" if len(kept) == 1 else "a sequence", False)


def tokens(count: int) -> Tensor:
    """(1, count) symbols."""
    return torch.zeros(1, count, dtype=torch.int64, device="meta")


def describe_image(images: Tensor) -> str:
    return "one image of " + " x ".join(map(str, images.shape[1:]))
