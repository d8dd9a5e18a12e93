"""Statistics before the first step, of 2,000 photos of 256 px: seconds, and the memory beside the pixels, in processes
of their own; beside the mean and deviation of all pixels as floats at once."""

from __future__ import annotations

import torch

from benchmarks.timing import Row, alone, probe
from dltrain.augment.colour import Lighting
from dltrain.augment.pipeline import Augment
from dltrain.benchmark.peaks import peak_mb, status_mb
from dltrain.benchmark.timing import seconds

COUNT, PX = 2000, 256
NAMES = {"standard": "mean and deviation of colours", "per_pixel": "mean image", "lighting": "colour moments"}


def run() -> list[Row]:
    rows = []

    def floats() -> dict[str, float]:
        return alone("benchmarks.image_statistics:fit", "floats")

    for kind, name in NAMES.items():
        rows += probe(f"{name} of 2,000 photos of 256 px", {"s": "<= 0.5 s", "MB": "< 100 MB"}, {
            "dltrain": lambda kind=kind: alone("benchmarks.image_statistics:fit", kind),  # type: ignore[misc]
            **({"floats at once": floats} if kind == "standard" else {})})
    return rows


def fit(kind: str) -> dict[str, float]:
    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT // 20, 3, PX, PX), dtype=torch.uint8, generator=rng).repeat(20, 1, 1, 1)
    pipelines = {"standard": Augment("standard", 3, PX), "per_pixel": Augment("per_pixel", 3, PX),
                 "lighting": Augment("imagenet", 3, PX, on_pixels=[Lighting()])}

    def work() -> None:
        if kind == "floats":
            values = pixels.float() / 255
            values.mean((0, 2, 3)), values.std((0, 2, 3))
        else:
            pipelines[kind].fit(pixels.split(100))

    times: list[float] = []
    before = status_mb("VmRSS")
    peak = peak_mb(torch.device("cpu"), lambda: times.append(seconds(work)))
    return {"s": times[0], "MB": peak - before}
