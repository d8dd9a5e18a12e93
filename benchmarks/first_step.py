"""Seconds from the start of a process to the end of its first optimizer step: `dltrain model=resnet20 data=digits`, a
script that imports the same libraries at its top, and one that imports torch alone; these two train a small net."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import Row, measure, seconds

STOP = """\
import os, sys
import pytorch_lightning as pl

class Stop(pl.Callback):
    def on_train_batch_end(self, *arguments):
        sys.stdout.flush()
        os._exit(0)
"""
STEP = """
import os
from torch import nn
model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                      nn.Flatten(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
nn.functional.cross_entropy(model(torch.rand(128, 1, 8, 8)), torch.randint(10, (128,))).backward()
optimizer.step()
os._exit(0)
"""
LIBRARIES = "import hydra, torch, torchvision, pytorch_lightning, torchmetrics, torch.utils.tensorboard, rich"
COMMAND = ["-m", "dltrain", "model=resnet20", "data=digits", "trainer.callbacks=[{_target_: stop.Stop}]"]


def run() -> list[Row]:
    processes = {"dltrain": COMMAND, "the same libraries": ["-c", LIBRARIES + STEP],
                 "torch alone": ["-c", "import torch" + STEP]}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "stop.py").write_text(STOP)
        return [measure("command to first step", "s", {
            name: lambda words=words: seconds_of(words, folder)  # type: ignore[misc]
            for name, words in processes.items()}, wanted="1.05 of the same libraries, 1.6 of torch alone")]


def seconds_of(words: list[str], folder: str) -> float:
    """Raises CalledProcessError where the process does not come to its step."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), folder])}
    return seconds(lambda: subprocess.run([sys.executable, *words], capture_output=True, check=True, cwd=folder,
                                          env=env))
