"""The rows of a summary: the stages of the backbone, then the other modules of the model, or the layers of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dltrain.contracts import backbone_of
from dltrain.summaries.calls import Cost
from dltrain.summaries.trace import Output

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}


@dataclass
class Section:
    """Modules of a model, in the order of computation, and the names of parameters that stand for a row."""

    name: str
    modules: list[nn.Module]
    parameters: set[str] = field(default_factory=set)  # of a layer that shares its module with others
    gates: int = 1
    is_stage: bool = False
    shape: tuple[int, ...] | None = None  # of its output, where it is not that of its last module


@dataclass
class Row:
    """`output`: without the batch, and of sequences without the steps. `stride`, `field_px`: with respect to the image;
    None where they are not known or there is no image. `multiply_adds`: by unit. `unread`: parameters that evaluation
    does not read. `per_gate`: parameters of one gate of a recurrent layer."""

    name: str
    output: tuple[int, ...] | None
    parameters: int
    frozen: int
    unread: int
    multiply_adds: dict[str, int]
    stride: int | None = None
    field_px: int | None = None
    per_gate: int | None = None


def sections(model: nn.Module, depth: int) -> list[Section]:
    """`depth`: 1 for stages and the modules beside them, 2 for what these consist of, and so on."""
    stages = stages_of(model)
    of_stages = {module for layers in stages.values() for layer in layers for module in layer.modules()}
    first = [Section(name, list(layers), is_stage=True) for name, layers in stages.items()]
    others = list(beside(model, "", of_stages))
    if not stages:
        while len(others) == 1 and list(others[0].modules[0].children()):
            others = list(beside(others[0].modules[0], f"{others[0].name}.", of_stages))
    result = [row for section in others for row in opened_recurrent(section, model)]
    opened = [*first, *result]
    for _ in range(depth - 1):
        opened = [inner for section in opened for inner in open_section(section)]
    return opened


def stages_of(model: nn.Module) -> Mapping[str, Sequence[nn.Module]]:
    backbone = backbone_of(model)
    try:
        return backbone.stages() if backbone is not None else {}
    except ValueError:
        return {}


def beside(parent: nn.Module, prefix: str, of_stages: set[nn.Module]) -> Iterator[Section]:
    """The children of a module, without those of the stages; a child that contains stages is replaced by its own. Then
    its own parameters."""
    for name, child in parent.named_children():
        inside = {*child.modules()}
        if child in of_stages:
            continue
        if inside & of_stages:
            yield from beside(child, f"{prefix}{name}.", of_stages)
        else:
            yield Section(prefix + name, [child])
    for name, _ in parent.named_parameters(recurse=False):
        yield Section(prefix + name, [], {prefix + name})


def opened_recurrent(section: Section, model: nn.Module) -> list[Section]:
    """A section whose parameters are those of one recurrent module, as one section for each layer and direction."""
    module = section.modules[0] if section.modules else None
    recurrent = [one for one in module.modules() if isinstance(one, nn.RNNBase)] if module is not None else []
    if len(recurrent) != 1 or module is None or len([*module.parameters()]) != len([*recurrent[0].parameters()]):
        return [section]
    layer, names = recurrent[0], {tensor: name for name, tensor in model.named_parameters()}
    rows = []
    for number in range(layer.num_layers):
        for suffix, words in (("", ""), ("_reverse", " backward"))[: 1 + layer.bidirectional]:
            tail = f"_l{number}{suffix}"
            own = {names[tensor] for name, tensor in layer.named_parameters() if name.endswith(tail)}
            rows.append(Section(f"{section.name} {number + 1}{words}", [layer], own, GATES[type(layer)],
                                shape=(layer.hidden_size,)))
    return rows


def open_section(section: Section) -> list[Section]:
    """Its modules one by one, each opened to its children if it is the only one."""
    if section.parameters or not section.modules:
        return [section]
    inner = [(str(number), module) for number, module in enumerate(section.modules)]
    if len(inner) == 1:
        inner = list(inner[0][1].named_children())
    rows = [Section(f"{section.name}.{name}", [module]) for name, module in inner
            if not isinstance(module, nn.Identity)]
    return rows or [section]


def rows_of(model: nn.Module, cost: Cost, depth: int) -> list[Row]:
    """A row for each section that has parameters, computes something, or changes the size of the map."""
    names = {tensor: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    modules = {module: name for name, module in model.named_modules()}
    counted: set[str] = set()
    rows: list[Row] = []
    for section in sections(model, depth):
        inside = [one for module in section.modules for one in module.modules()]
        own = section.parameters or {names[tensor] for one in section.modules
                                     for tensor in (*one.parameters(), *one.buffers()) if tensor in names}
        owners = own | ({modules[one] for one in inside if one in modules} if not section.parameters else set())
        adds = {unit: sum(counts[name] for name in owners - counted)
                for unit, counts in cost.multiply_adds.items()}
        row = row_of(section, model, cost, own - counted, {unit: n for unit, n in adds.items() if n})
        if row.parameters or row.multiply_adds or section.is_stage or changes_map(row, rows):
            rows.append(row)
        counted |= owners
    left = {unit: sum(counts[name] for name in counts.keys() - counted) for unit, counts in cost.multiply_adds.items()}
    if any(left.values()):
        rows.append(Row("without weights", None, 0, 0, 0, {unit: n for unit, n in left.items() if n}))
    return rows


def changes_map(row: Row, before: Sequence[Row]) -> bool:
    """Whether the map has another size than after the row before, as after pooling."""
    return row.stride is not None and (not before or row.output != before[-1].output)


def row_of(section: Section, model: nn.Module, cost: Cost, own: set[str], adds: dict[str, int]) -> Row:
    parameters = {name: tensor for name, tensor in model.named_parameters() if name in own}
    output = section_output(section, cost)
    shape = section.shape or trimmed(output.shape if output else None, cost.is_image)
    reach = output.field if output and not section.shape else None
    count = count_values(parameters.values())
    frozen = count_values(tensor for tensor in parameters.values() if not tensor.requires_grad)
    unread = count_values(tensor for name, tensor in parameters.items() if name not in cost.trace.read)
    return Row(section.name, shape, count, frozen, unread if cost.is_complete else 0, adds,
               reach.stride if reach else None, reach.px if reach else None,
               count // section.gates if section.gates > 1 else None)


def count_values(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def section_output(section: Section, cost: Cost) -> Output | None:
    """That of the last of its modules which was called. A backbone may call a function in the place of its last layer,
    which keeps the shape."""
    names: dict[Any, str] = cost.trace.names
    calls = (cost.trace.outputs.get(names.get(module, "?")) for module in reversed(section.modules))
    return next((output for output in calls if output is not None), None)


def trimmed(shape: tuple[int, ...] | None, is_image: bool) -> tuple[int, ...] | None:
    """Without the batch; of sequences (B, T, F) without the steps."""
    if shape is None:
        return None
    return shape[1:] if is_image or len(shape) < 3 else shape[2:]
