"""Characters per second that dltrain generates, on one core, beside nn.LSTM called for each character."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.timing import Row, build_run, cores, measure, seconds
from dltrain.models.recurrent import CharRNN, State
from dltrain.tasks.language_modeling import generate

COUNT = 1500


def run() -> list[Row]:
    with cores(1):
        _, _, task = build_run(["model=char_rnn", "recipe=none", "model.hidden=128", "model.layers=2"])
        model = task.eval().model
        return [measure("sampling, LSTM 2 x 128, one core", "characters/s", {
            "dltrain": lambda: COUNT / seconds(lambda: write(model)),
            "nn.LSTM, call by call": lambda: COUNT / seconds(lambda: write_by_calls(model))}, ">= 2.85")]


def write(model: CharRNN) -> None:
    symbols = generate(model, torch.tensor([5]), torch.Generator().manual_seed(0))
    for _ in range(COUNT):
        next(symbols)


def write_by_calls(model: CharRNN) -> None:
    rng, token = torch.Generator().manual_seed(0), torch.tensor([[5]])
    state: State | None = None
    with torch.inference_mode():
        for _ in range(COUNT):
            logits: Tensor
            logits, state = model(token, state)
            token = torch.multinomial(logits[0, -1].softmax(0), 1, generator=rng)[None]
            int(token)
