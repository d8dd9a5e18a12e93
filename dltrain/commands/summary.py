"""`dltrain summary [choices]`: the stages of a model, what they compute and see, and its paper. Nothing is trained and
no data are read: the model computes once on torch's meta device, which has shapes but no numbers."""

from __future__ import annotations

import json
import shutil

import yaml
from omegaconf import DictConfig, OmegaConf

from dltrain.config import compose, groups, launch, schema
from dltrain.config.free_keys import READ_FROM_FILES
from dltrain.errors import UserError

HELP = """\
dltrain summary [choices] [key=value ...]    the stages of a model: shapes, parameters, multiply-adds, stride,
                                             receptive field, and its paper

  dltrain summary model=resnet56 data=cifar10
  dltrain summary model=fcn8s model/backbone=lite0 data.image_px=256
  depth=2                        the layers of each stage, 3 the layers of these, and so on
  json=true                      the same as json

Shapes are those of one image of data.image_px (C x H x W), or of one step of a sequence. Stride and receptive field are
those of a place of the stage's map, in px of the image that the backbone reads. Parameters and multiply-adds are those
of evaluation: convolutions and matrix products. Sizes that only the data know are assumed, and named: 1,000 classes and
100 symbols. No data are read."""
OPTIONS = {"depth": "int >= 1", "json": "bool"}
ASSUMED = dict(zip(READ_FROM_FILES, (1000, 100, 100), strict=True))


def run(words: list[str]) -> int:
    options, others = take_options(words)
    flags = launch.parse_flags(others)
    composed = compose.compose(flags.overrides, flags.config_dir)
    config = composed.job_config()
    if "model" not in config or "study" in config:
        raise UserError("summary: it needs a model; this experiment trains several")
    from dltrain.summaries.summarise import summarise  # torch from here on

    yaml_file = groups.path_of("model", composed.chosen["model"], *composed.folders)
    summary = summarise(config, assume_sizes(config), yaml_file, options["depth"])
    if options["json"]:
        print(json.dumps(summary.as_json(), indent=1, ensure_ascii=False))
    else:
        print(summary.as_text(shutil.get_terminal_size((80, 24)).columns))
    return 0


def take_options(words: list[str]) -> tuple[dict[str, int], list[str]]:
    """depth and json, and the other words. Raises UserError for a value that its rule refuses."""
    options, others = {"depth": 1, "json": 0}, []
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or key not in OPTIONS:
            others.append(word)
            continue
        with schema.building(word):
            value = yaml.load(text, Loader=schema.Loader)
        if fault := schema.violation(OPTIONS[key], value):
            raise UserError(f"{word}: {fault}")
        options[key] = value
    return options, others


def assume_sizes(config: DictConfig) -> dict[str, int]:
    """Fills in what is known only when the data are loaded. Returns those values."""
    has_vectors = OmegaConf.select(config, "data.features") is not None  # in the place of symbols
    missing = {key: value for key, value in ASSUMED.items() if key in config.data and config.data[key] is None
               and not (has_vectors and key == "vocab_size")}
    for key, value in missing.items():
        config.data[key] = value
    return missing
