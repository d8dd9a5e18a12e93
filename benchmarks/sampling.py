"""Characters per second that dltrain generates, as the ratio to nn.LSTM called for each character."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.timing import build_run, compare, seconds
from dltrain.models.recurrent import CharRNN, State
from dltrain.tasks.language_modeling import generate

COUNT = 1500


def run() -> dict[str, dict[str, float]]:
    _, _, task = build_run(["model=char_rnn", "recipe=none", "model.hidden=128", "model.layers=2"])
    model = task.eval().model
    return {"2x128": compare(lambda: COUNT / seconds(lambda: write(model)),
                             lambda: COUNT / seconds(lambda: write_by_calls(model)))}


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
