"""`dltrain ls` and `dltrain --help`: what exists, which pairs fit, how the runs compare. Reads text; torch only where
models are measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dltrain.config import groups, schema
from dltrain.errors import UserError, nearest

TOPICS = ("models", "backbones", "data", "recipes", "augment", "trainers", "experiments", "runs")
SIZES = {"px": "int >= 1", "channels": "one of 1 | 3", "classes": "int >= 1"}  # what `ls models` is told, with its rule

HELP = """\
dltrain: train deep learning's classic systems from one command.

  dltrain [train] [choices] [key=value ...]    train, then test; every choice has a default
  dltrain resume  run=FOLDER                   go on after a kill, to the same bits as without it
  dltrain eval    run=FOLDER [key=value ...]   measure a run again: its best checkpoint on the test split
  dltrain predict run=FOLDER input=FILE        label pictures: a file, several (a.png,b.png) or a folder
  dltrain show    [choices]                    draw what a pipeline does: augment=strong data=cifar10
  dltrain ls      [{topics}]
  dltrain ls models px=224 [channels=3] [classes=1000]   with parameters, multiply-adds and depth at that size, measured
  dltrain why     KEY [choices]                which file and line set a value, and over which others

Examples
  dltrain                                      resnet20 on real handwritten digits: no download, about a minute
  dltrain model=resnet56 data=cifar10          the paper's recipe for this pair is found by name
  dltrain model=plain20 task.optimizer.lr=0.05 trainer=cpu
  dltrain name=first seed=3                    the folder outputs/first; the same command again continues it
  dltrain -m model=plain20,resnet20 seed=0,1   a sweep: four runs, one table
  dltrain why task.optimizer.lr model=resnet56 data=cifar10

Choices
{groups}

Every key and its value:  dltrain --cfg job    (as yaml, with a choice or without)
Your own models, data and recipes:  dltrain --config-dir FOLDER ...   (FOLDER/model/mine.yaml is model=mine)
Tab completion:  eval "$(dltrain -sc install=bash)"
Hydra's other flags:  dltrain --hydra-help
Look at runs:  tensorboard --logdir outputs
"""


def help_text(width: int = 108) -> str:
    rows = [wrapped(f"  {group + '=':<16}", groups.names(group), width) for group in groups.GROUPS[:5]]
    recipes = [f"  {'recipe=':<16}<model>-on-<data> is taken by itself where there is one; recipe=none takes none"]
    return HELP.format(topics="|".join(TOPICS), groups="\n".join(rows + recipes))


def wrapped(head: str, words: list[str], width: int) -> str:
    lines, line = [], head
    for word in words:
        if len(line) + len(word) > width:
            lines.append(line.rstrip())
            line = " " * len(head)
        line += word + " "
    return "\n".join([*lines, line.rstrip()])


def ls(words: list[str]) -> str:
    """The answer to `ls`, `ls TOPIC`, `ls runs [FOLDER]` and `ls models px=224`, of which the rows are printed here."""
    topic = words[0] if words else ""
    if topic and topic not in TOPICS:
        raise UserError(f"unknown list '{topic}'{nearest(topic, list(TOPICS)) or '; there are: ' + ', '.join(TOPICS)}")
    if topic == "runs":
        return runs_table(Path(words[1] if len(words) > 1 else "outputs"))
    if topic == "models" and words[1:]:
        return measured(**sizes(words[1:]))
    parts = {"models": models, "backbones": lambda: described("model/backbone"), "data": data, "recipes": recipes,
             "augment": lambda: described("augment"), "trainers": lambda: described("trainer"),
             "experiments": lambda: described("experiment")}
    if topic:
        return parts[topic]()
    return "\n\n".join(f"{name}\n{text}" for name, part in parts.items() if (text := part())) + (
        "\n\nA model trains on any data of its batch type; dltrain ls runs compares the runs in outputs.")


def table(rows: Sequence[tuple[str, ...]], indent: str = "  ") -> str:
    """Columns as wide as their widest cell; the last one is left ragged."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    return "\n".join(indent + "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=True)), row[-1]])
                     .rstrip() for row in rows)


def models() -> str:
    return table([(name, groups.batch_of_model(name) or "-", groups.describe(groups.CONFIGS / f"model/{name}.yaml"))
                  for name in groups.names("model")])


def sizes(words: list[str]) -> dict[str, int]:
    """px, channels and classes from the words. Raises UserError."""
    found = {"channels": 3, "classes": 1000}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in SIZES:
            hint = nearest(key, list(SIZES)) or "; it takes px=224 channels=3 classes=1000"
            raise UserError(f"ls models: cannot read '{word}'{hint}")
        given = yaml.load(value, Loader=groups.Loader)
        if fault := schema.broken(SIZES[key], given):
            raise UserError(f"ls models: {key}={value}: {fault}")
        found[key] = given
    if "px" not in found:
        raise UserError("ls models: it measures for images of one size, and needs px=, as px=224")
    return found


def measured(px: int, channels: int, classes: int) -> str:
    """Prints a row for each classifier as soon as it is measured. Returns what the columns are."""
    from dltrain import complexity  # torch from here on

    width = max(map(len, groups.names("model")))
    print(f"  {'model':{width}}  {'parameters':>11}  {'multiply-adds':>13}  {'depth':>5}", flush=True)
    for name, found in complexity.classifiers(px, channels, classes):
        if isinstance(found, str):
            print(f"  {name:{width}}  {'-':>11}  {'-':>13}  {'-':>5}  {found}", flush=True)
        else:
            print(f"  {name:{width}}  {found.parameters:>11,}  {in_millions(found.multiply_adds):>13}  "
                  f"{found.depth:>5}", flush=True)
    return (f"\nOf one image of {channels} x {px} x {px} and {classes} classes. Parameters: those that evaluation "
            "reads, without GoogLeNet's auxiliary classifiers.\nMultiply-adds: of convolutions and linear layers. "
            "Depth: how many of these lie on the longest path.")


def in_millions(count: int) -> str:
    return f"{count / 1e9:.4g} G" if count >= 1e9 else f"{count / 1e6:.4g} M"


def data() -> str:
    files = [(name, groups.CONFIGS / f"data/{name}.yaml") for name in groups.names("data")]
    return table([(name, groups.content(file)["data"]["batch_type"], groups.describe(file)) for name, file in files])


def described(group: str) -> str:
    return table([(name, groups.describe(groups.CONFIGS / f"{group}/{name}.yaml")) for name in groups.names(group)])


def recipes() -> str:
    rows = []
    for name in groups.names("recipe"):
        lines = (groups.CONFIGS / f"recipe/{name}.yaml").read_text(encoding="utf-8").splitlines()
        result = next((line.partition(":")[2].strip() for line in lines if line.startswith("# Result:")), "")
        rows.append((name, result or groups.describe(groups.CONFIGS / f"recipe/{name}.yaml")))
    return table(rows)


def runs(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The runs below a folder: every folder with a config.yaml, with its result.json where it has finished."""
    found = []
    for config in sorted(folder.glob("**/config.yaml")):
        result = config.parent / "result.json"
        found.append((config.parent, json.loads(result.read_text()) if result.is_file() else {}))
    return found


def runs_table(folder: Path) -> str:
    rows = []
    for path, result in runs(folder):
        config = yaml.load((path / "config.yaml").read_text(encoding="utf-8"), Loader=groups.Loader) or {}
        chosen = config.get("choices", {})
        headline = result.get("headline", "")
        test = f"{headline.replace('val/', 'test/')} {result[t]:.4f}" if (t := headline.replace("val/", "test/")) and (
            t in result) else ""
        state = "done" if result else "unfinished"
        seconds = f"{result['seconds']:.0f} s" if "seconds" in result else ""
        pair = f"{chosen.get('model', '?')} on {chosen.get('data', '?')}"
        rows.append((str(path), pair, f"seed {config.get('seed')}", state, test, seconds))
    return table(rows) if rows else f"  no runs below {folder}; `dltrain` makes one"
