"""`dltrain ls`: what can be chosen, which pairs fit, how the runs compare. Torch is imported only to measure models."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dltrain.commands.ls_words import LISTS, RUN_OPTIONS, SIZES
from dltrain.config import groups, schema
from dltrain.config.words import take_config_folders
from dltrain.data.cache import cache_file, read_json, stamp_of, write_json
from dltrain.drawing.tables import format_table
from dltrain.errors import UserError, suggest
from dltrain.runs import listing
from dltrain.runs.filters import CONDITION
from dltrain.runs.record import STATES

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = f"""\
dltrain ls [LIST]    what can be chosen, and how the runs compare

  LIST                           {' | '.join(LISTS)};
                                 by default everything but the runs
  dltrain ls models px=224 [channels=3] [classes=1000]
                                 parameters, multiply-adds and depth of each classifier at that size, measured
  dltrain ls runs [FOLDER] [condition ...] [sort=KEY]
                                 the runs below a folder, by default outputs: state, the values in which they differ,
                                 results; forks and extensions below their parents
    state=done model=resnet20 lr=0.1 'lr<0.1' 'test/accuracy>=0.9' 'rates*'
                                 conditions: any key of the config, also in short form, or of result.json; a word alone
                                 is a pattern of the folder's name; states: {', '.join(STATES[:5])},
                                 {', '.join(STATES[5:])}
    sort=test/accuracy           a headline metric: the best first; sort=time, sort=lr: the smallest first; sort=-lr:
                                 the largest; by default by name
    seeds=each                   jobs that differ in the seed alone one by one, not as their mean and deviation
    csv=FILE, json=true          a row for each run, for other programs
  --config-dir FOLDER            your own choices too"""


def run(words: list[str]) -> int:
    print(answer(words))
    return 0


def answer(words: list[str]) -> str:
    words, folders = take_config_folders(words)
    topic = words[0] if words else ""
    if topic and topic not in LISTS:
        raise UserError(f"unknown list '{topic}'{suggest(topic, list(LISTS)) or '; there are: ' + ', '.join(LISTS)}")
    if topic == "runs":
        return listing.answer(*split_run_words(words[1:]))
    if topic == "models" and words[1:]:
        return measure_models(**parse_sizes(words[1:]))
    lists: dict[str, Callable[..., str]] = {
        "models": models, "backbones": partial(described, "model/backbone"), "data": data, "recipes": recipes,
        "augment": partial(described, "augment"), "trainers": partial(described, "trainer"),
        "experiments": partial(described, "experiment")}
    if topic:
        return lists[topic](*folders)
    return "\n\n".join(f"{name}\n{text}" for name, make in lists.items() if (text := make(*folders))) + (
        "\n\nA model trains on any data of its batch type; dltrain ls runs compares the runs in outputs.")


def models(*folders: Path) -> str:
    return format_table(["model", "trains on", ""], [
        (path.stem, groups.batch_type_of_model(path.stem, *folders) or "-", describe(path))
        for path in files_of("model", *folders)])


def data(*folders: Path) -> str:
    return format_table(["data", "yields", ""], [
        (path.stem, groups.batch_type_of_data(path.stem, *folders) or "-", describe(path))
        for path in files_of("data", *folders)])


def described(group: str, *folders: Path) -> str:
    return format_table([group.rpartition("/")[2], ""],
                        [(path.stem, describe(path)) for path in files_of(group, *folders)])


def recipes(*folders: Path) -> str:
    return format_table(["recipe", "result"], [(path.stem, groups.header(path, "Result") or describe(path))
                                               for path in files_of("recipe", *folders)])


def files_of(group: str, *folders: Path) -> list[Path]:
    """The files of the choices of a group, `folders` being the user's."""
    paths = (groups.path_of(group, name, *folders) for name in groups.names(group, *folders))
    return [path for path in paths if path is not None]


def describe(path: Path) -> str:
    return groups.describe(path) if path.is_relative_to(groups.CONFIGS) else f"{groups.describe(path)} ({path})"


def parse_sizes(words: list[str]) -> dict[str, int]:
    """px, channels and classes from the words. Raises UserError."""
    sizes = {"channels": 3, "classes": 1000}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in SIZES:
            hint = suggest(key, list(SIZES)) or "; it takes px=224 channels=3 classes=1000"
            raise UserError(f"ls models: cannot read '{word}'{hint}")
        sizes[key] = parse_value("models", key, text, SIZES[key])
    if "px" not in sizes:
        raise UserError("ls models: it measures for images of one size, and needs px=, as px=224")
    return sizes


def parse_value(topic: str, key: str, text: str, rule: str) -> Any:
    """Raises UserError for what the rule of the key does not allow. Unlike that of stored.py it loads no Hydra."""
    with schema.building(f"ls {topic}: {key}={text}"):
        value = text if rule == "str" else yaml.load(text, Loader=schema.Loader)
    if fault := schema.violation(rule, value):
        raise UserError(f"ls {topic}: {key}={text}: {fault}")
    return value


def classifier_nodes(px: int, channels: int, classes: int) -> Iterator[tuple[str, DictConfig]]:
    """The name of each classifier of images, and its node `model` for images of that size."""
    from dltrain.config import compose

    for name in groups.names("model"):
        if groups.batch_type_of_model(name) == "ClassificationBatch":
            words = [f"model={name}", "data=image_folder", f"data.image_px={px}", f"data.channels={channels}",
                     f"data.num_classes={classes}"]
            yield name, compose.compose(words).config.model


def measure_models(px: int, channels: int, classes: int) -> str:
    """Prints a row for each classifier, as soon as it is measured or from the cache. Returns what the columns mean."""
    sizes = {"px": px, "channels": channels, "classes": classes}
    names = groups.names("model")
    file = cache_file("models", json.dumps([sizes, names, version("torch"), stamps_of_models()])).with_suffix(".json")
    width = max(map(len, names))
    print(f"  {'model':{width}}  {'parameters':>11}  {'multiply-adds':>13}  {'depth':>5}", flush=True)
    if type(kept := read_json(file)) is str:
        print(kept)
    else:
        rows = []
        for row in measured_rows(width, **sizes):
            print(row, flush=True)
            rows.append(row)
        write_json(file, "\n".join(rows))
    return (f"\nFor one image of {channels} x {px} x {px} and {classes} classes. Parameters: those that evaluation "
            "reads, without GoogLeNet's auxiliary classifiers.\nMultiply-adds: of convolutions and linear layers. "
            "Depth: how many of these lie on the longest path.")


def measured_rows(width: int, px: int, channels: int, classes: int) -> Iterator[str]:
    """`width`: of the column of names."""
    from dltrain import complexity  # torch from here on

    for name, node in classifier_nodes(px, channels, classes):
        try:
            result = complexity.measure_node(node, channels, px)
        except (ValueError, RuntimeError) as error:
            fault = str(error).splitlines()[0].rpartition(". ")[2][:90]
            yield f"  {name:{width}}  {'-':>11}  {'-':>13}  {'-':>5}  {fault}"
        else:
            yield (f"  {name:{width}}  {result.parameters:>11,}  {in_millions(result.multiply_adds):>13}  "
                   f"{result.depth:>5}")


def stamps_of_models() -> list[list[int]]:
    """What shows that a model, or its config, was changed."""
    files = [*(Path(__file__).parent.parent / "models").glob("*.py"), *(groups.CONFIGS / "model").rglob("*.yaml")]
    return [stamp_of(file) for file in sorted(files)]


def in_millions(count: int) -> str:
    return f"{count / 1e9:.4g} G" if count >= 1e9 else f"{count / 1e6:.4g} M"


def split_run_words(words: Iterable[str]) -> tuple[Path, list[str], dict[str, Any]]:
    """The folder (the first word that is one, by default outputs), the conditions, and the values of the options.
    Raises UserError."""
    folder, conditions, options = None, [], {}
    for word in words:
        key, equals, text = word.partition("=")
        if equals and key in RUN_OPTIONS:
            options[key] = parse_value("runs", key, text, RUN_OPTIONS[key])
        elif folder is None and (os.path.isdir(os.path.expanduser(word)) or (
                "/" in word and CONDITION.fullmatch(word) is None)):
            folder = Path(word).expanduser()
        else:
            conditions.append(word)
    return folder or Path("outputs"), conditions, options
