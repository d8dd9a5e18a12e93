"""What is gained by processing a whole image at once instead of window by window, with the same outputs.

P. Sermanet et al., "OverFeat", 2013, arXiv 1312.6229, section 3.5.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dltrain.batches import seed_of
from dltrain.data.scenes import Scenes
from dltrain.drawing.style import colour, new_figure, save_figure
from dltrain.drawing.tables import format_table, write_csv
from dltrain.errors import UserError
from dltrain.models.overfeat import OverFeat, windows_of
from dltrain.run import StudyContext

CLASSES, AT_ONCE = 11, 256  # ten digits and the background; windows of a batch
SIZES_PX = (14, 32)  # of the digits in a scene


class Timing(NamedTuple):
    """One image: `windowed_s` window by window, `dense_s` at once, and the largest difference of their outputs."""

    image_px: int
    windows: int
    windowed_s: float
    dense_s: float
    largest_difference: float

    @property
    def ratio(self) -> float:
        return self.windowed_s / self.dense_s


def study(context: StudyContext, window_px: int, image_px: list[int], repeats: int) -> dict[str, Any]:
    """Writes reuse.csv and results.png; returns the largest difference, and the ratio of times of the last image."""
    if not image_px:
        raise UserError("study.image_px: must not be empty")
    if min(image_px) < window_px:
        raise UserError(f"study.image_px={min(image_px)}: must be at least study.window_px={window_px}")
    torch.manual_seed(seed_of("init", context.seed))
    net = OverFeat(CLASSES, window_px=window_px).eval()
    with torch.inference_mode():
        timings = [measure(net, px, repeats) for px in image_px]
    header = ["image_px", "windows", "seconds_windowed", "seconds_dense", "ratio", "largest_difference"]
    write_csv(context.folder / "reuse.csv", header, [
        [t.image_px, t.windows, t.windowed_s, t.dense_s, t.ratio, t.largest_difference] for t in timings])
    print("\n" + format_table(["image", "windows", "one by one", "at once", "ratio", "largest difference"], [
        [f"{t.image_px} x {t.image_px}", f"{t.windows:,}", f"{1000 * t.windowed_s:.1f} ms",
         f"{1000 * t.dense_s:.1f} ms", f"{t.ratio:.1f}", f"{t.largest_difference:.1g}"] for t in timings], range(1, 6)))
    draw(timings, context.folder / "results.png")
    print(f"\n{context.folder}/results.png")
    return {"largest_difference": max(t.largest_difference for t in timings),
            f"ratio_at_{image_px[-1]}_px": timings[-1].ratio}


def measure(net: OverFeat, px: int, repeats: int) -> Timing:
    image = Scenes(px, SIZES_PX).draw("test", 0).image[None].float() / 255
    dense, windowed = net.dense(image), window_by_window(net, image)
    difference = float((dense[0].flatten(1).T - windowed).abs().max())
    return Timing(px, len(windowed), median_seconds(lambda: window_by_window(net, image), repeats),
                  median_seconds(lambda: net.dense(image), repeats), difference)


def window_by_window(net: OverFeat, image: Tensor) -> Tensor:
    """The logits (N, K) of each window alone, in batches."""
    return torch.cat([net(windows) for windows in windows_of(image, net.window_px, net.stride).split(AT_ONCE)])


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def draw(timings: Sequence[Timing], file: Path) -> None:
    figure = new_figure(7.5, 4.4)
    axes = figure.subplots()
    windows = [t.windows for t in timings]
    axes.loglog(windows, [1000 * t.windowed_s for t in timings], "o-", color=colour(0), label="window by window")
    axes.loglog(windows, [1000 * t.dense_s for t in timings], "o-", color=colour(1), label="at once")
    for t in timings:
        axes.annotate(f"{t.ratio:.0f} x", (t.windows, 1000 * max(t.windowed_s, t.dense_s)), xytext=(0, 6),
                      textcoords="offset points", ha="center")
    axes.set(title="the same outputs: time per image by its number of windows", xlabel="windows, 4 px apart",
             ylabel="ms")
    axes.legend()
    save_figure(figure, file)
