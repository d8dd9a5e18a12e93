"""Trains any model that takes and returns a state on TokenBatches: consecutive windows of running texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import END, IGNORED_LABEL, UNKNOWN, TokenBatch, generator
from dltrain.contracts import InputEncoder, State, StatefulModel
from dltrain.drawing.sequences import LINES, join_symbols
from dltrain.errors import UserError
from dltrain.parallel.as_one import AsOne
from dltrain.tasks.task import BITS, Figure, Input, Prediction, Task, TaskKeys
from dltrain.tasks.text_forms import LanguageForm

SAMPLE_LENGTH = 300  # characters of the sample after each validation
NOISE_ROWS = 64  # characters for which random numbers are generated at once
READ_EVERY = 16  # characters that a device writes before the host reads them


class LanguageModeling(Task[StatefulModel, TokenBatch]):
    """Cross-entropy of the next symbol, by backpropagation through time over a window. The state is carried into the
    next window without its gradient (R. Williams, J. Peng, 1990), and is zero at the start of each epoch.

    Metrics: train/, val/ and test/ loss (nats per symbol) and bits_per_character. The carried state is a buffer: it is
    saved with the weights, so a resumed run continues with the same one.
    """

    batch_type = TokenBatch
    headline, headline_mode = "val/bits_per_character", "min"
    unit, training_metrics = "characters", ("loss", "bits_per_character")

    def __init__(self, model: StatefulModel, vocab_size: int, batch_size: int, **keys: Unpack[TaskKeys]):
        super().__init__(model, **keys)
        self.vocab_size = vocab_size
        self.hold_streams(batch_size)
        self.register_load_state_dict_pre_hook(keep_other_streams)

    def hold_streams(self, count: int) -> None:
        """Sets the carried state of so many streams to zero."""
        states = self.model.zeros(count)
        self.num_states, self.num_streams = len(states), count
        for number, state in enumerate(states):
            self.register_buffer(f"state{number}", state)

    def train_as_one(self, as_one: AsOne) -> None:
        """Every process holds the state of all streams, so that the first one can save it at any time."""
        super().train_as_one(as_one)
        self.hold_streams(self.num_streams * as_one.processes)
        self.stream_dims = [[two - one for one, two in zip(alone.shape, both.shape, strict=True)].index(1)
                            for alone, both in zip(self.model.zeros(1), self.model.zeros(2), strict=True)]

    def count(self, batch: TokenBatch) -> int:
        return batch.tokens.numel()

    def check(self, batch: TokenBatch) -> None:
        batch.check(self.vocab_size)
        logits, state = self.model(batch.tokens)
        expected = (*batch.tokens.shape, self.vocab_size)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected} and a state, but returns {tuple(logits.shape)}")
        if [tuple(s.shape) for s in state] != [tuple(s.shape) for s in self.model.zeros(batch.size)]:
            raise UserError("the state that it returns has another shape than its zeros(B)")

    def carried_state(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"state{number}") for number in range(self.num_states))

    def own_state(self) -> tuple[Tensor, ...]:
        """That of this process's streams."""
        states, as_one = self.carried_state(), self.as_one
        return states if as_one is None else tuple(map(as_one.own, states, self.stream_dims))

    def carry(self, states: Sequence[Tensor]) -> None:
        """Keeps the state of this process's streams, in new tensors: backward needs those before."""
        joined = [state.clone() for state in states] if self.as_one is None else map(
            self.as_one.join, states, self.stream_dims)
        for number, state in enumerate(joined):
            self._buffers[f"state{number}"] = state

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            for number, state in enumerate(self.carried_state()):
                self._buffers[f"state{number}"] = torch.zeros_like(state)
        before = self.own_state()
        logits, after = self.model(batch.tokens, before)
        self.carry([state.detach() for state in after])
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        count = batch.targets.numel()
        total = loss.detach() * count
        self.step_sums.append((total, total * BITS, count))
        return loss

    def evaluation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        if batch_idx == 0:
            self.evaluation_state = self.model.zeros(batch.size)
        logits, after = self.model(batch.tokens, self.evaluation_state)
        self.evaluation_state = tuple(state.clone() for state in after)  # a CUDA graph writes its outputs anew
        targets = batch.targets.flatten()
        if self.own_metrics:
            self.update_own_metrics(logits[batch.targets != IGNORED_LABEL], targets[targets != IGNORED_LABEL])
        self.add_loss(F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum", ignore_index=IGNORED_LABEL),
                      (targets != IGNORED_LABEL).sum())

    def evaluation_end(self, split: str) -> None:
        loss = self.mean_loss()
        self.log_metrics(split, {"loss": loss, "bits_per_character": loss * BITS})

    def training_figures(self, batch: TokenBatch) -> dict[str, Figure]:
        """The text of the first windows. Each symbol is predicted from those before it."""
        symbols = self.vocabularies["characters"]
        return {"batch": "\n".join(join_symbols(row, symbols) for row in batch.tokens[:LINES].tolist())}

    def figures(self, batch: TokenBatch, outputs: object) -> dict[str, Figure]:
        """What the model writes after a line break, with the same random numbers each time."""
        symbols = self.vocabularies["characters"]
        start = symbols.index("\n") if "\n" in symbols else len(symbols) - 1
        written = generate(self.model, torch.tensor([start], device=self.device), generator("sample", self.seed))
        return {"sample": "".join(symbols[next(written)] for _ in range(SAMPLE_LENGTH))}

    def export_form(self) -> LanguageForm:
        return LanguageForm(self)

    def predict(self, inputs: Sequence[Input], data: InputEncoder[str, TokenBatch], length: int = 400,
                temperature: float = 0.8, top_k: int | None = None, seed: int = 0, **options: object
                ) -> Iterator[Prediction]:
        """`length` characters that continue each prompt; the same arguments give the same text. Raises UserError for a
        prompt without characters, or with characters that the training text does not have."""
        symbols = self.vocabularies["characters"]
        for item in inputs:
            prompt = item.load()
            tokens: Tensor = data.encode_inputs([prompt]).tokens[0]
            if not len(tokens):
                raise UserError("prompt must have at least one character")
            pairs = zip(prompt, tokens.tolist(), strict=True)
            if unknown := sorted({character for character, token in pairs if token == UNKNOWN}):
                raise UserError("prompt has characters that the training text does not have: "
                                f"{', '.join(map(repr, unknown[:5]))}")
            written = generate(self.model, tokens.to(self.device), generator("predict", seed), temperature, top_k)
            yield Prediction(prompt, stream(prompt, symbols, islice(written, length)))


def keep_other_streams(task: LanguageModeling, weights: dict[str, Tensor], prefix: str, *context: object) -> None:
    """Keeps the zeros of a task that is built with another batch size than its checkpoint, to be evaluated: its carried
    state is that of other streams, and evaluation does not read it."""
    for number, state in enumerate(task.carried_state()):
        if weights[f"{prefix}state{number}"].shape != state.shape:
            weights[f"{prefix}state{number}"] = state


def stream(prompt: str, symbols: Sequence[str], tokens: Iterator[int]) -> Iterator[str]:
    yield prompt.lstrip("\n")
    for token in tokens:
        yield symbols[token]


def generate(model: StatefulModel, prompt: Tensor, rng: torch.Generator, temperature: float = 1.0,
             top_k: int | None = None) -> Iterator[int]:
    """Yields the symbols that follow `prompt` (N,), each sampled from softmax(logits / temperature) of the `top_k` most
    probable ones; temperature 0 takes the most probable. PAD, UNKNOWN, START and END are never written. The model must
    be in evaluation mode.

    argmax(logits / temperature + Gumbel noise) is such a sample (the Gumbel-max trick)."""
    state: State | list[State] = model.zeros(1)
    first, logits, unread = END + 1, prompt.new_empty(0), list[Tensor]()
    with torch.inference_mode():
        for token in prompt:
            logits, state = model.step(token[None], state)
    while True:
        noise = -torch.empty(NOISE_ROWS, logits.shape[1] - first).exponential_(generator=rng).log().to(logits.device)
        for row in noise:
            with torch.inference_mode():
                allowed = logits[:, first:]
                if top_k is not None and top_k < allowed.shape[1]:
                    allowed = allowed.masked_fill(allowed < allowed.topk(top_k).values[:, -1], -torch.inf)
                token = (allowed / temperature + row if temperature else allowed).argmax(1) + first
                logits, state = model.step(token, state)
            if token.is_cpu:
                yield int(token)
                continue
            unread.append(token)
            if len(unread) == READ_EVERY:
                yield from torch.cat(unread).tolist()
                unread.clear()
