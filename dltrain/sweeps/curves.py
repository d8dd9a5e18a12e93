"""How far the jobs of a search are, and how good they were on the way."""

from __future__ import annotations

from dltrain import run_pause
from dltrain.run_dir import RunDir


def best_by_epoch(run_dir: RunDir) -> dict[int, float]:
    """The best of the headline metric up to each epoch of a job that is done or paused; empty for others."""
    headline, mode = headline_of(run_dir)
    best: dict[int, float] = {}
    for row in run_dir.read_metrics() if headline else []:
        if row.get(headline):
            values = [*best.values(), float(row[headline])]
            best[int(row["epoch"])] = max(values) if mode == "max" else min(values)
    return best


def headline_of(run_dir: RunDir) -> tuple[str, str]:
    """The headline metric of a job that is done or paused, and its mode; empty for others."""
    if paused := run_pause.read(run_dir.path):
        return paused.headline, paused.headline_mode
    result = run_dir.read_result()
    return str(result.get("headline", "")), str(result.get("headline_mode", ""))


def has_reached(run_dir: RunDir, epoch: int) -> bool:
    """Whether a job is done, or paused at that epoch or later."""
    paused = run_pause.read(run_dir.path)
    return run_dir.is_finished or (paused is not None and paused.epoch >= epoch)


def has_ended(run_dir: RunDir) -> bool:
    """Whether a job is done or pruned."""
    paused = run_pause.read(run_dir.path)
    return run_dir.is_finished or (paused is not None and paused.pruned)
