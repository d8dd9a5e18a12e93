"""How good the features of a backbone are as they are: a linear classifier on the cached mean of its last map.

G. Alain, Y. Bengio, 2016, arXiv 1610.01644. Every image goes through the backbone once. The classifier is
scikit-learn's logistic regression, of at most 1,000 iterations, with the penalty that is best on the validation split.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from dltrain.batches import ClassificationBatch
from dltrain.build import build_data, build_task
from dltrain.config.compose import compose
from dltrain.contracts import backbone_of
from dltrain.data.datamodule import SPLITS, DataModule
from dltrain.drawing.tables import format_table, write_csv
from dltrain.errors import UserError
from dltrain.run import StudyContext
from dltrain.tasks.images import ImageTask

INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)  # C: the inverse of the weight of the penalty
COLUMNS = ["C", "val/accuracy", "test/accuracy"]
AT_ONCE = 64  # images


def study(context: StudyContext, words: list[str]) -> dict[str, Any]:
    """`words`: the model with its weights, and the data, as on the command line. Writes probe.csv; returns
    test/accuracy and val/accuracy with the C that is best in validation, the number of features and the seconds.

    Raises UserError for data that are not images with a label, and for a model without a backbone."""
    started = time.perf_counter()
    config = compose([*words, f"seed={context.seed}"], context.config_dir).job_config()
    if config.task.batch_type != ClassificationBatch.__name__:
        raise UserError(f"a linear probe needs a classifier of images, but {config.choices.model} takes "
                        f"{config.task.batch_type}")
    data = build_data(config)
    config.class_names = data.class_names
    task: Any = build_task(config)
    task.fit_statistics(data)
    features = {split: extract_features(task, data, split) for split in SPLITS}
    scaler = StandardScaler().fit(features["train"][0])
    scaled = {split: (scaler.transform(x), y.numpy()) for split, (x, y) in features.items()}
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with little penalty, after 1,000 iterations
        for c in INVERSE_PENALTIES:
            model = LogisticRegression(C=c, max_iter=1000).fit(*scaled["train"])
            rows.append((c, float(model.score(*scaled["val"])), float(model.score(*scaled["test"]))))
    best, val, test = max(rows, key=lambda row: row[1])
    write_csv(context.folder / "probe.csv", COLUMNS, rows)
    print("\n" + format_table(COLUMNS, [[f"{value:.4g}" for value in row] for row in rows], [0, 1, 2]))
    num_features, seconds = features["train"][0].shape[1], time.perf_counter() - started
    print(f"\n  test/accuracy {test:.4f} with C = {best:g}, chosen in validation; {num_features} features per image, "
          f"{seconds:.0f} s")
    return {"test/accuracy": test, "val/accuracy": val, "C": best, "features": num_features, "seconds": seconds}


@torch.inference_mode()
def extract_features(task: ImageTask, data: DataModule, split: str) -> tuple[Tensor, Tensor]:
    """The mean of the last map (N, C) and the label (N,) of each image of a split, as in evaluation."""
    backbone = backbone_of(task.eval().model)
    if backbone is None:
        raise UserError(f"a linear probe needs a model with a backbone, but {type(task.model).__name__} has none")
    means, labels = [], []
    for batch in data.read(split, list(torch.arange(data.num_samples(split)).split(AT_ONCE))):
        maps = backbone.features(task.augment.normalize(batch.images))
        means.append(maps.mean((2, 3)) if maps.dim() == 4 else maps)
        labels.append(batch.labels)
    return torch.cat(means).float(), torch.cat(labels)
