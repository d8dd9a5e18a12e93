"""What a batch, a step, an epoch and the run take: figures for the table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dltrain.benchmark.peaks import peak_mb
from dltrain.benchmark.timing import seconds, synchronize
from dltrain.data.datamodule import SPLITS, UNBALANCED
from dltrain.drawing.tables import format_count, format_duration
from dltrain.preflight.contents import Contents
from dltrain.preflight.findings import OK, SKIPPED, WARNING, Finding
from dltrain.preflight.pair import Pair
from dltrain.preflight.samples import Clock

CLASSES = "class counts"
TIMED_STEPS, TIMED_SECONDS = 3, 1.0
CLASSES_LISTED = 12


def check_classes(pair: Pair, contents: Mapping[str, Contents]) -> Finding:
    """A warning where the largest class has more than UNBALANCED times as many training samples as the smallest."""
    counts = [contents["train"].labels.get(label, 0) for label in range(pair.config.data.get("num_classes") or 0)]
    if not pair.kind.counts_samples or not counts:
        return Finding(CLASSES, SKIPPED, "the samples have no single label")
    few, many = min(counts), max(counts)
    figure = f"{few:,} to {many:,} training samples a class, {len(counts)} classes"
    if many <= UNBALANCED * few:
        return Finding(CLASSES, OK, figure)
    return Finding(CLASSES, WARNING, f"{figure}: {name_of(pair, counts.index(few))} has fewest",
                   f"above a ratio of {UNBALANCED} accuracy says little: look at each class")


def name_of(pair: Pair, label: int) -> str:
    return str(pair.task.class_name(label))


def measure_facts(pair: Pair, contents: Mapping[str, Contents]) -> list[tuple[str, str]]:
    """Rows of a table: what, and how much. The weights are trained a few steps."""
    batch = next(iter(pair.data.train_dataloader()))
    pair.data.load_state_dict({"position": 0})
    rows = [("batch", describe_batch(batch)), ("bytes of a batch", format_bytes(bytes_of(batch)))]
    rows += [("data in memory", format_bytes(bytes_of(vars(pair.data))))]
    rows += [(f"classes of {split}", describe_counts(pair, contents[split])) for split in SPLITS
             if contents[split].labels]
    parameters = [*pair.task.model.parameters()]
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    rows.append(("parameters", f"{sum(map(torch.Tensor.numel, parameters)):,}, {trained:,} of them trained"))
    batch = pair.to_device(batch)
    with pair.kept(batch.size):
        pair.task.train()
        optimizer = pair.optimizer()
        with FlopCounterMode(display=False) as counter:
            pair.step(optimizer, batch, 0)
        if operations := counter.get_total_flops() // 2:
            count = pair.task.count(batch)
            rows.append(("multiply-adds", f"{operations:,} of a step, forward and backward, {operations // count:,} "
                                          f"for each of {count:,} {pair.task.unit}; without recurrent layers"))
        times: list[float] = []
        peak = peak_mb(pair.device, lambda: times.extend(time_steps(pair, optimizer, batch)))
    step_seconds = statistics.median(times)
    per_epoch = len(pair.data.train_dataloader())
    total = pair.task.total_steps * pair.config.trainer.accumulate_batches
    where = "of its tensors" if pair.device.type == "cuda" else "of the process, libraries and data included"
    rows += [("a step", f"{step_seconds * 1e3:,.1f} ms"),
             ("peak memory", f"{peak:,.0f} MB {where}, of a step, an epoch and the run, without validation"),
             ("an epoch", f"{format_count(per_epoch, 'step')}, about {format_duration(step_seconds * per_epoch)}"),
             ("the run", f"{format_count(total, 'step')} in {format_count(pair.task.total_epochs, 'epoch')}, about "
                         f"{format_duration(step_seconds * total)} without validation")]
    return rows


def time_steps(pair: Pair, optimizer: torch.optim.Optimizer, batch: Any) -> list[float]:
    """The seconds of each of a few steps."""
    def step() -> None:
        pair.step(optimizer, batch, 1)
        synchronize(pair.device)

    clock, times = Clock(), list[float]()
    while len(times) < TIMED_STEPS and (clock.seconds < TIMED_SECONDS or not times):
        times.append(seconds(step))
    return times


def describe_batch(batch: Any) -> str:
    return ", ".join(f"{name} {describe_field(value)}" for name, value in batch._asdict().items())


def describe_field(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, list) and value:
        return f"{len(value)} x {describe_field(value[0])}"
    if isinstance(value, dict):
        return " and ".join(f"{name} {describe_field(one)}" for name, one in value.items())
    return f"{len(value)} numbers"


def describe_counts(pair: Pair, contents: Contents) -> str:
    counts = sorted(contents.labels.items())
    more = f" and {len(counts) - CLASSES_LISTED} more" if len(counts) > CLASSES_LISTED else ""
    among = f" (of the first {contents.count:,})" if contents.count < contents.total else ""
    return ", ".join(f"{name_of(pair, label)}: {count:,}" for label, count in counts[:CLASSES_LISTED]) + more + among


def bytes_of(tree: Any) -> int:
    """Of the tensors in nested containers, each once."""
    storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in tree_leaves(tree)
                if isinstance(leaf, torch.Tensor)}
    return sum(storages.values())


def format_bytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB" if count >= 1e4 else f"{count:,} bytes"
