"""Maps an image to a sentence: the features of a CNN start an RNN that writes words until END.

O. Vinyals et al., "Show and Tell", 2014, arXiv 1411.4555: the image is the first input (`enter=first_input`).
A. Karpathy, L. Fei-Fei, 2014, 1412.2306, and Shakhnarovich 2016: h_1 = g(W_i i + W_x x(START)); here W_i i = W_h (P i),
where P i is the state before the first word (`enter=first_state`). K. Xu et al., "Show, Attend and Tell", 2015,
1502.03044, sections 3.1 and 4.2: soft attention over the L places a_l of the feature map, computed before each word:

    e_l = w . tanh(W_a a_l + W_s h)    alpha = softmax(e)    z = sigmoid(w_b . h) sum_l alpha_l a_l

z goes into the cell together with the word, and into the output layer together with h.

Differs from the papers: the image vector is the map averaged to `pool_px` x `pool_px` values of each channel, not one
mean, so that it encodes positions; a learned vector is added to each a_l for its place; no doubly stochastic term; the
output layer starts with larger weights and the gate starts open, without which a backbone with random weights learns
much later.

B images, N sentences about them, R references of an image, T words, C channels of the map, L places of it, A attention
units, E values of a word, H hidden units, V words of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dltrain.contracts import Backbone
from dltrain.models.backbones import remove_head
from dltrain.models.deterministic_pool import average_to
from dltrain.models.recurrent import Recurrent, State, Symbols, split_layers


class AttendedMap(NamedTuple):
    """places (N, L, C), and keys (N, L, A), their projections W_a a_l; L = 0 without attention."""

    places: Tensor
    keys: Tensor


DecoderState = tuple[AttendedMap, list[State]]  # between two words: every tensor in it has N first


class Captioner(nn.Module):
    """`pool_px`: side of the averaged map that the image vector is made of. `map_px`: side of the averaged map that
    attention reads, L = map_px ** 2."""

    def __init__(self, backbone: Backbone, vocab_size: int, cell: str, hidden: int, layers: int, embedding: int,
                 enter: str, pool_px: int, attention: bool, map_px: int, attention_units: int = 128,
                 dropout: float = 0.0):
        super().__init__()
        self.backbone, channels = remove_head(backbone), backbone.out_channels
        self.words, self.enter = Symbols(vocab_size, embedding), enter
        self.pool_px, self.map_px = pool_px, map_px
        self.image = nn.Linear(channels * pool_px**2, hidden if enter == "first_state" else embedding)
        self.attends = attention
        self.recurrent = Recurrent(cell, embedding + (channels if attention else 0), hidden, layers)
        self.dropout = nn.Dropout(dropout)
        if attention:
            self.place_embedding = nn.Parameter(torch.zeros(map_px**2, channels))
            self.place_keys = nn.Linear(channels, attention_units)
            self.state_query = nn.Linear(hidden, attention_units, bias=False)
            self.score = nn.Linear(attention_units, 1, bias=False)
            self.gate = nn.Linear(hidden, 1)
            nn.init.constant_(self.gate.bias, 2.0)  # open at first
        self.head = nn.Linear(hidden + (channels if attention else 0), vocab_size)
        nn.init.normal_(self.head.weight, std=0.2)  # the gradient of the backbone is proportional to it (LOG.md)

    @property
    def word_embedding(self) -> Tensor:
        """(V, E), where a file of word vectors can be written."""
        return self.words.vectors

    def begin(self, images: Tensor, sentences_per_image: int = 1) -> DecoderState:
        """Images (B, C', H, W) to the state before START of N = B * sentences_per_image sentences."""
        maps = self.backbone.features(images)
        vector = self.image(average_to(maps, self.pool_px).flatten(1)).repeat_interleave(
            sentences_per_image, 0)
        n = vector.shape[0]
        attended = AttendedMap(vector.new_zeros(n, 0, 0), vector.new_zeros(n, 0, 0))
        if self.attends:
            places = average_to(maps, self.map_px).flatten(2).transpose(1, 2) + self.place_embedding
            attended = AttendedMap(places.repeat_interleave(sentences_per_image, 0),
                                   self.place_keys(places).repeat_interleave(sentences_per_image, 0))
        state = split_layers(self.recurrent.zeros(n))
        if self.enter == "first_state":
            state = [(vector, *layer[1:]) for layer in state]
        else:
            _, state = self.advance(vector, attended, state)
        return attended, state

    def attention(self, attended: AttendedMap, state: list[State]) -> Tensor:
        """(N, L): the attention weights alpha, from the state of the top layer; they sum to 1."""
        return self.score(torch.tanh(attended.keys + self.state_query(state[-1][0])[:, None]))[..., 0].softmax(1)

    def advance(self, x: Tensor, attended: AttendedMap, state: list[State]) -> tuple[Tensor, list[State]]:
        """One input (N, E) to the top state h, or [h; z] with attention (N, H + C), and the state after it."""
        if not self.attends:
            return self.recurrent.step_layers(x, state)
        alpha = self.attention(attended, state)
        z = torch.bmm(alpha[:, None], attended.places)[:, 0] * torch.sigmoid(self.gate(state[-1][0]))
        h, state = self.recurrent.step_layers(torch.cat([x, z], 1), state)
        return torch.cat([h, z], 1), state

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The words (N,) just written to the logits (N, V) of the next ones."""
        attended, layers = state
        out, layers = self.advance(self.dropout(self.words(tokens)), attended, layers)
        return self.head(self.dropout(out)), (attended, layers)

    def forward(self, images: Tensor, captions: Tensor, sampled: Tensor | None = None) -> Tensor:
        """Images (B, C', H, W) and words (B, R, T) to the logits (B, R, T, V) of the word after each, given the true
        words before it. `sampled` (B, R, T) bool: where the likeliest word of the model itself is read in the place of
        the true one (S. Bengio et al., 2015, arXiv 1506.03099)."""
        b, r, t = captions.shape
        words, replaced = captions.flatten(0, 1), None if sampled is None else sampled.flatten(0, 1)
        state, logits = self.begin(images, r), list[Tensor]()
        for place in range(t):
            word = words[:, place]
            if replaced is not None and logits:
                word = torch.where(replaced[:, place], logits[-1].detach().argmax(1), word)
            next_logits, state = self.step(word, state)
            logits.append(next_logits)
        return torch.stack(logits, 1).view(b, r, t, -1)

    def attention_maps(self, images: Tensor, captions: Tensor) -> Tensor:
        """Images and words (B, T), START first, to the attention weights for the word after each, of shape
        (B, T, map_px, map_px)."""
        state, alphas = self.begin(images), list[Tensor]()
        for place in range(captions.shape[1]):
            alphas.append(self.attention(*state))
            _, state = self.step(captions[:, place], state)
        return torch.stack(alphas, 1).unflatten(2, (self.map_px, self.map_px))
