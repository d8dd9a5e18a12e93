"""Images per second of a run of sdresnet56, which leaves out blocks in training, beside one of resnet56, 32 px, batch
32, on one core. With the paper's survival rates a quarter of the work is left out."""

from __future__ import annotations

from benchmarks.random_data import build_images
from benchmarks.timing import Row, cores, measure, time_run
from dltrain.config.compose import compose

BATCH, STEPS, WARM_UP = 32, 40, 3


def run() -> list[Row]:
    with cores(1):
        return [measure("sdresnet56, 32 px, batch 32, one core", "images/s", {
            "dltrain": lambda: rate("sdresnet56"), "resnet56": lambda: rate("resnet56")}, ">= 1.33")]


def rate(model: str) -> float:
    config = compose([f"model={model}", "data=digits", "augment=cifar", "recipe=none", f"data.batch_size={BATCH}",
                      "trainer=cpu", "trainer.max_epochs=1", "task.optimizer.lr=0.01"]).job_config()
    config.data.image_px, config.data.channels = 32, 3
    data, task = build_images(config, BATCH * (STEPS + 1))
    return BATCH / time_run(config, data, task, STEPS, WARM_UP)
