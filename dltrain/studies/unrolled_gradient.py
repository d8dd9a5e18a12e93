"""Backpropagation through time, beside an explicitly unrolled net that has a copy of the weights for each step.

P. Werbos, "Backpropagation Through Time: What It Does and How to Do It", 1990; Shakhnarovich 2016, slides 35 and 44:
the unrolled net is an ordinary one whose layers share their weights, so the gradient of a shared weight is the sum of
what its copies get. R. Williams, J. Peng, 1990: a truncated gradient is the sum over the last steps alone.

The loss here is that of the last step, so that the share of a copy says how far back the net can learn from it. Nets
have random weights, as at the start of a training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from dltrain.batches import generator, seed_of
from dltrain.drawing.style import colour, new_figure, save_figure
from dltrain.drawing.tables import format_table, format_values, write_csv
from dltrain.errors import UserError
from dltrain.models.recurrent import EQUATIONS, Recurrent
from dltrain.run import StudyContext
from dltrain.studies.claims import judge_excesses, print_verdicts

BATCH, FEATURES = 16, 8  # sequences, and values of an input
ROUNDING = 1e-12  # of a sum of some dozens of doubles, relative to its norm
NEAR = 0.1  # relative error of a truncated gradient that is called near


def study(context: StudyContext, cells: list[str], hidden: int, steps: int, seeds: list[int]) -> dict[str, Any]:
    """Writes gradients.csv, of the first seed, and results.png; returns the largest difference of each cell,
    and the means over the seeds of the steps."""
    if not cells:
        raise UserError("study.cells: must not be empty")
    if unknown := [cell for cell in cells if cell not in EQUATIONS]:
        raise UserError(f"study.cells: there is no cell '{unknown[0]}'; there are: {', '.join(EQUATIONS)}")
    differences, needed = ({cell: list[float]() for cell in cells} for _ in range(2))
    norms: dict[str, list[float]] = {}
    errors: dict[str, list[float]] = {}
    for seed in context.all_seeds(seeds):
        for cell in cells:
            shared, copies = gradients(cell, hidden, steps, seed)
            differences[cell].append(float((copies.sum(0) - shared).norm() / shared.norm()))
            truncated = truncation_errors(copies)
            needed[cell].append(1 + next(k for k, error in enumerate(truncated) if error < NEAR))
            norms.setdefault(cell, (copies.norm(dim=1) / shared.norm()).flip(0).tolist())
            errors.setdefault(cell, truncated)
    columns = {f"{title}, {cell}": row for title, of_cells in (("share of a copy", norms), ("error", errors))
               for cell, row in of_cells.items()}
    write_csv(context.folder / "gradients.csv", ["steps back", *columns],
              [[k, *(f"{value:.6g}" for value in row)] for k, row in enumerate(zip(*columns.values(), strict=True))])
    print("\n" + format_table(["cell", "copies' sum, difference", f"steps until {NEAR:.0%} near"], [
        [cell, f"{max(differences[cell]):.1e}", format_values(needed[cell])] for cell in cells], [1, 2]))
    draw(norms, errors, context.folder / "results.png")
    outcomes = print_verdicts([judge_excesses(
        "the gradient of a shared weight is the sum of its copies'",
        [ROUNDING - max(differences[cell][number] for cell in cells) for number in range(len(seeds))],
        sides=f"they differ by {max(map(max, differences.values())):.1e} of its norm at most, rounding is "
              f"{ROUNDING:g}")])
    print(f"\n{context.folder}/results.png")
    return {**{f"difference, {cell}": max(differences[cell]) for cell in cells},
            **{f"steps until {NEAR:.0%} near, {cell}": mean(needed[cell]) for cell in cells}, **outcomes}


def gradients(cell: str, hidden: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """With respect to all weights and biases in a row, of a random projection of the last h: that of the recurrent
    layer (P,), from torch's own backpropagation through time, and those of each step's copy (T, P)."""
    torch.manual_seed(seed_of("init", seed))
    net = Recurrent(cell, FEATURES, hidden).double()
    rng = generator("unrolled", seed)
    x = torch.randn(BATCH, steps, FEATURES, generator=rng, dtype=torch.float64)
    projection = torch.randn(BATCH, hidden, generator=rng, dtype=torch.float64)
    weights = net.weights(0)
    out, _ = net(x)
    shared = torch.autograd.grad((out[:, -1] * projection).sum(), weights)
    copies = [[weight.detach().clone().requires_grad_() for weight in weights] for _ in range(steps)]
    state = tuple(tensor[0] for tensor in net.zeros(BATCH))
    for t in range(steps):
        state = EQUATIONS[cell](x[:, t], state, *copies[t])
    of_copies = torch.autograd.grad((state[0] * projection).sum(), [copy for row in copies for copy in row])
    width = len(weights)
    rows = [torch.cat([gradient.flatten() for gradient in of_copies[t * width : (t + 1) * width]])
            for t in range(steps)]
    return torch.cat([gradient.flatten() for gradient in shared]), torch.stack(rows)


def truncation_errors(copies: Tensor) -> list[float]:
    """(T, P) gradients of the copies to T errors: the distance of the sum over the last 1, 2, ... T of them from that
    over all, relative to its norm."""
    sums = copies.flip(0).cumsum(0)
    return ((sums - sums[-1]).norm(dim=1) / sums[-1].norm()).tolist()


def draw(norms: Mapping[str, Sequence[float]], errors: Mapping[str, Sequence[float]], file: Any) -> None:
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    for place, cell in enumerate(norms):
        left.semilogy(range(len(norms[cell])), norms[cell], color=colour(place), label=cell)
        right.plot(range(1, len(errors[cell]) + 1), errors[cell], color=colour(place), label=cell)
    left.set(title="gradient of each step's copy of the weights", xlabel="steps before the last",
             ylabel="norm, relative to the whole gradient")
    right.set(title="error of the truncated gradient", xlabel="steps that it flows back through",
              ylabel="relative to the whole gradient", ylim=(0, None))
    right.axhline(NEAR, color="0.7", linewidth=0.8, zorder=0)
    for axes in (left, right):
        axes.legend()
    save_figure(figure, file)
