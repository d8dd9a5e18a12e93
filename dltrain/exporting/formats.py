"""The formats of `dltrain export format=`: their files, the libraries that they need, and which a task allows."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

from dltrain.errors import UserError

INSTALL = 'pip install -e ".[export]"'


class Format(NamedTuple):
    suffix: str
    libraries: tuple[str, ...]  # names of modules
    made_of: str


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), "graphs for onnxruntime and others"),
    "torch_export": Format(".pt2", (), "graphs for torch.export.load, without dltrain"),
    "safetensors": Format(".safetensors", ("safetensors",), "named tensors for the model's own code"),
}


def require_libraries(name: str) -> None:
    """Raises UserError where the libraries of a format are not installed."""
    if missing := [library for library in FORMATS[name].libraries if find_spec(library) is None]:
        raise UserError(f"format={name} needs {', '.join(missing)}: {INSTALL}")


def refuse_format(name: str, task: Any) -> None:
    """Raises UserError, with the formats that a task allows, where this is none of them."""
    form = task.export_form()
    reasons = form.refused if form is not None else dict.fromkeys(
        ("onnx", "torch_export"), f"{type(task).__name__} has no export_form")
    if name in reasons:
        allowed = " or ".join(f"format={other}" for other in FORMATS if other not in reasons)
        raise UserError(f"format={name}: {reasons[name]}; this run can be exported as {allowed}")
