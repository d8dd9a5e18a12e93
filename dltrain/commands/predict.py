"""`dltrain predict run=FOLDER ...`: runs the best checkpoint on new inputs, by the `predict` of its task."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dltrain.commands.stored import load_config, parse_pairs, parse_value, run_dir_of
from dltrain.config import schema
from dltrain.drawing.tables import format_count
from dltrain.errors import UserError, suggest
from dltrain.run_dir import RunDir

if TYPE_CHECKING:
    from dltrain.data.datamodule import DataModule
    from dltrain.tasks.task import Input, Prediction

HELP = """\
dltrain predict run=FOLDER ...    uses the best checkpoint of a run on your own inputs; the keys depend on the task

  input=photo.jpg                a picture, several (a.png,b.png), or a folder -> labels, boxes, masks or captions
    score=0.5                    detection: boxes with a lower score are left out
    beam=5                       captioning: width of the beam search
  text="some words"              -> labels, tags or a translation; input=FILE reads one text per line (a tagger of
                                 characters: the whole file)
    decode=beam beam=5           translation: greedy, sampled (temperature=1 seed=0) or beam
  prompt="def " length=400       a language model continues the prompt; temperature=0.8 top_k=40 seed=0

Drawn results are written to FOLDER/predictions; labels, boxes, masks and captions also to FOLDER/predictions.json.
The keys of a run, with their rules, are in its config.yaml under task.predict. trainer.accelerator=cpu predicts on
the CPU."""

INPUTS = ("input", "text", "prompt")  # the keys that give the inputs, in the order in which they are looked for


def run(words: list[str]) -> int:
    pairs = parse_pairs("predict", words)
    run_dir = run_dir_of(pairs)
    options = take_options(pairs, run_dir)
    config = load_config(run_dir, {key: value for key, value in pairs.items() if key != "run"}, ("trainer.",))
    from dltrain import run as runs  # torch from here on
    from dltrain.build import build_unloaded_data
    from dltrain.reporting import report

    def predict() -> None:
        task = runs.restore(config, run_dir)
        data = build_unloaded_data(config, run_dir.read_vocabularies())
        inputs = read_inputs(options, data)
        settings = {key: value for key, value in options.items() if key not in INPUTS}
        try:
            present(task.to(runs.device_of(config)).predict(inputs, data, **settings), run_dir, len(inputs))
        except BrokenPipeError:  # `| head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return report(run_dir, predict)


def take_options(pairs: dict[str, str], run_dir: RunDir) -> dict[str, Any]:
    """Takes the keys of the task's node `predict` out of `pairs`, as values, with defaults for the others. Raises
    UserError for a key or value that this run does not take, and if no input is given."""
    defaults: dict[str, Any] = run_dir.read_config()["task"].get("predict")
    if not defaults:
        raise UserError(f"run={run_dir}: its task has nothing to predict")
    comments = run_dir.comments()
    options = dict(defaults)
    for key in list(pairs):
        if key in defaults:
            rule = schema.rule_of(comments.get(f"task.predict.{key}", ""))
            options[key] = parse_value(key, pairs.pop(key), "str" if key in INPUTS else rule)
        elif key != "run" and not key.startswith("trainer."):
            hint = suggest(key, list(defaults)) or f"; this run's predict takes {', '.join(defaults)}"
            raise UserError(f"unknown key '{key}'{hint}")
    if all(options.get(key) is None for key in INPUTS):
        files = "input=FILE" if "text" in defaults else "input=FILE, input=A,B or input=FOLDER"  # of texts, of images
        forms = {"text": 'text="..."', "prompt": 'prompt="..."', "input": files}
        raise UserError(f"predict needs {' or '.join(form for key, form in forms.items() if key in defaults)}")
    return options


def read_inputs(options: Mapping[str, Any], data: DataModule) -> list[Input]:
    """Returns images, each read when it is needed, or texts. Raises DataError, UserError."""
    from dltrain.data.texts import read_text
    from dltrain.image_files import find_images
    from dltrain.tasks.task import Input

    source = options.get("input")
    if data.input_kind == "image":
        if source is None:
            raise UserError("this run reads pictures: predict needs input=FILE or input=FOLDER")
        return [Input(str(path), partial(data.read_input, path)) for path in find_images(source)]
    if source is not None:
        whole = read_text(Path(source))
        texts = [whole] if data.reads_whole_files else [line.strip() for line in whole.split("\n") if line.strip()]
    elif (text := options.get("text")) is not None:
        if not text.strip():
            raise UserError("text must have at least one symbol")
        texts = [text]
    else:
        texts = [options["prompt"]]
    return [Input(text, partial(str, text)) for text in texts]


def present(predictions: Iterable[Prediction], run_dir: RunDir, count: int) -> None:
    """Prints the predictions as they come, saves their pictures and, at the end, their records."""
    console, folder = Console(highlight=False, soft_wrap=True), run_dir.path / "predictions"
    records, num_pictures = [], 0
    for prediction in predictions:
        if prediction.styled is not None and console.is_terminal:
            console.print(prediction.styled)
        else:
            for piece in prediction.pieces:
                print(piece, end="", flush=True)
            print()
        for suffix, picture in prediction.pictures.items():
            folder.mkdir(exist_ok=True)
            picture.save(folder / f"{Path(prediction.name).stem}{suffix}.png")
            num_pictures += 1
        records += prediction.records
    written = [str(folder)] * bool(num_pictures) + [f"{run_dir}/predictions.json"] * bool(records)
    if records:
        run_dir.write_json("predictions.json", records)
    if written:
        print(f"{format_count(count, 'input')}; {' and '.join(written)}")
