"""How good the features of a backbone are without further training: a linear classifier on the mean of its last map.

G. Alain, Y. Bengio, 2016, arXiv 1610.01644. Every image goes through the backbone once; the classifier is the logistic
regression of scikit-learn, solved to its optimum, with the penalty that does best on the validation split.
"""

from __future__ import annotations

import csv
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dltrain.batches import ClassificationBatch
from dltrain.build import build_data, build_task
from dltrain.config.compose import compose
from dltrain.errors import UserError
from dltrain.studies.comparison import table

PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # C: the inverse of the penalty's weight


def study(folder: Path, seed: int, words: list[str]) -> dict[str, Any]:
    """`words`: the model with its weights and the data, as on the command line. Writes probe.csv."""
    found = probed([*words, f"seed={seed}"])
    with open(folder / "probe.csv", "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["C", "val/accuracy", "test/accuracy"])
        writer.writerows(found["tried"])
    print("\n" + table("C", ["val/accuracy", "test/accuracy"],
                       [[f"{c:g}", [val], [test]] for c, val, test in found["tried"]]))
    print(f"\n  test/accuracy {found['test/accuracy']:.4f} with C = {found['C']:g}, chosen in validation; "
          f"{found['values']} values an image, {found['seconds']:.0f} s")
    return {key: value for key, value in found.items() if key != "tried"}


def probed(words: list[str]) -> dict[str, Any]:
    """test/accuracy of the probe, val/accuracy and the C that was chosen by it, what was `tried`, and the seconds that
    all took. Raises UserError for data that are not images with a label, and for a model without `features`."""
    began = time.perf_counter()
    config = compose(words).job_config()
    if config.task.batch_type != ClassificationBatch.__name__:
        raise UserError(f"a linear probe needs a classifier of images, but {config.choices.model} takes "
                        f"{config.task.batch_type}")
    data = build_data(config)
    config.class_names = data.class_names
    task = build_task(config)
    if not hasattr(task.model, "features"):
        raise UserError(f"a linear probe needs a model with features, but {type(task.model).__name__} has none")
    task.fit_statistics(data)
    seen = {split: features(task, data, split) for split in ("train", "val", "test")}
    scaler = StandardScaler().fit(seen["train"][0])
    splits = {split: (scaler.transform(x), y.numpy()) for split, (x, y) in seen.items()}
    tried = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of little penalty, after 1,000 iterations
        for c in PENALTIES:
            model = LogisticRegression(C=c, max_iter=1000).fit(*splits["train"])
            tried.append((c, float(model.score(*splits["val"])), float(model.score(*splits["test"]))))
    c, val, test = max(tried, key=lambda one: one[1])
    return {"test/accuracy": test, "val/accuracy": val, "C": c, "tried": tried, "values": seen["train"][0].shape[1],
            "seconds": time.perf_counter() - began}


@torch.inference_mode()
def features(task: Any, data: Any, split: str) -> tuple[Tensor, Tensor]:
    """The mean of the last map (N, C) and the label (N,) of each image of a split, as in evaluation."""
    task.eval()
    found, labels = [], []
    for batch in data.read(split, list(torch.arange(data.num_samples(split)).split(64))):
        maps = task.model.features(task.augment.normalize(batch.images))
        found.append(maps.mean((2, 3)) if maps.dim() == 4 else maps)
        labels.append(batch.labels)
    return torch.cat(found).float(), torch.cat(labels)
