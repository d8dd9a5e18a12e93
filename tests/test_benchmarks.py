"""Every benchmark runs, once, and returns positive rates."""

import importlib
from collections.abc import Iterator, Mapping

import pytest

import benchmarks.__main__ as command
from benchmarks import timing

ONCE = 1


def numbers(result: object) -> Iterator[float]:
    if isinstance(result, Mapping):
        for value in result.values():
            yield from numbers(value)
    elif isinstance(result, int | float):
        yield float(result)


@pytest.mark.slow
@pytest.mark.parametrize("name", command.NAMES)
def test_a_benchmark_runs(name, monkeypatch):
    module = importlib.import_module(f"benchmarks.{name}")
    for holder in (timing, module):
        monkeypatch.setattr(holder, "ROUNDS", ONCE, raising=False)
    values = list(numbers(module.run()))
    assert values
    assert min(values) > 0
