"""Turns TokenBatches, windows of texts that run on, into a loss using any model that carries a state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain.batches import END, IGNORED_LABEL, TokenBatch, generator
from dltrain.errors import UserError
from dltrain.tasks.task import BITS, Task


class LanguageModel(Task):
    """Cross-entropy of the next symbol, by backpropagation through time over a window; the state goes on into the next
    window without its gradient (R. Williams, J. Peng, 1990), and starts at zero in each epoch.

    Metrics: train/, val/ and test/ loss (nats a symbol) and bits_per_character. The carried state is a buffer: it is
    saved with the weights, so that a resumed run goes on with the same one.
    """

    batch_type = TokenBatch
    headline, headline_mode = "val/bits_per_character", "min"
    unit, training_metrics = "characters", ("loss", "bits_per_character")
    eval_loss: Tensor

    def __init__(self, model: Any, vocab_size: int, batch_size: int, **keys: Any):
        super().__init__(model, **keys)
        self.vocab_size = vocab_size
        self.num_states = len(model.zeros(1))
        for number, state in enumerate(model.zeros(batch_size)):
            self.register_buffer(f"state{number}", state)
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored symbols

    def count(self, batch: TokenBatch) -> int:
        return batch.tokens.numel()

    def check(self, batch: TokenBatch) -> None:
        batch.check(self.vocab_size)
        logits, state = self.model(batch.tokens)
        wanted = (*batch.tokens.shape, self.vocab_size)
        if tuple(logits.shape) != wanted:
            raise UserError(f"it must give logits {wanted} and a state, but gives {tuple(logits.shape)}")
        if [tuple(s.shape) for s in state] != [tuple(s.shape) for s in self.model.zeros(batch.size)]:
            raise UserError("the state that it gives has another shape than its zeros(B)")

    def carried(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, f"state{number}") for number in range(self.num_states))

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        if batch_idx == 0:
            for state in self.carried():
                state.zero_()
        logits, after = self.model(batch.tokens, tuple(state.clone() for state in self.carried()))
        for state, new in zip(self.carried(), after, strict=True):
            state.copy_(new.detach())
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
        count = batch.targets.numel()
        with torch.no_grad():
            total = loss.detach() * count
            self.sums += torch.stack([total, total * BITS, torch.full_like(total, count)])
        return loss

    def evaluation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        if batch_idx == 0:
            self.eval_state = self.model.zeros(batch.size)
        logits, self.eval_state = self.model(batch.tokens, self.eval_state)
        self.eval_loss[0] += F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="sum",
                                             ignore_index=IGNORED_LABEL)
        self.eval_loss[1] += (batch.targets != IGNORED_LABEL).sum()

    def evaluation_end(self, split: str) -> None:
        loss, count = self.summed(self.eval_loss)
        self.log_evaluation(split, {"loss": loss / count, "bits_per_character": loss / count * BITS})
        self.eval_loss.zero_()

    def sample(self, data: Any, length: int = 300) -> str:
        """What the net writes by itself, after a line's end. The same draws at every validation."""
        symbols = data.vocabularies["characters"]
        start = symbols.index("\n") if "\n" in symbols else len(symbols) - 1
        drawn = continuation(self.model, torch.tensor([start], device=self.device), generator("sample", self.seed))
        return "".join(symbols[next(drawn)] for _ in range(length))


def continuation(model: Any, prompt: Tensor, draws: torch.Generator, temperature: float = 1.0,
                 top_k: int | None = None) -> Iterator[int]:
    """Yields symbol after symbol that follows `prompt` (N,), each drawn from softmax(logits / temperature) of the
    `top_k` most likely ones; temperature 0 takes the likeliest. PAD, UNKNOWN, START and END are never drawn. The model
    is one in evaluation mode.

    argmax(logits / temperature - log e), e exponential, is such a draw (E. Gumbel's maximum)."""
    first, state, logits = END + 1, model.zeros(1), prompt.new_empty(0)
    with torch.inference_mode():
        for token in prompt:
            logits, state = model.step(token[None], state)
    while True:
        noise = -torch.empty(64, logits.shape[1] - first).exponential_(generator=draws).log().to(logits.device)
        for row in noise:
            with torch.inference_mode():
                chances = logits[:, first:]
                if top_k is not None and top_k < chances.shape[1]:
                    chances = chances.masked_fill(chances < chances.topk(top_k).values[:, -1], -torch.inf)
                drawn = (chances / temperature + row if temperature else chances).argmax(1) + first
                logits, state = model.step(drawn, state)
            yield int(drawn)
