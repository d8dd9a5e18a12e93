"""R-CNN, Fast R-CNN and Faster R-CNN on the same scenes, backbone, head and steps: the cost of an image, and the AP.

R. Girshick et al., 2013, arXiv 1311.2524; R. Girshick, 2015, 1504.08083 (abstract: with VGG-16 Fast R-CNN trains 9
times and tests 213 times faster than R-CNN); S. Ren et al., 2015, 1506.01497 (table 5: 198 ms an image for 1,830 with
selective search, of which 1,510 are its own). Here the first two are given a grid of boxes, which costs nothing.
"""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from dltrain import run, verbs
from dltrain.build import build_data
from dltrain.config.compose import compose

NAMES = {"rcnn": "R-CNN", "fast_rcnn": "Fast R-CNN", "faster_rcnn": "Faster R-CNN"}
PAPERS = {"train": "Girshick 2015: Fast trains 9 times faster than R-CNN",
          "test": "Girshick 2015: Fast tests 213 times faster than R-CNN\nRen 2015: Faster 9 times faster than Fast, "
                  "proposals counted"}


def study(folder: Path, seed: int, epochs: int, num_train: int, timed_images: int) -> dict[str, Any]:
    """Trains the three in folders of their own; writes family.csv and results.png."""
    rows = []
    for name in NAMES:
        print(f"\n{NAMES[name]}", flush=True)
        config = compose([f"model={name}", "recipe=faster_rcnn-on-scenes", f"trainer.max_epochs={epochs}",
                          f"data.num_train={num_train}", f"seed={seed}"]).job_config()
        (folder / name).mkdir(exist_ok=True)
        result = run.train(config, folder / name)
        rows.append([name, 1000 / training_rate(folder / name), 1000 * seconds_an_image(config, folder / name,
                     timed_images), result["test/map"], result["test/map_50"]])
    with open(folder / "family.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["model", "train_ms_per_image", "test_ms_per_image", "test/map", "test/map_50"])
        writer.writerows(rows)
    told(rows)
    draw(rows, folder / "results.png")
    print(f"\n{folder}/results.png")
    (_, slow_train, slow_test, *_), (_, fast_train, fast_test, *_), _ = rows
    return {"rcnn_over_fast_train": slow_train / fast_train, "rcnn_over_fast_test": slow_test / fast_test,
            **{f"{key}, {row[0]}": value for row in rows
               for key, value in zip(("train_ms", "test_ms", "test/map", "test/map_50"), row[1:], strict=True)}}


def training_rate(path: Path) -> float:
    """Images a second of the training steps alone, the median of the readings."""
    with open(path / "metrics.csv", newline="", encoding="utf-8") as file:
        return statistics.median(float(row["images_per_second"]) for row in csv.DictReader(file)
                                 if row["images_per_second"])


def seconds_an_image(config: Any, path: Path, count: int) -> float:
    """From pixels to boxes, one image at a time, the median over test images."""
    data = build_data(config)
    task = verbs.restored(config, path)
    found = []
    with torch.inference_mode():
        for image in data.images["test"][:count]:
            began = time.perf_counter()
            task([image])
            found.append(time.perf_counter() - began)
    return statistics.median(found)


def told(rows: list[list[Any]]) -> None:
    print(f"\n  {'':<14}{'train, ms an image':>20}{'test, ms an image':>20}{'AP':>8}{'AP50':>8}")
    for name, train, test, ap, ap50 in rows:
        print(f"  {NAMES[name]:<14}{train:>20.1f}{test:>20.1f}{ap:>8.3f}{ap50:>8.3f}")


def draw(rows: list[list[Any]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), dpi=110, layout="constrained")
    for axes, place, title in zip(figure.subplots(1, 3), (1, 2, 3), ("train", "test", "AP"), strict=True):
        values = [row[place] for row in rows]
        bars = axes.barh([NAMES[row[0]] for row in rows], values, color=["C3", "C1", "C2"])
        axes.bar_label(bars, [f" {value:.3f}" if place == 3 else f" {value:.1f} ms" for value in values])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.3 * max(values))
        axes.set_title("AP on the test split" if place == 3 else f"time an image, {title}")
        axes.set_xlabel(PAPERS.get(title, "same backbone, head, scenes and steps"), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
