"""The summary of the model of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from dltrain import trust
from dltrain.contracts import backbone_of
from dltrain.errors import UserError
from dltrain.pretrained import NODE
from dltrain.summaries.calls import follow
from dltrain.summaries.papers import papers_of
from dltrain.summaries.report import Summary
from dltrain.summaries.rows import rows_of
from dltrain.tasks.freezing import Freezing

NAMED_GROUPS = ("model", "model/backbone", "data")


def summarise(config: DictConfig, assumed: dict[str, int], yaml_file: Path | None = None, depth: int = 1) -> Summary:
    """`assumed`: the sizes that were filled in; `yaml_file`: of the model's choice. Raises UserError for a model that
    does not fit its data, or that computes nothing without numbers."""
    arguments: Any = OmegaConf.to_container(config.model, resolve=True)
    if arguments.get("anchors") == "auto":  # finds the sizes of the anchors, not their number
        arguments["anchors"] = "fixed"
    with torch.device("meta"):
        model: nn.Module = build_empty(arguments, "model")
    freezing = config.task.get("freezing") or {}
    Freezing(model, **freezing).apply(0)
    cost = follow(model, config)
    title = " ".join(f"{group}={config.choices[group]}" for group in NAMED_GROUPS if group in config.choices)
    backbone = backbone_of(model)
    own_backbone = type(backbone) if backbone is not None and backbone is not model else None
    papers = papers_of(type(model), own_backbone, yaml_file)
    return Summary(title, cost.subject, papers, assumed, rows_of(model, cost, depth))


def build_empty(node: dict[str, Any], key: str) -> Any:
    """As build.build, without Lightning, which takes two seconds to import, and without pretrained weights: the nodes
    below first. Raises UserError with the key."""
    target = trust.locate(f"{key}._target_", node["_target_"])
    arguments = {name: build_empty(value, f"{key}.{name}") if type(value) is dict and "_target_" in value else value
                 for name, value in node.items() if name not in ("_target_", NODE)}
    try:
        return target(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{key} ({target.__name__}): {error}") from error
