"""Turns PairBatches into a loss using any model that reads a source and writes a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.text import BLEUScore

from dltrain.batches import PAD, PairBatch, generator
from dltrain.contracts import InputEncoder, TranslationModel
from dltrain.drawing.sequences import LINES
from dltrain.errors import UserError
from dltrain.tasks.decoding import beam_search, edit_distances, start_tokens, until_end, write_sequences
from dltrain.tasks.task import Figure, Input, Prediction, Task, TaskKeys
from dltrain.tasks.writing_forms import TranslationForm

PAIRS_SHOWN = 8


class Translation(Task[TranslationModel, PairBatch]):
    """Cross-entropy of each next symbol of the target, given the true symbols before it.

    `words`: true, false, or the side, source or target, whose symbols are words.

    Metrics: train/loss; val/ and test/ loss (nats per symbol, with the true symbols before it), exact_match (share of
    targets that greedy decoding writes without any error), token_error_rate (edit distance of the symbols written to
    those of the target, over the number of the latter: the word error rate of words, the phoneme error rate of
    phonemes) and, if both sides are words, bleu (K. Papineni et al., 2002: corpus BLEU-4 of the same tokens with one
    reference, in [0, 1]), which is then the headline.
    """

    batch_type = PairBatch
    unit = "pairs"
    headline = "val/exact_match"
    matches: Tensor
    edits: Tensor

    def __init__(self, model: TranslationModel, source_size: int, target_size: int, words: bool | str, max_length: int,
                 label_smoothing: float = 0.0, **keys: Unpack[TaskKeys]):
        super().__init__(model, **keys)
        self.source_size, self.target_size, self.max_length = source_size, target_size, max_length
        self.label_smoothing = label_smoothing
        self.glue = {side: " " if words in (True, side) else "" for side in ("source", "target")}
        self.bleu = BLEUScore() if words is True else None
        if words is True:
            self.headline = "val/bleu"
        self.register_buffer("matches", torch.zeros(2), persistent=False)  # exact matches, pairs
        self.register_buffer("edits", torch.zeros(2, dtype=torch.double), persistent=False)  # edits, target symbols

    def check(self, batch: PairBatch) -> None:
        batch.check(self.source_size, self.target_size)
        logits = self.model(batch.source, batch.source_lengths, batch.target[:, :-1])
        expected = (batch.size, batch.target.shape[1] - 1, self.target_size)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected}, but returns {tuple(logits.shape)}")

    def loss_sum(self, batch: PairBatch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Over all symbols after START, and how many they are."""
        logits = self.model(batch.source, batch.source_lengths, batch.target[:, :-1])
        targets = batch.target[:, 1:]
        total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=PAD,
                                label_smoothing=smoothing)
        return total, (targets != PAD).sum()

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        total, count = self.loss_sum(batch, self.label_smoothing)
        self.step_sums.append((total.detach(), count))
        return total / count

    def decode_greedily(self, batch: PairBatch) -> list[list[int]]:
        state = self.model.begin(batch.source, batch.source_lengths)
        start = start_tokens(batch.size, batch.source.device)
        return until_end(write_sequences(self.model.step, state, start, self.max_length)[0])

    def evaluation_step(self, batch: PairBatch, batch_idx: int) -> list[list[int]]:
        self.add_loss(*self.loss_sum(batch))
        outputs, targets = self.decode_greedily(batch), until_end(batch.target[:, 1:])
        distances, matches, edits = edit_distances(outputs, targets), list[list[float]](), list[list[int]]()
        for output, target, distance, length in zip(outputs, targets, distances, batch.target_lengths, strict=True):
            if length == 1:  # only fills up the last batch of a process
                continue
            matches.append([float(output == target), 1.0])
            edits.append([distance, len(target)])
            if self.bleu is not None:
                self.bleu.update([as_words(output)], [[as_words(target)]])
            self.update_own_metrics([self.join("target", output)], [self.join("target", target)])
        if matches:
            self.matches += torch.tensor(matches).sum(0).to(self.matches)
            self.edits += torch.tensor(edits).sum(0).to(self.edits)
        return outputs

    def evaluation_end(self, split: str) -> None:
        num_correct, pairs = self.reduce_sum(self.matches)
        edits, symbols = self.reduce_sum(self.edits)
        values = {"exact_match": num_correct / pairs, "token_error_rate": (edits / symbols.clamp_min(1)).float(),
                  "loss": self.mean_loss()}
        if self.bleu is not None:
            values["bleu"] = self.bleu.compute()
            self.bleu.reset()
        self.log_metrics(split, values)
        self.matches.zero_()
        self.edits.zero_()

    def join(self, side: str, symbols: Sequence[int]) -> str:
        """Symbols of the `source` or `target` vocabulary as text."""
        return self.glue[side].join(self.vocabularies[side][symbol] for symbol in symbols)

    def training_figures(self, batch: PairBatch) -> dict[str, Figure]:
        """The first pairs, as source -> target."""
        sources, targets = until_end(batch.source[:LINES]), until_end(batch.target[:LINES, 1:])
        return {"batch": "\n".join(f"{self.join('source', source)} -> {self.join('target', target)}"
                                   for source, target in zip(sources, targets, strict=True))}

    def figures(self, batch: PairBatch, outputs: list[list[int]]) -> dict[str, Figure]:
        """The first pairs, as source -> output (target)."""
        sources, targets = until_end(batch.source[:PAIRS_SHOWN]), until_end(batch.target[:PAIRS_SHOWN, 1:])
        lines = [f"{self.join('source', source)} -> {self.join('target', output)}   ({self.join('target', target)})"
                 for source, output, target in zip(sources, outputs, targets, strict=False)]
        return {"sample": "\n".join(lines)}

    def export_form(self) -> TranslationForm:
        return TranslationForm(self)

    def predict(self, inputs: Sequence[Input], data: InputEncoder[str, PairBatch], decode: str = "greedy",
                beam: int = 5, temperature: float = 1.0, seed: int = 0, **options: object) -> Iterator[Prediction]:
        """The target of each source by `decode`: greedy, sampled (with `temperature` and `seed`), or beam, which gives
        the `beam` best with their log-probabilities."""
        for number, item in enumerate(inputs):
            source = item.load()
            batch = self.encode([source], data)
            start = start_tokens(1, self.device)
            with torch.inference_mode():
                state = self.model.begin(batch.source, batch.source_lengths)
                if decode == "beam":
                    rows, scores = beam_search(self.model.step, state, start, self.max_length, beam)
                    rows, scores = rows[0], scores[0]
                else:
                    rng = generator("predict", seed, number) if decode == "sampled" else None
                    rows, scores = write_sequences(self.model.step, state, start, self.max_length, temperature, rng)
            targets = [{"target": self.join("target", symbols), "log_probability": round(score, 4)}
                       for symbols, score in zip(until_end(rows), scores.tolist(), strict=True)]
            lines = [f"  {target['log_probability']:8.3f}  {target['target']}" for target in targets]
            text = "\n".join([source, *lines]) if decode == "beam" else f"{source} -> {targets[0]['target']}"
            yield Prediction(source, [text], records=[{"source": source, "targets": targets}])


def as_words(symbols: list[int]) -> str:
    """Numbers instead of words: BLEU only asks which are equal."""
    return " ".join(map(str, symbols))
