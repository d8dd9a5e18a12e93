"""Writing symbol after symbol until END: greedily, by sampling, or with a beam.

A model's `step(tokens (N,), state)` returns logits (N, V) and the next state, in which every tensor has N first. PAD,
UNKNOWN and START are never chosen; PAD fills the rows after END. A score is the sum of the log-probabilities of the
written symbols, END included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map

from dltrain.augment.geometry import to_device
from dltrain.batches import END, PAD, START

ENDS_READ_EVERY = 8  # symbols, where reading whether all sequences have ended makes the host wait for the device

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def log_probabilities(logits: Tensor) -> Tensor:
    """Log-softmax of (B, V), -inf for the symbols that are never written."""
    result = logits.float().log_softmax(1)
    result[:, :END] = -torch.inf
    return result


def write_sequences(step: Step, state: Any, start: Tensor, max_length: int, temperature: float = 0.0,
                    rng: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Symbols (B, T <= max_length), PAD after each END, and scores (B,): sums of log probabilities. `start` (B,): the
    first symbol that the model reads.

    Greedy, the most probable symbol each time, unless there is an `rng` (on the CPU) and temperature > 0: then each
    symbol is sampled from softmax(logits / temperature)."""
    token, score = start, torch.zeros(len(start), device=start.device)
    done, symbols = torch.zeros_like(start, dtype=torch.bool), []
    for _ in range(max_length):
        logits, state = step(token, state)
        log_p = log_probabilities(logits)
        perturbed = log_p
        if rng is not None and temperature:  # Gumbel-max trick: argmax(log p + noise) is a sample
            noise = -torch.empty(log_p.shape).exponential_(generator=rng).log()
            perturbed = log_p / temperature + to_device(noise, [log_p])
        token = perturbed.argmax(1)
        score = score + log_p.gather(1, token[:, None])[:, 0].masked_fill(done, 0.0)
        token = token.masked_fill(done, PAD)
        symbols.append(token)
        done = done | (token == END)
        if all_ended(done, len(symbols)):
            break
    return torch.stack(symbols, dim=1), score


def all_ended(done: Tensor, length: int) -> bool:
    """Whether all sequences of `length` symbols have ended. On a device it is only read for some lengths; the symbols
    that are written meanwhile are PAD."""
    if not done.is_cpu and length % ENDS_READ_EVERY:
        return False
    return bool(done.all())


def read_sequences(step: Step, state: Any, symbols: Tensor) -> Tensor:
    """The logits (N, T, V) of the symbol after each of the given `symbols` (N, T)."""
    logits = []
    for place in range(symbols.shape[1]):
        next_logits, state = step(symbols[:, place], state)
        logits.append(next_logits)
    return torch.stack(logits, 1)


def repeat_state(state: Any, times: int) -> Any:
    """Each row of every tensor `times` times, one after the other."""
    return tree_map(lambda tensor: tensor.repeat_interleave(times, 0), state)


def beam_search(step: Step, state: Any, start: Tensor, max_length: int, width: int, length_power: float = 1.0
                ) -> tuple[Tensor, Tensor]:
    """The `width` best sequences of each row: symbols (B, width, T) and scores (B, width), best first.

    At each step the `width` continuations with the highest scores are kept; a sequence that has ended stays unchanged.
    In the end they are ranked by score / length ** length_power, since longer sequences have lower scores (Y. Wu et
    al., 2016, arXiv 1609.08144, section 7, in its simplest form); 0 ranks by the score itself."""
    rows, device = len(start), start.device
    state = repeat_state(state, width)
    token = start.repeat_interleave(width)
    scores = torch.full((rows, width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all start equal: only one of them counts
    done = torch.zeros(rows, width, dtype=torch.bool, device=device)
    symbols = torch.empty(rows, width, 0, dtype=torch.long, device=device)
    first = torch.arange(rows, device=device)[:, None] * width
    for _ in range(max_length):
        logits, state = step(token, state)
        log_p = log_probabilities(logits).view(rows, width, -1)
        ended = torch.full_like(log_p[0, 0], -torch.inf)
        ended[PAD] = 0.0
        totals = scores[:, :, None] + torch.where(done[:, :, None], ended, log_p)
        scores, place = totals.flatten(1).topk(width)
        origin, chosen = place // log_p.shape[2], place % log_p.shape[2]
        source_rows = (first + origin).flatten()
        state = tree_map(lambda tensor, rows=source_rows: tensor[rows], state)
        symbols = torch.cat([symbols.gather(1, origin[:, :, None].expand_as(symbols)), chosen[:, :, None]], dim=2)
        done = done.gather(1, origin) | (chosen == END)
        token = chosen.flatten()
        if all_ended(done, symbols.shape[2]):
            break
    rank = scores / (symbols != PAD).sum(2).clamp_min(1) ** length_power
    best = rank.argsort(dim=1, descending=True)
    return symbols.gather(1, best[:, :, None].expand_as(symbols)), scores.gather(1, best)


def start_tokens(rows: int, device: torch.device) -> Tensor:
    return torch.full((rows,), START, device=device)


def until_end(symbols: Tensor) -> list[list[int]]:
    """(B, T) as lists without END and what follows it."""
    return [row[: row.index(END)] if END in row else [s for s in row if s != PAD] for row in symbols.tolist()]


def edit_distances(outputs: list[list[int]], targets: list[list[int]]) -> list[int]:
    """The least number of symbols to insert, delete and replace that turns each output into its target (V. Levenshtein,
    1966), by the table of R. Wagner and M. Fischer, 1974, row by row for all pairs."""
    lengths = torch.tensor([len(target) for target in targets])
    columns = torch.arange(int(lengths.max()) + 1)
    expected = pad_sequence([torch.tensor(target, dtype=torch.long) for target in targets], True, PAD)
    row = columns.repeat(len(targets), 1)
    distances = row.gather(1, lengths[:, None])[:, 0]
    for count in range(1, max(map(len, outputs)) + 1):
        symbols = torch.tensor([output[count - 1] if len(output) >= count else PAD for output in outputs])
        changed = row[:, :-1] + (expected != symbols[:, None])
        row = torch.cat([row[:, :1] + 1, torch.minimum(row[:, 1:] + 1, changed)], dim=1)
        row = (row - columns).cummin(1).values + columns  # an insertion costs 1 a column
        is_last = torch.tensor([len(output) == count for output in outputs])
        distances = torch.where(is_last, row.gather(1, lengths[:, None])[:, 0], distances)
    return distances.tolist()
