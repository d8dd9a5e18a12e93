"""Images per second of a run of faster_rcnn on scenes, beside a loop like torchvision's reference (the loss is read in
each step) with the same model, images, optimizer and clipping."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.timing import Row, build_run, measure, time_loop, time_run
from dltrain.data.scenes import SceneBoxes
from dltrain.tasks.detection import Detection

STEPS, WARM_UP, BATCH = 45, 10, 8
WORDS = ["model=faster_rcnn", "data.num_train=400", "trainer=cpu", f"data.batch_size={BATCH}"]


def run() -> list[Row]:
    config, data, task = build_run(WORDS)
    task.fit_statistics(data)
    weights = {name: value.clone() for name, value in task.state_dict().items()}

    def ours() -> float:
        task.load_state_dict(weights)
        return BATCH / time_run(config, data, task, STEPS, WARM_UP)

    def reference() -> float:
        task.load_state_dict(weights)
        assert isinstance(data, SceneBoxes)
        assert isinstance(task, Detection)
        return BATCH / time_reference(data, task)

    return [measure("Faster R-CNN on scenes, batch 8", "images/s", {
        "dltrain": ours, "a loop like torchvision's reference": reference}, ">= 0.97")]


def time_reference(data: SceneBoxes, task: Detection) -> float:
    model: Any = task.model.train().net  # type: ignore[attr-defined]
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    images = [task.augment.normalize(image[None])[0] for image in data.images["train"]]
    targets = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in data.targets["train"]]

    def step(indices: torch.Tensor) -> None:
        losses = model([images[i] for i in indices], [targets[i] for i in indices])
        total = sum(losses.values())
        float(total)
        adam.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        adam.step()

    return time_loop(data.train_dataloader().order(0).split(BATCH), step, STEPS, WARM_UP)
