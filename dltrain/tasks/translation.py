"""Turns PairBatches into a loss using any model that reads a source and writes a target."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.text import BLEUScore

from dltrain.batches import PAD, PairBatch
from dltrain.errors import UserError
from dltrain.tasks.decoding import starts, until_end, written
from dltrain.tasks.task import Task


class Translation(Task):
    """Cross-entropy of each next symbol of the target, given the true ones before it.

    Metrics: train/loss; val/ and test/ loss (nats a symbol, true ones before it), exact_match (share of targets that
    greedy decoding writes without a fault) and, of words, bleu (K. Papineni et al., 2002: corpus BLEU-4 of the same
    tokens, one reference, in [0, 1]), which is then the headline.
    """

    batch_type = PairBatch
    unit = "pairs"
    headline, headline_mode = "val/exact_match", "max"
    eval_loss: Tensor
    matches: Tensor

    def __init__(self, model: Any, source_size: int, target_size: int, words: bool, max_length: int, **keys: Any):
        super().__init__(model, **keys)
        self.source_size, self.target_size, self.max_length = source_size, target_size, max_length
        self.bleu = BLEUScore() if words else None
        if words:
            self.headline = "val/bleu"
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, scored symbols
        self.register_buffer("matches", torch.zeros(2), persistent=False)  # exact ones, pairs

    def check(self, batch: PairBatch) -> None:
        batch.check(self.source_size, self.target_size)
        out = self.model(batch.source, batch.source_lengths, batch.target[:, :-1])
        wanted = (batch.size, batch.target.shape[1] - 1, self.target_size)
        if tuple(out.shape) != wanted:
            raise UserError(f"it must give logits {wanted}, but gives {tuple(out.shape)}")

    def loss_sum(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """Over all symbols after START, and how many they are."""
        logits = self.model(batch.source, batch.source_lengths, batch.target[:, :-1])
        wanted = batch.target[:, 1:]
        total = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="sum", ignore_index=PAD)
        return total, (wanted != PAD).sum()

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        total, count = self.loss_sum(batch)
        with torch.no_grad():
            self.sums += torch.stack([total.detach(), count.to(total)])
        return total / count

    def greedy(self, batch: PairBatch) -> list[list[int]]:
        state = self.model.begin(batch.source, batch.source_lengths)
        return until_end(written(self.model.step, state, starts(batch.size, batch.source.device), self.max_length)[0])

    def evaluation_step(self, batch: PairBatch, batch_idx: int) -> None:
        self.eval_loss += torch.stack(self.loss_sum(batch))
        true = until_end(batch.target[:, 1:])
        for found, wanted, length in zip(self.greedy(batch), true, batch.target_lengths, strict=True):
            if length == 1:  # fills the last batch among several processes
                continue
            self.matches += torch.tensor([float(found == wanted), 1.0], device=self.matches.device)
            if self.bleu is not None:
                self.bleu.update([as_words(found)], [[as_words(wanted)]])

    def evaluation_end(self, split: str) -> None:
        loss, count = self.summed(self.eval_loss)
        right, pairs = self.summed(self.matches)
        values = {"exact_match": right / pairs, "loss": loss / count}
        if self.bleu is not None:
            values["bleu"] = self.bleu.compute()
            self.bleu.reset()
        self.log_evaluation(split, values)
        self.eval_loss.zero_()
        self.matches.zero_()

    def sample(self, data: Any, shown: int = 8) -> str:
        """The first pairs of the validation split: what is read, what is written and what was wanted."""
        batch = next(iter(data.read("val", [torch.arange(min(shown, data.num_samples("val")))])))
        batch = PairBatch(batch.source.to(self.device), batch.source_lengths, batch.target.to(self.device),
                          batch.target_lengths)
        with torch.inference_mode():
            found = self.greedy(batch)
        return "\n".join(
            f"{data.join('source', until_end(batch.source[[i]])[0])} -> {data.join('target', found[i])}"
            f"   ({data.join('target', until_end(batch.target[[i], 1:])[0])})" for i in range(batch.size))


def as_words(symbols: list[int]) -> str:
    """Numbers in the place of words: BLEU only asks which are equal."""
    return " ".join(map(str, symbols))
