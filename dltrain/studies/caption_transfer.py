"""What a trained encoder brings a captioner, and whether it pays to train it further, at equal steps.

The deck, after O. Vinyals et al., 2014, arXiv 1411.4555, section 4.1: the CNN is initialised from a classifier.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from dltrain import run
from dltrain.compose import compose

WAYS = {"from scratch": [], "from a classifier, fine-tuned": ["model.encoder.from_run={classifier}"],
        "from a classifier, frozen": ["model.encoder.from_run={classifier}", "task.frozen_epochs=null"],
        "random, frozen": ["task.frozen_epochs=null"]}
SHOWN = {"test/bleu4": "BLEU-4", "test/cider": "CIDEr-D", "test/true_share": "true"}


def study(folder: Path, seed: int, classifier_epochs: int, epochs: int, num_train: int) -> dict[str, Any]:
    """Trains the classifier of one-digit scenes and four captioners in folders of their own; writes transfer.csv and
    results.png."""
    common = [f"seed={seed}", f"data.num_train={num_train}", "trainer.gradient_clip_norm=5.0",
              "task.optimizer={name:adam,lr:2.0e-3,beta2:0.98,weight_decay:0.0}", "task.schedule.name=cosine"]
    print("\na classifier of scenes with one digit", flush=True)
    classified = trained(folder / "classifier", ["model=resnet20", "model.depth=14", "data=scene_digits",
                                                 f"trainer.max_epochs={classifier_epochs}", "recipe=none", *common])
    rows = []
    for name, words in WAYS.items():
        print(f"\na captioner, {name}", flush=True)
        found = trained(place(folder, name), [
            "model=captioner", "recipe=none", f"trainer.max_epochs={epochs}", *common,
            *(word.format(classifier=folder / "classifier") for word in words)])
        rows.append([name, *(found[key] for key in SHOWN), found["seconds"]])
    with open(folder / "transfer.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["encoder", *SHOWN, "seconds"])
        writer.writerows(rows)
    print(f"\n  {'encoder':<32}{''.join(f'{title:>10}' for title in SHOWN.values())}{'seconds':>10}")
    for name, *values, seconds in rows:
        print(f"  {name:<32}{''.join(f'{value:>10.3f}' for value in values)}{seconds:>10.0f}")
    draw(rows, [place(folder, name) for name in WAYS], folder / "results.png")
    print(f"\n{folder}/results.png")
    return {"classifier's test/accuracy": classified["test/accuracy"],
            **{f"{key}, {row[0]}": value for row in rows for key, value in zip(SHOWN, row[1:], strict=False)}}


def trained(path: Path, words: list[str]) -> dict[str, Any]:
    path.mkdir(exist_ok=True)
    return run.train(compose(words).job_config(), path)


def place(folder: Path, name: str) -> Path:
    return folder / name.replace(", ", "_").replace(" ", "_")


def draw(rows: list[list[Any]], folders: list[Path], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, *_), folder in zip(rows, folders, strict=True):
        with open(folder / "metrics.csv", newline="", encoding="utf-8") as opened:
            points = [(int(row["step"]), float(row["val/true_share"])) for row in csv.DictReader(opened)
                      if row.get("val/true_share")]
        left.plot(*zip(*points, strict=True), "o-", markersize=3, label=name)
    left.set(title="sentences that are true of their scene, validation", xlabel="step", ylim=(0, 1))
    left.grid(alpha=0.25)
    left.legend(fontsize=8)
    bars = right.barh([row[0] for row in rows], [row[3] for row in rows], color=[f"C{n}" for n in range(len(rows))])
    right.bar_label(bars, [f" {row[3]:.3f}" for row in rows])
    right.invert_yaxis()
    right.set(title="the same, test part", xlim=(0, 1.15))
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
