"""How far back in time a gradient reaches, and what clipping is for.

R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2012, arXiv 1211.5063,
sections 2 and 3.2: the gradient at distance k is a product of k Jacobians, diag(tanh') W_h, so its norm shrinks at
least as fast as s^k where s < 1 is the largest singular value of W_h; where s > 1 it may grow.

Here W_h is s times an orthogonal matrix, so that all singular values are s and, without tanh, the norm is s^k exactly.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.batches import generator, seed_of
from dltrain.data.language_modeling import cut_streams, encode_characters
from dltrain.data.sequences import character_vocabulary
from dltrain.data.stdlib import read_topics
from dltrain.models.recurrent import EQUATIONS, CharRNN, Recurrent

BATCH, FEATURES = 32, 8  # sequences and input values, of the flow
STREAMS, UNITS, CHARACTERS = 16, 128, 200_000  # of the net that is trained with and without clipping


def study(folder: Path, seed: int, hidden: int, distance: int, singular_values: list[float],
          forget_biases: list[float], steps: int, window: int, lr: float, clip_norm: float) -> dict[str, Any]:
    """Writes gradient_norms.csv, training.csv and results.png; returns what was found in a few numbers."""
    norms: dict[str, Tensor] = {}
    for value in singular_values:
        norms[f"vanilla, s = {value:g}"] = flow(vanilla(hidden, value, seed), distance, seed)
    for bias in forget_biases:
        norms[f"LSTM, forget bias {bias:g}"] = flow(lstm(hidden, bias, seed), distance, seed)
    losses, gradients = {}, {}
    for name, limit in ((f"clipped at {clip_norm:g}", clip_norm), ("not clipped", float("inf"))):
        losses[name], gradients[name] = trained(steps, window, lr, limit, seed)
    write_columns(folder / "gradient_norms.csv", "distance", {name: row.tolist() for name, row in norms.items()})
    write_columns(folder / "training.csv", "step", {f"loss, {name}": row for name, row in losses.items()} | {
        f"gradient norm, {name}": row for name, row in gradients.items()})
    told(norms, losses, gradients)
    draw(norms, losses, gradients, singular_values, folder / "results.png")
    print(f"\n{folder}/results.png")
    return {**{f"norm_at_{distance}, {name}": float(row[-1]) for name, row in norms.items()},
            **{f"final_loss, {name}": sum(row[-30:]) / 30 for name, row in losses.items()}}


def vanilla(hidden: int, singular_value: float, seed: int) -> Recurrent:
    torch.manual_seed(seed_of("init", seed))
    net = Recurrent("rnn", FEATURES, hidden).double()
    _, w_h, b_x, b_h = net.weights(0)
    nn.init.orthogonal_(w_h, singular_value)
    nn.init.zeros_(b_x)
    nn.init.zeros_(b_h)
    return net


def lstm(hidden: int, forget_bias: float, seed: int) -> Recurrent:
    torch.manual_seed(seed_of("init", seed))
    net = Recurrent("lstm", FEATURES, hidden).double()
    net.weights(0)[2].data[hidden : 2 * hidden] = forget_bias
    return net


def flow(net: Recurrent, distance: int, seed: int) -> Tensor:
    """(distance + 1,): the norm of the gradient of a random projection of the last h with respect to the state k steps
    before it (of the LSTM, h and c together), mean over the batch, as a share of that at k = 0. Inputs are small
    (standard deviation 0.1), so that tanh is nearly linear at first."""
    x = 0.1 * torch.randn(BATCH, distance + 1, FEATURES, generator=generator("flow", seed), dtype=torch.float64)
    weights = net.weights(0)
    state = tuple(part[0].requires_grad_() for part in net.zeros(BATCH))
    states = []
    for t in range(distance + 1):
        state = EQUATIONS[net.cell](x[:, t], state, *weights)
        states.append(state)
    projection = torch.randn(BATCH, net.hidden, generator=generator("projection", seed), dtype=torch.float64)
    wanted = [part for step in states for part in step]
    found = torch.autograd.grad((state[0] * projection).sum(), wanted, allow_unused=True)
    width = len(states[0])
    norms = []
    for t in range(distance + 1):
        parts = [g for g in found[t * width : (t + 1) * width] if g is not None]
        norms.append(torch.cat(parts, dim=1).norm(dim=1).mean())
    return (torch.stack(norms) / norms[-1]).flip(0).detach()


def trained(steps: int, window: int, lr: float, limit: float, seed: int) -> tuple[list[float], list[float]]:
    """A vanilla character model with an orthogonal W_h on the documentation topics, by SGD with momentum 0.9: its loss
    in nats and its gradient's norm, before clipping, at each step."""
    text = "\n\n".join(read_topics())[:CHARACTERS]
    symbols = character_vocabulary(text)
    rows = cut_streams(encode_characters(text, symbols), STREAMS, whole=False)
    torch.manual_seed(seed_of("init", seed))
    net = CharRNN(len(symbols), "rnn", UNITS, 1)
    nn.init.orthogonal_(net.recurrent.weights(0)[1])
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    state, losses, norms = net.zeros(STREAMS), [], []
    for step in range(steps):
        first = step * window % (rows.shape[1] - window - 1)
        piece = rows[:, first : first + window + 1]
        logits, after = net(piece[:, :-1], state)
        state = tuple(part.detach() for part in after)
        loss = F.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten())
        sgd.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), limit)))
        sgd.step()
        losses.append(float(loss.detach()))
    return losses, norms


def write_columns(file: Path, first: str, columns: dict[str, list[float]]) -> None:
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow([first, *columns])
        for number, row in enumerate(zip(*columns.values(), strict=True)):
            writer.writerow([number, *(f"{value:.6g}" for value in row)])


def told(norms: dict[str, Tensor], losses: dict[str, list[float]], gradients: dict[str, list[float]]) -> None:
    far = [k for k in (5, 10, 20, 50, 100) if k < len(next(iter(norms.values())))]
    width = max(map(len, norms))
    print(f"\n  {'norm at distance':<{width}}" + "".join(f"{k:>10}" for k in far))
    for name, row in norms.items():
        print(f"  {name:<{width}}" + "".join(f"{float(row[k]):>10.2g}" for k in far))
    print(f"\n  {'training a vanilla net':<{width}}  loss, first 30  last 30  largest norm")
    for name, loss in losses.items():
        first, last = sum(loss[:30]) / 30, sum(loss[-30:]) / 30
        print(f"  {name:<{width}}  {first:>14.2f} {last:>8.2f} {max(gradients[name]):>13.1f}")


def draw(norms: dict[str, Tensor], losses: dict[str, list[float]], gradients: dict[str, list[float]],
         singular_values: list[float], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.4), dpi=110, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for place, (name, row) in enumerate(norms.items()):
        left.semilogy(row, color=f"C{place}", label=name)
        if place < len(singular_values):
            left.semilogy([singular_values[place] ** k for k in range(len(row))], ":", color=f"C{place}", linewidth=1)
    left.set(title="gradient's norm by distance (dotted: s^k)", xlabel="steps back in time", ylabel="share of the last",
             ylim=(1e-12, 1e6))
    left.legend(fontsize=8)
    for place, name in enumerate(losses):
        middle.semilogy(losses[name], color=f"C{place}", label=name)
        right.semilogy(gradients[name], color=f"C{place}", label=name, linewidth=1)
    middle.set(title="a vanilla net in training", xlabel="step", ylabel="loss, nats a character")
    right.set(title="its gradient's norm, before clipping", xlabel="step")
    middle.legend(fontsize=8)
    for axes in (left, middle, right):
        axes.grid(alpha=0.25)
    figure.savefig(file)
