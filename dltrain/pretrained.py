"""Weights that a model, or its backbone, starts from: those of a run (`from_run`) or of a file or library (`weights`).

They are named by a node `pretrained` below `model`, a mapping with exactly the keys from_run, weights and rename; it is
read here and not passed to the class that is built. The weights are loaded once, at the start of a run; from then on
its own checkpoints have them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.error import URLError

from omegaconf import DictConfig, OmegaConf, open_dict

from dltrain.errors import DataError, UserError
from dltrain.stored_files import read_config, refuse_changed_files, refuse_incomplete_config

if TYPE_CHECKING:
    from torch import Tensor, nn

NODE = "pretrained"
BEST = "checkpoints/best.ckpt"  # in a run folder
TIMM = "timm"  # a value of `weights`: those that timm publishes for the model
# Names of the layers that compute class logits: aux1 and aux2 are of GoogLeNet, net.* of timm's models.
HEADS = ("head.", "fc.", "_fc.", "classifier.", "aux1.", "aux2.", "net.fc.", "net.head.", "net.classifier.")


class Pretrained(NamedTuple):
    """A node `pretrained`; `key` is its own, as model.backbone.pretrained."""

    key: str
    from_run: str | None
    weights: str | None
    rename: list[str]


EMPTY: dict[str, Any] = {"from_run": None, "weights": None, "rename": []}


def pretrained_of(node: DictConfig, key: str) -> Pretrained | None:
    """The node `pretrained` of the part of the config at `key`: only below `model`, and only a mapping of exactly its
    three keys; a class may take an argument of this name."""
    inner = node.get(NODE) if NODE in node else None
    if key.partition(".")[0] != "model" or not isinstance(inner, DictConfig) or {*inner} != {*EMPTY}:
        return None
    from_run, weights = (value and os.path.expanduser(value) for value in (inner.from_run, inner.weights))
    return Pretrained(f"{key}.{NODE}", from_run, weights, list(inner.rename))


def nodes(node: DictConfig, key: str) -> Iterator[tuple[str, DictConfig]]:
    """The node and those below it, with their keys."""
    yield key, node
    for name in list(node):
        if isinstance(inner := node._get_node(name), DictConfig) and not inner._is_none():
            yield from nodes(inner, f"{key}.{name!s}")


def copy_architecture(config: DictConfig) -> None:
    """Copies the architecture of the run's model into each model or backbone with `from_run`, so that the weights fit.

    A node keeps its number of classes, which the data decide, and, if the run's model is of the same class, the keys
    that the run's config lacks. Also checks the other keys of all nodes `pretrained`. Does not import torch. Raises
    UserError."""
    for key, node in nodes(config.model, "model"):
        pretrained = pretrained_of(node, key)
        if pretrained is None:
            continue
        parse_renames(pretrained)
        if pretrained.from_run is None:
            continue
        if pretrained.weights is not None:
            raise UserError(f"{pretrained.key}.weights={pretrained.weights}: must be null where from_run is not")
        saved = architecture(Path(pretrained.from_run), f"{pretrained.key}.from_run", config.data.get("channels"))
        current: Any = OmegaConf.to_container(node, resolve=False)
        kept = {NODE: current[NODE]}
        if "num_classes" in current and "num_classes" in saved:
            kept["num_classes"] = current["num_classes"]  # as it is written: only the data may know the number
        if current["_target_"] == saved["_target_"]:
            kept |= {name: value for name, value in current.items() if name not in saved}
        with open_dict(node):
            for name in list(node):
                del node[name]
            for name, value in {**saved, **kept}.items():
                node[name] = value


def architecture(run: Path, key: str, channels: int | None) -> dict[str, Any]:
    """The node `model` of a run's config. Raises UserError if the run has no best checkpoint, or was trained on
    images of another number of channels."""
    saved = read_config(run, key)
    refuse_incomplete_config(saved, run / "config.yaml")
    if not os.path.lexists(run / BEST):
        raise UserError(f"{key}={run}: it has no best checkpoint yet; dltrain resume run={run} continues it")
    read = saved["data"].get("channels")
    if read is not None and read != channels:
        raise UserError(f"{key}={run}: it was trained on images of {read} channels, but data.channels={channels}; "
                        f"train it with data.channels={channels}")
    model: Any = OmegaConf.to_container(without_pretrained(OmegaConf.create(saved["model"])), resolve=False)
    return dict(model)


def without_pretrained(model: DictConfig) -> DictConfig:
    """A copy that names no weights, for a model whose weights come from a checkpoint of its own run."""
    copy = model.copy()
    for key, node in nodes(copy, "model"):
        if pretrained_of(node, key) is not None:
            node[NODE] = EMPTY
    return copy


def parse_renames(pretrained: Pretrained) -> list[tuple[re.Pattern[str], str]]:
    """The patterns and replacements of `rename`. Raises UserError naming the key."""
    key, renames = f"{pretrained.key}.rename", []
    if pretrained.rename and pretrained.weights in (None, TIMM):
        raise UserError(f"{key}: must be [] without a file or a name of torchvision's as {pretrained.key}.weights")
    for text in pretrained.rename:
        pattern, colon, replacement = text.rpartition(":")  # a pattern may contain colons, a tensor's name does not
        try:
            compiled = re.compile(pattern)
            compiled.sub(replacement, "")
        except re.error as error:
            raise UserError(f"{key}: '{text}' must be PATTERN:REPLACEMENT with a regular expression: {error}") from None
        if not colon or not pattern:
            raise UserError(f"{key}: '{text}' must be PATTERN:REPLACEMENT, as ^module\\.:")
        renames.append((compiled, replacement))
    return renames


def rename_tensors(tensors: dict[str, Tensor], pretrained: Pretrained) -> dict[str, Tensor]:
    """Each pattern replaced in each name, in order. Raises UserError where two tensors would have one name."""
    renamed: dict[str, Tensor] = {}
    renames = parse_renames(pretrained)
    for name, tensor in tensors.items():
        for pattern, replacement in renames:
            name = pattern.sub(replacement, name)
        if name in renamed:
            raise UserError(f"{pretrained.key}.rename: two tensors of {pretrained.weights} would be called '{name}'")
        renamed[name] = tensor
    return renamed


def load_pretrained(model: nn.Module, pretrained: Pretrained, class_names: Sequence[str] | None = None,
                    with_head: bool = False) -> None:
    """Loads the weights that `pretrained` names into `model`; does nothing where it names none.

    Extra tensors are ignored. The head is skipped if its shape differs, or, of a run, if the class names differ from
    `class_names`, those of the data; `with_head`: not even then. Raises UserError where another tensor is missing or
    has another shape, DataError for a failed download."""
    from dltrain import checkpoints, weights

    other_classes = 0  # how many classes the run has, where their names differ from the data's
    if pretrained.from_run is not None:
        source, folder = f"{pretrained.key}.from_run={pretrained.from_run}", Path(pretrained.from_run)
        saved = checkpoints.read(folder / BEST)
        refuse_changed_files(folder, saved["dltrain"], folder / BEST)
        tensors = {name.removeprefix("model."): value for name, value in saved["state_dict"].items()
                   if name.startswith("model.")}
        names = read_config(folder).get("class_names") or []
        other_classes = len(names) if class_names is not None and names != list(class_names) else 0
    elif pretrained.weights is not None:
        source = f"{pretrained.key}.weights={pretrained.weights}"
        tensors = rename_tensors(read_weights(pretrained.weights, model, source), pretrained)
    else:
        return
    expected = model.state_dict()
    tensors = {name: value for name, value in tensors.items() if not (name.startswith(HEADS) and name in expected and (
        expected[name].shape != value.shape or value.shape[:1] == (other_classes,)) and not with_head)}
    weights.check_fit(model, tensors, source, f"choose the architecture of the file by keys of {pretrained.key[:-11]}")
    missing = [name for name in model.load_state_dict(tensors, strict=False).missing_keys
               if with_head or not name.startswith(HEADS)]
    if missing:
        raise UserError(f"{source}: it lacks {len(missing)} of the {len(expected)} tensors of {type(model).__name__}: "
                        f"{', '.join(missing[:3])}; {pretrained.key}.rename can map other names")


def read_weights(weights: str, model: nn.Module, source: str) -> dict[str, Tensor]:
    """The tensors of a file, or of published weights by torchvision's name or of timm, which are downloaded if they
    are not cached. `source` names them in messages. Raises UserError, DataError."""
    from torchvision.models import get_weight

    from dltrain.weights import read_file

    if weights == TIMM:
        return read_timm_weights(model, source)
    if Path(weights).is_file():
        return read_file(Path(weights), source)
    try:
        published = get_weight(weights)
    except (ValueError, AttributeError, KeyError):
        raise UserError(f"{source}: no such file, and no name of torchvision's, as ResNet50_Weights.IMAGENET1K_V2"
                        ) from None
    try:
        return dict(published.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError) as error:
        raise DataError(f"{source}: cannot download {published.url} ({error}); download it elsewhere and name the file"
                        ) from None


def read_timm_weights(model: nn.Module, source: str) -> dict[str, Tensor]:
    from dltrain.models.timm_model import TimmModel

    if not isinstance(model, TimmModel):
        raise UserError(f"{source}: only model=timm can have the weights of timm, but this is {type(model).__name__}")
    try:
        return model.published_weights()
    except OSError as error:
        raise DataError(f"{source}: cannot download weights of '{model.name}' ({' '.join(str(error).split())[:200]})"
                        ) from None
    except RuntimeError as error:
        raise UserError(f"{source}: {' '.join(str(error).split())[:200]}") from None
