"""report.html of a run: what it holds, where its values came from, what a browser does with it, what it costs a run."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dltrain import run_lock, run_parent, run_pause
from dltrain.callbacks.event_file import Events
from dltrain.config.compose import compose, to_plain
from dltrain.reports import run_page
from dltrain.reports.run_page import write_run_page
from dltrain.run_dir import RunDir
from tests.browser import DARK, LIGHT, content_of, leaving, needs_browser, visit
from tests.conftest import TINY

HOSTILE = "</script><script>document.title='run'</script><img src=x onerror=document.title='run'>"
CLASSES = ["cat", "dog", HOSTILE]
EPOCHS, STEPS = 6, 20  # steps of an epoch
BEST = 4


def make_run(folder: Path, *words: str, result: bool = True) -> RunDir:
    """A folder as a run leaves it, without the training."""
    folder.mkdir(parents=True)
    run_dir, composed = RunDir(folder), compose([*words, "lr=0.05", "epochs=6"])
    config = to_plain(composed.job_config())
    run_dir.write_config({**config, "class_names": CLASSES}, composed.comments())
    (folder / "command.txt").write_text("2026-11-27T02:23:55  dltrain lr=0.05 epochs=6 name=first\n"
                                        "2026-11-27T03:00:00  dltrain resume run=outputs/first\n")
    rows = ["step,epoch,train/loss,train/accuracy,lr,images_per_second,val/accuracy,val/loss,val/f1/cat"]
    for step in range(5, EPOCHS * STEPS + 1, 5):
        epoch = -(-step // STEPS)
        rows.append(f"{step},{epoch},{2 / step:.6g},{1 - 1 / step:.6g},{0.05 / step:.6g},{1000 + step},,,")
        if step % STEPS == 0:
            rows.append(f"{step},{epoch},,,,,{0.9 - abs(epoch - BEST) / 10:.6g},{1 / epoch:.6g},0.5")
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    (folder / "splits.json").write_text(json.dumps({
        "train": {"samples": 1257, "digest": "ab-12"}, "val": {"samples": 180, "digest": None}, "sizes": []}))
    (folder / "left_out.txt").write_text("no box: a.jpg\nno box: b.jpg\ntoo small: c.jpg\n")
    (folder / "damaged_exif.txt").write_text("d.jpg\n")
    run_dir.write_json("environment.json", {"torch": "2.15.0", "device": "cpu, 1 thread", "slurm_job": None})
    (folder / "log.txt").write_text("2026-11-27 02:23:55 dltrain: 1,257 train\n" + 2 * (
        f"2026-11-27 02:23:56 dltrain: dltrain: warning: slow {HOSTILE}\n") + (
        "2026-11-27 02:23:57 py.warnings: old\n"))
    if result:
        run_dir.write_json("result.json", {
            "test/accuracy": 0.875, "test/loss": 0.25, **{f"test/f1/{name}": 0.9 - place / 10 for place, name
                                                         in enumerate(["cat", "dog", HOSTILE])},
            "val/accuracy": 0.9, "best_epoch": BEST, "headline": "val/accuracy", "headline_mode": "max",
            "steps": EPOCHS * STEPS, "seconds": 75.0, "parameters": 75002, "version": "0.2.0"})
    return run_dir


def draw(folder: Path) -> None:
    """What a run draws for TensorBoard, and pictures that a page does not take."""
    board = Events(str(folder))
    board.add_image("train/augmented_batch", torch.zeros(3, 30, 40, dtype=torch.uint8), 0)
    for step in (20, 40, 120):
        board.add_image("val/truth", torch.full((3, 9, 30), step, dtype=torch.uint8), step)
    board.add_text("test/sample", f"    def {HOSTILE}\n\n      pass", 120)
    board.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "a <b>run")
    draw(run_dir.path)
    write_run_page(run_dir, run_dir.path / "report.html")
    return run_dir


def page_of(run_dir: RunDir) -> dict:
    write_run_page(run_dir, run_dir.path / "report.html")
    return content_of((run_dir.path / "report.html").read_text())


def test_the_page_says_what_the_files_say(finished):
    content = content_of((finished.path / "report.html").read_text())
    assert (content["pair"], content["state"]) == ("resnet20 on digits", ["done", "good"])
    assert content["tiles"] == [["0.8750", "test accuracy"], ["0.2500", "test loss"],
                                ["0.9000", "val accuracy, best, epoch 4"]]
    head = dict(content["head"])
    assert head["how it ended"] == "trained to its full length: 120 steps, 6 epochs"
    assert head["began"] == "2026-11-27 02:23; 1 more start, the last on 2026-11-27 03:00"
    assert [head[name] for name in ("duration", "device", "seed", "recipe", "parameters")] == [
        "1:15 min", "cpu, 1 thread", "0", "resnet20-on-digits", "75,002"]
    assert content["data"] == [["data set", "digits"], ["train", "1,257 samples, digest ab-12"], ["val", "180 samples"],
                               ["left out", "2 x no box"], ["left out", "1 x too small"],
                               ["damaged EXIF data", "1 photo, taken as upright"]]
    assert content["environment"] == [["torch", "2.15.0"], ["device", "cpu, 1 thread"],
                                      ["warnings of libraries", "1, in log.txt"]]
    assert content["warnings"] == [f"slow {HOSTILE}"], "each once"
    assert content["classes"] == {"columns": ["class", "f1"], "rows": [["cat", "0.9000"], ["dog", "0.8000"],
                                                                       [HOSTILE, "0.7000"]]}


def test_curves_are_the_readings(finished):
    content, rows = content_of((finished.path / "report.html").read_text()), finished.read_metrics()
    charts = {chart["name"]: {line[0]: line[1:] for line in chart["lines"]} for chart in content["charts"]}
    assert [*charts] == ["loss", "accuracy", "learning rate", "images per second"], "the loss and the headline first"
    for name, split, key in (("loss", "train", "train/loss"), ("loss", "val", "val/loss"),
                             ("accuracy", "val", "val/accuracy"), ("learning rate", "", "lr")):
        there = {int(row["step"]): float(row[key]) for row in rows if row[key]}
        assert charts[name][split][0] == [*there]
        assert charts[name][split][1] == pytest.approx([*there.values()], rel=1e-4)
    assert content["ends"] == [[STEPS * epoch, epoch] for epoch in range(1, EPOCHS + 1)]
    assert content["best"] == [STEPS * BEST, BEST]


def test_many_metrics_leave_room_for_the_learning_rate(tmp_path):
    run_dir = make_run(tmp_path / "a")
    names = [f"train/m{number}" for number in range(40)]
    (run_dir.path / "metrics.csv").write_text("\n".join([
        ",".join(["step", "epoch", "train/loss", *names, "lr", "val/accuracy", "val/loss", "val/extra"]),
        *(",".join([f"{step},{step}", *["0.5"] * 45]) for step in (1, 2))]) + "\n")
    content = page_of(run_dir)
    charts = [chart["name"] for chart in content["charts"]]
    assert charts == ["loss", "accuracy", "extra", *(f"m{number}" for number in range(21)), "learning rate"]
    assert content["charts_left_out"] == 19


def test_pictures_are_the_first_and_the_newest_within_a_limit(tmp_path, monkeypatch):
    run_dir = make_run(tmp_path / "a")
    draw(run_dir.path)
    noise = np.random.default_rng(0).integers(0, 256, (3, 80, 80), dtype=np.uint8)
    board = Events(str(run_dir.path))
    board.add_image("val/large", torch.from_numpy(noise), 120)
    board.close()
    monkeypatch.setattr(run_page, "PICTURE_BYTES", 10_000)
    content = page_of(run_dir)
    versions = {picture["name"]: picture["versions"] for picture in content["pictures"]}
    assert [*versions] == ["test/sample", "val/truth", "train/augmented_batch"]
    assert [version["step"] for version in versions["val/truth"]] == [20, 120]
    for version in versions["val/truth"]:
        shown = Image.open(io.BytesIO(base64.b64decode(version["address"].partition(",")[2])))
        assert shown.size == tuple(version["size"]) == (30, 9)
        assert np.unique(np.asarray(shown)).tolist() == [version["step"]], "as it was drawn, to the bit"
    assert versions["test/sample"][0]["text"] == f"def {HOSTILE}\n\n  pass"
    assert content["left_out"] == ["val/large, step 120: 0.0 MB, more than 0.0 MB"]
    monkeypatch.setattr(run_page, "PICTURES_BYTES", 200)
    left_out = page_of(run_dir)["left_out"]
    assert "train/augmented_batch, step 0: the page has 0 MB of pictures already" in left_out


def test_each_key_has_its_value_its_rule_and_its_source(tmp_path):
    run_dir = make_run(tmp_path / "a")
    (run_dir.path / "overrides.txt").write_text("task.optimizer.momentum=0.8\n")
    text = (run_dir.path / "config.yaml").read_text().replace("momentum: 0.9", "momentum: 0.8")
    (run_dir.path / "config.yaml").write_text(text.replace("nesterov: false", "nesterov: true"))
    rows = {key: [value, source, rule] for key, value, source, rule in page_of(run_dir)["config"]["rows"]}
    assert rows["task.optimizer.lr"] == ["0.05", "command line", "float > 0: the peak of the schedule"]
    assert rows["task.optimizer.momentum"][:2] == ["0.8", "sweep"]
    assert rows["task.optimizer.weight_decay"][:2] == ["0.001", "recipe=resnet20-on-digits"]
    assert rows["model.depth"][:2] == ["20", "default"]
    assert rows["data.num_classes"][1] == "default"
    assert rows["task.num_classes"][1] == "default", "an expression in the file"
    assert rows["class_names"][1] == "dltrain"
    assert rows["task.optimizer.nesterov"][:2] == ["true", ""], "no file has this value"
    parent = run_parent.Parent("../parent", 2, 40, {"task.label_smoothing": 0.0})
    run_parent.write(run_dir.path, parent)
    content = page_of(run_dir)
    assert {row[0]: row[2] for row in content["config"]["rows"]}["task.label_smoothing"] == "parent run"
    assert dict(content["head"])["parent"] == (
        f"begins after epoch 2, step 40 of {tmp_path}/parent, with task.label_smoothing=0.0")
    assert not [command for _, command in content["commands"] if "verify" in command], "it refuses such runs"


def test_own_choices_are_no_defaults_of_dltrain(tmp_path):
    run_dir = make_run(tmp_path / "a")
    text = (run_dir.path / "config.yaml").read_text()
    (run_dir.path / "config.yaml").write_text(text.replace("  model: resnet20\n", "  model: my_own\n"))
    sources = {row[0]: row[2] for row in page_of(run_dir)["config"]["rows"]}
    assert sources["model.depth"] == ""
    assert sources["trainer.precision"] == "default"


def test_runs_that_have_not_ended(tmp_path):
    run_dir = make_run(tmp_path / "a", result=False)
    content = page_of(run_dir)
    assert content["state"] == ["stopped", "open"]
    assert dict(content["head"])["how far it is"] == (
        "last reading at step 120, epoch 6 of 6; it has no checkpoint yet")
    assert content["tiles"] == [["0.7000", "val accuracy, last"], ["0.1667", "val loss, last"]]
    assert content["commands"][0] == ["continue it", f"dltrain resume run={run_dir}"]
    with run_lock.locked(run_dir.path):
        content = page_of(run_dir)
        assert content["state"] == ["running", "open"]
        assert dict(content["head"])["how far it is"].startswith(f"process {os.getpid()} on ")
    run_pause.write(run_dir.path, run_pause.Paused(4, 6, 80, True, "val/accuracy", "max", 0.9))
    content = page_of(run_dir)
    assert content["state"] == ["pruned", "open"]
    assert [chart["name"] for chart in content["charts"]][:2] == ["loss", "accuracy"]
    (run_dir.path / "error.txt").write_text("loss is nan\n\nTraceback\n" + "line\n" * 100)
    content = page_of(run_dir)
    assert content["state"] == ["failed", "bad"]
    assert content["error"].startswith("loss is nan\n... (62 lines in error.txt)\nline\n")
    with open(run_dir.path / "metrics.csv", "a") as file:
        file.write("half a ro")
    assert page_of(run_dir)["warnings"][0] == "metrics.csv: damaged (line 32 is no reading)"
    (run_dir.path / "metrics.csv").unlink()
    assert page_of(run_dir)["charts"] == []


def test_commands_name_the_samples(tmp_path):
    run_dir = make_run(tmp_path / "a b")

    def predict() -> str:
        return dict(page_of(run_dir)["commands"])["predict with its best weights"]

    folder = f"'run={run_dir}'"
    assert predict() == f"dltrain predict {folder} input=FILE"
    (run_dir.path / "samples").mkdir()
    (run_dir.path / "samples/prompt.txt").write_text("it's\n")
    assert predict() == f"""dltrain predict {folder} 'prompt=it'"'"'s '"""
    (run_dir.path / "samples/a.png").touch()
    assert predict() == f"dltrain predict {folder} 'input={run_dir}/samples'"


def test_text_of_a_run_is_not_markup(finished):
    page = (finished.path / "report.html").read_text()
    assert json.dumps(content_of(page), ensure_ascii=False).count("document.title='run'") >= 8, "it is there, as text"
    assert "<script>document" not in page
    assert "<img src=x" not in page
    assert leaving(page) == []


LOOK = """
  const all = (...path) => [...document.querySelectorAll(path.join(" "))], texts = (...path) => all(...path).map(
    node => node.textContent);
  seen.charts = all("#charts .panel").map(panel => [panel.querySelector("h3").textContent,
    panel.querySelectorAll("path").length]);
  const graph = all("#charts svg")[1], box = graph.getBoundingClientRect();
  const hover = x => {
    graph.dispatchEvent(new PointerEvent("pointermove", { clientX: x, clientY: box.top + 50 }));
    return texts("#tip div");
  };
  const best = graph.querySelector("circle.best");
  seen.tip = hover(box.left + Number(best.getAttribute("cx")));
  const place = () => Number(all("#charts svg")[1].querySelector("circle.best").getAttribute("cx"));
  seen.places = [place()];
  $("axis").value = "step";
  $("axis").onchange();
  seen.places.push(place());
  seen.axis = texts("#charts .panel:nth-child(2) svg text");
  $("log").checked = true;
  $("log").onchange();
  seen.lossAxis = texts("#charts .panel:first-child svg text");
  const keys = () => texts("#config-table tbody td:first-child");
  seen.marked = texts("#config-table tr.given td:first-child");
  seen.count = $("count").textContent;
  $("filter").value = "optimizer recipe";
  $("filter").oninput();
  seen.filtered = keys();
  $("filter").value = "";
  $("changed").checked = true;
  $("changed").onchange();
  seen.changed = texts("#config-table tbody td:nth-child(3)");
  const click = (table, name) => all(table, "th button").find(button => button.textContent === name).click();
  const classes = () => texts("#class-table tbody td:first-child");
  seen.classes = [classes()];
  for (const name of ["f1", "f1", "class"]) click("#class-table", name), seen.classes.push(classes());
  const shown = () => all("#picture-list img")[0].alt;
  seen.shown = [shown()];
  all("#picture-list button")[0].click();
  seen.shown.push(shown());
  seen.texts = texts("#picture-list pre");
  seen.copies = all("#commands button").length;
  seen.paper = getComputedStyle(document.body).backgroundColor;
"""


@needs_browser
@pytest.mark.parametrize(("width", "scheme", "paper"), [(1400, LIGHT, "rgb(255, 255, 255)"),
                                                        (400, DARK, "rgb(20, 23, 26)")])
def test_a_browser_draws_filters_and_sorts(finished, tmp_path, width, scheme, paper):
    seen = visit((finished.path / "report.html").read_text(), LOOK, tmp_path, width, scheme)
    assert (seen["errors"], seen["requests"]) == ([], [])
    assert seen["title"] == "resnet20 on digits, a <b>run"
    assert seen["width"] == width
    assert seen["overflow"] <= 0, "a narrow page does not scroll sideways"
    assert seen["charts"] == [["loss", 2], ["accuracy", 2], ["learning rate", 1], ["images per second", 1]]
    assert seen["tip"] == [f"step {STEPS * BEST}, epoch {BEST}", "train 0.9875", "val 0.9"]
    assert seen["places"][1] == pytest.approx(seen["places"][0], abs=1), "all epochs have the same steps"
    assert {"0", "50", "100"} <= {*seen["axis"]}
    assert {"0.02", "0.05", "0.1", "0.2", "0.5"} <= {*seen["lossAxis"]}
    assert seen["marked"] == ["trainer.max_epochs", "task.optimizer.lr", "name"]
    assert re.fullmatch(r"(\d+) of \1 keys", seen["count"])
    assert seen["filtered"] == ["task.optimizer.weight_decay"]
    assert {*seen["changed"]} == {"command line", "recipe=resnet20-on-digits", "dltrain"}
    assert seen["classes"] == [CLASSES, CLASSES[::-1], CLASSES, [HOSTILE, "cat", "dog"]]
    assert seen["shown"] == ["val/truth, step 120", "val/truth, step 20"]
    assert seen["texts"] == [f"def {HOSTILE}\n\n  pass"]
    assert seen["copies"] == 7
    assert seen["paper"] == paper


def test_a_page_that_cannot_be_written_costs_a_warning(dltrain, tmp_path, without_figures):
    (tmp_path / "outputs/a/report.html").mkdir(parents=True)
    code, out, err = dltrain("name=a", *TINY, "trainer.max_epochs=1")
    assert (code, err) == (0, "")
    assert ("dltrain: warning: outputs/a/report.html is not written: cannot save outputs/a/report.html: Is a directory"
            ) in out
    assert "\noutputs/a\nnext: dltrain predict run=outputs/a" in out
    assert (tmp_path / "outputs/a/result.json").is_file()
    (tmp_path / "outputs/a/report.html").rmdir()
    assert dltrain("report", "run=outputs/a")[:2] == (0, "outputs/a/report.html\n")


def test_a_run_ends_with_its_page(finished_run):
    content = content_of((finished_run / "report.html").read_text())
    result = RunDir(finished_run).read_result()
    assert content["tiles"][0] == [f"{result['test/accuracy']:.4f}", "test accuracy"]
    assert "dltrain name=a" in dict(content["head"])["command"]
    last = (finished_run / "log.txt").read_text().splitlines()
    assert "outputs/a/report.html" in last


def test_the_verb_writes_the_page_of_any_run(dltrain, tmp_path):
    for name in ("digits_0.2", "text_0.2"):
        os.symlink(Path(__file__).parent / "fixtures" / name / "checkpoints", tmp_path / f"{name}-checkpoints")
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.yaml", "metrics.csv"):
            (folder / file).write_bytes((Path(__file__).parent / "fixtures" / name / file).read_bytes())
        assert dltrain("report", f"run={name}") == (0, f"{name}/report.html\n", "")
        content = content_of((folder / "report.html").read_text())
        assert content["charts"][0]["name"] == "loss"
        assert len(content["config"]["rows"]) > 30
    (tmp_path / "text_0.2/result.json").write_text('{"version": "0.2.0"}')
    assert "result.json: damaged (no headline)" in dltrain("report", "run=text_0.2")[2]
    for words, message in ((["run=nothing"], "run=nothing: not a run folder"),
                           (["run=text_0.2", "x=1"], "unknown key 'x'; report takes run=FOLDER alone")):
        code, out, err = dltrain("report", *words)
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1


def test_the_verb_writes_the_pages_of_a_sweep(dltrain, tmp_path, without_figures):
    assert dltrain("-m", "name=s", "seed=0,1", *TINY, "trainer.max_epochs=1")[0] == 0
    pages = sorted(tmp_path.glob("outputs/s/**/report.html"))
    assert len(pages) == 3, "one of the sweep and one of each job"
    for page in pages:
        page.unlink()
    code, out, err = dltrain("report", "run=outputs/s")
    assert (code, out, err) == (0, "outputs/s/report.html\n", "")
    assert sorted(tmp_path.glob("outputs/s/**/report.html")) == pages
    assert content_of((tmp_path / "outputs/s/report.html").read_text())["pages"] == [True, True]


def test_the_verb_imports_neither_torch_nor_matplotlib(tmp_path):
    make_run(tmp_path / "a")
    code = ("import sys; from dltrain import cli; sys.argv = ['dltrain', 'report', 'run=a']; assert cli.main() == 0; "
            "print([name for name in ('torch', 'torchvision', 'matplotlib', 'scipy') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("a/report.html\n[]\n", "")
