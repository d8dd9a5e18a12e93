"""What the gates of a trained LSTM do while it reads a text.

Shakhnarovich 2016, slides 49 to 53: a gate is a sigmoid for each element of the state; the forget gate keeps or drops
it, the input gate lets new values in, the output gate makes it visible. A. Karpathy, J. Johnson, L. Fei-Fei,
"Visualizing and Understanding Recurrent Networks", 2015, arXiv 1506.02078, section 4.2 and figure 3: the fractions of
the time that a gate is left-saturated, below 0.1, and right-saturated, above 0.9. A unit whose forget gate is always
right-saturated remembers for very long.

B batch (here 1), T time steps, H hidden units, G gates (input, forget, output).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, cast

import torch
from torch import Tensor

from dltrain import evaluation
from dltrain.build import build_data
from dltrain.data.language_modeling import TextStreams
from dltrain.drawing.style import colour, new_figure, save_figure
from dltrain.drawing.tables import format_table, format_values, write_csv
from dltrain.errors import UserError
from dltrain.models.recurrent import CharRNN
from dltrain.run import StudyContext
from dltrain.studies.claims import judge_excesses, print_verdicts
from dltrain.studies.named_runs import plan_runs, train_all

GATES = ("input", "forget", "output")
LOW, HIGH = 0.1, 0.9  # a gate below or above is saturated
WIDTH = 100  # characters of the text in the picture
RARE = 20  # a kind of character that occurs less often has no mean


def study(context: StudyContext, words: list[str], more: list[str], characters: int, units: int, seeds: list[int]
          ) -> dict[str, Any]:
    """`words`, `more`: the run of a language model, as on the command line; `characters`: T, of the test split;
    `units`: rows of the picture. Writes gates.csv, of each unit of the first seed, and results.png; returns the means
    over the seeds.

    Raises UserError for a model that is not a CharRNN of LSTM layers."""
    saturated: dict[str, list[float]] = {f"{gate}, {side}": [] for gate in GATES for side in ("left", "right")}
    forget_by_kind: dict[str, list[float]] = {}
    all_seeds = context.all_seeds(seeds)
    plans = plan_runs(context.config_dir, words, {"reader": []}, more)
    chosen = plans["reader"].composed.config
    if not str(chosen.model._target_).endswith(f".{CharRNN.__name__}") or chosen.model.cell != "lstm":
        raise UserError("study.words: must choose a language model of LSTM layers, as model=char_rnn, but the model is "
                        f"{chosen.model._target_} with model.cell={chosen.model.get('cell')}")
    for _, seed, config, run_dir in train_all(context, plans, all_seeds):
        data = cast(TextStreams, build_data(config))
        model = cast(CharRNN, evaluation.restore(config, run_dir).model)
        tokens = data.tokens["test"][:, :-1].flatten()  # each stream ends with the first character of the next one
        tokens = tokens[tokens >= 0][:characters].long()
        symbols = [symbol if len(symbol) == 1 else "\ufffd" for symbol in data.vocabularies["characters"]]
        text = "".join(symbols[token] for token in tokens.tolist())
        gates = read(model, tokens[None])
        for place, gate in enumerate(GATES):
            left, right = saturation(gates[:, place])
            saturated[f"{gate}, left"].append(float(left.mean()))
            saturated[f"{gate}, right"].append(float(right.mean()))
        for kind, value in mean_by_kind(text, gates[:, GATES.index("forget")]).items():
            forget_by_kind.setdefault(kind, []).append(value)
        if seed == all_seeds[0]:
            write_units(context.folder / "gates.csv", gates)
            draw(text, gates, units, context.folder / "results.png")
    rows = [[gate, format_values(saturated[f"{gate}, left"]), format_values(saturated[f"{gate}, right"])]
            for gate in GATES]
    print("\n" + format_table(["gate", f"share below {LOW:g}", f"share above {HIGH:g}"], rows, [1, 2]))
    complete = {kind: values for kind, values in forget_by_kind.items() if len(values) == len(seeds)}
    print("\n" + format_table(["mean forget gate at", ""], [
        [kind, format_values(values)] for kind, values in complete.items()], [1]))
    outcomes = {}
    if {"the end of a line", "a letter"} <= complete.keys():
        letters, ends = complete["a letter"], complete["the end of a line"]
        outcomes = print_verdicts([judge_excesses(
            "more is forgotten at the end of a line than at a letter",
            [one - other for one, other in zip(letters, ends, strict=True)],
            sides=f"the mean forget gate is {format_values(ends)} there, {format_values(letters)} at a letter")])
    print(f"\n{context.folder}/results.png")
    return {**{f"saturated, {key}": mean(values) for key, values in saturated.items()},
            **{f"forget gate at {kind}": mean(values) for kind, values in complete.items()}, **outcomes}


@torch.no_grad()
def read(model: CharRNN, tokens: Tensor) -> Tensor:
    """(1, T) int64 to the gates (T, G, H) of the top layer, each in (0, 1), in the order of GATES."""
    recurrent, x = model.recurrent, model.symbols(tokens)[0]
    gates = torch.empty(0)
    for layer in range(recurrent.layers):
        w_x, w_h, b_x, b_h = recurrent.weights(layer)
        h, c = (tensor[layer, 0] for tensor in recurrent.zeros(1))
        outputs, rows = [], []
        for inputs in x @ w_x.T + b_x:
            i, f, g, o = (inputs + h @ w_h.T + b_h).chunk(4)
            i, f, o = i.sigmoid(), f.sigmoid(), o.sigmoid()
            c = f * c + i * g.tanh()
            h = o * c.tanh()
            outputs.append(h)
            rows.append(torch.stack([i, f, o]))
        x, gates = torch.stack(outputs), torch.stack(rows)
    return gates


def saturation(gate: Tensor) -> tuple[Tensor, Tensor]:
    """(T, H) to the share of the time (H,) that each unit's gate is left- and right-saturated."""
    return (gate < LOW).float().mean(0), (gate > HIGH).float().mean(0)


def kind_of(character: str) -> str:
    if character == "\n":
        return "the end of a line"
    if character.isspace():
        return "a space"
    return "a letter" if character.isalpha() else "a digit" if character.isdigit() else "another sign"


def mean_by_kind(text: str, gate: Tensor) -> dict[str, float]:
    """`gate`: (T, H). Its mean over the units where the net reads a character of each kind."""
    kinds = [kind_of(character) for character in text]
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return {kind: float(gate[[place for place, other in enumerate(kinds) if other == kind]].mean())
            for kind, count in sorted(counts.items()) if count >= RARE}


def write_units(file: Any, gates: Tensor) -> None:
    columns = {f"{gate}, {side}": share.tolist() for place, gate in enumerate(GATES)
               for side, share in zip(("left", "right"), saturation(gates[:, place]), strict=True)}
    write_csv(file, ["unit", *columns], [[unit, *(f"{value:.4f}" for value in row)]
                                         for unit, row in enumerate(zip(*columns.values(), strict=True))])


def draw(text: str, gates: Tensor, units: int, file: Any) -> None:
    """Above the forget gates, over the first WIDTH characters, of the units whose gate changes most; below, of all
    units and gates, the shares of the time in which they are saturated."""
    forget = gates[:WIDTH, GATES.index("forget")]
    chosen = forget.std(0).argsort(descending=True)[:units]
    chosen = chosen[forget[:, chosen].mean(0).argsort(descending=True)]
    figure = new_figure(15, 3.6 + 0.2 * len(chosen))
    above, below = figure.subfigures(2, 1, height_ratios=[0.2 * len(chosen) + 0.7, 3.0], squeeze=False)[:, 0]
    axes = above.subplots()
    image = axes.imshow(forget[:, chosen].T.numpy(), cmap="viridis", vmin=0, vmax=1, aspect="auto",
                        interpolation="nearest")
    axes.set(yticks=range(len(chosen)), ylabel="unit", title="forget gate: 1 keeps the state, 0 drops it")
    axes.set_yticklabels(chosen.tolist(), fontsize=7)
    axes.set_xticks(range(len(forget)), ["↵" if c == "\n" else "␣" if c == " " else c for c in text[:WIDTH]],
                    family="monospace", fontsize=8)
    above.colorbar(image, ax=axes, pad=0.01)
    draw_saturation(below.subplots(1, len(GATES)), {gate: saturation(gates[:, place])
                                                    for place, gate in enumerate(GATES)})
    save_figure(figure, file)


def draw_saturation(panels: Sequence[Any], shares: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    for axes, (gate, (left, right)) in zip(panels, shares.items(), strict=True):
        axes.scatter(right.numpy(), left.numpy(), s=14, color=colour(0), alpha=0.5, linewidths=0)
        axes.plot([0, 1], [1, 0], color="0.7", linewidth=0.8, zorder=0)
        axes.set(title=f"{gate} gate, a dot per unit", xlabel=f"share of the time above {HIGH:g}",
                 ylabel=f"share below {LOW:g}", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal")
