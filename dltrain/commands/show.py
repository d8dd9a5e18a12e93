"""`dltrain show augment=... data=...`: draws what an augmentation pipeline does to pictures, before any training.

Two pictures of the training split; for each, a row for the whole pipeline and one for each transform alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dltrain.config import compose, launch
from dltrain.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dltrain.augment.pipeline import Augment, BatchTransform, ImageBatch

    Transforms = tuple[list[BatchTransform], list[BatchTransform]]  # of pixels, of normalised pixels

HELP = """\
dltrain show [choices]    draws what an augmentation pipeline does to pictures, as a whole and transform by transform

  dltrain show augment=strong data=cifar10
  dltrain show model=faster_rcnn          images of another task: choose one of its models
The picture is outputs/show/<augment>-on-<data>.png."""

VERSIONS, PICTURES, BATCH_SIZE = 8, 2, 16


def run(words: list[str]) -> int:
    flags = launch.parse_flags(words)
    config = compose.compose(flags.overrides, flags.config_dir).job_config()
    if "image_px" not in config.data:
        raise UserError(f"show draws images, but data={config.choices.data} yields {config.data.batch_type}")
    print(draw(config))
    return 0


def draw(config: DictConfig) -> Path:
    """Returns the picture's file."""
    import torch

    from dltrain.augment.pipeline import STATISTICS_IMAGES
    from dltrain.batches import generator
    from dltrain.build import build, build_data
    from dltrain.drawing.pipeline import draw_versions

    data = build_data(config)
    augment: Augment = build(config.augment, "augment", channels=config.data.channels, image_px=config.data.image_px)
    augment.fit(data.training_pixels(STATISTICS_IMAGES))
    indices = torch.randperm(data.num_samples("train"), generator=generator("show", config.seed))[:BATCH_SIZE]
    rows = []
    for place, index in enumerate(indices[:PICTURES]):
        batch = next(iter(data.read("train", [torch.cat([index.repeat(1 + VERSIONS), indices])])))
        rows += [(name, versions(augment, transforms, batch, place)) for name, transforms in transforms_alone(augment)]
    path = Path(config.output_dir) / "show" / f"{config.choices.augment}-on-{config.choices.data}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_versions(rows).save(path)
    return path


def transforms_alone(augment: Augment) -> list[tuple[str, Transforms]]:
    """The whole pipeline, then each transform in its own place, before or after the normalisation."""
    alone: list[tuple[str, Transforms]] = [("the whole pipeline", (augment.on_pixels, augment.on_normalized))]
    alone += [(type(transform).__name__, ([transform], [])) for transform in augment.on_pixels]
    alone += [(type(transform).__name__, ([], [transform])) for transform in augment.on_normalized]
    return alone


def versions(augment: Augment, transforms: Transforms, batch: ImageBatch, place: int) -> list[Tensor]:
    """The first image (C, H, W) uint8 of the batch as it is, and transformed VERSIONS times: the next images are copies
    of it. The others are there for the transforms that mix samples. `place`: of the picture, for the random numbers."""
    from dltrain.batches import generator

    whole = (augment.on_pixels, augment.on_normalized)
    augment.on_pixels, augment.on_normalized = transforms
    transformed = augment(batch, generator("show", place)).images
    augment.on_pixels, augment.on_normalized = whole
    return [batch.images[0], *(augment.normalize.invert(image[None])[0] for image in transformed[1 : 1 + VERSIONS])]
