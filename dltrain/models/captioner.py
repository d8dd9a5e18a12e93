"""An image to a sentence: a CNN's features begin an RNN that writes words until END.

O. Vinyals et al., "Show and Tell", 2014, arXiv 1411.4555: the image is the first input (`enter=first_input`).
A. Karpathy, L. Fei-Fei, 2014, 1412.2306, and the deck: h_1 = g(W_i i + W_x x(START)); here W_i i = W_h (P i), P i being
the state before the first word (`enter=first_state`). K. Xu et al., "Show, Attend and Tell", 2015, 1502.03044, sections
3.1 and 4.2, soft attention over the L places a_l of the feature map, read before each word:

    e_l = w . tanh(W_a a_l + W_s h)    alpha = softmax(e)    z = sigmoid(w_b . h) sum_l alpha_l a_l

z goes into the cell beside the word, and into the output layer beside h.

Differs from them: the image vector is the map averaged over `pool_px` x `pool_px` parts, not one mean, so that it tells
places; each a_l has a learned vector of its place added; no doubly stochastic term; the
output layer starts larger and the gate open, without which an encoder that starts at random learns much later.

B images, N sentences of them, T words, C channels of the map, V words of the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.models.recurrent import Recurrent, State, Symbols, layered


class Seen(NamedTuple):
    """places (N, L, C) and what attention makes of them for every step, (N, L, A); both empty without attention."""

    places: Tensor
    keys: Tensor


Writing = tuple[Seen, list[State]]  # the decoder between two words: every tensor in it has N first


class Captioner(nn.Module):
    """`encoder`: anything with `features` and `out_channels`. `map_px`: the side of the map that attention looks at.
    `frozen` (a plain attribute): the encoder rests and its statistics are fixed."""

    def __init__(self, encoder: Any, vocab_size: int, cell: str, hidden: int, layers: int, embedding: int, enter: str,
                 pool_px: int, attention: bool, map_px: int, attention_units: int = 128, dropout: float = 0.0):
        super().__init__()
        encoder.head = nn.Identity()
        self.encoder, self.frozen = encoder, False
        channels = encoder.out_channels
        self.words, self.enter = Symbols(vocab_size, embedding), enter
        self.pool_px, self.map_px = pool_px, map_px
        self.image = nn.Linear(channels * pool_px**2, hidden if enter == "first_state" else embedding)
        self.attends = attention
        self.recurrent = Recurrent(cell, embedding + (channels if attention else 0), hidden, layers)
        self.dropout = nn.Dropout(dropout)
        if attention:
            self.place = nn.Parameter(torch.zeros(map_px**2, channels))
            self.of_place = nn.Linear(channels, attention_units)
            self.of_state = nn.Linear(hidden, attention_units, bias=False)
            self.score = nn.Linear(attention_units, 1, bias=False)
            self.gate = nn.Linear(hidden, 1)
            nn.init.constant_(self.gate.bias, 2.0)  # open at first
        self.head = nn.Linear(hidden + (channels if attention else 0), vocab_size)
        nn.init.normal_(self.head.weight, std=0.2)  # what the encoder learns comes through here (LOG.md)

    def features(self, images: Tensor) -> Tensor:
        """(B, C', H, W) to the map (B, C, h, w)."""
        if self.frozen:
            self.encoder.eval()
            with torch.no_grad():
                found: Tensor = self.encoder.features(images)
            return found
        self.encoder.train(self.training)
        return self.encoder.features(images)

    def begin(self, images: Tensor, each: int = 1) -> Writing:
        """What is known before START: of each image `each` times, for as many sentences."""
        maps = self.features(images)
        vector = self.image(F.adaptive_avg_pool2d(maps, self.pool_px).flatten(1)).repeat_interleave(each, 0)
        n = len(vector)
        seen = Seen(vector.new_zeros(n, 0, 0), vector.new_zeros(n, 0, 0))
        if self.attends:
            places = F.adaptive_avg_pool2d(maps, self.map_px).flatten(2).transpose(1, 2) + self.place
            seen = Seen(places.repeat_interleave(each, 0), self.of_place(places).repeat_interleave(each, 0))
        state = layered(self.recurrent.zeros(n))
        if self.enter == "first_state":
            state = [(vector, *layer[1:]) for layer in state]
        else:
            _, state = self.advance(vector, seen, state)
        return seen, state

    def attention(self, seen: Seen, state: list[State]) -> Tensor:
        """(N, L): how much is read of each place, from the top layer's state; sums to 1."""
        return self.score(torch.tanh(seen.keys + self.of_state(state[-1][0])[:, None]))[..., 0].softmax(1)

    def advance(self, x: Tensor, seen: Seen, state: list[State]) -> tuple[Tensor, list[State]]:
        """An input (N, E) and what is read beside it, to the top state with what was read (N, H + C)."""
        if not self.attends:
            return self.recurrent.step_layers(x, state)
        z = torch.bmm(self.attention(seen, state)[:, None], seen.places)[:, 0] * torch.sigmoid(self.gate(state[-1][0]))
        h, state = self.recurrent.step_layers(torch.cat([x, z], 1), state)
        return torch.cat([h, z], 1), state

    def step(self, tokens: Tensor, writing: Writing) -> tuple[Tensor, Writing]:
        """The words (N,) just written, to the logits (N, V) of the next ones."""
        seen, state = writing
        out, state = self.advance(self.dropout(self.words(tokens)), seen, state)
        return self.head(self.dropout(out)), (seen, state)

    def forward(self, images: Tensor, captions: Tensor, own: Tensor | None = None) -> Tensor:
        """Images (B, C', H, W) and words (B, R, T) to the logits (B, R, T, V) of the word after each, given the true
        ones before it. `own` (B, R, T) bool: where the model's own likeliest word is read in the true one's place
        (S. Bengio et al., 2015, arXiv 1506.03099)."""
        b, r, t = captions.shape
        words, chosen = captions.flatten(0, 1), None if own is None else own.flatten(0, 1)
        writing, found = self.begin(images, r), list[Tensor]()
        for place in range(t):
            word = words[:, place]
            if chosen is not None and found:
                word = torch.where(chosen[:, place], found[-1].detach().argmax(1), word)
            logits, writing = self.step(word, writing)
            found.append(logits)
        return torch.stack(found, 1).view(b, r, t, -1)

    def looked_at(self, images: Tensor, captions: Tensor) -> Tensor:
        """(B, T, map_px, map_px): where it looked before each word of (B, T), which were read."""
        writing, found = self.begin(images), list[Tensor]()
        for place in range(captions.shape[1]):
            found.append(self.attention(*writing))
            _, writing = self.step(captions[:, place], writing)
        return torch.stack(found, 1).unflatten(2, (self.map_px, self.map_px))
