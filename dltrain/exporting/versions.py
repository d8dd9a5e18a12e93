"""The versions of the libraries that made an exported file."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from dltrain import __version__

LIBRARIES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",), "torch_export": ()}


def versions_of(name: str) -> dict[str, str]:
    """Of the libraries of a format, by their names."""
    versions = {"dltrain": __version__, "python": platform.python_version()}
    for library in ("torch", "torchvision", *LIBRARIES[name]):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "unknown"
    return versions
