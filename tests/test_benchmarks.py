"""The table of docs/benchmarks.md is that of the files in benchmarks/results; rows and ratios by hand; slow: every
benchmark runs."""

import importlib
import json
import os
from dataclasses import asdict
from itertools import count

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks import peers, random_data, table, timing
from benchmarks.timing import Row
from dltrain.image_files import find_images

ONCE = 1


@pytest.mark.slow
@pytest.mark.parametrize("name", command.NAMES)
def test_a_benchmark_runs(name, monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", ONCE)
    rows = importlib.import_module(f"benchmarks.{name}").run()
    assert rows
    for row in rows:
        assert next(iter(row.values.values()))["median"] > 0
        assert {*row.against} == {*list(row.values)[1:]}


def test_the_page_has_the_table_of_the_files():
    """If this fails: python -m benchmarks table"""
    page = table.PAGE.read_text(encoding="utf-8")
    assert table.replaced(page) == page


def test_the_table_has_a_row_for_each_row_of_the_files(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    page = f"a\n{table.BEGIN}old\n{table.END}b\n"
    assert table.replaced(page) == f"a\n{table.BEGIN}{table.END}b\n"
    row = timing.make_row("a step", "ms", [{"dltrain": 5.0, "bare loop": 2.0}], "<= 1", "difference")
    command.write(tmp_path / "framework.json", {
        "date": "2026-11-26 10:00:00", "hardware": {"processor": "P", "cores": 1}, "versions": {"torch": "2.15.0"},
        "rounds": 1, "rows": [asdict(row)]})
    lines = table.replaced(page).splitlines()
    assert "| framework | a step | 5 ms | bare loop 2 | +3 ms | <= 1 |" in lines
    assert "P, 1 core, torch 2.15.0, 2026-11-26; medians of 1, in brackets the smallest and the largest." in lines


def test_every_file_of_results_is_of_a_benchmark_and_in_the_table():
    assert {file.stem for file in table.RESULTS.glob("*.json")} <= {*command.NAMES}
    assert {*table.ORDER} >= {*command.NAMES}
    for file in table.RESULTS.glob("*.json"):
        content = json.loads(file.read_text())
        assert content["command"] == f"python -m benchmarks {file.stem}"
        assert content["hardware"]["processor"]
        assert content["versions"]["torch"]


def test_sides_are_called_in_turn_and_compared_round_by_round(monkeypatch):
    monkeypatch.setattr(timing, "ROUNDS", 3)
    calls: list[str] = []
    numbers = count(1)

    def ours() -> float:
        calls.append("ours")
        return next(numbers)  # 1 is for nothing, then 2, 3, 4

    def other() -> float:
        calls.append("other")
        return 2.0

    row = timing.measure("a thing", "ms", {"dltrain": ours, "other": other}, "<= 1")
    assert calls == ["ours", "other"] * 4
    assert row.values["dltrain"] == {"median": 3.0, "low": 2.0, "high": 4.0, "n": 3}
    assert row.against["other"] == {"median": 1.5, "low": 1.0, "high": 2.0, "n": 3}
    assert table.cells(row) == ["a thing", "3 (2 to 4) ms", "other 2", "1.5 (1 to 2)", "<= 1"]
    minus = timing.make_row("b", "ms", [{"dltrain": 5.0, "other": 2.0}], compared="difference")
    assert table.cells(minus) == ["b", "5 ms", "other 2", "+3 ms", "-"]
    assert table.describe(Row("c", "s", "", {"dltrain": row.values["other"]})) == "c: 2 (2 to 2) s; -; -"


def test_a_probe_has_a_row_for_each_unit():
    values = iter([{"s": 1.0, "MB": 10.0}, {"s": 3.0, "MB": 30.0}, {"s": 2.0, "MB": 20.0}])
    seconds, memory = timing.probe("x", {"s": "<= 1 s", "MB": ""}, {"dltrain": lambda: next(values)})
    assert (seconds.values["dltrain"]["median"], memory.values["dltrain"]["high"]) == (2.0, 30.0)
    assert (seconds.wanted, memory.wanted) == ("<= 1 s", "")


def test_a_loop_counts_the_steps_after_the_warm_up(monkeypatch):
    times = iter([0, 10, 11, 13, 16, 99])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    seen: list[int] = []
    assert timing.time_loop(range(100), seen.append, num_steps=5, warm_up=1) == 2.0
    assert seen == [0, 1, 2, 3, 4]


def test_cores_are_given_back():
    before = os.sched_getaffinity(0), torch.get_num_threads()
    with timing.cores(1):
        assert (len(os.sched_getaffinity(0)), torch.get_num_threads()) == (1, 1)
    assert (os.sched_getaffinity(0), torch.get_num_threads()) == before


def test_what_fails_in_a_process_of_its_own_fails_here():
    with pytest.raises(RuntimeError, match="No module named"):
        timing.alone("benchmarks.nothing:run")


def test_photos_are_many_files_of_some_pictures(tmp_path):
    random_data.write_photos(tmp_path / "photos", 6, 2, distinct=2, size=(40, 30))
    files = [*find_images(str(tmp_path / "photos"))]
    contents = [(tmp_path / "photos" / f"class{index % 2}" / f"{index:06d}.jpg").read_bytes() for index in range(6)]
    assert len(files) == 6
    assert len({*contents}) == 6
    assert len({content[:-8] for content in contents}) == 2


def test_the_peers_samples_are_those_of_the_arrays():
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    samples = peers.PilImages(images, torch.tensor([3, 1, 2, 0]), peers.cifar_transform(flip_first=True))
    image, label = samples[0]
    assert (image.shape, label) == ((3, 32, 32), 3)
    grey = peers.PilImages(images[:, :1], torch.zeros(4), lambda picture: torch.tensor(picture.getpixel((5, 2))))
    assert grey[1][0] == images[1, 0, 2, 5]
