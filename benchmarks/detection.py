"""Images per second of a whole dltrain run of faster_rcnn on scenes, as the ratio to a loop like torchvision's
reference (the loss is read in each step) with the same model, images, optimizer and clipping."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.timing import build_run, compare, steps_per_second, time_run
from dltrain.data.scenes import SceneBoxes
from dltrain.tasks.detection import Detection

STEPS, WARM_UP_STEPS, BATCH = 45, 10, 8
WORDS = ["model=faster_rcnn", "data.num_train=400", "trainer=cpu", f"trainer.max_steps={STEPS}",
         "trainer.max_epochs=null", f"data.batch_size={BATCH}"]


def run() -> dict[str, dict[str, float]]:
    return {"scenes, batch 8": compare(ours, reference)}


def ours() -> float:
    config, data, task = build_run(WORDS)
    task.fit_statistics(data)
    return BATCH * time_run(config, data, task, WARM_UP_STEPS)


def reference() -> float:
    _, data, task = build_run(WORDS)
    assert isinstance(data, SceneBoxes)
    assert isinstance(task, Detection)
    task.fit_statistics(data)
    model: Any = task.model.train().net  # type: ignore[attr-defined]
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = [task.augment.normalize(image[None])[0] for image in data.images["train"]]
    targets = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in data.targets["train"]]
    order, starts = data.train_dataloader().order(0).tolist(), []
    for step in range(STEPS):
        starts.append(time.perf_counter())
        indices = order[step * BATCH : (step + 1) * BATCH]
        losses = model([images[i] for i in indices], [targets[i] for i in indices])
        total = sum(losses.values())
        float(total)
        adam.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        adam.step()
    return BATCH * steps_per_second(starts, WARM_UP_STEPS)
