"""The confusion matrix of a segmentation batch of CamVid's size, 8 x 360 x 480 pixels and 11 classes: milliseconds, and
the memory beside the batch, in processes of their own, with torch's deterministic algorithms as in a run."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from benchmarks.timing import Row, alone, probe
from dltrain.benchmark.peaks import peak_mb, status_mb
from dltrain.benchmark.timing import seconds
from dltrain.tasks.multiclass import ConfusionMatrix

CLASSES, IGNORED = 11, 255


def run() -> list[Row]:
    return probe("confusion matrix, CamVid batch of 8", {"ms": "<= 20 ms", "MB": ""}, {
        "dltrain": lambda: alone("benchmarks.confusion:update", "ours"),
        "torchmetrics": lambda: alone("benchmarks.confusion:update", "theirs")})


def update(side: str) -> dict[str, float]:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rng = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, CLASSES, (8, 360, 480), generator=rng)
    labels = torch.randint(0, CLASSES, (8, 360, 480), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.1] = IGNORED
    add: Callable[..., object]
    if side == "ours":
        add = ConfusionMatrix(CLASSES, IGNORED).update
    else:
        from torchmetrics.classification import MulticlassConfusionMatrix

        add = MulticlassConfusionMatrix(CLASSES, ignore_index=IGNORED, validate_args=False).update
    before = status_mb("VmRSS")
    peak = peak_mb(torch.device("cpu"), lambda: add(predictions, labels))
    calls = 5 if side == "ours" else 1
    return {"ms": 1e3 * statistics.median(seconds(lambda: add(predictions, labels)) for _ in range(calls)),
            "MB": peak - before}
