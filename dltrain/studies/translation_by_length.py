"""How well sequence to sequence nets write their targets, by the length of the source.

I. Sutskever, O. Vinyals, Q. Le, "Sequence to Sequence Learning with Neural Networks", 2014, arXiv 1409.3215, section
3.3 and figure 3: a source that is read backwards is translated better, long ones too. D. Bahdanau, K. Cho, Y. Bengio,
"Neural Machine Translation by Jointly Learning to Align and Translate", 2014, arXiv 1409.0473, figure 2: a net whose
source has to fit into one vector fails on long ones, and attention does not. Shakhnarovich 2016, slide 55.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, cast

import torch

from dltrain import evaluation
from dltrain.batches import PairBatch
from dltrain.build import build_data
from dltrain.data.translation import TextPairs
from dltrain.drawing.curves import draw_bars
from dltrain.drawing.style import new_figure, save_figure
from dltrain.errors import UserError
from dltrain.results import print_table, write_values
from dltrain.run import StudyContext
from dltrain.studies.claims import judge, parse_claims, print_verdicts
from dltrain.studies.named_runs import plan_runs, train_all
from dltrain.tasks.decoding import until_end
from dltrain.tasks.translation import Translation

AT_ONCE = 100  # pairs


def study(context: StudyContext, common: list[str], runs: Mapping[str, Any], more: list[str], seeds: list[int],
          longest: list[int], claims: list[str]) -> dict[str, Any]:
    """`runs` as in comparison.py. `longest`: rising lengths of the source, in symbols, each the last one of its group;
    the last group has all that are longer. Each claim compares the exact match, the share of the test pairs whose
    target greedy decoding writes without an error, in a group: to12, to18, longer, or in all. Writes comparison.csv and
    results.png; returns the means over the seeds and the outcomes of the claims."""
    if not runs:
        raise UserError("study.runs: must not be empty")
    if sorted(set(longest)) != longest:
        raise UserError(f"study.longest={longest}: must be rising")
    groups = ["all", *(f"to{length}" for length in longest), "longer"]
    plans = plan_runs(context.config_dir, common, runs, more)
    for name, plan in plans.items():
        if (batch_type := plan.composed.config.data.batch_type) != PairBatch.__name__:
            raise UserError(f"study.runs.{name}: must be a model that translates, but its data yield {batch_type}")
    parsed = parse_claims(claims, list(plans), groups)
    all_seeds = context.all_seeds(seeds)
    values: dict[str, dict[str, list[float]]] = {group: {name: [] for name in plans} for group in groups}
    counts: dict[str, int] = {}
    for name, _, config, run_dir in train_all(context, plans, all_seeds):
        data = cast(TextPairs, build_data(config, run_dir.read_vocabularies()))
        task = cast(Translation, evaluation.restore(config, run_dir))
        by_group = group_by_length(matches_by_length(task, data), longest)
        for group in groups:
            if not by_group[group]:
                raise UserError(f"study.longest={longest}: no test pair is in the group '{group}'")
            values[group][name].append(mean(by_group[group]))
            counts[group] = len(by_group[group])
    write_values(context.folder / "comparison.csv", all_seeds, values)
    titles = {group: f"{title_of(group, longest)} ({counts[group]} pairs)" for group in groups}
    print_table("exact match", titles, values)
    file = context.folder / "results.png"
    draw({titles[group]: values[group] for group in groups}, file)
    outcomes = print_verdicts([judge(claim, values[claim.metric]) for claim in parsed])
    print(f"\n{file}")
    return {**{f"{group}, {run}": mean(repeats) for group, of_runs in values.items()
               for run, repeats in of_runs.items()}, **outcomes}


@torch.inference_mode()
def matches_by_length(task: Translation, data: TextPairs) -> list[tuple[int, bool]]:
    """Of each test pair: the length of its source, and whether its target was written without an error."""
    matches = []
    for batch in data.read("test", list(torch.arange(data.num_samples("test")).split(AT_ONCE))):
        written, targets = task.decode_greedily(batch), until_end(batch.target[:, 1:])
        matches += [(length, output == target)
                    for length, output, target in zip(batch.source_lengths, written, targets, strict=True)]
    return matches


def group_by_length(matches: Sequence[tuple[int, bool]], longest: Sequence[int]) -> dict[str, list[bool]]:
    groups: dict[str, list[bool]] = {"all": [], **{f"to{length}": [] for length in longest}, "longer": []}
    for length, is_match in matches:
        group = next((f"to{limit}" for limit in longest if length <= limit), "longer")
        groups["all"].append(is_match)
        groups[group].append(is_match)
    return groups


def title_of(group: str, longest: Sequence[int]) -> str:
    if group == "all":
        return "all"
    if group == "longer":
        return f"more than {longest[-1]}" if longest else "any length"
    place = longest.index(int(group.removeprefix("to")))
    return f"{longest[place - 1] + 1} to {longest[place]}" if place else f"up to {longest[0]}"


def draw(values: Mapping[str, Mapping[str, Sequence[float]]], file: Path) -> None:
    figure = new_figure(3.4 * len(values), 1.4 + 0.4 * len(next(iter(values.values()))))
    for place, (axes, (title, of_runs)) in enumerate(zip(figure.subplots(1, len(values)), values.items(), strict=True)):
        draw_bars(axes, of_runs)
        axes.set(title=title, xlabel="exact match", xlim=(0, 1.2), xticks=(0, 0.5, 1))
        if place:
            axes.set_yticklabels([])
    save_figure(figure, file)
