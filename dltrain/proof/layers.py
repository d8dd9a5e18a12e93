"""What each layer of a model does in one training step: its output in the forward pass, and the gradients of its
parameters. Non-finite values are counted, and left out of the other numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dltrain.drawing.style import colour, new_figure, save_figure
from dltrain.drawing.tables import format_number, format_table, write_csv

COLUMNS = ("mean", "deviation", "max", "zeros", "non_finite")


class Sums(NamedTuple):
    """Of some values, on their device: () float64 each."""

    number: Tensor
    total: Tensor
    squares: Tensor
    largest: Tensor  # absolute value
    zeros: Tensor
    non_finite: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Sums:
        finite = values.isfinite()
        kept = torch.where(finite, values, 0).double()
        count = finite.sum().double()
        return cls(count, kept.sum(), kept.square().sum(),
                   kept.abs().amax() if kept.numel() else count, (values == 0).sum().double(),
                   values.numel() - count)

    def __add__(self, other: Any) -> Sums:
        largest = torch.maximum(self.largest, other.largest)
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))._replace(largest=largest)


class Statistics(NamedTuple):
    """`deviation`: the standard one. `max`: the largest absolute value. `zeros`: their share in the finite values."""

    mean: float
    deviation: float
    max: float
    zeros: float
    non_finite: int

    @classmethod
    def of(cls, sums: Sums) -> Statistics:
        count, total, squares, largest, zeros, non_finite = (float(value) for value in sums)
        if not count:
            return cls(math.nan, math.nan, math.nan, math.nan, int(non_finite))
        mean = total / count
        return cls(mean, max(0.0, squares / count - mean**2) ** 0.5, largest, zeros / count, int(non_finite))


class Layer(NamedTuple):
    """A layer in one step. None: it was not called, or has no gradient of its own."""

    name: str
    kind: str
    output: Statistics | None
    gradient: Statistics | None


class LayerWatch:
    """Watches the layers of a model, those without layers of their own: from `start` on their outputs, of all calls
    together, until `stop`."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers = {name or "model": module for name, module in model.named_modules()
                       if not [*module.children()] or [*module.parameters(recurse=False)]}
        self.outputs: dict[str, Sums] = {}
        self.handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self) -> None:
        self.outputs = {}
        for name, layer in self.layers.items():
            def note(module: nn.Module, inputs: object, output: object, name: str = name) -> None:
                values = [leaf for leaf in tree_leaves(output) if torch.is_tensor(leaf) and leaf.is_floating_point()]
                if values:  # the first of several, as the states of all time steps of an LSTM
                    sums = Sums.of(values[0].detach())
                    self.outputs[name] = self.outputs[name] + sums if name in self.outputs else sums

            self.handles.append(layer.register_forward_hook(note))

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def gradients(self) -> dict[str, Sums]:
        """Of the parameters that belong to each layer itself."""
        sums = {}
        for name, layer in self.layers.items():
            own = [parameter.grad.detach().reshape(-1) for parameter in layer.parameters(recurse=False)
                   if parameter.grad is not None]
            if own:
                sums[name] = Sums.of(torch.cat(own))
        return sums

    def table(self, gradients: dict[str, Sums]) -> list[Layer]:
        """The layers that were called, or have a gradient, in the order of the model."""
        return [Layer(name, type(layer).__name__, *(Statistics.of(sums[name]) if name in sums else None
                                                    for sums in (self.outputs, gradients)))
                for name, layer in self.layers.items() if name in self.outputs or name in gradients]


def format_layers(layers: Sequence[Layer]) -> str:
    header = ["layer", "", *(f"output {name}" if name == "mean" else name.replace("_", "-") for name in COLUMNS),
              *(f"gradient {name}" if name == "mean" else name.replace("_", "-") for name in COLUMNS)]
    rows = [[layer.name, layer.kind, *cells(layer.output), *cells(layer.gradient)] for layer in layers]
    return format_table(header, rows, right=range(2, len(header)))


def cells(statistics: Statistics | None) -> list[str]:
    if statistics is None:
        return ["-"] * len(COLUMNS)
    mean, deviation, largest, zeros, non_finite = statistics
    return [*map(format_number, (mean, deviation, largest)), f"{zeros:.1%}", f"{non_finite:,}"]


def write_layers(layers: Sequence[Layer], file: Path) -> None:
    """A CSV file with a row per layer."""
    blank = [""] * len(COLUMNS)
    names = [f"{what}_{name}" for what in ("output", "gradient") for name in COLUMNS]
    write_csv(file, ["layer", "kind", *names],
              [[layer.name, layer.kind, *(layer.output or blank), *(layer.gradient or blank)] for layer in layers])


def draw_layers(layers: Sequence[Layer], title: str, file: Path) -> None:
    """Deviation and largest value of outputs and gradients by layer; an orange bar where values are not finite."""
    figure = new_figure(11, max(3.0, 0.22 * len(layers) + 1.2))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, values in zip(panels, ("output", "gradient"), ([layer.output for layer in layers],
                                                                   [layer.gradient for layer in layers]), strict=True):
        known = [(place, one) for place, one in enumerate(values) if one is not None]
        for place, one in known:
            if one.non_finite:
                axes.axhspan(place - 0.5, place + 0.5, color=colour(1), alpha=0.4)
        for number, (word, marker) in enumerate((("deviation", "o"), ("max", ">"))):
            points = [(one._asdict()[word], place) for place, one in known if one.max > 0]
            axes.plot([value for value, _ in points], [place for _, place in points], marker, markersize=4,
                      color=colour(2 * number), label=word)
        axes.set(title=f"{name}, orange: values that are not finite", xscale="log" if points else "linear")
        axes.tick_params(axis="x", which="minor", labelbottom=False)
    panels[0].set_yticks(range(len(layers)), [f"{layer.name} ({layer.kind})" for layer in layers], fontsize=6)
    panels[0].invert_yaxis()
    panels[0].legend(fontsize=8)
    figure.suptitle(title)
    save_figure(figure, file)
