"""report.html of a run: its result, curves, pictures, config and machine on one page, also of a run that has not ended
or was made by an earlier version. Imports no torch."""

from __future__ import annotations

import logging
import shlex
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dltrain import run_parent, stored_files
from dltrain.errors import CheckpointError, MachineError, UserError, printable
from dltrain.reports import run_config, run_facts, run_texts
from dltrain.reports.event_pictures import Drawing, Drawings, as_url, read_drawings
from dltrain.reports.page import LONGEST_TEXT, Content, cells, write_page
from dltrain.reports.readings import Points, points_of, rounded, thin
from dltrain.run_dir import RunDir
from dltrain.stored_files import refuse_incomplete_config

FILE = "report.html"
MOST_POINTS, MOST_CHARTS, MOST_EPOCHS = 400, 24, 1000  # of a curve; of metrics; whose steps the page has
PICTURE_BYTES, PICTURES_BYTES = 1_500_000, 8_000_000  # of a picture, and of all, as they are stored
MOST_PICTURES, MOST_CHARACTERS = 24, 6000  # names of pictures and texts; of a text
SPEED = "_per_second"
PNG = b"\x89PNG\r\n\x1a\n"

Readings = Sequence[Mapping[str, str]]
log = logging.getLogger("dltrain")


def add_page(run_dir: RunDir) -> Path:
    """To be called when a run has ended. Returns the page or, where it could not be written, the folder: that costs a
    warning and nothing else, since the result is safe."""
    file = run_dir.path / FILE
    try:
        write_run_page(run_dir, file)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        with suppress(MachineError):  # the same disk may refuse the line in log.txt
            log.warning(f"dltrain: warning: {file} is not written: {printable(reason)}; dltrain report "
                        f"run={shlex.quote(str(run_dir))} tries it again")
        return run_dir.path
    return file


def write_run_page(run_dir: RunDir, file: Path) -> None:
    """Raises UserError for a folder that is not a run's, for a study and for damaged files."""
    config = run_dir.read_config()
    refuse_incomplete_config(config, run_dir.path / "config.yaml")
    result, metrics = run_dir.read_result(), read_readings(run_dir.path)
    if result and "headline" not in result:
        raise CheckpointError(f"{run_dir}/result.json: damaged (no headline); {stored_files.RESTORE}")
    readings = [row for row in metrics.rows if row]
    drawings = read_drawings(run_dir.path)
    state = run_facts.state_of(run_dir, config, result, readings)
    headline = run_facts.headline_of(run_dir.path, result, drawings.charts)
    choices = config["choices"]
    pair = f"{choices.get('model', '?')} on {choices.get('data', '?')}"
    faults = [f"metrics.csv: {metrics.fault}"] if metrics.fault else []
    write_page(file, "run", pair, {
        "name": run_dir.path.absolute().name, "pair": pair, "state": [state.word, state.kind],
        "tiles": tiles(result, headline, readings), "head": run_facts.head_lines(run_dir, config, result, state),
        **curves(metrics.columns, readings, headline), **pictures(drawings), "classes": cells(class_rows(result)),
        "config": cells([row._asdict() for row in run_config.rows(run_dir, config)]),
        "starts": run_texts.starts(run_dir.path), "commands": commands(run_dir, config, result),
        "environment": run_facts.environment_lines(run_dir.path), "data": run_facts.data_lines(run_dir, config),
        "warnings": [*faults, *run_facts.warnings_of(run_dir.path)],
        "error": "" if result else run_facts.error_text(run_dir.path)})


def read_readings(folder: Path) -> stored_files.Rows:
    file = folder / "metrics.csv"
    return stored_files.read_rows(file) if file.is_file() else stored_files.Rows([], [], "")


def tiles(result: Mapping[str, Any], headline: run_facts.Headline, readings: Readings) -> list[list[str]]:
    """Values and their names, the headline of the test first; of a run that has not ended its last validation."""
    test = headline.name.replace("val/", "test/")
    keys = [key for key in result if key.startswith("test/") and key.count("/") == 1
            and stored_files.is_number(result[key])]
    values = [[number(result[key]), words(key)] for key in sorted(keys, key=lambda key: key != test)]
    if result:
        best = result[headline.name]
        return [*values, [number(best), f"{words(headline.name)}, best, epoch {headline.best_epoch}"]]
    last = {key: float(value) for row in readings for key, value in row.items() if key.startswith("val/") and value
            and key.count("/") == 1}
    return [[number(value), f"{words(key)}, last"] for key, value in
            sorted(last.items(), key=lambda item: item[0] != headline.name)]


def number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.1f}"


def words(key: str) -> str:
    return key.replace("/", " ").replace("_", " ")


def curves(columns: Sequence[str], readings: Readings, headline: run_facts.Headline) -> Content:
    """`charts`: each with its name and its lines, which are split, steps and values; the loss and the headline first,
    then what the validation measures. `ends`: step and number of each epoch whose end is known. `best`: those of the
    best epoch, null where it is not known."""
    metric = headline.name.partition("/")[2]
    named = {split: [name for head, _, name in (column.partition("/") for column in columns) if head == split
                     and "/" not in name] for split in ("val", "train")}
    names = [*filter(None, dict.fromkeys(["loss", metric, *named["val"], *named["train"]]))]
    keys = {name: {split: f"{split}/{name}" for split in ("train", "val")} for name in names[:MOST_CHARTS]}
    keys |= {"learning rate": {"": "lr"}}
    keys |= {column: {"": column} for column in columns if column.endswith(SPEED)}
    points = points_of(readings, [key for lines in keys.values() for key in lines.values()])
    charts: list[Content] = [
        {"name": words(name), "is_loss": name == "loss",
         "lines": [line_of(split, points[key]) for split, key in lines.items() if points.get(key)]}
        for name, lines in keys.items()]
    ends = {int(row["epoch"]): int(row["step"]) for row in readings if row["epoch"] and any(
        value for key, value in row.items() if key.startswith("val/"))}
    return {"charts": [chart for chart in charts if chart["lines"]],
            "charts_left_out": max(len(names) - MOST_CHARTS, 0),
            "ends": [[step, epoch] for epoch, step in ends.items()][:: len(ends) // MOST_EPOCHS + 1],
            "best": [ends[headline.best_epoch], headline.best_epoch] if headline.best_epoch in ends else None,
            "headline": words(metric), "most_points": MOST_POINTS}


def line_of(split: str, points: Points) -> list[Any]:
    kept = thin(points, MOST_POINTS)
    return [split, [step for step, _ in kept], [rounded(value) for _, value in kept]]


def pictures(drawings: Drawings) -> Content:
    """`pictures`: of each name its drawings, the first and the newest. `left_out`: lines on those that are missing."""
    listed, left_out, size = [], [], 0
    for name in drawings.names[:MOST_PICTURES]:
        versions = []
        for drawing in dict.fromkeys([drawings.last[name], drawings.first[name]]):
            fault = fault_of(drawing, size)
            if fault:
                left_out.append(f"{name}, step {drawing.step:,}: {fault}")
                continue
            size += len(drawing.encoded)
            versions.append({"step": drawing.step, "address": as_url(drawing.encoded) if drawing.encoded else "",
                             "size": size_of(drawing), "text": plain(drawing.text)})
        if versions:
            listed.append({"name": name, "versions": versions[::-1]})
    if more := len(drawings.last) - MOST_PICTURES:
        left_out += [f"{more} more"] if more > 0 else []
    return {"pictures": listed, "left_out": left_out}


def fault_of(drawing: Drawing, bytes_before: int) -> str:
    """Why a picture is not on the page; "" if it is."""
    size = len(drawing.encoded)
    if size and not drawing.encoded.startswith(PNG):
        return "not a PNG"
    if size > PICTURE_BYTES:
        return f"{size / 1e6:.1f} MB, more than {PICTURE_BYTES / 1e6:.1f} MB"
    if bytes_before + size > PICTURES_BYTES:
        return f"the page has {PICTURES_BYTES / 1e6:.0f} MB of pictures already"
    return ""


def size_of(drawing: Drawing) -> tuple[int, int]:
    """The width and height of a PNG in pixels."""
    header = drawing.encoded[16:24]
    return struct.unpack(">II", header) if len(header) == 8 else (0, 0)


def plain(text: str) -> str:
    """Without the four blanks before each line by which TensorBoard shows a text as it is."""
    lines = text[:MOST_CHARACTERS].split("\n")
    is_indented = all(line.startswith("    ") or not line for line in lines)
    return "\n".join(line[4:] if is_indented else line for line in lines)


def class_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row for each class of the keys test/NAME/CLASS."""
    rows: dict[str, dict[str, str]] = {}
    for key, value in result.items():
        name, slash, label = key.removeprefix("test/").partition("/")
        if key.startswith("test/") and slash and stored_files.is_number(value):
            rows.setdefault(label, {"class": label})[words(name)] = f"{value:.4f}"
    return [*rows.values()]


def commands(run_dir: RunDir, config: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to type to go on, and what it does."""
    run, name, epochs = f"run={run_dir}", run_dir.path.absolute().name, config["trainer"].get("max_epochs")
    of_result = [
        ("predict with its best weights", ["predict", run, sample_word(run_dir.path / "samples")]),
        ("measure its best weights on the validation split", ["eval", run, "split=val"]),
        ("train longer, in a new run", ["extend", run, f"epochs={2 * epochs if epochs else 'N'}", "schedule=continue"]),
        ("another value from a checkpoint on, in a new run", ["fork", run, "at=last", "lr=0.01"]),
        ("write the weights as a file", ["export", run, f"output={name}.safetensors"])]
    if not (run_dir.path / run_parent.FILE).is_file():
        of_result.append(("give its first steps again on this machine", ["verify", run]))
    of_other = [("continue it", ["resume", run])]
    if run_dir.best_checkpoint.is_file():
        of_other += of_result[:2]
    listed = [(purpose, shlex.join(["dltrain", *line])) for purpose, line in (of_result if result else of_other)]
    return [*listed, ("its curves and pictures in TensorBoard", shlex.join(["tensorboard", "--logdir", str(run_dir)]))]


def sample_word(folder: Path) -> str:
    """The word that gives predict the samples of a run."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    if [file.name for file in files] == ["prompt.txt"]:
        return f"prompt={(stored_files.read_text(files[0]).splitlines() or [''])[0][:LONGEST_TEXT]} "
    if len(files) == 1 and files[0].suffix in (".txt", ".py"):
        return f"input={files[0]}"
    return f"input={folder if files else 'FILE'}"
