"""A run that waits for its data says so once, with what to do; others say nothing."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from dltrain.callbacks import input_watch
from dltrain.callbacks.input_watch import InputWatch
from dltrain.data.loader import TrainLoader
from tests.conftest import TINY


def shares(*readings: tuple[float, float, float]) -> list[float | None]:
    """Of readings after 10 batches each: seconds, those of waiting, those of the sync."""
    watch, loader, results = InputWatch(), SimpleNamespace(batches_done=0, seconds_waiting=0.0), []
    for seconds, waiting, sync in readings:
        loader.batches_done += 10
        loader.seconds_waiting += waiting
        results.append(watch.share(loader, seconds, sync))
    return results


def test_the_share_is_told_once_after_the_first_reading():
    assert shares((2, 2, 0), (2, 1, 0), (2, 2, 0)) == [None, 0.5, None]
    assert shares((2, 2, 0), (0.5, 0.5, 0), (0.75, 0, 0), (9, 9, 0)) == [None, None, 0.4, None]  # after a second
    assert shares((2, 2, 0), (3, 0.9, 0), (2, 2, 0)) == [None, None, None]  # decided: not large


def test_a_device_that_is_behind_is_not_waiting():
    assert shares((2, 2, 0), (2, 1, 0.5)) == [None, None]  # 0.2 s a step, 0.5 s until the device had done them
    assert shares((2, 2, 0), (2, 1, 0.3)) == [None, 0.5]


def test_a_loader_counts_the_seconds_of_reading(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def read(batches):
        for _ in batches:
            clock[0] += 3
            yield 0

    loader = TrainLoader(read, num_samples=4, batch_size=2, seed=0)
    for _ in loader:
        clock[0] += 100  # the step
    assert loader.seconds_waiting == 6


@pytest.mark.parametrize(("pause", "expected"), [(0.1, 1), (0.0, 0)])
def test_a_run_says_it_once(pause, expected, dltrain, monkeypatch, without_figures):
    from tests.tiny import FewDigits

    read = FewDigits.read

    def slow_read(self, split, batches):
        for batch in read(self, split, batches):
            time.sleep(pause)
            yield batch

    monkeypatch.setattr(FewDigits, "read", slow_read)
    monkeypatch.setattr(input_watch, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(input_watch, "MOST_SHARE", 0.3 if pause else 0.5)
    _, out, err = dltrain(*TINY, "trainer.log_every_n_steps=2", "trainer.max_epochs=2")
    assert (out + err).count("% of the time of a training step is waiting for data; they are in memory") == expected


def test_the_advice_depends_on_the_threads(config, monkeypatch):
    from dltrain.build import build_data

    data: Any = build_data(config(*TINY))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    data.num_workers = 2
    assert data.input_advice(0.456).startswith("46% of the time of a training step is waiting for data; "
                                               "data.num_workers=4 reads in 4 threads")
    data.num_workers = 4
    assert "with 4 threads on 4 cores; files of smaller photos" in data.input_advice(0.5)
