"""The graphs of tasks that write a sequence: the encoder, which gives the state before START, and one step.

The state of a model is a tree of tensors with one row for each sequence (decoding.py). The encoder returns its tensors
in a fixed order, without those that have no values; a step takes all of them and returns those that it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dltrain.tasks.decoding import read_sequences
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
from dltrain.tasks.image_forms import PIXEL_VALUES, take_raw_pixels
from dltrain.tasks.text_forms import WHOLE_ROWS, symbols_port

State = tuple[Tensor, ...]
LOGITS = "any; of the next symbol"


class Packing:
    """The order of the tensors of a state, and their names."""

    def __init__(self, state: Any):
        leaves = flatten(state)
        self.like = state
        self.shapes = [tuple(leaf.shape) for _, leaf in leaves]
        self.full = [number for number, (_, leaf) in enumerate(leaves) if leaf.numel()]
        unnamed = count()
        self.names = [leaves[number][0] or f"state_{next(unnamed)}" for number in self.full]

    def pack(self, state: Any) -> State:
        leaves = flatten(state)
        return tuple(leaves[number][1] for number in self.full)

    def unpack(self, tensors: Sequence[Tensor]) -> Any:
        leaves = [tensors[0].new_zeros(tensors[0].shape[0], *shape[1:]) for shape in self.shapes]
        for number, tensor in zip(self.full, tensors, strict=True):
            leaves[number] = tensor
        return rebuild(self.like, iter(leaves))


def flatten(state: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """The tensors of a state by the name of their field, "" in a list or tuple."""
    if isinstance(state, Tensor):
        return [(name, state)]
    pairs = state.items() if isinstance(state, Mapping) else zip(
        getattr(state, "_fields", [""] * len(state)), state, strict=True)
    return [leaf for field, inner in pairs for leaf in flatten(inner, str(field))]


def rebuild(like: Any, leaves: Iterator[Tensor]) -> Any:
    """A state in the form of another one, with its tensors in the order of `flatten`."""
    if isinstance(like, Tensor):
        return next(leaves)
    if isinstance(like, Mapping):
        return {key: rebuild(inner, leaves) for key, inner in like.items()}
    values = [rebuild(inner, leaves) for inner in like]
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


class Begin(nn.Module):
    """`read`: the inputs to the arguments of the model's `begin`."""

    def __init__(self, model: Any, packing: Packing, read: Callable[[Tensor], tuple[Any, ...]]):
        super().__init__()
        self.model, self.packing, self.read = model, packing, read

    def forward(self, source: Tensor) -> State:
        return self.packing.pack(self.model.begin(*self.read(source)))


class Step(nn.Module):
    """`changed`: the numbers of the tensors that a step changes. `attends`: it also returns the attention with which
    the word is chosen, (N, places)."""

    def __init__(self, model: Any, packing: Packing, changed: Sequence[int], attends: bool):
        super().__init__()
        self.model, self.packing, self.changed, self.attends = model, packing, changed, attends

    def forward(self, symbols: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        before = self.packing.unpack(state)
        logits, after = self.model.step(symbols, before)
        tensors = self.packing.pack(after)
        attention = (self.model.attention(*before),) if self.attends else ()
        return logits, *(tensors[number] for number in self.changed), *attention


class CallsDecoder(nn.Module):
    """A model that writes by calling the exported graphs. Its state is a tuple of tensors."""

    def __init__(self, encoder: Call, step: Call):
        super().__init__()
        self.encoder, self.one_step = encoder, step
        self.attends = "attention" in step.outputs
        self.places = [step.inputs.index(name.removeprefix("new_")) - 1 for name in step.outputs
                       if name.startswith("new_")]

    def begin(self, source: Tensor, lengths: Sequence[int] = ()) -> State:
        """Sources are of the same length, none is padded."""
        return self.encoder(source)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        logits, *outputs = self.one_step(tokens, *state)
        changed = dict(zip(self.places, outputs, strict=False))
        return logits, tuple(changed.get(number, tensor) for number, tensor in enumerate(state))

    def attention_maps(self, images: Tensor, captions: Tensor) -> Tensor:
        """As contracts.CaptionModel; the map is a square."""
        state, weights = self.begin(images), []
        for words in captions.unbind(1):
            weights.append(self.one_step(words, *state)[-1])
            _, state = self.step(words, state)
        stacked = torch.stack(weights, 1)
        return stacked.unflatten(2, (round(stacked.shape[2] ** 0.5), -1))


class WritingForm(Form):
    """A task whose model has `begin` and `step`."""

    symbols: ClassVar[str]

    def two_graphs(self, source: Port, example: Tensor, other: Tensor, read: Callable[[Tensor], tuple[Any, ...]],
                   open_axis: str, vocab_size: int) -> list[Graph]:
        """`example`, `other`: inputs of two and of three samples that differ in size where `open_axis` is."""
        model = self.task.model
        with torch.no_grad():
            states = [model.begin(*read(values)) for values in (example, other)]
            packing = Packing(states[0])
            first, second = (packing.pack(state) for state in states)
            _, after = model.step(torch.full((2,), vocab_size - 1), packing.unpack(first))
        new = packing.pack(after)
        changed = [number for number, tensor in enumerate(new) if tensor is not first[number]]
        ports = [Port(name, ("batch", *(a if a == b else open_axis for a, b in
                                        zip(one.shape[1:], two.shape[1:], strict=True))), one.dtype,
                      "the state, from the encoder or the step before")
                 for name, one, two in zip(packing.names, first, second, strict=True)]
        outputs = [Port("logits", ("batch", vocab_size), torch.float32, LOGITS),
                   *(ports[number]._replace(name=f"new_{ports[number].name}", values="the state after the symbol")
                     for number in changed)]
        attends = bool(getattr(model, "attends", False)) and hasattr(model, "attention")
        if attends:
            outputs.append(Port("attention", ("batch", "places"), torch.float32,
                                "from 0 to 1: where the symbol is chosen by; they sum to 1"))
        example_tokens = torch.full((2,), vocab_size - 1)
        return [Graph("encoder", Begin(model, packing, read), (example,), (source,), tuple(ports)),
                Graph("step", Step(model, packing, changed, attends),
                      (example_tokens, *(tensor.detach() for tensor in first)),
                      (symbols_port(self.symbols, ("batch",), vocab_size), *ports), tuple(outputs))]


class TranslationForm(WritingForm):
    refused = FIXED_LENGTH
    attempts = (Attempt(True, True),)
    symbols = "symbols"
    usage = WHOLE_ROWS

    def connect(self, calls: Mapping[str, Call]) -> None:
        self.task.model = CallsDecoder(calls["encoder"], calls["step"])

    def outputs(self, batch: Any) -> list[Tensor]:
        """The logits of the symbols of each target, for the sources of each length."""
        logits, model = [], self.task.model
        for length, rows in rows_of_one_length(batch.source_lengths).items():
            with torch.inference_mode():
                state = model.begin(batch.source[rows, :length], (length,) * len(rows))
                logits.append(read_sequences(model.step, state, batch.target[rows, :-1]))
        return logits

    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        length = min(batch.source_lengths[:2])
        example, size = batch.source[:2, :length], self.task.source_size
        other = torch.cat([example, example[:1]]).repeat(1, 2)
        return self.two_graphs(symbols_port("source", ("batch", "source"), size), example, other,
                               lambda source: (source, whole_lengths(source)), "source", self.task.target_size)


class CaptionForm(WritingForm):
    attempts = (Attempt(False, False), Attempt(True, False))
    reads_pixels = True
    symbols = "words"
    usage = "A sentence begins with START, 2, and ends with END, 3. PAD is 0, an unknown word 1."

    def connect(self, calls: Mapping[str, Call]) -> None:
        take_raw_pixels(self.task, CallsDecoder(calls["encoder"], calls["step"]))

    def outputs(self, batch: Any) -> list[Tensor]:
        """The logits of the words of the first caption of each image, and the attention for them."""
        task, words = self.task, batch.captions[:, 0, :-1]
        with torch.inference_mode():
            pixels = task.augment.normalize(batch.images)
            logits = read_sequences(task.model.step, task.model.begin(pixels), words)
            return [logits, *([task.model.attention_maps(pixels, words)] if task.model.attends else [])]

    def graphs(self, batch: Any, any_size: bool, pixels: torch.dtype) -> list[Graph]:
        images: Tensor = batch.images[:2].to(pixels)
        axes: tuple[Axis, ...] = ("batch", *images.shape[1:])

        def read(values: Tensor) -> tuple[Tensor]:
            return (self.task.augment.normalize(values if values.dtype == torch.uint8 else values / 255),)

        return self.two_graphs(Port("images", axes, pixels, PIXEL_VALUES), images, torch.cat([images, images[:1]]),
                               read, "places", self.task.vocab_size)
