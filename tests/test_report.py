"""report.html of a sweep: what it holds, and what a browser does with it."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain.callbacks.event_file import Events
from dltrain.reports.event_pictures import as_address, pictures_of
from dltrain.reports.readings import thin
from dltrain.sweeps import jobs
from dltrain.sweeps.finish import finish
from dltrain.sweeps.table import read_table
from tests import many_jobs
from tests.browser import content_of, leaving, needs_browser, visit

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=document.title='run'>"
DECAY = "task.optimizer.weight_decay"
SWEPT = {"task.optimizer.lr": ["0.001", "0.01", "0.1"], DECAY: ["0.0001", "1.0e-05"], "seed": ["1", "2"]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve jobs, one of which has failed, with a picture of the best and text from others that is markup."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    many_jobs.simulate(folder, 12, epochs=20, readings=20, swept=SWEPT)
    first, *others = read_table(folder).done
    (first.run_dir.path / "report.html").touch()
    board = Events(str(first.run_dir.path))
    board.add_image("test/confusion", torch.full((3, 6, 6), 200, dtype=torch.uint8), 400)
    board.close()
    (others[-1].run_dir.path / "error.txt").write_text(HOSTILE + "\n")
    (others[0].run_dir.path / "config.yaml").write_text(
        (others[0].run_dir.path / "config.yaml").read_text().replace("name: many", f'name: "{HOSTILE}"'))
    stored = json.loads((folder / jobs.FILE).read_text())
    next(iter(stored["jobs"].values()))["words"].append(f"name={HOSTILE}")
    (folder / jobs.FILE).write_text(json.dumps(stored))
    assert finish(folder, f"lr=0.1,0.2 {HOSTILE}") == 7, "a job has failed"
    return folder


def test_the_page_holds_tables_and_curves(sweep):
    content, table = content_of((sweep / "report.html").read_text()), read_table(sweep)
    assert content["jobs"]["rows"] == [[*row.values()] for row in table.rows()]
    assert content["settings"]["rows"] == [[*row.values()] for row in table.setting_rows()]
    assert table.describe_best() in content["summary"]
    assert "11 of 12 jobs done" in content["summary"]
    place, job = 3, table.done[3]
    readings = job.run_dir.read_metrics()
    for split, most in (("val", 20), ("train", 200)):
        steps, values = content["curves"]["accuracy"][split][place]
        there = {int(row["step"]): float(row[f"{split}/accuracy"]) for row in readings if row[f"{split}/accuracy"]}
        assert 0.9 * most < len(values) <= most
        for step, value in zip(content["steps"][steps], values, strict=True):
            assert value == pytest.approx(there[step], rel=1e-4)
        assert max(values) == pytest.approx(max(there.values()), rel=1e-4)
    assert [purpose for purpose, _ in content["commands"]] == [
        "do what is missing", "measure each job", "predict by the best job", "curves of all jobs"]


def test_text_of_a_run_is_not_markup(sweep):
    page = (sweep / "report.html").read_text()
    assert HOSTILE in json.dumps(content_of(page), ensure_ascii=False), "it is there, as text"
    assert "<script>document" not in page
    assert "<img src=x" not in page
    assert leaving(page) == []


def test_thinned_curves_keep_their_peaks():
    points = [(step, float(value)) for step, value in enumerate(np.random.default_rng(0).normal(size=5000))]
    points[1234] = (1234, 99.0)
    for most in (8, 20, 200, 5000, 9000):
        kept = thin(points, most)
        assert len(kept) <= most
        assert {*kept} <= {*points}
        assert kept == sorted(kept)
        assert {points[0], points[-1], points[1234], min(points, key=lambda point: point[1])} <= {*kept}
    assert thin([], 8) == []


def test_the_last_pictures_of_a_run(tmp_path):
    board = Events(str(tmp_path))
    board.add_image("train/batch", torch.zeros(3, 4, 4, dtype=torch.uint8), 0)
    for step in (1, 2):
        board.add_image("val/grid", torch.full((3, 9, 30), 100 * step, dtype=torch.uint8), step)
    board.add_text("test/words", "<b>a</b>", 2)
    board.add_image("test/large", torch.zeros(3, 900, 1800, dtype=torch.uint8), 2)
    board.close()
    file = next(tmp_path.glob("events*"))
    large, words, grid = pictures_of(tmp_path)
    assert [(figure.name, figure.step) for figure in (large, words, grid)] == [
        ("test/large", 2), ("test/words", 2), ("val/grid", 2)]
    assert words.text == "<b>a</b>"
    pictures = [Image.open(io.BytesIO(base64.b64decode(figure.address.partition(",")[2]))) for figure in (large, grid)]
    assert [picture.size for picture in pictures] == [(420, 210), (30, 9)]
    assert np.asarray(pictures[1].convert("RGB")).min() == np.asarray(pictures[1].convert("RGB")).max() == 200
    file.write_bytes(file.read_bytes()[:-10])
    assert [figure.name for figure in pictures_of(tmp_path)] == ["test/words", "val/grid"], "the last record is cut"
    assert as_address(b"\x89PNG no picture") == ""


LOOK = """
  const DECAY = "task.optimizer.weight_decay";
  seen.orders = {};
  const rows = () => [...document.querySelectorAll("#job-table tbody tr")].map(row => row.cells[0].textContent);
  const click = name => [...document.querySelectorAll("#job-table th button")].find(
    button => button.textContent === name).click();
  seen.orders.first = rows();
  for (const [label, name] of [["up", DECAY], ["down", DECAY], ["test", "test/accuracy"]]) {
    click(name);
    seen.orders[label] = rows();
  }
  seen.address = location.hash;
  for (const text of ["lr<0.1 weight_decay=0.00001", "failed", "seed2 lr>=0.1", "nothing"]) {
    state.filter = text;
    update();
    seen.orders[text] = rows();
  }
  state.filter = "";
  update();
  const box = document.getElementById("over").getBoundingClientRect(), point = visible.at(-1).points.at(-1);
  document.getElementById("over").dispatchEvent(new PointerEvent("pointermove",
    { clientX: box.left + point[0], clientY: box.top + point[1] }));
  seen.tip = document.getElementById("tip").textContent;
  seen.picture = document.querySelectorAll("#job-pictures img").length;
  seen.links = [...document.querySelectorAll("#job-commands a")].map(link => link.getAttribute("href"));
"""


@needs_browser
def test_a_browser_sorts_filters_and_names_points(sweep, tmp_path):
    seen = visit((sweep / "report.html").read_text(), LOOK, tmp_path)
    assert (seen["errors"], seen["requests"]) == ([], [])
    assert seen["title"] == f"lr=0.1,0.2 {HOSTILE}"
    assert seen["overflow"] <= 0, "a narrow page does not scroll sideways"
    table = read_table(sweep)
    rows = table.rows()
    names, orders = [row["job"] for row in rows], seen["orders"]
    assert orders["first"] == names
    up = [row["job"] for row in sorted(rows, key=lambda row: float(row[DECAY]))]
    assert orders["up"] == up, "as numbers: 1e-05 before 0.0001"
    assert orders["down"] == up[6:] + up[:6]
    assert orders["test"] == names, "the best first, what has no result last"
    assert "sort=-test%2Faccuracy" in seen["address"]
    assert {*orders["lr<0.1 weight_decay=0.00001"]} == {row["job"] for row in rows if row[DECAY] == "1e-05"
                                                  and float(row["task.optimizer.lr"]) < 0.1}
    assert orders["failed"] == [names[-1]]
    assert {*orders["seed2 lr>=0.1"]} == {row["job"] for row in rows if row["seed"] == "2"
                                          and row["task.optimizer.lr"] == "0.1"}
    assert orders["nothing"] == []
    last = [row for row in table.done[0].run_dir.read_metrics() if row["val/accuracy"]][-1]
    assert seen["tip"] == f"{names[0]}: val/accuracy {float(last['val/accuracy']):.5g} at step {last['step']}"
    assert seen["picture"] == 1
    assert seen["links"] == [f"{names[0]}/report.html"], "of the one job that has a page"


@pytest.mark.slow
def test_a_sweep_of_2000_jobs_is_told_on_one_page(tmp_path, capsys, real_pictures):
    """pytest -m slow -n0 -s tests/test_report.py prints how long it takes."""
    import time

    folder = tmp_path / "many"
    many_jobs.simulate(folder, 2000)
    start = time.perf_counter()
    assert finish(folder, "many") == 0
    seconds = time.perf_counter() - start
    size = (folder / "report.html").stat().st_size
    with capsys.disabled():
        print(f"\n2,000 jobs: tables, picture and page in {seconds:.1f} s; report.html {size / 1e6:.1f} MB")
    assert size < 5e6
    assert len(content_of((folder / "report.html").read_text())["jobs"]["rows"]) == 2000
