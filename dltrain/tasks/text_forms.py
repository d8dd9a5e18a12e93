"""The graphs of tasks on sequences: one step of a language model, labels of whole sequences or of each symbol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dltrain.tasks.graphs import (
    FIXED_LENGTH,
    Attempt,
    Axis,
    Call,
    Form,
    Graph,
    Port,
    rows_of_one_length,
    whole_lengths,
)

State = tuple[Tensor, ...]
WHOLE_ROWS = "All sequences of a call have the same length: call it once for each length."


class Step(nn.Module):
    """One step of a language model, its state as tensors (layers, B, H)."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, symbols: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        logits, after = self.model.step(symbols, state)
        return logits, *(torch.stack(tensors) for tensors in zip(*after, strict=True))


class CallsStep(nn.Module):
    """A language model that is the exported graph of one step. `zeros`: of the model."""

    def __init__(self, call: Call, zeros: Any):
        super().__init__()
        self.call, self.zeros = call, zeros

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, *after = self.call(tokens, *state)
        return logits, tuple(after)

    def forward(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits = []
        for column in tokens.unbind(1):
            of_column, state = self.step(column, state)
            logits.append(of_column)
        return torch.stack(logits, 1), state


class LanguageForm(Form):
    """Compared are the logits of the windows of the test split and the state after them, which the run computes window
    by window and the graph symbol by symbol."""

    attempts = (Attempt(False, False),)
    check_sizes = (1,)  # a sample is a window of all streams of the text
    usage = "The state before the first symbol is zeros; each call returns the one for the next call."

    def connect(self, calls: Mapping[str, Call]) -> None:
        self.task.model = CallsStep(calls["model"], self.task.model.zeros)

    def outputs(self, batch: Any) -> list[Tensor]:
        with torch.inference_mode():
            logits, state = self.task.model(batch.tokens, self.task.model.zeros(batch.size))
        return [logits, *state]

    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        model, size = self.task.model, self.task.vocab_size
        one, two = model.zeros(1), model.zeros(2)  # a batch of one would be taken for a fixed size
        names = [*"hc"] if len(two) <= 2 else [f"state_{number}" for number in range(len(two))]
        axes = [open_axes(a, b, "batch") for a, b in zip(one, two, strict=True)]
        ports = [Port(name, of_state, torch.float32, "the state, zeros at first")
                 for name, of_state in zip(names, axes, strict=False)]
        after = [port._replace(name=f"new_{port.name}", values="the state after the symbol") for port in ports]
        return [Graph("model", Step(model), (torch.full((2,), size - 1), *two),
                      (symbols_port("symbols", ("batch",), size), *ports),
                      (Port("logits", ("batch", size), torch.float32, "any; of the next symbol"), *after))]


class Whole(nn.Module):
    """A model of sequences that are all as long as the tensor."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor]:
        return (self.model(tokens, whole_lengths(tokens)),)


class CallsWhole(nn.Module):
    """A model of sequences that is an exported graph, which is called once for each length. `per_symbol`: its output
    (B, T, K) has zeros after the end of a sequence."""

    def __init__(self, call: Call, per_symbol: bool):
        super().__init__()
        self.call, self.per_symbol = call, per_symbol

    def forward(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        out: Tensor | None = None
        for length, rows in rows_of_one_length(lengths).items():
            (of_rows,) = self.call(tokens[rows, :length])
            if out is None:
                shape = (len(tokens), tokens.shape[1]) if self.per_symbol else (len(tokens),)
                out = of_rows.new_zeros(*shape, of_rows.shape[-1])
            if self.per_symbol:
                out[rows, :length] = of_rows
            else:
                out[rows] = of_rows
        assert out is not None
        return out


class SequenceForm(Form):
    """`per_symbol`: a tagger, whose outputs are compared up to the end of each sequence."""

    refused = FIXED_LENGTH
    attempts = (Attempt(True, True),)
    usage = WHOLE_ROWS

    def __init__(self, task: Any, per_symbol: bool):
        super().__init__(task)
        self.per_symbol = per_symbol

    def connect(self, calls: Mapping[str, Call]) -> None:
        self.task.model = CallsWhole(calls["model"], self.per_symbol)

    def outputs(self, batch: Any) -> list[Tensor]:
        with torch.inference_mode():
            logits = self.task(batch)
        if not self.per_symbol:
            return [logits]
        return [row[:length] for row, length in zip(logits, batch.lengths, strict=True)]

    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        tokens, classes = batch.tokens[:2, : min(batch.lengths[:2])], self.task.num_classes
        if tokens.is_floating_point():
            port = Port("vectors", ("batch", "time", tokens.shape[2]), tokens.dtype, "as the data module gives them")
        else:
            port = symbols_port("symbols", ("batch", "time"), vocabulary_size(self.task))
        axes: tuple[Axis, ...] = ("batch", "time", classes) if self.per_symbol else ("batch", classes)
        return [Graph("model", Whole(self.task.model), (tokens,), (port,), (
            Port("logits", axes, torch.float32, "any; their softmax over the classes is the probabilities"),))]


def symbols_port(name: str, axes: tuple[Axis, ...], size: int) -> Port:
    return Port(name, axes, torch.int64, f"numbers of symbols, from 0 to {size - 1}")


def vocabulary_size(task: Any) -> int:
    return len(task.vocabularies["text"])


def open_axes(one: Tensor, other: Tensor, name: str) -> tuple[Axis, ...]:
    """The axes of a tensor: named where its sizes for two inputs differ."""
    return tuple(a if a == b else name for a, b in zip(one.shape, other.shape, strict=True))
