"""Lines of Python that use an exported file, for its model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

OTHER_PX = 64  # sides of an empty image where any size is taken and the data have none
OPEN_SIZES = {"time": 5, "source": 5}  # other axes that are no sides of images: 1


def usage_code(record: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    """A few lines that run in the folder of the file, with empty inputs."""
    side = int(config["data"].get("image_px") or OTHER_PX)
    sizes = {**OPEN_SIZES, "height": side, "width": side}
    match record["format"]:
        case "onnx":
            yield from ["import numpy", "import onnxruntime"]
            for graph in record["graphs"]:
                yield from onnx_lines(graph, record["graphs"][0], sizes)
        case "torch_export":
            yield "import torch"
            for graph in record["graphs"]:
                yield from program_lines(graph, record["graphs"][0], sizes)
        case _:
            yield from weight_lines(config)


def onnx_lines(graph: Mapping[str, Any], first: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    name = graph["name"]
    feed = ", ".join(f'"{port["name"]}": {state_of(port, first) if graph is not first else zeros(port, sizes)}'
                     for port in graph["inputs"])
    yield f'{name} = onnxruntime.InferenceSession("{graph["file"]}")'
    yield f"{names_of(graph)} = {name}.run(None, {{{feed}}})"
    yield lines_about(graph)


def program_lines(graph: Mapping[str, Any], first: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[str]:
    given = ", ".join(state_of(port, first, "torch") if graph is not first else zeros(port, sizes, "torch")
                      for port in graph["inputs"])
    yield f'{graph["name"]} = torch.export.load("{graph["file"]}").module()'
    yield f"{names_of(graph)} = {graph['name']}({given})"
    yield lines_about(graph)


def names_of(graph: Mapping[str, Any]) -> str:
    names = [port["name"] for port in graph["outputs"]]
    return f"({names[0]},)" if len(names) == 1 else ", ".join(names)


def lines_about(graph: Mapping[str, Any]) -> str:
    outputs = [port["name"] for port in graph["outputs"]]
    return f"print({', '.join(f'{name}.shape' for name in outputs[:3])})"


def zeros(port: Mapping[str, Any], sizes: Mapping[str, int], library: str = "numpy") -> str:
    shape = ", ".join(str(sizes.get(axis, 1) if isinstance(axis, str) else axis) for axis in port["shape"])
    comma = "," if len(port["shape"]) == 1 else ""
    return f"{library}.zeros(({shape}{comma}), dtype={library}.{port['dtype']})"


def state_of(port: Mapping[str, Any], encoder: Mapping[str, Any], library: str = "numpy") -> str:
    """An input of a step: what the encoder returned, or START."""
    if port["name"] in {output["name"] for output in encoder["outputs"]}:
        return str(port["name"])
    return f"{library}.full((1,), 2)"


def weight_lines(config: Mapping[str, Any]) -> Iterator[str]:
    """The model's own class, with its arguments as the run has them."""
    yield "from omegaconf import OmegaConf"
    yield "from safetensors.torch import load_file"
    yield "from dltrain.build import build"
    yield 'model = build(OmegaConf.load("model.yaml"), "model").eval()'
    yield 'model.load_state_dict({k: v for k, v in load_file("model.safetensors").items() if k[:10] != "normalize."})'
