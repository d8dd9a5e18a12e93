"""Turns CaptionBatches into a loss using any model that writes a sentence of an image."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
import torch.nn.functional as F
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from torch import Tensor

from dltrain.augment.pipeline import STATISTICS_IMAGES, Augment
from dltrain.batches import PAD, CaptionBatch, generator
from dltrain.errors import UserError
from dltrain.tasks.decoding import beam, starts, until_end, written
from dltrain.tasks.freezing import Freezing, FreezingKeys
from dltrain.tasks.task import Task


class Captioning(Task):
    """Cross-entropy of each next word of all references, given the true ones before it.

    `sampled_share`: how often, at the run's end, the model's own word is read in the place of the true one, rising from
    0 (scheduled sampling, S. Bengio et al., 2015, arXiv 1506.03099, its linear schedule). `freezing`: see
    freezing.py. `vectors`: a file of word vectors that the words' table begins with; words that it has not keep their
    random ones. `beam_width`: 1 writes the likeliest word each time.

    Metrics: train/loss; val/ and test/ loss (nats a word), perplexity, bleu_1 to bleu_4, rouge_l and cider (CIDEr-D),
    by COCO's own scorers (pycocoevalcap) on lower-case words, the same for all; where the data can tell (scenes),
    caption_accuracy: the share of sentences that are true of their image.
    """

    batch_type = CaptionBatch
    headline = "val/bleu_4"
    augment: Augment
    freezing: Freezing
    eval_loss: Tensor

    def __init__(self, model: Any, augment: Augment, vocab_size: int, max_length: int, sampled_share: float,
                 vectors: str | None, beam_width: int, freezing: FreezingKeys | None = None, **keys: Any):
        super().__init__(model, **keys)
        self.augment, self.vocab_size, self.max_length = augment, vocab_size, max_length
        self.sampled_share, self.beam_width = sampled_share, beam_width
        self.freezing = Freezing(model, **freezing or {})
        self.vectors = vectors
        self.register_buffer("eval_loss", torch.zeros(2), persistent=False)  # summed loss, words
        self.told: dict[int, list[int]] = {}  # what was written of each image, by its number
        self.said: list[tuple[Tensor, str, list[str]]] = []  # image, what was written, references

    def fit_statistics(self, data: Any) -> None:
        self.augment.fit(data.training_pixels(STATISTICS_IMAGES))
        if self.vectors is not None:
            table = self.model.words.table.weight
            places, values = data.word_vectors(self.vectors, table.shape[1])
            with torch.no_grad():
                table[places] = values.to(table)

    def check(self, batch: CaptionBatch) -> None:
        batch.check(self.vocab_size)
        out = self.model(self.augment(batch).images, batch.captions[:, :, :-1])
        wanted = (*batch.captions[:, :, 1:].shape, self.vocab_size)
        if tuple(out.shape) != wanted:
            raise UserError(f"it must give logits {wanted}, but gives {tuple(out.shape)}")

    def loss_sum(self, images: Tensor, captions: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Over all words after START, and how many they are."""
        logits = self.model(images, captions[:, :, :-1], own)
        wanted = captions[:, :, 1:]
        total = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="sum", ignore_index=PAD)
        return total, (wanted != PAD).sum()

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        if self.freezing.stages:
            self.freezing.apply(self.current_epoch)
        draws = generator("augment", self.seed, self.current_epoch, batch_idx, self.global_rank)
        images = self.augment(batch, draws).images
        own = None
        if self.sampled_share:
            share = self.sampled_share * self.global_step / max(1, self.total_steps)
            own = (torch.rand(batch.captions.shape, generator=draws) < share).to(images.device)
        total, count = self.loss_sum(images, batch.captions, own)
        with torch.no_grad():
            self.sums += torch.stack([total.detach(), count.to(total)])
        return total / count

    def write(self, images: Tensor) -> list[list[int]]:
        """A sentence of each normalised image."""
        start = starts(len(images), images.device)
        if self.beam_width == 1:
            return until_end(written(self.model.step, self.model.begin(images), start, self.max_length)[0])
        found, _ = beam(self.model.step, self.model.begin(images), start, self.max_length, self.beam_width)
        return until_end(found[:, 0])

    def evaluation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        images = self.augment(batch).images
        self.eval_loss += torch.stack(self.loss_sum(images, batch.captions))
        for number, words in zip(batch.numbers.tolist(), self.write(images), strict=True):
            if number >= 0:
                self.told[number] = words
        if batch_idx == 0:
            self.first_images = batch.images[:16].cpu(), batch.numbers[:16].tolist()

    def evaluation_end(self, split: str) -> None:
        data = self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it
        loss, count = self.summed(self.eval_loss)
        told = {number: data.join(words) for number, words in self.gathered().items()}
        references = {number: data.references(split, number) for number in told}
        values = {"loss": loss / count, "perplexity": (loss / count).exp(), **scores(told, references)}
        if hasattr(data, "is_true"):
            correct = sum(data.is_true(split, number, said) for number, said in told.items())
            values["caption_accuracy"] = correct / len(told)
        self.log_evaluation(split, values)
        self.said = [(image, told[number], references[number]) for image, number in
                     zip(*self.first_images, strict=True) if number >= 0]
        self.told = {}
        self.eval_loss.zero_()

    def gathered(self) -> dict[int, list[int]]:
        """What all processes wrote."""
        if self.trainer.world_size == 1:
            return self.told
        every: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(every, self.told)
        return {number: words for one in every for number, words in one.items()}


def scores(told: dict[int, str], references: dict[int, list[str]]) -> dict[str, float]:
    """bleu_1 to bleu_4, rouge_l and cider of one sentence an image against its references, tokens between blanks."""
    single = {number: [said] for number, said in told.items()}
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its counts
        bleu, _ = Bleu(4).compute_score(references, single)
    return {**{f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)},
            "rouge_l": float(Rouge().compute_score(references, single)[0]),
            "cider": float(Cider().compute_score(references, single)[0])}
