"""`dltrain predict run=FOLDER ...`: runs the best checkpoint on new inputs, by the `predict` of its task."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import track

from dltrain.commands.stored import load_config, parse_pairs, parse_value, run_dir_of
from dltrain.config import schema
from dltrain.disk import write_text, writing
from dltrain.drawing.tables import format_count
from dltrain.errors import DataError, UserError, suggest
from dltrain.exporting.record import ExportedModel, read_exported
from dltrain.run_dir import RunDir
from dltrain.stored_files import refuse_incomplete_config
from dltrain.sweeps.jobs import is_sweep

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from PIL.Image import Image

    from dltrain.data.datamodule import DataModule
    from dltrain.tasks.task import Input, Prediction, Task

HELP = """\
dltrain predict run=FOLDER ...    uses the best checkpoint of a run on your own inputs; the keys depend on the task

  input=photo.jpg                a picture, several (a.png,b.png or 'day*/*.png'), or a folder -> labels, boxes, masks
                                 or captions
    score=0.5                    detection: boxes with a lower score are left out
    beam=5                       captioning: width of the beam search
  text="some words"              -> labels, tags or a translation; input=FILE reads one text per line (a tagger of
                                 characters: the whole file)
    decode=beam beam=5           translation: greedy, sampled (temperature=1 seed=0) or beam
  prompt="def " length=400       a language model continues the prompt; temperature=0.8 top_k=40 seed=0

Drawn results are written to FOLDER/predictions, by the names of the inputs; labels, boxes, masks and captions also to
FOLDER/predictions.json. A second predict writes predictions_2; output=PLACE writes all into another folder. Results of
a run folder that is read-only are written beside it, as FOLDER-predictions.
Of the folder of a sweep, the job that is best in validation predicts. run=FOLDER/export/onnx, or a file in it, predicts
by the graphs that dltrain export wrote.
The keys of a run, with their rules, are in its config.yaml under task.predict. trainer.accelerator=cpu predicts on
the CPU."""

UNKNOWN_SHOWN = 10
INPUTS = ("input", "text", "prompt")  # the keys that give the inputs, in the order in which they are looked for


def run(words: list[str]) -> int:
    pairs = parse_pairs("predict", words)
    run_dir = run_dir_of(pairs)
    if exported := read_exported(run_dir.path):
        run_dir = RunDir(exported.run)
    elif is_sweep(run_dir.path):
        from dltrain.sweeps.table import best

        run_dir = best(run_dir.path)
    place = pairs.pop("output", None)
    options = take_options(pairs, run_dir)
    outputs = free_outputs(run_dir) if place is None else given_outputs(place)
    if place is None and not run_dir.is_writable:
        print(f"{run_dir} is read-only: results go to {outputs.folder}; output=FOLDER chooses another place")
    config = load_config(run_dir, {key: value for key, value in pairs.items() if key != "run"}, ("trainer.",))
    from dltrain.build import build_unloaded_data  # torch from here on
    from dltrain.reporting import report

    def predict() -> None:
        task = restore(config, run_dir, exported)
        data = build_unloaded_data(config, run_dir.read_vocabularies())
        inputs, faults = split_readable(read_inputs(options, data), data)
        if data.input_kind == "text":
            warn_of_unknown(*data.unknown_inputs([item.name for item in inputs]))
        settings = {key: value for key, value in options.items() if key not in INPUTS}
        present(task.predict(inputs, data, **settings), inputs, outputs)
        if faults:
            raise DataError(f"{len(faults)} of {len(faults) + len(inputs)} inputs cannot be read, the others are "
                            f"predicted: {'; '.join(faults[:3])}{f'; and {len(faults) - 3} more' * (len(faults) > 3)}")

    return report(run_dir, predict)


def restore(config: DictConfig, run_dir: RunDir, exported: ExportedModel | None) -> Task:
    """The task of the run, with its best weights or with exported graphs."""
    if exported is not None:
        from dltrain.exporting.connecting import restore_exported

        return restore_exported(config, run_dir, exported)
    from dltrain import evaluation

    return evaluation.restore(config, run_dir).to(evaluation.device_of(config))


def take_options(pairs: dict[str, str], run_dir: RunDir) -> dict[str, Any]:
    """Takes the keys of the task's node `predict` out of `pairs`, as values, with defaults for the others. Raises
    UserError for a key or value that this run does not take, and if no input is given."""
    config = run_dir.read_config()
    refuse_incomplete_config(config, run_dir.path / "config.yaml")
    defaults: dict[str, Any] = config["task"].get("predict")
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
    from dltrain.image_files import find_images, output_names
    from dltrain.tasks.task import Input

    source = options.get("input")
    if data.input_kind == "image":
        if source is None:
            raise UserError("this run reads pictures: predict needs input=FILE or input=FOLDER")
        files = find_images(source)
        return [Input(str(path), partial(data.read_input, path), name)
                for path, name in zip(files, output_names(files.values()), strict=True)]
    if source is not None:
        whole = read_text(Path(source))
        texts = [whole] if data.reads_whole_files else [line.strip(" ") for line in whole.split("\n") if line.strip()]
    elif (text := options.get("text")) is not None:
        if not text.strip():
            raise UserError("text must have at least one symbol")
        texts = [text]
    else:
        texts = [options["prompt"]]
    return [Input(text, partial(str, text)) for text in texts]


def warn_of_unknown(unknown: list[str], count: int) -> None:
    """Names the symbols of the inputs, `count` in all, that the vocabulary does not have."""
    if unknown:
        names = [*dict.fromkeys(unknown)]
        more = f" and {len(names) - UNKNOWN_SHOWN} more" if len(names) > UNKNOWN_SHOWN else ""
        print(f"dltrain: {len(unknown)} of {format_count(count, 'symbol')} are not in the vocabulary of the run: "
              f"{', '.join(map(repr, names[:UNKNOWN_SHOWN]))}{more}", file=sys.stderr)


class Outputs(NamedTuple):
    """Where predictions are written: pictures below a folder, records into a file."""

    folder: Path
    records: Path


def free_outputs(run_dir: RunDir) -> Outputs:
    """predictions and predictions.json in the run folder, or beside it if it is read-only; with the next number where
    an earlier predict has written."""
    for number in count(1):
        place = run_dir.writable_place("predictions" if number == 1 else f"predictions_{number}")
        outputs = Outputs(place, place.with_name(f"{place.name}.json"))
        if not outputs.folder.exists() and not outputs.records.exists():
            return outputs
    raise AssertionError("unreachable")


def given_outputs(folder: str) -> Outputs:
    """Raises UserError where the folder has predictions already."""
    path = Path(folder).expanduser()
    outputs = Outputs(path, path / "predictions.json")
    if outputs.records.exists() or any(path.rglob("*.png")):
        raise UserError(f"output={folder}: has predictions already; choose another folder")
    return outputs


def split_readable(inputs: list[Input], data: DataModule) -> tuple[list[Input], list[str]]:
    """Several pictures: those that can be read, and what is wrong with the others. One input is read as it is, so that
    its error is the command's."""
    if data.input_kind == "text" or len(inputs) < 2:
        return inputs, []
    readable, faults = [], []
    for item in track(inputs, f"reading {len(inputs)} pictures", transient=True, disable=not sys.stdout.isatty()):
        try:
            item.load()
            readable.append(item)
        except DataError as error:
            faults.append(str(error))
    return readable, faults


def present(predictions: Iterable[Prediction], inputs: list[Input], outputs: Outputs) -> None:
    """Prints the predictions as they come, saves their pictures and, at the end, their records."""
    console = Console(highlight=False, soft_wrap=True)
    names = {item.name: item.output or Path(item.name).stem for item in inputs}
    records, num_pictures = [], 0
    for prediction in predictions:
        if prediction.styled is not None and console.is_terminal:
            console.print(prediction.styled)
        else:
            for piece in prediction.pieces:
                print(piece, end="", flush=True)
            print()
        for suffix, picture in prediction.pictures.items():
            save_picture(picture, outputs.folder / f"{names[prediction.name]}{suffix}.png")
            num_pictures += 1
        records += prediction.records
    has_records = bool(records or num_pictures)  # pictures without an object have an empty list
    written = [str(outputs.folder)] * bool(num_pictures) + [str(outputs.records)] * has_records
    if has_records:
        with writing(outputs.records.parent, kept="nothing is written"):
            outputs.records.parent.mkdir(parents=True, exist_ok=True)
        write_text(outputs.records, json.dumps(records, indent=1, ensure_ascii=False) + "\n")
    if unknown := {record["file_name"] for record in records if record.get("image_id", 0) is None}:
        print(f"dltrain: image_id is null for {format_count(len(unknown), 'input')} that the json with the test photos "
              "does not have", file=sys.stderr)
    if written:
        print(f"{format_count(len(inputs), 'input')}; {' and '.join(written)}")


def save_picture(picture: Image, file: Path) -> None:
    """Raises MachineError if the disk refuses it."""
    with writing(file, kept="those before it are kept"):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            picture.save(file)
        except OSError:
            file.unlink(missing_ok=True)
            raise
