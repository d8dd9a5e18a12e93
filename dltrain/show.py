"""`dltrain show augment=... data=...`: what a pipeline does to pictures, drawn before anything is trained.

Two pictures of the training split; for each, one row for the whole pipeline and one for each transform alone: the
original, then eight versions of it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment
from dltrain.batches import ClassificationBatch, generator
from dltrain.build import build, build_data

VERSIONS, PICTURES_SHOWN, SIDE_PX, LABEL_PX = 8, 2, 72, 190


def show(config: DictConfig) -> Path:
    """Draws the grid and returns its file, output_dir/show/<augment>-on-<data>.png. Raises UserError as a run would."""
    data = build_data(config)
    augment = build(config.augment, "augment", channels=config.data.channels, image_px=config.data.image_px)
    augment.fit(data.training_pixels(STATISTICS_IMAGES))
    chosen = torch.randperm(data.num_samples("train"), generator=generator("show", config.seed))[:16]
    batch = next(iter(data.read("train", [chosen])))
    rows: list[tuple[str, Tensor]] = []
    for place in range(min(PICTURES_SHOWN, batch.size)):
        rows += [(label, versions(one, augment, batch, place)) for label, one in alone(augment)]
    path = Path(config.output_dir) / "show" / f"{config.choices.augment}-on-{config.choices.data}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn(rows).save(path)
    return path


def alone(augment: Augment) -> list[tuple[str, tuple[list[Any], list[Any]]]]:
    """The whole pipeline, then each transform by itself in its own place before or after the normalisation."""
    parts = [("the whole pipeline", (augment.on_pixels, augment.on_normalized))]
    parts += [(type(one).__name__, ([one], [])) for one in augment.on_pixels]
    parts += [(type(one).__name__, ([], [one])) for one in augment.on_normalized]
    return parts


def versions(stages: tuple[list[Any], list[Any]], augment: Augment, batch: ClassificationBatch, place: int) -> Tensor:
    """(1 + VERSIONS, C, H, W) uint8: sample `place` as it is, and drawn VERSIONS times. The rest of the batch is there
    for the transforms that mix samples."""
    again = torch.tensor([place] * VERSIONS)
    rest = torch.arange(batch.size)
    many = ClassificationBatch(*(torch.cat([part[again], part[rest]]) for part in batch))
    whole = (augment.on_pixels, augment.on_normalized)
    augment.on_pixels, augment.on_normalized = stages
    seen = augment(many, generator("show", place)).images[:VERSIONS]
    augment.on_pixels, augment.on_normalized = whole
    side = batch.images.shape[-1]
    if seen.shape[-1] != side:  # shown at the size of the original
        seen = F.interpolate(seen, size=(side, side), mode="bilinear", antialias=True)
    return torch.cat([batch.images[place : place + 1], augment.normalize.invert(seen)])


def drawn(rows: list[tuple[str, Tensor]]) -> Image.Image:
    """One row of pictures a transform, its name before it; small pictures are enlarged without smoothing."""
    font = ImageFont.load_default(size=14)
    top, gap = 26, 6
    width, height = LABEL_PX + (1 + VERSIONS) * (SIDE_PX + gap) + 2 * gap, top + len(rows) * (SIDE_PX + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((LABEL_PX + SIDE_PX / 2, top / 2), "original", "black", font, anchor="mm")
    draw.text((LABEL_PX + SIDE_PX + 3 * gap, top / 2), f"{VERSIONS} draws, each its own", "black", font, anchor="lm")
    for number, (label, images) in enumerate(rows):
        y = top + number * (SIDE_PX + gap)
        draw.text((LABEL_PX - 10, y + SIDE_PX / 2), label, "black", font, anchor="rm")
        for column, image in enumerate(images):
            array = np.asarray(image.permute(1, 2, 0))
            picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
            enlarged = Image.Resampling.NEAREST if picture.width < SIDE_PX else Image.Resampling.BILINEAR
            x = LABEL_PX + column * (SIDE_PX + gap) + (math.ceil(gap * 1.5) if column else 0)
            sheet.paste(picture.resize((SIDE_PX, SIDE_PX), enlarged), (x, y))
    return sheet
