"""Writing symbol after symbol until END: the likeliest each time, drawn ones, or a beam.

A model's `step(tokens (B,), state)` returns logits (B, V) and the state after it; every tensor in the state has B
first. PAD, UNKNOWN and START are never written. A score is the sum of the log-probabilities of what was written, END
among it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from dltrain.batches import END, PAD, START

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]


def log_probabilities(logits: Tensor) -> Tensor:
    """(B, V), -inf for what is never written."""
    found = logits.float().log_softmax(1)
    found[:, :END] = -torch.inf
    return found


def written(step: Step, state: Any, start: Tensor, limit: int, temperature: float = 0.0,
            draws: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Symbols (B, T <= limit), PAD after each END, and scores (B,). `start` (B,): what is read first, as START.
    `draws` on the CPU: each symbol is drawn from softmax(logits / temperature); without it, or at 0, the likeliest."""
    token, score = start, torch.zeros(len(start), device=start.device)
    done, symbols = torch.zeros_like(start, dtype=torch.bool), []
    for _ in range(limit):
        logits, state = step(token, state)
        log_p = log_probabilities(logits)
        chances = log_p
        if draws is not None and temperature:
            noise = -torch.empty(log_p.shape).exponential_(generator=draws).log()  # Gumbel's maximum is such a draw
            chances = log_p / temperature + noise.to(log_p)
        token = chances.argmax(1)
        score = score + log_p.gather(1, token[:, None])[:, 0].masked_fill(done, 0.0)
        token = token.masked_fill(done, PAD)
        symbols.append(token)
        done = done | (token == END)
        if done.all():
            break
    return torch.stack(symbols, dim=1), score


def beam(step: Step, state: Any, start: Tensor, limit: int, width: int, length_power: float = 1.0
         ) -> tuple[Tensor, Tensor]:
    """The `width` best found of each row: symbols (B, width, T) and scores (B, width), best first.

    At each step the `width` highest scores of all continuations stay; one that has ended stays as it is while its score
    does. In the end they are ranked by score / length ** length_power, since longer ones have lower scores (Y. Wu et
    al., 2016, arXiv 1609.08144, section 7, in its plainest form); 0 ranks by the score itself."""
    rows, device = len(start), start.device
    state = tree_map(lambda part: part.repeat_interleave(width, 0), state)
    token = start.repeat_interleave(width)
    scores = torch.full((rows, width), -torch.inf, device=device)
    scores[:, 0] = 0.0  # all begin the same: only one of them counts
    done = torch.zeros(rows, width, dtype=torch.bool, device=device)
    symbols = torch.empty(rows, width, 0, dtype=torch.long, device=device)
    first = torch.arange(rows, device=device)[:, None] * width
    for _ in range(limit):
        logits, state = step(token, state)
        log_p = log_probabilities(logits).view(rows, width, -1)
        ended = torch.full_like(log_p[0, 0], -torch.inf)
        ended[PAD] = 0.0
        totals = scores[:, :, None] + torch.where(done[:, :, None], ended, log_p)
        scores, place = totals.flatten(1).topk(width)
        origin, chosen = place // log_p.shape[2], place % log_p.shape[2]
        came_from = (first + origin).flatten()
        state = tree_map(lambda part, rows=came_from: part[rows], state)
        symbols = torch.cat([symbols.gather(1, origin[:, :, None].expand_as(symbols)), chosen[:, :, None]], dim=2)
        done = done.gather(1, origin) | (chosen == END)
        token = chosen.flatten()
        if done.all():
            break
    rank = scores / (symbols != PAD).sum(2).clamp_min(1) ** length_power
    best = rank.argsort(dim=1, descending=True)
    return symbols.gather(1, best[:, :, None].expand_as(symbols)), scores.gather(1, best)


def starts(rows: int, device: torch.device) -> Tensor:
    return torch.full((rows,), START, device=device)


def until_end(symbols: Tensor) -> list[list[int]]:
    """(B, T) as lists without END and what follows it."""
    return [row[: row.index(END)] if END in row else [s for s in row if s != PAD] for row in symbols.tolist()]
