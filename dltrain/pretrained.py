"""Weights that a part of a model begins with: those of a run of ours (`from_run`), of a file or of torchvision
(`weights`). They are read once, when a run begins; from then on its own checkpoints have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

from omegaconf import DictConfig, OmegaConf, open_dict

from dltrain import run_dir
from dltrain.errors import DataError, UserError

SOURCES = ("from_run", "weights")
# what reads the classes off: it may be of another size, or be left out; aux1 and aux2 are GoogLeNet's, net.* timm's
HEADS = ("head.", "fc.", "_fc.", "classifier.", "aux1.", "aux2.", "net.fc.", "net.head.", "net.classifier.")


def nodes(node: DictConfig, key: str) -> Iterator[tuple[str, DictConfig]]:
    """The node and those below it, with their keys."""
    yield key, node
    for name in list(node):
        if isinstance(inner := node._get_node(name), DictConfig) and not inner._is_none():
            yield from nodes(inner, f"{key}.{name!s}")


def copy_architecture(config: DictConfig) -> None:
    """A part with `from_run` takes the architecture of that run's model, so that its weights fit, but for the number of
    classes where the part is a classifier itself. Raises UserError where there is no such run, or its images had other
    channels. Without torch."""
    for key, node in nodes(config.model, "model"):
        if not node.get("from_run"):
            continue
        run = Path(node.from_run)
        saved = run_dir.read_config(run, f"{key}.from_run")
        if not (run / "checkpoints/best.ckpt").is_file():
            raise UserError(f"{key}.from_run={run}: no best checkpoint yet; dltrain resume run={run} goes on")
        channels = saved["data"].get("channels")
        if channels is not None and channels != config.data.get("channels"):
            raise UserError(f"{key}.from_run={run}: it was trained on images of {channels} channels, but data.channels="
                            f"{config.data.get('channels')}; train it with data.channels={config.data.get('channels')}")
        own = OmegaConf.to_container(node, resolve=False)
        assert isinstance(own, dict)
        kept: dict[Any, Any] = {"from_run": own["from_run"]}
        if "num_classes" in own and "num_classes" in saved["model"]:
            kept["num_classes"] = own["num_classes"]  # as it is written: only the data may know the number
        with open_dict(node):
            for name in list(node):
                del node[name]
            for name, value in {**without_sources(OmegaConf.create(saved["model"])), **kept}.items():
                node[name] = value


def without_sources(model: DictConfig) -> DictConfig:
    """A copy for a run whose weights come from its own checkpoint. `pretrained` is timm's source of weights."""
    copy = model.copy()
    for _, node in nodes(copy, "model"):
        for name in (*SOURCES, "pretrained"):
            if node.get(name) is not None:
                node[name] = None
    return copy


def begin_with(made: Any, key: str, from_run: str | None, weights: str | None,
               class_names: Sequence[str] | None = None) -> None:
    """Loads what the two keys of the node at `key` name into `made`. What the source has beyond it is left out, and so
    is a head of another size, and a run's head for classes of other names than `class_names`, those of the data where
    they are known. Raises UserError where something else is missing or of another shape, DataError for a failed
    download."""
    others = 0  # classes of the run, where they are not the data's
    if from_run is not None:
        from dltrain import checkpoints

        saved = checkpoints.load(Path(from_run) / "checkpoints" / checkpoints.BEST)["state_dict"]
        found = {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
        source = f"{key}.from_run={from_run}"
        names = run_dir.read_config(Path(from_run)).get("class_names") or []
        others = len(names) if class_names is not None and names != list(class_names) else 0
    elif weights is not None:
        source = f"{key}.weights={weights}"
        found = read_weights(weights, source)
    else:
        return
    own = made.state_dict()
    found = {name: value for name, value in found.items() if not (
        name.startswith(HEADS) and name in own and (own[name].shape != value.shape or value.shape[:1] == (others,)))}
    try:
        missing = [name for name in made.load_state_dict(found, strict=False).missing_keys
                   if not name.startswith(HEADS)]
    except RuntimeError as error:
        raise UserError(f"{source}: {' '.join(str(error).split())[:300]}") from None
    if missing:
        raise UserError(f"{source}: {len(missing)} of the {len(own)} values that "
                        f"{type(made).__name__} needs are not there: {', '.join(missing[:3])}")


def read_weights(weights: str, source: str) -> dict[str, Any]:
    """A file of named tensors, or weights by torchvision's name for them, downloaded where they are not yet."""
    import torch
    from torchvision.models import get_weight

    if Path(weights).is_file():
        try:
            read: dict[str, Any] = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(f"{source}: not a file of tensors ({str(error).splitlines()[0][:120]})") from None
        return read
    try:
        known = get_weight(weights)
    except (ValueError, AttributeError, KeyError):
        raise UserError(f"{source}: no such file, and no name of torchvision's, as ResNet50_Weights.IMAGENET1K_V2"
                        ) from None
    try:
        return dict(known.get_state_dict(progress=True, check_hash=True))
    except (URLError, OSError) as error:
        raise DataError(f"{source}: cannot download {known.url} ({error}); fetch it elsewhere and give the file"
                        ) from None
