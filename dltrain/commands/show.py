"""`dltrain show augment=... data=...`: draws what an augmentation pipeline does to pictures, before any training.

Two pictures of the training split; for each, a row for the whole pipeline and one for each transform alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from dltrain.config import compose, launch

if TYPE_CHECKING:
    from torch import Tensor

    from dltrain.augment.pipeline import Augment
    from dltrain.batches import ClassificationBatch

HELP = """\
dltrain show [choices]    draws what an augmentation pipeline does to pictures, as a whole and transform by transform

  dltrain show augment=strong data=cifar10
The picture is outputs/show/<augment>-on-<data>.png."""

VERSIONS, PICTURES, BATCH_SIZE = 8, 2, 16


def run(words: list[str]) -> int:
    flags = launch.parse_flags(words)
    config = compose.compose(flags.overrides, flags.config_dir).job_config()
    print(draw(config))
    return 0


def draw(config: DictConfig) -> Path:
    """Returns the picture's file. Raises UserError as a run would."""
    import torch

    from dltrain.augment.pipeline import STATISTICS_IMAGES
    from dltrain.batches import generator
    from dltrain.build import build, build_data
    from dltrain.drawing.pipeline import draw_versions

    data: Any = build_data(config)
    augment = build(config.augment, "augment", channels=config.data.channels, image_px=config.data.image_px)
    augment.fit(data.training_pixels(STATISTICS_IMAGES))
    indices = torch.randperm(data.num_samples("train"), generator=generator("show", config.seed))[:BATCH_SIZE]
    batch = next(iter(data.read("train", [indices])))
    rows = [(label, versions(stages, augment, batch, place)) for place in range(min(PICTURES, batch.size))
            for label, stages in transforms_alone(augment)]
    path = Path(config.output_dir) / "show" / f"{config.choices.augment}-on-{config.choices.data}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_versions(rows).save(path)
    return path


def transforms_alone(augment: Augment) -> list[tuple[str, tuple[list[Any], list[Any]]]]:
    """The whole pipeline, then each transform in its own place, before or after the normalisation."""
    alone = [("the whole pipeline", (augment.on_pixels, augment.on_normalized))]
    alone += [(type(transform).__name__, ([transform], [])) for transform in augment.on_pixels]
    alone += [(type(transform).__name__, ([], [transform])) for transform in augment.on_normalized]
    return alone


def versions(stages: tuple[list[Any], list[Any]], augment: Augment, batch: ClassificationBatch, place: int) -> Tensor:
    """(1 + VERSIONS, C, H, W) uint8: sample `place` of the batch as it is, and transformed VERSIONS times. The other
    samples are there for the transforms that mix samples."""
    import torch
    import torch.nn.functional as F

    from dltrain.batches import generator

    repeated, others = torch.tensor([place] * VERSIONS), torch.arange(batch.size)
    many = type(batch)(*(torch.cat([value[repeated], value[others]]) for value in batch))
    whole = (augment.on_pixels, augment.on_normalized)
    augment.on_pixels, augment.on_normalized = stages
    transformed = augment(many, generator("show", place)).images[:VERSIONS]
    augment.on_pixels, augment.on_normalized = whole
    side = batch.images.shape[-1]
    if transformed.shape[-1] != side:  # at the size of the original
        transformed = F.interpolate(transformed, size=(side, side), mode="bilinear", antialias=True)
    return torch.cat([batch.images[place : place + 1], augment.normalize.invert(transformed)])
