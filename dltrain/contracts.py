"""What dltrain expects of a model, as protocols: a class conforms by its methods, it need not import this module.

The protocols are for type checkers and readers. Only optional features are checked at run time: a backbone
(`backbone_of`), proposals (`isinstance(model, ProposalDetector)`), the logits of single pixels (`PixelSegmenter`),
auxiliary classifiers, dropped blocks, where boxes are matched, the losses of classes and layers set from images
(`auxiliary_weight`, `drops_blocks`, `matches_on_host`, `class_heads`, `layers_to_fit`).

B images or N sequences, C channels, H and W height and width, K classes, T time steps, V symbols of a vocabulary.
Images are float and normalised; labels, places and tokens are int64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, Self, TypeVar, cast, runtime_checkable

from torch import Tensor, nn

InputT = TypeVar("InputT")
BatchT = TypeVar("BatchT", covariant=True)
DecoderState = TypeVar("DecoderState")
ClassLossOf = Callable[[Tensor, Tensor], Tensor]  # logits (N, K) and labels (N,), to a scalar: the mean over them
State = tuple[Tensor, ...]  # of recurrent layers: h, and for an LSTM c


class Model(Protocol):
    """The members of nn.Module that are used through these protocols."""

    training: bool

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def named_children(self) -> Iterator[tuple[str, nn.Module]]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Self: ...

    def eval(self) -> Self: ...


class Backbone(Model, Protocol):
    """A feature extractor for images: a classifier of images without its head."""

    out_channels: int  # of the map that `features` returns

    @property
    def features(self) -> Callable[[Tensor], Tensor]:
        """Images (B, C, H, W) to the map of the last stage (B, out_channels, h, w)."""

    def stages(self) -> Mapping[str, Sequence[nn.Module]]:
        """The layers of each stage by the stage's name, from the image on. Each layer reads the output of the one
        before it; all of them in this order compute `features`. Raises ValueError where a model cannot be divided so.
        """


class Classifier(Model, Protocol):
    """Images (B, C, H, W) to class logits (B, K).

    In training mode it may return (logits, logits of an auxiliary classifier, ...); then it has an attribute
    `auxiliary_weight`, the factor of each auxiliary loss."""

    def __call__(self, images: Tensor) -> Tensor | tuple[Tensor, ...]: ...


class Detector(Model, Protocol):
    """Images, a list of (C, Hi, Wi), to boxes.

    A target has boxes (Ni, 4), x1, y1, x2, y2 in pixels, and labels (Ni,) in [0, K); Ni may be 0. Background is no
    class here: a model that needs one adds it by itself. Targets are on the device of the images, or on the host for a
    model whose attribute `matches_on_host` is true. Classes can be weighted and their labels smoothed where the model,
    or a part of it, is a ClassHead."""

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of the losses that a call returns."""

    def __call__(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """In training mode: each loss, a scalar, by its name."""

    def detect(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """In evaluation mode. Returns for each image: boxes (N, 4) in its pixels, labels (N,) in [0, K) and scores
        (N,) in [0, 1], best first."""


@runtime_checkable
class ProposalDetector(Detector, Protocol):
    """A detector that classifies regions which a network of its own proposes."""

    def proposals(self, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """In evaluation mode. Returns for each image: the proposed boxes (N, 4), best first; all anchors (A, 4)."""


class Segmenter(Model, Protocol):
    """Images (B, C, H, W) to the class logits of every pixel (B, K, H, W)."""

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class PixelSegmenter(Segmenter, Protocol):
    """A segmenter that can also classify a few pixels of each image, which costs less than all of them."""

    def classify_pixels(self, images: Tensor, places: Tensor) -> Tensor:
        """The logits (B, N, K) of the pixels `places` (B, N, 2), row and column."""


class Decoder(Model, Protocol[DecoderState]):
    """Writes sequences symbol by symbol. Every tensor of its state has N first: beam search repeats and picks rows."""

    @property
    def begin(self) -> Callable[..., DecoderState]:
        """The state before START, from what the sequences are written about: images, or source tokens and lengths."""

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The symbols (N,) just written to the logits (N, V) of the next ones, and the state after them."""


class TranslationModel(Decoder[Any], Protocol):
    """Writes a target sequence; its `begin` reads a source."""

    def __call__(self, source: Tensor, lengths: Sequence[int], target: Tensor) -> Tensor:
        """Source (B, S), of which the first `lengths` count, to the logits (B, T, V) of the symbol after each of the
        target (B, T), given the true symbols before it."""


class CaptionModel(Decoder[Any], Protocol):
    """Writes sentences; its `begin` reads images. `attends`: whether `attention_maps` may be called."""

    attends: bool

    @property
    def word_embedding(self) -> Tensor:
        """(V, E): the trained vectors of the words."""

    def __call__(self, images: Tensor, captions: Tensor, sampled: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) and words (B, R, T) to the logits (B, R, T, V) of the word after each, given the true
        words before it. `sampled` (B, R, T) bool: where the model reads its own most probable word instead."""

    def attention_maps(self, images: Tensor, captions: Tensor) -> Tensor:
        """Images and words (B, T), START first, to the attention weights for the word after each, (B, T, h, w)."""


class SequenceModel(Model, Protocol):
    def __call__(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Symbols (B, T), or vectors (B, T, F), of which the first `lengths` count, to class logits: (B, K) of the
        sequence, or (B, T, K) of each symbol."""


class StatefulModel(Model, Protocol):
    """A language model whose state, tensors (layers, B, H), is passed from one window of text to the next."""

    def zeros(self, batch: int) -> State:
        """The state before the first symbol of `batch` sequences."""

    def __call__(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Tokens (B, T) to the logits (B, T, V) of the symbol after each, and the state after the last one."""

    def step(self, tokens: Tensor, state: State | list[State]) -> tuple[Tensor, list[State]]:
        """One symbol of each sequence (B,) to logits (B, V), and the state of each layer, tensors (B, H). It takes the
        state of `zeros`, of a call or of `step`."""


class FittedLayer(Protocol):
    """A layer whose filters are set from training images before the first step, and then stay."""

    def fit_patches(self, images: Tensor) -> None:
        """Normalised images (N, C, H, W) of the training split."""


class InputEncoder(Protocol[InputT, BatchT]):
    """The methods of a data module that `predict` needs: they turn a user's own images (C, H, W) uint8, or texts, into
    a batch."""

    @property
    def input_kind(self) -> Literal["image", "text"]: ...

    def encode_inputs(self, inputs: list[InputT]) -> BatchT: ...


def auxiliary_weight(model: object) -> float:
    """The factor of a model's auxiliary losses: its attribute `auxiliary_weight`."""
    return float(getattr(model, "auxiliary_weight", 0.0))


def drops_blocks(model: object) -> bool:
    """Whether a model leaves out random blocks in training: its attribute `drops_blocks`."""
    return bool(getattr(model, "drops_blocks", False))


def matches_on_host(model: object) -> bool:
    """Whether a detector reads the targets of a training step on the host: its attribute `matches_on_host`."""
    return bool(getattr(model, "matches_on_host", False))


class ClassHead(Protocol):
    """A part of a detector, or the whole, that has a loss of classes which a task may replace by a weighted one."""

    class_loss: ClassLossOf | None  # None for the cross-entropy
    background: int | None  # which of K + 1 logits is that of no object; None where there are K


def class_heads(model: Model) -> list[ClassHead]:
    """The parts of a detector that have an attribute `class_loss`."""
    return [cast(ClassHead, module) for module in model.modules() if hasattr(module, "class_loss")]


def layers_to_fit(model: Model) -> list[FittedLayer]:
    """The layers of a model that set their filters from training images."""
    layers: list[Any] = [layer for layer in model.modules() if hasattr(layer, "fit_patches")]
    return layers


def backbone_of(model: object) -> Backbone | None:
    """The backbone of a model, which is its attribute `backbone` or the model itself; None where it has none."""
    candidates: tuple[Any, ...] = (getattr(model, "backbone", None), model)
    for candidate in candidates:  # isinstance does not see members that are submodules, as a Sequential `features`
        if all(hasattr(candidate, name) for name in ("features", "out_channels", "stages")):
            backbone: Backbone = candidate
            return backbone
    return None
