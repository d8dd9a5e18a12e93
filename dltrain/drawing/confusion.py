"""A confusion matrix as a picture, by matplotlib."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dltrain.drawing.fonts import family_names

MOST_LABELLED = 30  # classes; with more, cells have no numbers and axes no names
CELL_INCHES, DPI = 0.42, 90


def draw_confusion(matrix: Tensor, names: Sequence[str]) -> Tensor:
    """(K, K) counts, row = true class, column = predicted class, to a picture (3, H, W) uint8. The colour of a cell is
    the square root of its share of the row, so that a single mistake is visible: blue on the diagonal, else red."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported late: it is slow
    from matplotlib.figure import Figure

    counts, k = matrix.cpu().numpy(), len(matrix)
    labelled = k <= MOST_LABELLED
    side = CELL_INCHES * k if labelled else 6.0
    figure = Figure(figsize=(max(side, 3.2) + 1.4, max(side, 1.6) + 1.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    strength = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    shades = np.where(np.eye(k, dtype=bool), strength, -strength)
    axes.imshow(shades, cmap="RdBu", vmin=-1, vmax=1)
    title = f"{int(counts.trace())} of {int(counts.sum())} correct"
    axes.set(title=title, xlabel="predicted class", ylabel="true class")
    if labelled:
        families = family_names(names)
        axes.set_xticks(range(k), names, rotation=90 if max(map(len, names)) > 3 else 0, fontfamily=families)
        axes.set_yticks(range(k), names, fontfamily=families)
        for row, column in zip(*counts.nonzero(), strict=True):
            ink = "white" if strength[row, column] > 0.6 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink, fontsize=9)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # font_for has warned
        canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return torch.from_numpy(pixels).permute(2, 0, 1)
