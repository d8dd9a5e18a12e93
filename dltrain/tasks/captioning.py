"""Turns CaptionBatches into a loss using any model that writes a sentence about an image."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Unpack, cast

import torch
import torch.nn.functional as F
from PIL.Image import Image
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from dltrain.augment.geometry import to_device
from dltrain.augment.pipeline import Augment
from dltrain.batches import PAD, START, CaptionBatch, generator
from dltrain.contracts import CaptionModel
from dltrain.drawing.captions import draw_attention, draw_caption
from dltrain.drawing.images import arrange, brighten
from dltrain.drawing.sequences import join_symbols
from dltrain.errors import UserError
from dltrain.tasks.caption_words import caption_words
from dltrain.tasks.decoding import beam_search, read_sequences, repeat_state, start_tokens, until_end, write_sequences
from dltrain.tasks.freezing import FreezingKeys
from dltrain.tasks.images import ImageTask, TrainingPixels
from dltrain.tasks.task import Figure, Input, Prediction, TaskKeys
from dltrain.tasks.writing_forms import CaptionForm

IMAGES_SHOWN = 8


class CaptionData(Protocol):
    """What the task asks of the data; `number` is the index of an image in its split."""

    def word_vectors(self, file: str, size: int) -> tuple[Tensor, Tensor]: ...
    def join(self, words: Sequence[int]) -> str: ...
    def references(self, split: str, number: int) -> list[str]: ...  # as they were written
    def is_true(self, split: str, number: int, sentence: str) -> bool | None:
        """Whether a sentence is true of its image; None if the data cannot tell."""


class Captioning(ImageTask[CaptionModel, CaptionBatch]):
    """Cross-entropy of each next word of all references, given the true words before it.

    `sampled_share`: probability, at the end of the run, that the model reads its own word instead of the true one,
    rising from 0 (scheduled sampling, S. Bengio et al., 2015, arXiv 1506.03099, its linear schedule). `vectors`: a file
    of word vectors that the word embedding starts with; words that it does not have keep their random vectors.
    `beam_width`: of the beam search in evaluation; 1 is greedy decoding.

    Metrics: train/loss; val/ and test/ loss (nats per word), perplexity, bleu_1 to bleu_4, rouge_l and cider (CIDEr-D)
    by COCO's own scorers (pycocoevalcap) on its toolkit's words, which are lower-case and without punctuation; where
    the data can tell (scenes), caption_accuracy: the share of sentences that are true of their image.
    """

    batch_type = CaptionBatch
    headline = "val/bleu_4"

    def __init__(self, model: CaptionModel, augment: Augment, vocab_size: int, max_length: int, sampled_share: float,
                 vectors: str | None, beam_width: int, label_smoothing: float = 0.0,
                 freezing: FreezingKeys | None = None, **keys: Unpack[TaskKeys]):
        super().__init__(model, augment, freezing, **keys)
        self.vocab_size, self.max_length, self.vectors = vocab_size, max_length, vectors
        self.sampled_share, self.beam_width, self.label_smoothing = sampled_share, beam_width, label_smoothing
        self.sentences: dict[int, list[int]] = {}  # the words written about each image, by its number
        self.texts: dict[int, str] = {}  # the same as text, and the references, of the last evaluation
        self.references: dict[int, list[str]] = {}

    def fit_statistics(self, data: TrainingPixels) -> None:
        super().fit_statistics(data)
        if self.vectors is not None:
            table = self.model.word_embedding
            indices, vectors = cast(CaptionData, data).word_vectors(self.vectors, table.shape[1])
            with torch.no_grad():
                table[indices] = vectors.to(table)

    def check(self, batch: CaptionBatch) -> None:
        batch.check(self.vocab_size)
        logits = self.model(self.augment(batch).images, batch.captions[:, :, :-1])
        expected = (*batch.captions[:, :, 1:].shape, self.vocab_size)
        if tuple(logits.shape) != expected:
            raise UserError(f"it must return logits {expected}, but returns {tuple(logits.shape)}")

    def loss_sum(self, logits: Tensor, captions: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Over all words of `captions` (B, R, T) after START, whose logits are (B, R, T - 1, V), and how many they are.
        """
        targets = captions[:, :, 1:]
        total = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="sum", ignore_index=PAD,
                                label_smoothing=smoothing)
        return total, (targets != PAD).sum()

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        rng = generator("augment", *self.position)
        images = self.augment(batch, rng).images
        sampled = None
        if self.sampled_share:
            probability = self.sampled_share * min(1.0, self.global_step / max(1, self.paced[0]))
            sampled = to_device(torch.rand(batch.captions.shape, generator=rng) < probability, images)
        logits = self.model(images, batch.captions[:, :, :-1], sampled)
        total, count = self.loss_sum(logits, batch.captions, self.label_smoothing)
        self.step_sums.append((total.detach(), count))
        return total / count

    def write(self, state: Any, count: int) -> list[list[int]]:
        """A sentence about each of `count` images, from the model's state before START."""
        start = start_tokens(count, self.device)
        if self.beam_width == 1:
            return until_end(write_sequences(self.model.step, state, start, self.max_length)[0])
        return until_end(beam_search(self.model.step, state, start, self.max_length, self.beam_width)[0][:, 0])

    def evaluation_step(self, batch: CaptionBatch, batch_idx: int) -> list[int]:
        images, numbers = self.augment(batch).images, batch.numbers.tolist()
        state, captions = self.model.begin(images), batch.captions
        states = repeat_state(state, captions.shape[1])  # the image is encoded once for all its captions
        self.add_loss(*self.loss_sum(read_sequences(self.model.step, states, captions[:, :, :-1].flatten(0, 1)),
                                     captions))
        written = zip(numbers, self.write(state, len(numbers)), strict=True)
        self.sentences |= {number: words for number, words in written if number >= 0}
        return numbers

    def evaluation_end(self, split: str) -> None:
        data = cast(CaptionData, self.trainer.datamodule)  # type: ignore[attr-defined]  # set by Lightning
        self.texts = {number: data.join(words) for number, words in self.gather_sentences().items()}
        self.references = {number: data.references(split, number) for number in self.texts}
        loss = self.mean_loss()
        values: dict[str, Tensor | float] = {"loss": loss, "perplexity": loss.exp()}
        values |= caption_scores(self.texts, self.references)
        self.update_own_metrics(list(self.texts.values()), list(self.references.values()))
        verdicts = [data.is_true(split, number, text) for number, text in self.texts.items()]
        if None not in verdicts:
            values["caption_accuracy"] = sum(map(bool, verdicts)) / len(verdicts)
        self.log_metrics(split, values)
        self.sentences = {}

    def gather_sentences(self) -> dict[int, list[int]]:
        """The sentences of all processes."""
        if self.trainer.world_size == 1:
            return self.sentences
        gathered: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(gathered, self.sentences)
        return {number: words for sentences in gathered for number, words in sentences.items()}

    def training_figures(self, batch: CaptionBatch) -> dict[str, Figure]:
        """Images as the model sees them, above their captions; a word that it does not know is <unk>."""
        images, captions, _ = self.augmented(batch)
        pictures = []
        for image, rows in zip(self.augment.normalize.invert(images[:IMAGES_SHOWN]).cpu(), captions, strict=False):
            sentences = [words for words in until_end(rows[:, 1:]) if words]
            pictures.append(draw_caption(image, [join_symbols(words, self.vocabularies.get("words", []))
                                                 for words in sentences]))
        return {"augmented_batch": arrange(pictures)}

    def figures(self, batch: CaptionBatch, outputs: list[int]) -> dict[str, Figure]:
        samples = [(brighten(image), number)
                   for image, number in zip(batch.images.cpu(), outputs, strict=True) if number >= 0]
        figures: dict[str, Figure] = {"captions": arrange([
            draw_caption(image, [self.texts[number]], self.references[number])
            for image, number in samples[:IMAGES_SHOWN]])}
        if self.model.attends and (written := self.write_with_attention(batch.images[:1])):
            figures["attention"] = draw_attention(batch.images[0].cpu(), *written)
        return figures

    def write_with_attention(self, images: Tensor) -> tuple[list[str], Tensor] | None:
        """The words written about an image (1, C, H, W) uint8, and the attention (T, h, w) before each of them; None if
        no word is written."""
        with torch.inference_mode():
            pixels = self.augment.normalize(images.to(self.device))
            (words,) = self.write(self.model.begin(pixels), 1)
            if not words:
                return None
            read = torch.tensor([[START, *words[:-1]]], device=self.device)
            weights = self.model.attention_maps(pixels, read)[0].cpu()
        names = self.vocabularies.get("words", [])
        return [names[word] for word in words], weights

    def export_form(self) -> CaptionForm:
        return CaptionForm(self)

    def predict(self, inputs: Sequence[Input], data: CaptionData, beam: int = 5, **options: object
                ) -> Iterator[Prediction]:
        """The sentences of a beam with their log-probabilities; the image above the best sentence; and, if the model
        attends, the image once per word, with the attention for that word."""
        for item in inputs:
            image: Tensor = item.load()
            with torch.inference_mode():
                pixels = self.augment.normalize(image[None].to(self.device))
                rows, scores = beam_search(self.model.step, self.model.begin(pixels), start_tokens(1, self.device),
                                           self.max_length, beam)
            sentences = until_end(rows[0])
            captions = [{"caption": data.join(words), "log_probability": round(score, 4)}
                        for words, score in zip(sentences, scores[0].tolist(), strict=True)]
            pictures: dict[str, Image] = {"": to_pil_image(draw_caption(brighten(image), [data.join(sentences[0])]))}
            if self.model.attends and sentences[0]:
                read = torch.tensor([[START, *sentences[0][:-1]]], device=self.device)
                with torch.inference_mode():
                    weights = self.model.attention_maps(pixels, read)[0].cpu()
                words = [data.join([word]) for word in sentences[0]]
                pictures["_attention"] = to_pil_image(draw_attention(image, words, weights))
            lines = [f"  {score:8.3f}  {caption['caption']}" for score, caption in
                     zip(scores[0].tolist(), captions, strict=True)]
            yield Prediction(item.name, ["\n".join([Path(item.name).name, *lines])],
                             records=[{"file": item.name, "captions": captions}], pictures=pictures)


def caption_scores(texts: dict[int, str], references: dict[int, list[str]]) -> dict[str, float]:
    """bleu_1 to bleu_4, rouge_l and cider of one sentence per image against its references, as they were written. Keys
    are numbers of images."""
    candidates = {number: [caption_words(text)] for number, text in texts.items()}
    expected = {number: [caption_words(text) for text in references[number]] for number in texts}
    with contextlib.redirect_stdout(io.StringIO()):  # Bleu prints its counts
        bleu, _ = Bleu(4).compute_score(expected, candidates)
    return {**{f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)},
            "rouge_l": float(Rouge().compute_score(expected, candidates)[0]),
            "cider": float(Cider().compute_score(expected, candidates)[0])}
