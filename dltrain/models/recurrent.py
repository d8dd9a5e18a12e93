"""Maps sequences (B, T, F) to hidden states (B, T, H): vanilla, LSTM and GRU layers, and the models that use them.

J. Elman, "Finding Structure in Time", 1990; S. Hochreiter, J. Schmidhuber, "Long Short-Term Memory", 1997, with the
forget gate of F. Gers et al., 2000; K. Cho et al., 2014, arXiv 1406.1078 (GRU).

    vanilla   h' = tanh(W_x x + W_h h + b)
    LSTM      i, f, o = sigmoid(...), g = tanh(...);  c' = f c + i g;  h' = o tanh(c')
    GRU       r, z = sigmoid(...), n = tanh(W_n x + b + r (U_n h + b'));  h' = (1 - z) n + z h

Training uses torch's fused layer. `unrolled` computes the same from the equations, step by step, with the same weights,
and `step` is one step of it; sampling uses the faster kernels of `step_layers`.

Differs from the papers: two bias vectors where one is enough, as in torch; the GRU's reset gate acts after the product
with U_n (as in torch and cuDNN; Cho et al. have it before). The LSTM's forget bias starts at 1 (R. Jozefowicz et al.,
2015), so that the state is kept at first.

B batch, T time steps, F features of the input, H hidden units, L layers, D directions (1 or 2), V symbols, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.batches import Lengths, to_device

FUSED = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}
KERNELS: dict[str, Callable[..., tuple[Tensor, ...]]] = {  # what these modules call
    "rnn": torch.rnn_tanh, "lstm": torch.lstm, "gru": torch.gru}
State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM: each (L * D, B, H), or (B, H) of a single layer


def rnn_cell(x: Tensor, state: State, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> State:
    (h,) = state
    return (torch.tanh(x @ w_x.T + b_x + h @ w_h.T + b_h),)


def lstm_cell(x: Tensor, state: State, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> State:
    h, c = state
    i, f, g, o = (x @ w_x.T + b_x + h @ w_h.T + b_h).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_cell(x: Tensor, state: State, w_x: Tensor, w_h: Tensor, b_x: Tensor, b_h: Tensor) -> State:
    (h,) = state
    r_x, z_x, n_x = (x @ w_x.T + b_x).chunk(3, dim=1)
    r_h, z_h, n_h = (h @ w_h.T + b_h).chunk(3, dim=1)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    return ((1 - z) * torch.tanh(n_x + r * n_h) + z * h,)


EQUATIONS = {"rnn": rnn_cell, "lstm": lstm_cell, "gru": gru_cell}


class Recurrent(nn.Module):
    """`cell`: rnn, lstm or gru; dropout between the layers; `bidirectional` reads backwards too, with 2 H outputs.
    `keep_bias`: the initial bias of the gate that keeps the state, which is f of an LSTM (default 1) and z of a GRU
    (default: torch's). With it the net remembers for about e ** keep_bias steps at first (C. Tallec, Y. Ollivier, 2018,
    1804.11188)."""

    def __init__(self, cell: str, features: int, hidden: int, layers: int = 1, dropout: float = 0.0,
                 bidirectional: bool = False, keep_bias: float | None = None):
        super().__init__()
        self.cell, self.hidden, self.layers = cell, hidden, layers
        self.directions = 2 if bidirectional else 1
        self.fused = FUSED[cell](features, hidden, layers, batch_first=True, bidirectional=bidirectional,
                                 dropout=dropout if layers > 1 else 0.0)
        self.set_keep_bias(1.0 if keep_bias is None and cell == "lstm" else keep_bias)

    def set_keep_bias(self, keep_bias: float | None) -> None:
        """None leaves it as it is; a vanilla net has none."""
        if keep_bias is not None and self.cell != "rnn":  # f is the second of the LSTM's gates, z that of the GRU's
            for name, bias in self.fused.named_parameters():
                if name.startswith("bias"):
                    bias.data[self.hidden : 2 * self.hidden] = keep_bias if name.startswith("bias_ih") else 0.0

    def zeros(self, batch: int) -> State:
        """The state before the first step of `batch` sequences."""
        like = next(self.fused.parameters())
        shape = (self.layers * self.directions, batch, self.hidden)
        return tuple(like.new_zeros(shape) for _ in range(2 if self.cell == "lstm" else 1))

    def forward(self, x: Tensor, state: State | None = None, lengths: Sequence[int] | None = None
                ) -> tuple[Tensor, State]:
        """(B, T, F) to the states of the top layer (B, T, D * H), and the last state of all layers. `lengths`: B ints
        on the CPU; the states after the end of a sequence are zeros, and its last state is that at its end."""
        if lengths is None or (lengths.shortest if type(lengths) is Lengths else min(lengths)) == x.shape[1]:
            out, after = self.fused(x, state if state is None or self.cell == "lstm" else state[0])
            return out, after if self.cell == "lstm" else (after,)
        state = self.zeros(len(x)) if state is None else state
        if x.is_cuda:
            return self.packed(x, state, lengths)
        if self.directions == 1:
            return run_to_lengths(self, x, state, lengths)
        last: list[State] = []
        for layer in range(self.layers):
            outputs = []
            for backward in (False, True):
                number = 2 * layer + backward
                out, after = run_to_lengths(partial(self.run_layer, layer=layer, backward=backward),
                                            reverse_sequences(x, lengths) if backward else x,
                                            tuple(tensor[number : number + 1] for tensor in state), lengths)
                outputs.append(reverse_sequences(out, lengths) if backward else out)
                last.append(after)
            x = torch.cat(outputs, dim=2)
            if layer < self.layers - 1:
                x = F.dropout(x, self.fused.dropout, self.training)
        return x, tuple(torch.cat(tensors) for tensors in zip(*last, strict=True))

    def packed(self, x: Tensor, state: State, lengths: Sequence[int]) -> tuple[Tensor, State]:
        """As `forward` with lengths, by cuDNN's packed sequences. The rows are sorted by their lengths here: where
        torch sorts them, the host waits for the device."""
        order = torch.tensor(lengths).argsort(descending=True, stable=True)
        there, back = to_device(torch.stack([order, order.argsort()]), x.device)
        ordered = [lengths[row] for row in order.tolist()]
        packed = nn.utils.rnn.pack_padded_sequence(x.index_select(0, there), ordered, True)
        first = tuple(tensor.index_select(1, there) for tensor in state)
        out, after = self.fused(packed, first if self.cell == "lstm" else first[0])
        out, _ = nn.utils.rnn.pad_packed_sequence(out, batch_first=True, total_length=x.shape[1])
        last = after if self.cell == "lstm" else (after,)
        return out.index_select(0, back), tuple(tensor.index_select(1, back) for tensor in last)

    def run_layer(self, x: Tensor, state: State, layer: int, backward: bool) -> tuple[Tensor, State]:
        """The fused kernel of one layer in one direction, over all steps of x."""
        before = state if self.cell == "lstm" else state[0]
        out, *after = KERNELS[self.cell](x, before, self.weights(layer, backward), True, 1, 0.0, False, False, True)
        return out, tuple(after)

    def weights(self, layer: int, backward: bool = False) -> list[Tensor]:
        """W_x, W_h, b_x, b_h."""
        tail = f"_l{layer}{'_reverse' if backward else ''}"
        return [getattr(self.fused, name + tail) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    def unrolled(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As `forward`, by a loop over layers and time. For one direction, without dropout and lengths."""
        state = self.zeros(len(x)) if state is None else state
        last = []
        for layer in range(self.layers):
            now, outputs = tuple(tensor[layer] for tensor in state), []
            for t in range(x.shape[1]):
                now = EQUATIONS[self.cell](x[:, t], now, *self.weights(layer))
                outputs.append(now[0])
            x = torch.stack(outputs, dim=1)
            last.append(now)
        return x, tuple(torch.stack(tensors) for tensors in zip(*last, strict=True))

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One time step (B, F), by torch's cell kernels, which cost much less than the fused layer for one step."""
        x, last = self.step_layers(x, split_layers(state))
        return x, tuple(torch.stack(tensors) for tensors in zip(*last, strict=True))

    def step_layers(self, x: Tensor, state: list[State]) -> tuple[Tensor, list[State]]:
        """The same with a list of each layer's state (B, H), which saves stacking and splitting between steps."""
        weights, last = self.fused._flat_weights, list[State]()  # W_x, W_h, b_x, b_h of each layer
        for layer, now in enumerate(state):
            if self.cell == "lstm":
                now = torch.lstm_cell(x, now, *weights[4 * layer : 4 * layer + 4])
            else:
                kernel = torch.gru_cell if self.cell == "gru" else torch.rnn_tanh_cell
                now = (kernel(x, now[0], *weights[4 * layer : 4 * layer + 4]),)
            x = now[0]
            last.append(now)
        return x, last


def run_to_lengths(call: Callable[[Tensor, State], tuple[Tensor, State]], x: Tensor, state: State,
                   lengths: Sequence[int]) -> tuple[Tensor, State]:
    """`call` on (B, T, F), each row up to its length: zeros after it, and its last state is the one there.

    All rows that have not ended run together up to the next length at which a row ends, so that batches of similar
    length need few calls. On a CPU this is several times as fast as torch's packed sequences, which advance by one step
    at a time."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    back = torch.tensor(order).argsort()
    x, state = x[order], tuple(tensor[:, order] for tensor in state)
    start, outputs, last = 0, [], list[State]()
    for end in sorted(set(lengths)):
        running = sum(length >= end for length in lengths)
        longer = sum(length > end for length in lengths)
        out, state = call(x[:running, start:end].contiguous(),
                          tuple(tensor[:, :running].contiguous() for tensor in state))
        outputs.append(F.pad(out, (0, 0, 0, 0, 0, len(x) - running)))
        last.insert(0, tuple(tensor[:, longer:] for tensor in state))
        start = end
    outputs.append(x.new_zeros(len(x), x.shape[1] - start, outputs[0].shape[2]))
    return (torch.cat(outputs, dim=1)[back],
            tuple(torch.cat(tensors, dim=1)[:, back] for tensors in zip(*last, strict=True)))


def reverse_sequences(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B, T, ...) with the first `lengths` steps of each row in reverse order, the others as they are."""
    ends = to_device(torch.as_tensor(lengths), x.device)[:, None]
    places = torch.arange(x.shape[1], device=x.device)
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x[rows, torch.where(places < ends, ends - 1 - places, places)]


def split_layers(state: State) -> list[State]:
    """Tensors (L, B, H) to the state of each layer, tensors (B, H)."""
    return list(zip(*(tensor.unbind() for tensor in state), strict=True))


class Symbols(nn.Module):
    """Symbols (...) int64 to features (..., F): an embedding of F values, or one-hot vectors where `embedding` is None.
    """

    one_hot: Tensor

    def __init__(self, vocab_size: int, embedding: int | None):
        super().__init__()
        self.vocab_size, self.features = vocab_size, embedding or vocab_size
        self.table = nn.Embedding(vocab_size, embedding) if embedding else None
        if embedding is None:
            self.register_buffer("one_hot", torch.eye(vocab_size), persistent=False)

    @property
    def vectors(self) -> Tensor:
        """(V, F), a row for each symbol."""
        return self.table.weight if self.table is not None else self.one_hot

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.vectors)


class CharRNN(nn.Module):
    """A language model: symbols (B, T) to the logits (B, T, V) of the symbol after each; the caller keeps the state.

    A. Karpathy, "The Unreasonable Effectiveness of Recurrent Neural Networks", 2015. `tied`: the output layer has the
    weights of the embedding (O. Press, L. Wolf, 2016, arXiv 1608.05859). Raises ValueError where embedding and hidden
    units differ then. `initial_range`: all weights and biases start uniformly in [-initial_range, initial_range], as
    in Karpathy's char-rnn with 0.08, and the forget bias too unless `keep_bias` is given; None for torch's start."""

    def __init__(self, vocab_size: int, cell: str, hidden: int, layers: int, embedding: int | None = None,
                 dropout: float = 0.0, tied: bool = False, keep_bias: float | None = None,
                 initial_range: float | None = None):
        super().__init__()
        if tied and embedding != hidden:
            raise ValueError(f"tied=true needs embedding = hidden, but they are {embedding} and {hidden}")
        self.symbols = Symbols(vocab_size, embedding)
        self.recurrent = Recurrent(cell, self.symbols.features, hidden, layers, dropout, keep_bias=keep_bias)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, vocab_size)
        if tied and self.symbols.table is not None:
            self.head.weight = self.symbols.table.weight
        if initial_range is not None:
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -initial_range, initial_range)
            self.recurrent.set_keep_bias(keep_bias)

    def zeros(self, batch: int) -> State:
        return self.recurrent.zeros(batch)

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        out, state = self.recurrent(self.dropout(self.symbols(tokens)), state)
        return self.head(self.dropout(out)), state

    def step(self, tokens: Tensor, state: State | list[State]) -> tuple[Tensor, list[State]]:
        """(B,) to (B, V). The state is that of `zeros`, of `forward` or of the step before."""
        layers = split_layers(state) if isinstance(state, tuple) else state
        out, after = self.recurrent.step_layers(self.symbols(tokens), layers)
        return self.head(out), after


class SequenceClassifier(nn.Module):
    """Many to one: symbols (B, T), or vectors (B, T, F) where `features` is not None, to class logits (B, K), from the
    state at the end of each sequence (`pool=last`) or the mean over its length (`pool=mean`). Raises ValueError unless
    exactly one of vocab_size and features is not None."""

    def __init__(self, num_classes: int, cell: str, hidden: int, layers: int, vocab_size: int | None = None,
                 features: int | None = None, embedding: int | None = None, dropout: float = 0.0, pool: str = "last",
                 bidirectional: bool = False, keep_bias: float | None = None):
        super().__init__()
        if (vocab_size is None) == (features is None):
            raise ValueError("exactly one of vocab_size and features must be null")
        self.symbols = Symbols(vocab_size, embedding) if vocab_size is not None else None
        width = self.symbols.features if self.symbols is not None else features
        assert width is not None
        self.recurrent = Recurrent(cell, width, hidden, layers, dropout, bidirectional, keep_bias)
        self.dropout, self.pool = nn.Dropout(dropout), pool
        self.head = nn.Linear(hidden * self.recurrent.directions, num_classes)

    def forward(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        x = self.symbols(tokens) if self.symbols is not None else tokens
        out, state = self.recurrent(self.dropout(x), None, lengths)
        if self.pool == "mean":
            counts = to_device(torch.as_tensor(lengths), out.device)
            pooled = out.sum(1) / counts.to(out)[:, None]  # zeros after each end
        else:
            pooled = torch.cat(list(state[0][-self.recurrent.directions :]), dim=1)
        return self.head(self.dropout(pooled))


class Tagger(nn.Module):
    """Many to many: symbols (B, T) to class logits (B, T, K) of each; `bidirectional`: read from both sides."""

    def __init__(self, vocab_size: int, num_classes: int, cell: str, hidden: int, layers: int,
                 embedding: int | None = None, dropout: float = 0.0, bidirectional: bool = True):
        super().__init__()
        self.symbols = Symbols(vocab_size, embedding)
        self.recurrent = Recurrent(cell, self.symbols.features, hidden, layers, dropout, bidirectional)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden * self.recurrent.directions, num_classes)

    def forward(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        out, _ = self.recurrent(self.dropout(self.symbols(tokens)), None, lengths)
        return self.head(self.dropout(out))
