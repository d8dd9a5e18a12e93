"""Files of weights: which kind of file it is, its tensors, whether they fit a model, and writing them.

Read are files of torch.save (.pth, .pt, .ckpt) and of safetensors. A file is data, never code: of a file of torch, the
checksums are compared and tensors and plain values are accepted, nothing else.
"""

from __future__ import annotations

import io
import logging
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.disk import write_bytes, writing
from dltrain.errors import CheckpointError, UserError
from dltrain.tensor_files import describe_kind, find_fault, non_finite, remedy, stretched

log = logging.getLogger("dltrain")

CHECKSUM = "dltrain_crc32"  # in the metadata of a file of safetensors that dltrain wrote
NOT_WRITTEN = "no file is written"
NO_SAFETENSORS = "needs the library safetensors: pip install 'dltrain[safetensors]'"


def read_file(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file by their names; of a checkpoint of dltrain those of its model. `source` names the file in a
    message. Raises CheckpointError for a damaged file and for values that are not finite, UserError."""
    try:
        kind = describe_kind(path)
    except OSError as error:
        raise CheckpointError(f"{source}: cannot be read ({error.strerror})") from None
    tensors = read_safetensors(path, source) if kind == "safetensors" else read_torch(path, kind, source)
    if fault := stretched(tensors.values()):
        raise CheckpointError(f"{source}: damaged ({fault}); take another file")
    for name, value in tensors.items():
        if fault := non_finite(value):
            raise CheckpointError(f"{source}: tensor {name} has {fault}: the training of the file diverged, or it is "
                                  "damaged; take another file")
    return tensors


def read_torch(path: Path, kind: str, source: str) -> dict[str, Tensor]:
    if kind == "zip" and (fault := find_fault(path)):
        raise CheckpointError(f"{source}: {fault}; get the file again")
    if kind not in ("zip", "pickle"):
        raise CheckpointError(f"{source}: not a file of tensors, but {kind}")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{source}: not a file of tensors ({one_line(error)}); to take them from another kind of "
                              "file, save a dict of names and tensors") from None
    if not issubclass(type(content), Mapping):
        raise CheckpointError(f"{source}: not a file of tensors: it holds a {type(content).__name__}, and must hold a "
                              "dict of names and tensors")
    if "dltrain" in content and "state_dict" in content:
        folder = path.resolve().parent.parent
        log.warning(f"dltrain: warning: {source} is a checkpoint of dltrain: the tensors of its model are taken; "
                    f"pretrained.from_run={folder} takes the architecture and compares the classes too")
        return {name.removeprefix("model."): value for name, value in named_tensors(content["state_dict"]).items()
                if name.startswith("model.")}
    if tensors := named_tensors(content):
        return tensors
    nested = {str(key): value for key, inner in content.items() if (value := named_tensors(inner))}
    if len(nested) != 1:
        raise CheckpointError(f"{source}: not a file of tensors: it must be a dict of names and tensors, and has "
                              f"{', '.join(map(str, [*(nested or content)][:8])) or 'nothing'}; save one of them")
    ((key, tensors),) = nested.items()
    log.warning(f"dltrain: warning: {source}: the {len(tensors)} tensors below '{key}' are taken")
    return tensors


def named_tensors(content: object) -> dict[str, Tensor]:
    """The tensors with a name; of whatever is no mapping, none."""
    pairs = dict(content) if issubclass(type(content), Mapping) else {}  # type: ignore[call-overload]
    return {name: value for name, value in pairs.items() if type(name) is str and torch.is_tensor(value)}


def read_safetensors(path: Path, source: str) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{source}: {NO_SAFETENSORS}") from None
    try:
        tensors = dict(load_file(path))
        with safe_open(path, "pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source}: damaged ({one_line(error)}); get the file again") from None
    if expected not in (None, checksum_of(tensors)):
        raise CheckpointError(f"{source}: damaged (checksum of the tensors); get the file again")
    return tensors


def checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes and bytes. The format has none of its own; a file that others wrote has none."""
    checksum = 0
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        checksum = zlib.crc32(f"{name} {tuple(value.shape)} {value.dtype}".encode(), checksum)
        checksum = zlib.crc32(value.flatten().view(torch.uint8).numpy().tobytes(), checksum)
    return f"{checksum:08x}"


def write_file(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors by their names: with the suffix .safetensors in that format, else as torch.save does. Raises
    UserError, MachineError."""
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}  # no shared storage
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import save
        except ImportError:
            raise UserError(f"{path}: {NO_SAFETENSORS}") from None
        content = save(own, {CHECKSUM: checksum_of(own)})
    else:
        buffer = io.BytesIO()
        torch.save(own, buffer)
        content = buffer.getvalue()
    with writing(path, len(content), NOT_WRITTEN):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content, NOT_WRITTEN)


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], source: str, advice: str) -> None:
    """Compares the tensors with those of the module that have their names; others are ignored. A change of precision is
    reported in a line. Raises UserError, with `advice`, where a shape differs, and CheckpointError where a number is of
    another kind."""
    expected = module.state_dict()
    common = {name: value for name, value in tensors.items() if name in expected}
    differ = [f"size mismatch for {name}: {tuple(value.shape)} in the file, {tuple(expected[name].shape)} in the model"
              for name, value in common.items() if value.shape != expected[name].shape]
    if differ:
        more = f"; and {len(differ) - 3} more of {len(expected)}" if len(differ) > 3 else ""
        raise UserError(f"{source}: {'; '.join(differ[:3])}{more}; {advice}")
    casts: Counter[str] = Counter()
    for name, value in common.items():
        there, here = value.dtype, expected[name].dtype
        if value.layout != torch.strided or value.is_meta or (
                there.is_floating_point, there.is_complex) != (here.is_floating_point, here.is_complex):
            raise CheckpointError(f"{source}: tensor {name} is of {there}, and must be of {here}; {advice}")
        if there != here:
            casts[f"{there}, used as {here}".replace("torch.", "")] += 1
    for cast, count in casts.items():
        log.warning(f"dltrain: warning: {source}: {count} tensor{'s are' if count > 1 else ' is'} of {cast}")


def load_weights(task: nn.Module, saved: Mapping[str, Any], path: Path) -> None:
    """Copies the weights of a checkpoint into the task that its config describes. Raises CheckpointError where they do
    not fit, or a weight is not finite."""
    advice = "the checkpoint and config.yaml are not of the same run, or one of them is damaged"
    weights = saved["state_dict"]
    model = {name: value for name, value in weights.items() if name.startswith("model.")}
    try:
        check_fit(task, model, str(path), advice)
        task.load_state_dict(weights)
    except UserError as error:
        raise CheckpointError(str(error)) from None
    except (RuntimeError, KeyError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:300]}; {advice}") from None
    for name, value in task.named_parameters():
        if fault := non_finite(value.detach()):
            raise CheckpointError(f"{path}: {name} has {fault}: the training diverged; {remedy(path)}")


def one_line(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:160]
