"""Karpathy's two-by-two table of transfer learning: little or much data, like or unlike what the net was trained on.

The deck, slide 20, after CS231n (2016): with little data that are alike a linear classifier on top; with much data
alike a few layers are trained further; with much data unlike all of them; with little data unlike "you're in trouble".
Each cell is measured in four ways: a linear probe, and at equal steps the last stage trained, all trained, and a net
from scratch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dltrain.studies.comparison import place, trained, write_csv
from dltrain.studies.linear_probe import probed

SETTINGS = {"alike, little": "linear probe", "alike, much": "last stage", "unlike, little": None,
            "unlike, much": "all stages"}  # and what the table advises
CLOSE = 0.01  # of accuracy: as good as the best


def study(folder: Path, seed: int, common: list[str], source: list[str], targets: dict[str, list[str]],
          sizes: dict[str, int], freeze_until: str, source_epochs: int, steps: int, lr: float,
          fine_lr: float) -> dict[str, Any]:
    """`source`, and `targets` alike and unlike: words that choose the data. `freeze_until`: the stage below the last.
    `lr`: from scratch; `fine_lr`: of what was trained before. Writes advice.csv and results.png."""
    words = [*common, f"seed={seed}", "recipe=none"]
    print("\nthe net that is transferred", flush=True)
    first = trained(folder / "source", [*words, *source, f"trainer.max_epochs={source_epochs}",
                                        f"task.optimizer.lr={lr}"])
    run = f"model.pretrained.from_run={folder / 'source'}"
    found: dict[str, dict[str, float]] = {}
    for setting in SETTINGS:
        kind, size = setting.split(", ")
        its = [*words, *targets[kind], f"data.num_train={sizes[size]}"]
        length = [f"trainer.max_steps={steps}", "trainer.max_epochs=null"]
        trials = {"last stage": [run, f"task.freezing.until={freeze_until}", f"task.optimizer.lr={fine_lr}"],
                  "all stages": [run, f"task.optimizer.lr={fine_lr}"], "from scratch": [f"task.optimizer.lr={lr}"]}
        print(f"\n{setting}: linear probe", flush=True)
        found[setting] = {"linear probe": probed([*its, run])["test/accuracy"]}
        for way, more in trials.items():
            print(f"\n{setting}: {way}", flush=True)
            found[setting][way] = trained(place(folder, f"{setting}-{way}"), [*its, *length, *more])["test/accuracy"]
    ways = list(next(iter(found.values())))
    write_csv(folder / "advice.csv", ["setting", *ways, "advised"],
              [[setting, *(row[way] for way in ways), SETTINGS[setting] or ""] for setting, row in found.items()])
    held = told(found, ways, sizes)
    draw(found, folder / "results.png", sizes)
    print(f"\n{folder}/results.png")
    return {"source's test/accuracy": first["test/accuracy"],
            **{f"{setting}, {way}": value for setting, row in found.items() for way, value in row.items()},
            **{f"advice holds, {setting}": holds for setting, holds in held.items()}}


def told(found: dict[str, dict[str, float]], ways: list[str], sizes: dict[str, int]) -> dict[str, bool]:
    """Prints the table, and of each setting whether the advised way was the best or within CLOSE of it."""
    print("\n  " + "test accuracy".ljust(24) + "".join(way.rjust(14) for way in ways))
    for setting, row in found.items():
        size = sizes[setting.split(", ")[1]]
        print("  " + f"{setting} ({size:,})".ljust(24) + "".join(f"{row[way]:14.3f}" for way in ways))
    print()
    held = {}
    for setting, row in found.items():
        best, advised = max(row, key=lambda way: row[way]), SETTINGS[setting]
        if advised is None:
            print(f"  {setting}: no advice (\"you're in trouble\"); the best is {best}, {row[best]:.3f}")
            continue
        held[setting] = row[advised] >= row[best] - CLOSE
        print(f"  {setting}: {'held' if held[setting] else 'did not hold'}: {advised} {row[advised]:.3f}, the best is "
              f"{best} {row[best]:.3f}")
    return held


def draw(found: dict[str, dict[str, float]], file: Path, sizes: dict[str, int]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.6), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2).flatten()
    for axes, (setting, row) in zip(panels, found.items(), strict=True):
        bars = axes.barh(list(row), list(row.values()), color=["C0", "C1", "C2", "C7"])
        axes.bar_label(bars, [f" {value:.3f}" for value in row.values()])
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.18), title=f"{setting} ({sizes[setting.split(', ')[1]]:,} images); advised: "
                                       f"{SETTINGS[setting] or 'nothing'}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("test accuracy at equal steps")
    figure.savefig(file)
