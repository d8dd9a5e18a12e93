"""What a stored file may hold: damaged, cut short, of another kind, of another version, hostile. Rows 7, 17, 38, 39 and
40, each with a control that takes the guard away. Row 37 is in test_downloads.py."""

import io
import json
import random
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dltrain import checkpoints, weights
from dltrain.callbacks import checkpointing, stopping
from dltrain.errors import CheckpointError, MachineError, UserError
from dltrain.models.mlp import MLP
from dltrain.run_code import describe_changed_code
from dltrain.run_dir import RunDir
from dltrain.tasks.classification import Classification
from tests.faults import damaged_runs
from tests.faults.damaged_runs import HTML, PICTURES, WORDS, other_zip
from tests.faults.test_storage import no_file_beyond

GOLDEN = [*(Path(__file__).parents[1] / "golden_runs").iterdir(), *(
    path for path in (Path(__file__).parents[1] / "fixtures").iterdir() if path.is_dir())]
pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with finished runs, NAME_done, and such that crashed after step 4 of 6, NAME_half."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("dltrain.trust.trusted", {"tests"})
        patch.setattr("dltrain.trainer.Figures", lambda *_: pl.Callback())
        damaged_runs.make_runs(folder, partial(call, patch))
    return folder


def call(patch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """As run_command, without pytest's capture."""
    from dltrain import cli

    out, err = io.StringIO(), io.StringIO()
    patch.setattr("sys.argv", ["dltrain", *words])
    patch.setattr("sys.stdout", out)
    patch.setattr("sys.stderr", err)
    return cli.main(), out.getvalue(), err.getvalue()


@pytest.fixture
def copy_run(runs, dltrain, tmp_path):
    """copy_run("pictures_half") -> a copy of that run in outputs/pictures of the current folder."""

    def copied(state: str) -> Path:
        folder = tmp_path / "outputs" / state.partition("_")[0]
        damaged_runs.fresh_copy(runs / state, folder)
        shutil.copy(runs / "story.txt", tmp_path)
        return folder

    return copied


def assert_one_line(code: int, err: str, *phrases: str, expected_code: int) -> None:
    assert (code, err.count("\n")) == (expected_code, 1), err
    assert err.startswith("dltrain: error: ")
    for phrase in phrases:
        assert phrase in err


def same_weights(left: Path, right: Path) -> bool:
    one, other = (torch.load(path / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for path in (left, right))
    return all(torch.equal(value, other[name]) for name, value in one.items())


# row 7: the newest checkpoint is damaged


def flip(file: Path) -> None:
    """One bit in the largest tensor."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 3] ^= 4
    file.write_bytes(bytes(raw))


DAMAGE = {"empty": lambda file: file.write_bytes(b""), "flipped": flip,
          "cut": lambda file: file.write_bytes(file.read_bytes()[:2000])}


def row_07(dltrain, run: Path, uninterrupted: Path, kind: str) -> None:
    DAMAGE[kind](run / "checkpoints/last.ckpt")
    code, out, err = dltrain("resume", "run=outputs/pictures")
    assert (code, err) == (0, "")
    assert re.search(r"last\.ckpt is damaged.*; using previous\.ckpt instead; resuming .* from step 3 of 6", out)
    assert same_weights(run, uninterrupted)


@pytest.mark.parametrize("kind", DAMAGE)
def test_row_07_damaged_checkpoint_falls_back(kind, dltrain, copy_run, runs):
    """A damaged last.ckpt is named, previous.ckpt takes its place, and the weights end in the same bits."""
    row_07(dltrain, copy_run("pictures_half"), runs / "pictures_done", kind)


def test_row_07_control(dltrain, copy_run, runs, monkeypatch):
    monkeypatch.setattr(checkpoints, "find_fault", lambda path: None)
    with pytest.raises(AssertionError):
        row_07(dltrain, copy_run("pictures_half"), runs / "pictures_done", "flipped")


def test_row_07_b_no_intact_checkpoint_is_an_error(dltrain, copy_run):
    """Where no checkpoint is intact the run does not start anew: exit 4."""
    run = copy_run("pictures_half")
    for name in ("last", "previous"):
        DAMAGE["cut"](run / f"checkpoints/{name}.ckpt")
    code, _, err = dltrain("resume", "run=outputs/pictures")
    assert_one_line(code, err, "no intact checkpoint", "last.ckpt", "previous.ckpt", expected_code=4)


# row 17: numbers that are not finite


def not_finite_at(step: int) -> type[Classification]:
    class Diverging(Classification):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * (float("nan") if self.trainer.global_step == step else 1)

    return Diverging


def infinite_gradient_at(step: int) -> type[Classification]:
    class Diverging(Classification):
        def on_before_optimizer_step(self, optimizer):
            if self.trainer.global_step == step:
                weight = next(cast(nn.Module, self.model).parameters())  # blocks that were dropped have no gradient
                cast(torch.Tensor, weight.grad).fill_(float("inf"))

    return Diverging


NOT_FINITE = {"loss at step 0": (not_finite_at(0), "loss is nan at step 0", "the rate is not the cause"),
              "loss at step 4": (not_finite_at(4), "loss is nan at step 4", "try a smaller task.optimizer.lr"),
              "gradient at step 1": (infinite_gradient_at(1), "not finite at step 2",
                                     "try a smaller task.optimizer.lr")}


def row_17(dltrain, monkeypatch, case: str) -> None:
    task, message, remedy = NOT_FINITE[case]
    monkeypatch.setattr("dltrain.tasks.classification.Classification", task)
    code, _, err = dltrain(*PICTURES, "trainer.checkpoint_every_steps=1")
    kept = [*Path("outputs/pictures/checkpoints").glob("*.ckpt")]
    assert_one_line(code, err, message, remedy, "last.ckpt is finite" if kept else "no checkpoint was saved",
                    expected_code=5)
    for file in kept:
        saved = torch.load(file, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in saved.values()), file


@pytest.mark.parametrize("case", NOT_FINITE)
def test_row_17_numbers_that_are_not_finite_end_the_run(case, dltrain, monkeypatch):
    """A nan loss or an infinite gradient ends the run with exit 5 and the fitting remedy; no file has such a number."""
    row_17(dltrain, monkeypatch, case)


@pytest.mark.parametrize("case", ["loss at step 0", "gradient at step 1"])
def test_row_17_control(case, dltrain, monkeypatch):
    monkeypatch.setattr(stopping.StopAtNonFinite, "on_before_backward", lambda *_: None)
    monkeypatch.setattr(checkpointing, "refuse_non_finite_weights", lambda *_: None)
    with pytest.raises(AssertionError):
        row_17(dltrain, monkeypatch, case)


def test_row_17_b_statistics_that_are_nan_reach_no_checkpoint(dltrain, monkeypatch):
    """Batch norm's running statistics are held to the same rule as the weights."""

    class Diverging(Classification):
        def on_train_batch_end(self, *_):
            next(cast(nn.Module, self.model).buffers()).fill_(float("nan"))

    monkeypatch.setattr("dltrain.tasks.classification.Classification", Diverging)
    code, _, err = dltrain(*PICTURES, "trainer.checkpoint_every_steps=1")
    assert_one_line(code, err, "running_mean has nan at step 2", "last.ckpt is finite", expected_code=5)
    (saved,) = Path("outputs/pictures/checkpoints").glob("*")
    assert all(value.isfinite().all() for value in torch.load(saved, weights_only=True)["state_dict"].values())


# row 38: code in a file


class Payload:
    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (Path.touch, (self.canary,))


def hostile(path: Path, canary: Path, in_old_format: bool = False) -> None:
    """A file like that at `path`, with code in it."""
    content = torch.load(path, weights_only=True) if path.exists() else {"head.weight": torch.zeros(10, 64)}
    torch.save({**content, "x": Payload(canary)}, path, _use_new_zipfile_serialization=not in_old_format)


HOSTILE = {"eval": ("best.ckpt", ["eval", "run=outputs/pictures"]),
           "resume": ("last.ckpt", ["resume", "run=outputs/pictures"]),
           "from_run": ("best.ckpt", [*PICTURES[:-1], "model.pretrained.from_run=outputs/pictures"]),
           "weights": ("w.pth", [*PICTURES[:-1], "model.pretrained.weights=outputs/pictures/checkpoints/w.pth"]),
           "old format": ("o.pth", [*PICTURES[:-1], "model.pretrained.weights=outputs/pictures/checkpoints/o.pth"])}


def row_38(dltrain, run: Path, route: str) -> None:
    name, words = HOSTILE[route]
    canary = run / "canary"
    hostile(run / "checkpoints" / name, canary, route == "old format")
    code, _, err = dltrain(*words)
    assert not canary.exists()
    assert_one_line(code, err, name, expected_code=4)


@pytest.mark.parametrize("route", HOSTILE)
@pytest.mark.parametrize("variable", [None, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
def test_row_38_code_in_a_file_is_not_run(route, variable, dltrain, copy_run, monkeypatch):
    """Code in a checkpoint or a file of weights is refused by name (exit 4) and never run, whatever torch's variables
    say."""
    if variable:
        monkeypatch.setenv(variable, "1")
    row_38(dltrain, copy_run("pictures_half" if route == "resume" else "pictures_done"), route)


@pytest.mark.parametrize("route", ["eval", "weights"])
def test_row_38_control(route, dltrain, copy_run, monkeypatch):
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, weights_only, **keys: load(*args, weights_only=False, **keys))
    with pytest.raises(AssertionError):
        row_38(dltrain, copy_run("pictures_done"), route)


# row 39: files of another kind


def net() -> MLP:
    torch.manual_seed(3)
    return MLP(num_inputs=4, num_classes=3, hidden=5, layers=1)


def with_nan() -> dict[str, torch.Tensor]:
    tensors = net().state_dict()
    tensors["head.weight"][1, 2] = float("nan")
    return tensors


def written(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def flipped(raw: bytes) -> bytes:
    place = raw.index(net().head.weight.detach().numpy().tobytes()) + 7
    return raw[:place] + bytes([raw[place] ^ 16]) + raw[place + 1:]


OTHER_KINDS = {"html": (HTML, "not a file of tensors, but an HTML page"), "empty": (b"", "an empty file"),
               "zip": (other_zip(), "a zip file of something else"), "zeros": (bytes(300), "only zeros"),
               "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
               "list": (written([torch.zeros(2)]), "it holds a list"), "number": (written({"x": 5}), "and has x"),
               "two": (written({"a": net().state_dict(), "b": net().state_dict()}), "and has a, b"),
               "nan": (written(with_nan()), "tensor head.weight has 1 nan values"),
               "flip": (flipped(written(net().state_dict())), "damaged (checksum of"),
               "header": (b"\x20" + bytes(7) + b"{" + b"x" * 40, "damaged (")}


def row_39(file: Path, kind: str) -> None:
    raw, message = OTHER_KINDS[kind]
    file.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        weights.read_file(file, f"model.pretrained.weights={file}")
    assert str(caught.value).startswith(f"model.pretrained.weights={file}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_row_39_files_of_another_kind_are_named(kind, tmp_path):
    """A file of weights that is a web page, another archive, damaged or not finite is said to be that."""
    row_39(tmp_path / "w.pth", kind)


@pytest.mark.parametrize("kind", ["html", "flip", "nan"])
def test_row_39_control(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "read_file", lambda path, source: torch.load(path, weights_only=True))
    with pytest.raises(BaseException, match=r"DID NOT RAISE|Weights only load failed"):
        row_39(tmp_path / "w.pth", kind)


@pytest.mark.parametrize("wrap", [lambda tensors: tensors, lambda tensors: {"state_dict": tensors, "epoch": 3},
                                  lambda tensors: {"model": tensors, "optimizer": {"lr": 0.1}}])
def test_row_39_b_tensors_are_taken_plain_or_below_one_name(wrap, tmp_path):
    """Weights are read from a plain dict of tensors, and from one below a single name."""
    torch.save(wrap(net().state_dict()), tmp_path / "w.pth")
    tensors = weights.read_file(tmp_path / "w.pth", "w")
    assert all(torch.equal(value, tensors[name]) for name, value in net().state_dict().items())


def test_own_code_that_is_damaged_is_named(tmp_path):
    (tmp_path / "own_code.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"own_code\.json: damaged .*; delete it"):
        describe_changed_code(RunDir(tmp_path))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_is_named_by_what_writes_weights(tmp_path, suffix):
    with no_file_beyond(1000), pytest.raises(MachineError, match=r"cannot save .*w\.\w+: .*needs 0\.04\d MB"):
        weights.write_file({"a": torch.zeros(10_000)}, tmp_path / f"w{suffix}")
    assert not list(tmp_path.iterdir())


def test_too_little_memory_is_no_fault_of_the_checkpoint(tmp_path, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    checkpoints.save({"state_dict": {}}, tmp_path / "last.ckpt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        checkpoints.load(tmp_path / "last.ckpt")


def test_row_39_c_weights_are_exported_and_read_again(dltrain, copy_run, caplog):
    """What export writes, as .safetensors or .pth, gives another run the same metrics; own checkpoints do so too."""
    copy_run("pictures_done")
    measured = dltrain("eval", "run=outputs/pictures")[1].splitlines()[:2]
    saved = torch.load("outputs/pictures/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    for file in ("a/w.safetensors", "w.pth"):
        code, out, err = dltrain("export", "run=outputs/pictures", f"output={file}")
        assert (code, err) == (0, "")
        assert out.startswith(f"{file}: ")
        tensors = load_file(file) if file.endswith("s") else torch.load(file, weights_only=True)
        assert {f"model.{name}" for name in tensors} == {name for name in saved if name.startswith("model.")}
        assert all(torch.equal(value, saved[f"model.{name}"]) for name, value in tensors.items())
    for file in ("a/w.safetensors", "outputs/pictures/checkpoints/best.ckpt"):
        code, out, err = dltrain("eval", *PICTURES[:-1], f"model.pretrained.weights={file}")
        assert (code, out.splitlines()[:2]) == (0, measured)
        assert ("pretrained.from_run=" in caplog.text) == file.endswith(".ckpt")
    code, _, err = dltrain("export", "run=outputs/pictures", "output=w.pth")
    assert_one_line(code, err, "output=w.pth: is there already", expected_code=2)


def test_row_39_d_changes_of_precision_are_reported(tmp_path, caplog):
    """A change of precision, or tensors of another shape or kind of number, are not taken in silence."""
    tensors = net().state_dict()
    save_file({name: value.half() if value.is_floating_point() else value for name, value in tensors.items()},
              tmp_path / "w.safetensors")
    tensors = weights.read_file(tmp_path / "w.safetensors", "w")
    weights.check_fit(net(), tensors, "w", "advice")
    assert "w: 7 tensors are of float16, used as float32" in caplog.text
    with pytest.raises(CheckpointError, match=r"w: tensor head.bias is of torch.int64, and must be of torch.float32"):
        weights.check_fit(net(), {"head.bias": torch.zeros(3, dtype=torch.int64)}, "w", "advice")
    with pytest.raises(UserError, match=r"size mismatch for head.bias: \(2,\) in the file, \(3,\) in the model; adv"):
        weights.check_fit(net(), {"head.bias": torch.zeros(2)}, "w", "advice")


def test_row_39_e_a_missing_library_is_one_line(tmp_path, monkeypatch):
    """Without the library safetensors the line says how to install it."""
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"needs the library safetensors: pip install"):
        weights.read_file(tmp_path / "w.safetensors", "w")


# rows 7 and 39 together: whatever file of a run folder is damaged, and however

VERBS = {"eval": ["eval"], "last": ["eval", "checkpoint=last"], "resume": ["resume"], "predict": ["predict"],
         "same": [], "from_run": [*PICTURES[:-1], "trainer.max_epochs=1"], "ls": ["ls", "runs"]}


def words_of(verb: str, name: str, samples: Path) -> list[str]:
    run = f"run=outputs/{name}"
    inputs = [f"input={samples}"] if name == "pictures" else ["prompt=the ", "length=5"]
    return {"same": [*WORDS[name], "trainer.checkpoint_every_steps=1"], "ls": VERBS["ls"],
            "from_run": [*VERBS["from_run"], f"model.pretrained.from_{run}", "name=new"],
            "predict": ["predict", run, *inputs]}.get(verb, [*VERBS[verb], run])


def survive(seed: int, dltrain, copy_run, runs: Path) -> None:
    """Damages a run by this seed and gives it to a verb: it works, or ends in one line with the code of its kind."""
    rng = random.Random(seed * 7919)
    verb = rng.choice([*VERBS])
    name = "pictures" if verb == "from_run" else rng.choice(["pictures", "text"])
    run = copy_run(f"{name}_{'half' if verb in ('resume', 'same') else 'done'}")
    file, kind = damaged_runs.damage(run, random.Random(seed))
    code, out, err = dltrain(*words_of(verb, name, runs / "pictures_done/samples"))
    place = f"seed {seed}: {verb} of {name} with {file}: {kind}"
    assert code in (0, 2, 3, 4, 6), f"{place}: exit {code}: {err}"
    assert "Traceback" not in out + err, place
    errors = [line for line in err.splitlines() if line.startswith("dltrain: error: ")]
    assert len(errors) == (code != 0), f"{place}: {err}"
    if code == 0 and verb in ("resume", "same") and kind in damaged_runs.WHOLE_FILE:
        assert same_weights(run, runs / f"{name}_done"), place


@pytest.mark.parametrize("seed", range(1000, 1024))
def test_row_39_f_damaged_run_folders_end_in_one_line(seed, dltrain, copy_run, runs):
    """Any file of a run folder, missing, cut, flipped, of another kind or with other contents: it works or ends in one
    line; a run that goes on ends in the same bits."""
    survive(seed, dltrain, copy_run, runs)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(2000, 2300, 50))
def test_row_39_f_many_damaged_run_folders(start, dltrain, copy_run, runs):
    """The same of 300 seeds."""
    for seed in range(start, start + 50):
        shutil.rmtree("outputs", ignore_errors=True)
        survive(seed, dltrain, copy_run, runs)


def edit_config(run: Path, old: str, new: str) -> None:
    text = (run / "config.yaml").read_text()
    assert text.count(old) == 1
    (run / "config.yaml").write_text(text.replace(old, new))


def row_39_g(dltrain, run: Path) -> None:
    edit_config(run, "  survival: 0.5", "  survival: 0.7")
    code, _, err = dltrain("eval", "run=outputs/pictures")
    assert_one_line(code, err, "config.yaml", "best.ckpt keeps: model.survival (0.5 there, 0.7 here)", expected_code=2)


def test_row_39_g_a_changed_config_is_not_used(dltrain, copy_run):
    """A value in config.yaml that is not the one the weights were trained with is named."""
    row_39_g(dltrain, copy_run("pictures_done"))


def test_row_39_g_control(dltrain, copy_run, monkeypatch):
    monkeypatch.setattr("dltrain.training_state.refuse_changed_files", lambda *_: None)
    with pytest.raises(AssertionError):
        row_39_g(dltrain, copy_run("pictures_done"))


def test_row_39_h_rules_are_held_for_a_stored_config(dltrain, copy_run):
    """The rule of a key holds for the config in a run folder as for one of the command line."""
    edit_config(copy_run("pictures_done"), "batch_size: 32", "batch_size: -3")
    code, _, err = dltrain("eval", "run=outputs/pictures")
    assert_one_line(code, err, "config.yaml: data.batch_size=-3: must be an integer >= 1", expected_code=2)


def test_row_39_i_lost_readings_are_counted(dltrain, copy_run, runs):
    """Readings of metrics.csv that cannot be read are counted, and the run goes on to the same bits."""
    run = copy_run("pictures_half")
    rows = (run / "metrics.csv").read_text().splitlines()
    assert len(rows) == 3
    (run / "metrics.csv").write_text("\n".join([rows[0], rows[1], rows[2][:9]]))
    code, out, err = dltrain("resume", "run=outputs/pictures")
    assert (code, err) == (0, "")
    assert "metrics.csv is damaged (line 3 is no reading): 1 of the 2 readings before the checkpoint are lost" in out
    assert (run / "metrics.damaged.csv").is_file()
    assert same_weights(run, runs / "pictures_done")


def test_row_39_j_other_symbols_are_not_used(dltrain, copy_run):
    """A vocabulary with two symbols exchanged would give other texts in silence: it is refused."""
    run = copy_run("text_done")
    vocabulary = json.loads((run / "vocabulary.json").read_text())
    symbols = vocabulary["characters"]
    symbols[-1], symbols[-2] = symbols[-2], symbols[-1]
    (run / "vocabulary.json").write_text(json.dumps(vocabulary))
    code, _, err = dltrain("predict", "run=outputs/text", "prompt=the ")
    assert_one_line(code, err, "vocabulary.json: damaged or edited", expected_code=4)
    (run / "vocabulary.json").unlink()
    code, _, err = dltrain("eval", "run=outputs/text")
    assert_one_line(code, err, "vocabulary.json: missing", expected_code=4)


# row 40: runs of earlier versions


def row_40(dltrain, golden: Path, tmp_path: Path) -> None:
    run = tmp_path / golden.name
    shutil.copytree(golden, run)
    for story in run.glob("story.txt"):
        shutil.copy(story, tmp_path)
    is_old = golden.name.startswith("0.1")
    for verb in ("eval", "resume"):
        code, _, err = dltrain(verb, f"run={golden.name}")
        if is_old:
            assert_one_line(code, err, "written by dltrain 0.1, which dltrain", "train it again", expected_code=4)
        else:
            assert (code, err) == (0, "")
    assert is_old or json.loads((run / "result.json").read_text())["steps"] >= 40


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.name)
def test_row_40_runs_of_earlier_versions(golden, dltrain, tmp_path):
    """Runs that earlier commits wrote are evaluated and resumed, or refused by their version."""
    row_40(dltrain, golden, tmp_path)


def test_row_40_control(dltrain, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.stored_files.refuse_other_version", lambda *_: None)
    monkeypatch.setattr("dltrain.checkpoints.refuse_other_version", lambda *_: None)
    with pytest.raises(AssertionError):
        row_40(dltrain, next(path for path in GOLDEN if path.name.startswith("0.1")), tmp_path)


@pytest.mark.parametrize(("version", "message"), [("9.1.0", "newer than this one"), ("x", "damaged (its version 'x'")])
def test_row_40_b_other_versions_are_refused(version, message, dltrain, copy_run):
    """A run of a later version is refused, and so is what is no version."""
    edit_config(copy_run("pictures_done"), "version: 0.2.0", f"version: {version}")
    code, _, err = dltrain("eval", "run=outputs/pictures")
    assert_one_line(code, err, message, expected_code=4)
