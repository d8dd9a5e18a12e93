"""dltrain tune: the range test of the learning rate, and batch sizes that fit."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dltrain.tuning import batches, rates
from dltrain.tuning.batches import Size


def test_the_rate_rises_geometrically_from_the_least_to_the_largest():
    values = [10 * rates.rising(step, 5, 1e4) for step in range(5)]
    assert values == pytest.approx([1e-3, 1e-2, 1e-1, 1, 10])


def test_the_smoothed_loss_is_an_exponential_mean_without_bias():
    test = rates.Test([1.0] * 4, [4.0, 2.0, 6.0, 1.0])
    weights = [0.9**3, 0.9**2, 0.9, 1.0]
    expected = sum(w * loss for w, loss in zip(weights, test.losses, strict=True)) / sum(weights)
    assert test.smoothed()[0] == pytest.approx(4.0)
    assert test.smoothed()[-1] == pytest.approx(expected)


def falling(at: float) -> rates.Test:
    """The loss of a net that trains at rates above `at` and diverges at a hundred times that."""
    values = [10 ** (-6 + 7 * step / 199) for step in range(200)]
    noise = [0.02 * math.sin(37 * step) for step in range(200)]
    losses = [2.3 - 1.5 / (1 + (at / rate) ** 2) + max(0.0, math.log10(rate / (100 * at))) * 6 + bump
              for rate, bump in zip(values, noise, strict=True)]
    return rates.Test(values, losses)


@pytest.mark.parametrize("at", [1e-3, 1e-2])
def test_the_range_is_where_the_loss_falls(at):
    span = rates.range_of(falling(at))
    assert span is not None
    assert at / 5 < span.falls < 3 * at
    assert span.falls <= span.steepest < 10 * at
    assert 2 * at < span.least < 200 * at


def test_a_loss_that_does_not_fall_has_no_range():
    flat = rates.Test([10 ** (-6 + 7 * step / 99) for step in range(100)], [2.3 + 0.05 * math.sin(37 * step)
                                                                             for step in range(100)])
    assert rates.range_of(flat) is None
    assert rates.range_of(rates.Test([1e-6] * 4, [2.0] * 4)) is None  # diverged at once


@pytest.mark.parametrize(("rate", "expected"), [(0.076, 0.1), (0.0123, 0.01), (0.0024, 0.002), (0.34, 0.3), (7.5, 10)])
def test_a_suggested_rate_is_a_round_number(rate, expected):
    assert rates.rounded(rate) == pytest.approx(expected)


def bench_of(batch: int, mb_per_sample: float) -> Any:
    return SimpleNamespace(device=SimpleNamespace(type="cpu"), units=[batch] * 3, mb=500 + mb_per_sample * batch,
                           measure=lambda *_: SimpleNamespace(seconds=0.01 + 1e-4 * batch))


def test_sizes_are_tried_until_the_memory_would_not_do(monkeypatch):
    """1 MB a sample beside 500: 2,048 would take 1,024 MB more than 1,024 do, and 1,000 MB are free."""
    made = []

    def prepare(batch: int) -> Any:
        made.append(bench_of(batch, 1.0))
        return made[-1]

    monkeypatch.setattr(batches, "peak_mb", lambda device, work: (work(), made[-1].mb)[1])
    monkeypatch.setattr(batches, "free_memory", lambda: 1_000_000_000)
    sizes = list(batches.measure_sizes(64, 4096, prepare, lambda _: None))
    assert [(size.batch, size.seconds is not None) for size in sizes] == [
        (64, True), (128, True), (256, True), (512, True), (1024, True), (2048, False)]


def test_a_size_that_runs_out_of_memory_ends_the_search(monkeypatch):
    def prepare(batch: int) -> Any:
        bench = bench_of(batch, 1.0)
        if batch == 32:
            def fail(*_: object) -> None:
                raise MemoryError
            bench.measure = fail
        return bench

    monkeypatch.setattr(batches, "peak_mb", lambda device, work: (work(), 1.0)[1])
    sizes = list(batches.measure_sizes(8, 4096, prepare, lambda _: None))
    assert [(size.batch, size.seconds is not None) for size in sizes] == [(8, True), (16, True), (32, False)]


def test_a_larger_batch_is_suggested_only_where_it_is_clearly_faster():
    sizes = [Size(8, 0.01, 1, 8), Size(16, 0.012, 1, 16), Size(32, 0.0238, 1, 32), Size(64, 0.0474, 1, 64)]
    assert batches.fastest(sizes).batch == 16


def test_it_prints_overrides_and_changes_nothing(dltrain):
    code, out, err = dltrain("tune", "model=resnet20", "data=digits", "model.depth=8", "steps=40", "most=32",
                             "trainer=cpu")
    assert (code, err) == (0, "")
    assert "batches of 32 fit, 64 is more than the training split or most= has" in out
    written = json.loads(Path("outputs/tune/resnet20-on-digits.json").read_text())
    assert [size["batch"] for size in written["batches"]] == [8, 16, 32]
    assert len(written["rates"]["rates"]) == len(written["rates"]["losses"]) <= 40
    assert Path("outputs/tune/resnet20-on-digits.png").stat().st_size > 5000
    assert [path.name for path in Path("outputs").iterdir()] == ["tune"]
    (line,) = [line for line in out.splitlines() if line.startswith("to take it over: ")]
    words = line.removeprefix("to take it over: dltrain ").split()
    assert words[:3] == ["model=resnet20", "data=digits", "model.depth=8"]
    assert dltrain(*words, "trainer=smoke", "name=taken")[0] == 0


def test_what_it_refuses(dltrain):
    for words, message in ((["low=1", "high=0.1"], "low=1: must be below high=0.1"),
                           (["find=size"], "find=size: must be one of lr, batch, both"),
                           (["experiment=receptive_field"], "tune measures the training of one run")):
        code, _, err = dltrain("tune", *words)
        assert (code, message in err) == (2, True), err
