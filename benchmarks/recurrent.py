"""Characters per second of a whole dltrain run of char_rnn, as the ratio to a loop written by hand around nn.LSTM with
the same windows, optimizer and clipping."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import build_run, compare, steps_per_second, time_run
from dltrain.data.language_modeling import TextStreams

STEPS, WARM_UP_STEPS = 60, 10
WORDS = ["model=char_rnn", "recipe=none", "trainer.max_epochs=1", "trainer.gradient_clip_norm=1",
         f"trainer.max_steps={STEPS}", "task.optimizer.name=adam", "task.optimizer.lr=2e-3",
         "task.optimizer.weight_decay=0"]


def run() -> dict[str, dict[str, float]]:
    return {"1x256, batch 32, 64 steps": measure(1, 256, 32, 64), "2x128, batch 50, 50 steps": measure(2, 128, 50, 50)}


def measure(layers: int, hidden: int, batch: int, window: int) -> dict[str, float]:
    words = [*WORDS, f"model.layers={layers}", f"model.hidden={hidden}", f"data.batch_size={batch}",
             f"data.window={window}"]
    return compare(lambda: batch * window * time_run(*build_run(words), WARM_UP_STEPS),
                   lambda: batch * window * time_lstm(words, layers, hidden))


def time_lstm(words: list[str], layers: int, hidden: int) -> float:
    _, data, _ = build_run(words)
    assert isinstance(data, TextStreams)
    symbols, window, tokens = len(data.vocabularies["characters"]), data.window, data.tokens["train"]
    lstm, head = nn.LSTM(symbols, hidden, layers, batch_first=True), nn.Linear(hidden, symbols)
    weights = [*lstm.parameters(), *head.parameters()]
    adam = torch.optim.Adam(weights, lr=2e-3)
    state: tuple[Tensor, Tensor] | None = None
    starts = []
    for first in range(0, STEPS * window, window):
        starts.append(time.perf_counter())
        inputs, targets = tokens[:, first : first + window], tokens[:, first + 1 : first + window + 1]
        hidden_states, (h, c) = lstm(F.one_hot(inputs, symbols).float(), state)
        state = h.detach(), c.detach()
        loss = F.cross_entropy(head(hidden_states).flatten(0, 1), targets.flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
    return steps_per_second(starts, WARM_UP_STEPS)
