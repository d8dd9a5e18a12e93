"""How far back in time a gradient reaches, and what clipping is for.

R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural networks", 2012, arXiv 1211.5063,
sections 2 and 3.2: the gradient at distance k is a product of k Jacobians, diag(tanh') W_h, so its norm shrinks at
least as fast as s^k where s < 1 is the largest singular value of W_h; where s > 1 it may grow.

Here W_h is s times an orthogonal matrix, so that all singular values are s and, without tanh, the norm is s^k exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log10
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dltrain.batches import generator, seed_of
from dltrain.data.language_modeling import cut_streams, encode_characters
from dltrain.data.sequences import character_vocabulary
from dltrain.data.stdlib import read_topics
from dltrain.drawing.style import colour, new_figure, save_figure
from dltrain.drawing.tables import format_table, format_values, write_csv
from dltrain.errors import UserError
from dltrain.models.recurrent import EQUATIONS, CharRNN, Recurrent
from dltrain.run import StudyContext
from dltrain.studies.claims import Verdict, judge_excesses, print_verdicts

BATCH, FEATURES = 32, 8  # sequences and input values of `gradient_norms`
STREAMS, UNITS, CHARACTERS = 16, 128, 200_000  # of the net that is trained with and without clipping
DISTANCES = (5, 10, 20, 50, 100)  # columns of the table
AVERAGED_STEPS = 30  # at the start and the end of training
VANISHED = 1e-3  # of the gradient's norm

Columns = Mapping[str, Sequence[float]]


def study(context: StudyContext, hidden: int, distance: int, singular_values: list[float], forget_biases: list[float],
          steps: int, window: int, lr: float, clip_norm: float, seeds: list[int]) -> dict[str, Any]:
    """Writes gradient_norms.csv, training.csv and results.png, all of the first seed; returns the means over the seeds
    of the last norm and the last loss of each net, and what the seeds say of the claims."""
    if not (singular_values or forget_biases):
        raise UserError("study.singular_values, study.forget_biases: must not both be empty")
    names = {value: f"vanilla, s = {value:g}" for value in singular_values}
    lstms = {bias: f"LSTM, forget bias {bias:g}" for bias in forget_biases}
    clipped, free = f"clipped at {clip_norm:g}", "not clipped"
    last_norms: dict[str, list[float]] = {name: [] for name in (*names.values(), *lstms.values())}
    last_losses: dict[str, list[float]] = {clipped: [], free: []}
    highest: dict[str, list[float]] = {clipped: [], free: []}
    histories: list[tuple[Columns, Columns, Columns]] = []  # of each seed
    for seed in context.all_seeds(seeds):
        norms = {name: gradient_norms(vanilla(hidden, value, seed), distance, seed).tolist()
                 for value, name in names.items()}
        norms |= {name: gradient_norms(lstm(hidden, bias, seed), distance, seed).tolist()
                  for bias, name in lstms.items()}
        losses, gradients = dict[str, list[float]](), dict[str, list[float]]()
        for name, limit in ((clipped, clip_norm), (free, float("inf"))):
            losses[name], gradients[name] = train(steps, window, lr, limit, seed)
        for name, row in norms.items():
            last_norms[name].append(row[-1])
        for name, row in losses.items():
            last_losses[name].append(mean(row[-AVERAGED_STEPS:]))
            highest[name].append(max(row))
        histories.append((norms, losses, gradients))
    write_histories(context.folder, *histories[0])
    print_tables(*histories[0], context.seed + seeds[0])
    draw(*histories[0], singular_values, context.folder / "results.png")
    verdicts = judge({value: last_norms[name] for value, name in names.items()},
                     {bias: last_norms[name] for bias, name in lstms.items()}, highest[clipped], highest[free])
    outcomes = print_verdicts(verdicts)
    print(f"\n{context.folder}/results.png")
    return {**{f"norm_at_{distance}, {name}": mean(values) for name, values in last_norms.items()},
            **{f"final_loss, {name}": mean(values) for name, values in last_losses.items()}, **outcomes}


def judge(vanilla_norms: Mapping[float, Sequence[float]], lstm_norms: Mapping[float, Sequence[float]],
          clipped: Sequence[float], free: Sequence[float]) -> list[Verdict]:
    """What the seeds say of the claims. The norms at the largest distance by singular value and by forget bias, and the
    highest losses of the trainings with and without clipping, each of every seed. What differs by orders of magnitude
    is compared by its logarithm."""
    verdicts = []
    if vanilla_norms and (smallest := min(vanilla_norms)) < 1:
        norms = vanilla_norms[smallest]
        verdicts.append(judge_excesses("the gradient vanishes below a singular value of 1", [
            VANISHED - norm for norm in norms], sides=f"{format_values(norms)} at {smallest:g}"))
    if vanilla_norms and (largest := max(vanilla_norms)) > 1:
        norms = vanilla_norms[largest]
        verdicts.append(judge_excesses("it grows above 1, in powers of ten", powers_apart(norms, [1.0] * len(norms)),
                                       sides=f"{format_values(norms)} at {largest:g}"))
    if len(lstm_norms) > 1:
        low, high = min(lstm_norms), max(lstm_norms)
        verdicts.append(judge_excesses(
            "a larger forget bias keeps more of it, in powers of ten", powers_apart(lstm_norms[high], lstm_norms[low]),
            sides=f"{format_values(lstm_norms[high])} at {high:g}, {format_values(lstm_norms[low])} at {low:g}"))
    return [*verdicts, judge_excesses(
        "without clipping the loss rises higher, in powers of ten", powers_apart(free, clipped),
        sides=f"at most {format_values(free)} without, {format_values(clipped)} with")]


def powers_apart(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """Pair by pair; infinite where one is 0."""
    return [log10(one / other) if one and other else float("inf") for one, other in zip(left, right, strict=True)]


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


def gradient_norms(net: Recurrent, distance: int, seed: int) -> Tensor:
    """(distance + 1,): the norm of the gradient of a random projection of the last h with respect to the state k steps
    before it (of the LSTM, h and c together), mean over the batch, relative to that at k = 0. Inputs are small
    (standard deviation 0.1), so that tanh is nearly linear at first."""
    x = 0.1 * torch.randn(BATCH, distance + 1, FEATURES, generator=generator("flow", seed), dtype=torch.float64)
    weights = net.weights(0)
    state = tuple(tensor[0].requires_grad_() for tensor in net.zeros(BATCH))
    states = []
    for t in range(distance + 1):
        state = tuple(tensor.clone() for tensor in EQUATIONS[net.cell](x[:, t], state, *weights))  # so that the
        states.append(state)  # gradient with respect to c does not hold that through the h of the same step
    projection = torch.randn(BATCH, net.hidden, generator=generator("projection", seed), dtype=torch.float64)
    tensors = [tensor for step in states for tensor in step]
    gradients = torch.autograd.grad((state[0] * projection).sum(), tensors, allow_unused=True)
    width = len(states[0])
    norms = []
    for t in range(distance + 1):
        of_step = [g for g in gradients[t * width : (t + 1) * width] if g is not None]
        norms.append(torch.cat(of_step, dim=1).norm(dim=1).mean())
    return (torch.stack(norms) / norms[-1]).flip(0).detach()


def train(steps: int, window: int, lr: float, limit: float, seed: int) -> tuple[list[float], list[float]]:
    """A vanilla character model with an orthogonal W_h on the documentation topics, by SGD with momentum 0.9: its loss
    in nats and the norm of its gradient, before clipping, at each step."""
    text = "\n\n".join(read_topics())[:CHARACTERS]
    symbols = character_vocabulary(text)
    rows = cut_streams(torch.from_numpy(encode_characters(text, symbols)).long(), STREAMS, whole=False)
    if window >= rows.shape[1] - 1:
        raise UserError(f"study.window={window}: must be at most {rows.shape[1] - 2:,}, the length of a stream")
    torch.manual_seed(seed_of("init", seed))
    net = CharRNN(len(symbols), "rnn", UNITS, 1)
    nn.init.orthogonal_(net.recurrent.weights(0)[1])
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    state, losses, norms = net.zeros(STREAMS), [], []
    for step in range(steps):
        first = step * window % (rows.shape[1] - window - 1)
        piece = rows[:, first : first + window + 1]
        logits, after = net(piece[:, :-1], state)
        state = tuple(tensor.detach() for tensor in after)
        loss = F.cross_entropy(logits.flatten(0, 1), piece[:, 1:].flatten())
        sgd.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(net.parameters(), limit)))
        sgd.step()
        losses.append(float(loss.detach()))
    return losses, norms


def write_histories(folder: Path, norms: Columns, losses: Columns, gradients: Columns) -> None:
    write_columns(folder / "gradient_norms.csv", "distance", norms)
    write_columns(folder / "training.csv", "step", {f"loss, {name}": row for name, row in losses.items()} | {
        f"gradient norm, {name}": row for name, row in gradients.items()})


def write_columns(file: Path, first: str, columns: Columns) -> None:
    rows = enumerate(zip(*columns.values(), strict=True))
    write_csv(file, [first, *columns], [[number, *(f"{value:.6g}" for value in row)] for number, row in rows])


def print_tables(norms: Columns, losses: Columns, gradients: Columns, seed: int) -> None:
    distances = [k for k in DISTANCES if k < len(next(iter(norms.values())))]
    print("\n" + format_table([f"norm at distance, seed {seed}", *map(str, distances)], [
        [name, *(f"{row[k]:.2g}" for k in distances)] for name, row in norms.items()], range(1, len(distances) + 1)))
    header = [f"a vanilla net, seed {seed}", f"loss, first {AVERAGED_STEPS}", f"last {AVERAGED_STEPS}", "largest norm"]
    print("\n" + format_table(header, [
        [name, f"{mean(row[:AVERAGED_STEPS]):.2f}", f"{mean(row[-AVERAGED_STEPS:]):.2f}",
         f"{max(gradients[name]):.1f}"] for name, row in losses.items()], [1, 2, 3]))


def draw(norms: Columns, losses: Columns, gradients: Columns, singular_values: Sequence[float], file: Path) -> None:
    figure = new_figure(14, 4.4)
    left, middle, right = figure.subplots(1, 3)
    for place, (name, row) in enumerate(norms.items()):
        left.semilogy(row, color=colour(place), label=name)
        if place < len(singular_values):
            left.semilogy([singular_values[place] ** k for k in range(len(row))], ":", color=colour(place), linewidth=1)
    left.set(title="norm of the gradient by distance (dotted: s^k)", xlabel="steps back in time",
             ylabel="relative to the last step", ylim=(1e-12, 1e6))
    left.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    for place, name in enumerate(losses):
        middle.semilogy(losses[name], color=colour(place), label=name)
        right.semilogy(gradients[name], color=colour(place), label=name, linewidth=1)
    middle.set(title="a vanilla net in training", xlabel="step", ylabel="loss, nats per character")
    right.set(title="norm of its gradient, before clipping", xlabel="step")
    middle.legend(fontsize=8)
    save_figure(figure, file)
