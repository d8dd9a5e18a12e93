"""`dltrain show [choices]`: draws the first training batch as the model would see it, before any training; and, of
pictures, what the augmentation pipeline does: of two pictures of the training split, a row for the whole pipeline and
one for each transform alone.
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
    from dltrain.data.datamodule import DataModule

    Transforms = tuple[list[BatchTransform], list[BatchTransform]]  # of pixels, of normalised pixels

HELP = """\
dltrain show [choices]    draws the first training batch as the model would see it, with its boxes, masks, captions or
                          labels, and what the augmentation pipeline does to pictures; texts are printed

  dltrain show augment=strong data=cifar10
  dltrain show model=faster_rcnn          data of another task: choose one of its models
  dltrain show model=tagger data=conll data.root=treebank
The files are in outputs/show: the batch of the data, as augmented_batch-of-<data>.png or batch-of-<data>.txt, and for
pictures <augment>-on-<data>.png, the pipeline as a whole and transform by transform."""

VERSIONS, PICTURES, BATCH_SIZE = 8, 2, 16


def run(words: list[str]) -> int:
    flags = launch.parse_flags(words)
    config = compose.compose(flags.overrides, flags.config_dir).job_config()
    from dltrain.build import build_data

    data, folder = build_data(config), Path(config.output_dir) / "show"
    folder.mkdir(parents=True, exist_ok=True)
    batch = draw_batch(config, data, folder)
    if "image_px" in config.data:
        print(draw_pipeline(config, data, folder))
    elif not batch:
        raise UserError(f"data={config.choices.data} yields {config.data.batch_type}, and task="
                        f"{config.choices.task} has no training_figures to draw it")
    for line in batch:
        print(line)
    return 0


def draw_batch(config: DictConfig, data: DataModule, folder: Path) -> list[str]:
    """Writes what the task shows of the first training batch. Returns the texts and the files, to print."""
    from torchvision.transforms.functional import to_pil_image

    from dltrain.build import build_task
    from dltrain.fitted_anchors import choose_anchors

    choose_anchors(config, data)
    config.class_names = data.class_names
    task = build_task(config, data.vocabularies, fresh=False)
    task.fit_statistics(data)
    task.position = (config.seed, 0, 0, 0)
    lines = []
    for name, figure in task.training_figures(next(iter(data.train_dataloader()))).items():
        file = folder / f"{name}-of-{config.choices.data}"
        if isinstance(figure, str):
            lines += [figure, str(file.with_suffix(".txt"))]
            file.with_suffix(".txt").write_text(figure + "\n", encoding="utf-8")
        else:
            lines.append(str(file.with_suffix(".png")))
            to_pil_image(figure).save(file.with_suffix(".png"))
    return lines


def draw_pipeline(config: DictConfig, data: DataModule, folder: Path) -> Path:
    """Returns the picture's file."""
    import torch

    from dltrain.augment.pipeline import STATISTICS_IMAGES
    from dltrain.batches import generator
    from dltrain.build import build
    from dltrain.drawing.pipeline import draw_versions

    augment: Augment = build(config.augment, "augment", channels=config.data.channels, image_px=config.data.image_px)
    augment.fit(data.pixel_batches(STATISTICS_IMAGES))
    indices = torch.randperm(data.num_samples("train"), generator=generator("show", config.seed))[:BATCH_SIZE]
    rows = []
    for place, index in enumerate(indices[:PICTURES]):
        batch = next(iter(data.read("train", [torch.cat([index.repeat(1 + VERSIONS), indices])])))
        rows += [(name, versions(augment, transforms, batch, place)) for name, transforms in transforms_alone(augment)]
    path = folder / f"{config.choices.augment}-on-{config.choices.data}.png"
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
