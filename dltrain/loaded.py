"""A run in Python: what `dltrain.load` and `dltrain.train` return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from dltrain import evaluation
from dltrain.build import build_unloaded_data
from dltrain.commands.stored import EVALUATION_KEYS, load_config
from dltrain.config import schema
from dltrain.data.datamodule import SPLITS, DataModule
from dltrain.data.texts import read_text
from dltrain.errors import UserError, suggest
from dltrain.image_files import find_images, output_names
from dltrain.run_dir import RunDir
from dltrain.run_log import logging_to
from dltrain.tasks.task import Input, Prediction, Task

Example = str | Path | Image.Image | Tensor  # an image (file, PIL image, (C, H, W) uint8), or a text


class LoadedRun:
    """A run folder with its best weights, on a GPU if there is one.

    `folder`: its path. `config`: its config, a mapping with attributes. The model is built when it is first used."""

    def __init__(self, folder: Path):
        self.folder, self.run_dir = folder, RunDir(folder)
        self.config = load_config(self.run_dir, {}, ())

    def __repr__(self) -> str:
        return f"LoadedRun({self.config.choices.model} on {self.config.choices.data}, {self.folder})"

    @property
    def result(self) -> dict[str, Any]:
        """result.json: the test metrics, the best value of the headline, the size of the run; empty before its end."""
        return self.run_dir.read_result()

    @property
    def classes(self) -> list[str]:
        """The names of the classes by their number; empty where there are none."""
        return list(self.config.get("class_names") or [])

    @property
    def vocabularies(self) -> dict[str, list[str]]:
        return self.run_dir.read_vocabularies()

    @property
    def model(self) -> nn.Module:
        """The nn.Module in evaluation mode. It takes what `preprocess` returns, or the fields of that batch."""
        return self.task.model

    @cached_property
    def task(self) -> Task:
        task: Task = evaluation.restore(self.config, self.run_dir).to(evaluation.device_of(self.config))
        return task

    @cached_property
    def data(self) -> DataModule:
        """The data module, not loaded: it reads and encodes inputs."""
        return build_unloaded_data(self.config, self.vocabularies)

    def preprocess(self, inputs: Example | Sequence[Example]) -> Any:
        """Images as the normalised floats that the model takes, on its device: (B, C, H, W), or a list of (C, Hi, Wi)
        where their sizes differ. Texts, and images that are read as sequences, as a batch without targets."""
        examples = [item.load() for item in self.read(inputs)]
        return self.task.encode(examples, self.data)

    def predict(self, inputs: Example | Sequence[Example], **options: Any) -> list[Prediction]:
        """What `dltrain predict` prints and writes, one Prediction per input. Images: paths of files or folders, PIL
        images, or tensors (C, H, W) uint8. Texts: strings, or the Path of a file with one text per line. `options`: the
        keys of `config.task.predict`. Raises UserError."""
        known = dict(self.config.task.get("predict") or {})
        if not known:
            raise UserError(f"run={self.folder}: its task has nothing to predict")
        settings = {key: value for key, value in known.items() if key not in ("input", "text", "prompt")}
        rules = self.run_dir.comments()
        for key, value in options.items():
            if key not in settings:
                raise UserError(f"predict: unknown option '{key}'"
                                f"{suggest(key, [*settings]) or '; there are: ' + (', '.join(settings) or 'none')}")
            rule = schema.rule_of(rules.get(f"task.predict.{key}", ""))
            if rule is not None and (fault := schema.violation(rule, value)):
                raise UserError(f"predict: {key}={value}: {fault}")
        predictions = self.task.predict(self.read(inputs), self.data, **{**settings, **options})
        return [replace(prediction, pieces=[*prediction.pieces]) for prediction in predictions]

    def evaluate(self, split: str = "test", *changes: str, checkpoint: str = "best") -> dict[str, float]:
        """The metrics of the `best` or `last` weights on the `train`, `val` or `test` split. `changes`: "key=value"
        with keys of data, augment or trainer, as `dltrain eval` takes them. Raises UserError."""
        if split not in SPLITS:
            raise UserError(f"split={split}: must be one of {', '.join(SPLITS)}")
        if checkpoint not in ("best", "last"):
            raise UserError(f"checkpoint={checkpoint}: must be best or last")
        pairs = dict(change.split("=", 1) for change in changes)
        config = load_config(self.run_dir, pairs, EVALUATION_KEYS)
        with logging_to(self.folder / "log.txt" if self.run_dir.is_writable else None):
            return evaluation.evaluate(config, self.run_dir, split, checkpoint).metrics

    def read(self, inputs: Example | Sequence[Example]) -> list[Input]:
        """Images that are read when they are needed, or texts."""
        many = [inputs] if isinstance(inputs, str | Path | Image.Image | Tensor) else list(inputs)
        items: list[Input] = []
        for number, example in enumerate(many):
            if isinstance(example, Image.Image | Tensor):
                if self.data.input_kind == "text":
                    raise UserError(f"input {number}: this run reads texts, but it is of type {type(example).__name__}")
                image = to_pil_image(example) if isinstance(example, Tensor) else example
                items.append(Input(f"image {number}", partial(self.data.read_input, image)))
            elif self.data.input_kind == "text":
                texts = [example] if isinstance(example, str) else self.texts_of(example)
                items += [Input(text, partial(str, text)) for text in texts]
            else:
                files = find_images(str(example))
                items += [Input(str(path), partial(self.data.read_input, path), name)
                          for path, name in zip(files, output_names(files.values()), strict=True)]
        return items

    def texts_of(self, file: Path) -> list[str]:
        whole = read_text(file)
        lines = [line.strip(" ") for line in whole.split("\n") if line.strip()]
        return [whole] if self.data.reads_whole_files else lines
