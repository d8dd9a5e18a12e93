"""Maps a sequence to one of another length: an encoder reads, a decoder writes from the last state of the encoder.

I. Sutskever, O. Vinyals, Q. Le, "Sequence to Sequence Learning with Neural Networks", 2014, arXiv 1409.3215, which also
reverses the source (section 3.3); attention as by M. Luong et al., 2015, arXiv 1508.04025, with their "general" score:

    a = softmax_s((W h_t) . h_s)    c = sum_s a_s h_s    h~ = tanh(W_c [c; h_t])    logits = W_o h~

Differs from Luong et al.: h~ is not fed back into the decoder, so that all steps of training run in one fused call.

B batch, S source symbols, T target symbols, H hidden units, V symbols of the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dltrain.batches import to_device
from dltrain.models.recurrent import Recurrent, State, Symbols, reverse_sequences, split_layers


class Memory(NamedTuple):
    """What the decoder attends to: the encoder's states (B, S, H), and `mask` (B, S), which is added to the scores:
    -inf after the end of each source, else 0."""

    states: Tensor
    mask: Tensor


DecoderState = tuple[Memory, list[State]]  # between two steps: every tensor in it has B first


class Seq2Seq(nn.Module):
    """`reverse`: the encoder reads each source backwards. `attention`: the decoder attends to all of its states."""

    def __init__(self, source_size: int, target_size: int, cell: str, hidden: int, layers: int,
                 embedding: int | None = None, dropout: float = 0.0, reverse: bool = False, attention: bool = True):
        super().__init__()
        self.source, self.target = Symbols(source_size, embedding), Symbols(target_size, embedding)
        self.encoder = Recurrent(cell, self.source.features, hidden, layers, dropout)
        self.decoder = Recurrent(cell, self.target.features, hidden, layers, dropout)
        self.score = nn.Linear(hidden, hidden, bias=False) if attention else None
        self.combine = nn.Linear(2 * hidden, hidden, bias=False) if attention else None
        self.dropout, self.reverse = nn.Dropout(dropout), reverse
        self.head = nn.Linear(hidden, target_size)

    def encode(self, source: Tensor, lengths: Sequence[int]) -> tuple[Memory, State]:
        """Symbols (B, S), of which the first `lengths` count, to the memory and the encoder's last state."""
        ends = to_device(torch.as_tensor(lengths), source.device)[:, None]
        places = torch.arange(source.shape[1], device=source.device)
        if self.reverse:
            source = reverse_sequences(source, lengths)
        states, last = self.encoder(self.dropout(self.source(source)), None, lengths)
        return Memory(states, torch.zeros_like(states[:, :, 0]).masked_fill(places >= ends, -torch.inf)), last

    def attention(self, h: Tensor, memory: Memory) -> Tensor:
        """Decoder states (B, T, H) to weights (B, T, S) that sum to 1 over the source."""
        assert self.score is not None
        return (torch.bmm(self.score(h), memory.states.transpose(1, 2)) + memory.mask[:, None]).softmax(2)

    def attend(self, h: Tensor, memory: Memory) -> Tensor:
        """Decoder states h to h~, both (B, T, H); without attention h~ is h."""
        if self.combine is None:
            return h
        context = torch.bmm(self.attention(h, memory), memory.states)
        return torch.tanh(self.combine(torch.cat([context, h], dim=2)))

    def forward(self, source: Tensor, lengths: Sequence[int], target: Tensor) -> Tensor:
        """Logits (B, T, V) of the symbol after each of the target (B, T), given the true symbols before it."""
        memory, state = self.encode(source, lengths)
        h, _ = self.decoder(self.dropout(self.target(target)), state)
        return self.head(self.dropout(self.attend(h, memory)))

    def begin(self, source: Tensor, lengths: Sequence[int]) -> DecoderState:
        """The state before START."""
        memory, state = self.encode(source, lengths)
        return memory, split_layers(state)

    def step(self, tokens: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The symbols (B,) just written to the logits (B, V) of the next ones."""
        memory, layers = state
        h, layers = self.decoder.step_layers(self.target(tokens), layers)
        return self.head(self.attend(h[:, None], memory)[:, 0]), (memory, layers)
