"""Characters per second of a run of char_rnn on one core, beside a loop written by hand around nn.LSTM with the same
windows, optimizer and clipping."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, build_run, cores, measure, time_loop, time_run
from dltrain.batches import TokenBatch
from dltrain.data.language_modeling import TextStreams

STEPS, WARM_UP = 60, 10
WORDS = ["model=char_rnn", "recipe=none", "trainer=cpu", "trainer.max_epochs=1", "trainer.gradient_clip_norm=1",
         "task.optimizer.name=adam", "task.optimizer.lr=2e-3", "task.optimizer.weight_decay=0"]


def run() -> list[Row]:
    with cores(1):
        return [row(1, 256, 32, 64), row(2, 128, 50, 50)]


def row(layers: int, hidden: int, batch: int, window: int) -> Row:
    config, data, task = build_run([*WORDS, f"model.layers={layers}", f"model.hidden={hidden}",
                                    f"data.batch_size={batch}", f"data.window={window}"])
    assert isinstance(data, TextStreams)
    return measure(f"training, LSTM {layers} x {hidden}, {batch} windows of {window}, one core", "characters/s", {
        "dltrain": lambda: batch * window / time_run(config, data, task, STEPS, WARM_UP),
        "a loop around nn.LSTM": lambda: batch * window / time_lstm(data, layers, hidden)}, ">= 0.99")


def time_lstm(data: TextStreams, layers: int, hidden: int) -> float:
    symbols = len(data.vocabularies["characters"])
    lstm, head = nn.LSTM(symbols, hidden, layers, batch_first=True), nn.Linear(hidden, symbols)
    weights = [*lstm.parameters(), *head.parameters()]
    adam = torch.optim.Adam(weights, lr=2e-3)
    state: tuple[Tensor, Tensor] | None = None

    def step(batch: TokenBatch) -> None:
        nonlocal state
        hidden_states, (h, c) = lstm(F.one_hot(batch.tokens, symbols).float(), state)
        state = h.detach(), c.detach()
        loss = F.cross_entropy(head(hidden_states).flatten(0, 1), batch.targets.flatten())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()

    data.load_state_dict({"position": 0})
    return time_loop(data.train_dataloader(), step, STEPS, WARM_UP)
