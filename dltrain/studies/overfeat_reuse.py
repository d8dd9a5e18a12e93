"""What is gained by seeing an image at once and not window by window, with the same outputs.

P. Sermanet et al., "OverFeat", 2013, arXiv 1312.6229, section 3.5.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import seed_of
from dltrain.data.scenes import Scenes
from dltrain.models.overfeat import OverFeat, windows_of

CLASSES, AT_ONCE = 11, 256  # ten digits and the ground; windows of a batch


def study(folder: Path, seed: int, window_px: int, image_px: list[int], repeats: int) -> dict[str, Any]:
    """Writes reuse.csv and results.png; returns the largest difference and the ratio of times of the largest image."""
    torch.manual_seed(seed_of("init", seed))
    net = OverFeat(CLASSES, window_px=window_px).eval()
    rows = []
    print(f"\n  {'image':>9} {'windows':>8} {'one by one':>11} {'at once':>9} {'ratio':>7} {'largest difference':>19}")
    with torch.inference_mode():
        for px in image_px:
            image = Scenes(px, (14, 32)).draw("test", 0).image[None].float() / 255
            dense, alone = net.dense(image), window_by_window(net, image)
            difference = float((dense[0].flatten(1).T - alone).abs().max())
            slow, fast = (seconds(way, repeats) for way in (lambda i=image: window_by_window(net, i),
                                                            lambda i=image: net.dense(i)))
            rows.append([px, len(alone), slow, fast, slow / fast, difference])
            print(f"  {px:>3} x {px:<3} {len(alone):>8,} {1000 * slow:>8.1f} ms {1000 * fast:>6.1f} ms "
                  f"{slow / fast:>7.1f} {difference:>19.1g}", flush=True)
    with open(folder / "reuse.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["image_px", "windows", "seconds_one_by_one", "seconds_at_once", "ratio", "largest_difference"])
        writer.writerows(rows)
    draw(rows, folder / "results.png")
    print(f"\n{folder}/results.png")
    return {"largest_difference": max(row[5] for row in rows), f"ratio_at_{image_px[-1]}_px": rows[-1][4]}


def window_by_window(net: OverFeat, image: Tensor) -> Tensor:
    """The logits (N, K) of each window by itself, in batches."""
    windows = windows_of(image, net.window_px, net.stride)
    return torch.cat([net(some) for some in windows.split(AT_ONCE)])


def seconds(way: Callable[[], Any], repeats: int) -> float:
    """The median of several calls."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        way()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def draw(rows: list[list[Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, (column, name) in enumerate(((2, "window by window"), (3, "at once"))):
        axes.loglog([row[1] for row in rows], [1000 * row[column] for row in rows], "o-", color=f"C{place}", label=name)
    for row in rows:
        axes.annotate(f"{row[4]:.0f} x", (row[1], 1000 * row[2]), xytext=(0, 6), textcoords="offset points",
                      ha="center")
    axes.set(title="the same outputs: time of an image by its windows", xlabel="windows, 4 px apart", ylabel="ms")
    axes.grid(alpha=0.25)
    axes.legend()
    figure.savefig(file)
