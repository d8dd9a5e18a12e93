"""Exported models: their outputs are those of the run, also by onnxruntime alone; files, model cards, refusals."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import dltrain as package
from dltrain.batches import ClassificationBatch
from dltrain.build import build_task
from dltrain.data import scenes, stdlib
from dltrain.errors import UserError
from dltrain.exporting import formats
from dltrain.exporting.checking import Check, sizes_up_to
from dltrain.loaded import LoadedRun
from dltrain.tasks.detection_forms import DetectionForm, matched_boxes
from dltrain.tasks.graphs import largest_difference
from dltrain.tasks.image_forms import ClassificationForm
from tests.conftest import no_figures

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
MISSING = [name for name in LIBRARIES if find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: {formats.INSTALL}")

SMALL = ("model.backbone.depth=8", "model.hidden=16", "data.num_train=8", "data.image_px=32", "data.sizes_px=[10,20]")
# A run of one or two steps of each family.
RUNS: dict[str, tuple[str, ...]] = {
    "resnet20": ("model=resnet20", "model.depth=8"),
    "vgg11_cifar": ("model=vgg11_cifar", "model.width=4", "data=scene_digits", "data.num_train=6", "data.digits=[3,5]",
                    "data.image_px=32"),
    "char_rnn": ("model=char_rnn", "model.hidden=16", "data.window=32"),
    "captioner": ("model=captioner", "model.backbone.depth=8", "model.hidden=16", "data.num_train=8"),
    "fcn8s": ("model=fcn8s", "model.backbone.depth=11", "model.backbone.width=4", "model.hidden=8",
              "data.num_train=6", "data.image_px=64", "data.sizes_px=[20,40]"),
    "cifar_hypercolumn": ("model=hypercolumn", "model/backbone=cifar", "model.backbone.depth=8", "model.hidden=8",
                          "data.num_train=6", "data.image_px=32", "data.sizes_px=[10,20]"),
    "hypercolumn": ("model=hypercolumn", "model.backbone.width=4", "model.hidden=8", "data.num_train=6",
                    "data.image_px=64", "data.sizes_px=[20,40]"),
    "dilated": ("model=dilated", "model.backbone.width=4", "model.hidden=8", "data.num_train=6", "data.image_px=64",
                "data.sizes_px=[20,40]"),
    "seq_classifier": ("model=seq_classifier", "model.hidden=16"),
    "tagger": ("model=tagger", "model.hidden=16", "data.num_train=20"),
    "seq2seq": ("model=seq2seq", "model.hidden=16", "data.num_train=200"),
    "localizer": ("model=localizer", "data.max_objects=1", SMALL[0], *SMALL[2:]),
    "overfeat": ("model=overfeat", "model.width=4", "model.hidden=16", "data.num_train=8"),
    "faster_rcnn": ("model=faster_rcnn", *SMALL),
    "fast_rcnn": ("model=fast_rcnn", *SMALL),
    "rcnn": ("model=rcnn", *SMALL),
}
QUICK = ("resnet20", "char_rnn", "captioner", "cifar_hypercolumn")
WITHOUT_PROGRAM = ("seq_classifier", "tagger", "seq2seq")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs("fcn8s") -> the loaded run of that family, trained once, in evaluation on the CPU."""
    trained: dict[str, LoadedRun] = {}
    folder = tmp_path_factory.mktemp("exported")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "NUM_EVAL_IMAGES", 12)
        files = stdlib.library_files()[:12]
        patch.setattr(stdlib, "library_files", lambda: files)
        patch.setattr("dltrain.trainer.Figures", no_figures)

        def loaded(family: str) -> LoadedRun:
            if family not in trained:
                trained[family] = package.train(*RUNS[family], "recipe=none", "trainer=smoke", f"name={family}",
                                                f"output_dir={folder}", "task.optimizer.lr=0.001")
            return trained[family]

        yield loaded


@pytest.fixture
def export(dltrain):
    """export(run, "onnx", ...) -> the folder, what is printed. Fails where the command does."""

    def exported(run: LoadedRun, name: str, *words: str) -> tuple[Path, str]:
        code, out, err = dltrain("export", f"run={run.folder}", f"format={name}", *words)
        assert (code, err) == (0, "")
        return run.folder / "export" / name, out

    return exported


def session_of(file: Path):
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the code of a model card in its folder; returns the card."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert 3 <= len(code.splitlines()) <= 8
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    return card


# the families


@needs_onnx
@pytest.mark.parametrize("family", [pytest.param(family, marks=[pytest.mark.slow] * (family not in QUICK))
                                    for family in RUNS])
def test_the_graphs_of_a_family_agree_with_its_run(family, runs, export, monkeypatch):
    folder, out = export(runs(family), "onnx")
    record = json.loads((folder / "model.json").read_text())
    assert record["check"]["samples"] >= 12
    assert f"on {record['check']['samples']} test inputs" in out
    differences = record["check"]["largest_differences"]
    assert max(value for name, value in differences.items() if name != "boxes_px") <= 1e-4
    assert differences.get("boxes_px", 0) <= 1e-2
    for graph in record["graphs"]:
        session = session_of(folder / graph["file"])
        for stored, ports in ((session.get_inputs(), graph["inputs"]), (session.get_outputs(), graph["outputs"])):
            assert [port.name for port in stored] == [port["name"] for port in ports]
        for stored, port in zip(session.get_inputs(), graph["inputs"], strict=True):
            assert [isinstance(axis, str) for axis in stored.shape] == [isinstance(axis, str) for axis in port["shape"]]
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["inputs"]) == graph["inputs"]
        if record["class_names"]:
            assert json.loads(metadata["class_names"]) == runs(family).classes
        if record["vocabularies"]:
            assert json.loads(metadata["vocabularies"]) == runs(family).vocabularies
    run_card(folder, monkeypatch)


@pytest.mark.parametrize("family", [
    pytest.param(family, marks=[pytest.mark.slow] * (family not in ("resnet20", "char_rnn"))) for family in RUNS])
def test_the_programs_of_a_family_agree_with_its_run(family, runs, dltrain, monkeypatch):
    words = ("export", f"run={runs(family).folder}", "format=torch_export")
    code, out, err = dltrain(*words)
    folder = runs(family).folder / "export/torch_export"
    if family in WITHOUT_PROGRAM:
        assert code == 2
        assert err.count("\n") == 1
        assert "torch.export fixes the length of the sequences" in err
        assert "this run can be exported as format=onnx or format=safetensors" in err
        assert not folder.exists()
        return
    assert (code, err) == (0, "")
    assert "largest difference from the run" in out
    run_card(folder, monkeypatch)


@pytest.mark.parametrize("family", [
    pytest.param(family, marks=[pytest.mark.slow] * (family not in ("resnet20", "char_rnn"))) for family in RUNS])
def test_the_weights_of_a_family_give_its_outputs(family, runs, export, monkeypatch):
    folder, _ = export(runs(family), "safetensors")
    check = json.loads((folder / "model.json").read_text())["check"]
    assert set(check["largest_differences"].values()) == {0.0}
    run_card(folder, monkeypatch)


# what onnxruntime alone computes


@needs_onnx
def test_a_classifier_takes_pixels_and_any_size(runs, export):
    run = runs("resnet20")
    folder, _ = export(run, "onnx")
    session, normalize, model = session_of(folder / "model.onnx"), run.task.augment.normalize, run.model
    rng = np.random.default_rng(0)
    for count, height, width in ((1, 8, 8), (3, 8, 8), (2, 13, 20)):
        pixels = rng.integers(0, 256, (count, 1, height, width), dtype=np.uint8)
        with torch.inference_mode():
            values = (torch.from_numpy(pixels).double() / 255 - normalize.mean.double()) / normalize.std.double()
            expected = model(values.float()).numpy()
        (logits,) = session.run(None, {"images": pixels})
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_mean_image_and_crops_fix_the_size_of_images(config):
    for words, sides in ((["augment.normalize=per_pixel"], [8, 8]), (["augment.test_crop_px=6"], [8, 8]),
                         (["augment.normalize=standard"], ["height", "width"])):
        composed = config("model=resnet20", "model.depth=8", *words)
        batch = ClassificationBatch(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.long))
        (graph,) = ClassificationForm(build_task(composed).eval()).graphs(batch, True, torch.uint8)
        assert graph.inputs[0].axes == ("batch", 1, *sides)


@needs_onnx
@pytest.mark.slow
def test_float_pixels_of_the_same_range_give_the_same(runs, export, dltrain, tmp_path):
    run = runs("resnet20")
    export(run, "onnx")
    code, _, err = dltrain("export", f"run={run.folder}", "format=onnx", "pixels=float32", "output=floats")
    assert (code, err) == (0, "")
    pixels = np.random.default_rng(1).integers(0, 256, (2, 1, 8, 8), dtype=np.uint8)
    (expected,) = session_of(run.folder / "export/onnx/model.onnx").run(None, {"images": pixels})
    (logits,) = session_of(tmp_path / "floats/model.onnx").run(None, {"images": pixels.astype(np.float32)})
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@needs_onnx
def test_a_step_of_a_language_model_writes_the_text_of_the_run(runs, export, dltrain):
    """Greedily, by onnxruntime alone; and sampled, by predict with the file."""
    run = runs("char_rnn")
    folder, _ = export(run, "onnx")
    session, symbols = session_of(folder / "model.onnx"), run.vocabularies["characters"]
    state = {port.name: np.zeros([1 if isinstance(axis, str) else axis for axis in port.shape], np.float32)
             for port in session.get_inputs()[1:]}
    prompt, written = "the ", ""
    token = -1
    for character in [*prompt, *" " * 20]:
        token = symbols.index(character) if len(written) == 0 and prompt else token
        prompt = prompt[1:]
        logits, *after = session.run(None, {"symbols": np.array([token]), **state})
        state = dict(zip(state, after, strict=True))
        if not prompt:
            token = int(logits[0, 4:].argmax()) + 4
            written += symbols[token]
    (expected,) = run.predict("the ", length=len(written), temperature=0.0)
    assert expected.text == "the " + written
    words = ("prompt=the ", "length=60", "seed=3")
    own = dltrain("predict", f"run={run.folder}", *words)
    assert own[0] == 0
    assert dltrain("predict", f"run={folder}/model.onnx", *words) == own
    assert dltrain("predict", f"run={run.folder}", *words[:2], "seed=4")[1] != own[1]


@needs_onnx
@pytest.mark.parametrize("family", ["resnet20", "cifar_hypercolumn", "captioner",
                                    *(pytest.param(family, marks=pytest.mark.slow) for family in
                                      ("faster_rcnn", "overfeat", "seq2seq", "tagger", "seq_classifier"))])
def test_predict_with_the_file_prints_and_draws_what_the_run_does(family, runs, export, dltrain, tmp_path):
    run = runs(family)
    folder, _ = export(run, "onnx")
    texts = {"tagger": ["text=x = 1"], "seq2seq": ["text=3rd of March 1998"]}
    words = texts.get(family, [f"input={run.folder}/samples"])
    words += ["score=0.06"] * (family in ("faster_rcnn", "overfeat"))
    answers = []
    for place, output in ((run.folder, "own"), (folder, "exported")):
        code, out, err = dltrain("predict", f"run={place}", *words, f"output={output}")
        assert (code, err) == (0, "")
        answers.append((out.replace(output, ""), [*sorted((tmp_path / output).rglob("*"))]))
    assert answers[0][0] == answers[1][0]
    for one, other in zip(answers[0][1], answers[1][1], strict=True):
        if one.suffix == ".png":  # light is rounded to a level, and the corner of a box to a pixel
            levels = [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in (one, other)]
            assert (np.abs(levels[0] - levels[1]) > 1).mean() < 0.01


# files and refusals


@needs_onnx
def test_an_export_that_differs_from_its_run_leaves_no_file(runs, dltrain, monkeypatch):
    """A weight is changed in the file before it is compared."""
    folder = runs("char_rnn").folder
    import onnx

    from dltrain.exporting import onnx_graphs

    write = onnx_graphs.write_onnx

    def write_wrong(graph, path, traced, properties):
        write(graph, path, traced, properties)
        model = onnx.load(str(path))
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.1, tensor.name))
        onnx.save(model, str(path))

    monkeypatch.setattr(onnx_graphs, "write_onnx", write_wrong)
    before = sorted(folder.rglob("*"))
    code, out, err = dltrain("export", f"run={folder}", "format=onnx", f"output={folder}/new/wrong")
    assert (code, out) == (4, "")
    assert re.fullmatch(r"dltrain: error: format=onnx: the exported model differs from the run on \d+ test inputs: "
                        r"outputs [\d.e-]+, at most 0\.0001; nothing is written\n", err)
    (folder / "error.txt").unlink()
    assert sorted(folder.rglob("*")) == before


def test_the_same_export_again_does_nothing_and_another_is_refused(finished_run, dltrain):
    words = ("export", "run=outputs/a", "format=safetensors")
    assert dltrain(*words)[0] == 0
    file = finished_run / "export/safetensors/model.safetensors"
    before = file.stat().st_mtime_ns
    code, out, err = dltrain(*words)
    assert (code, err) == (0, "")
    assert "was there already" in out
    assert file.stat().st_mtime_ns == before
    code, _, err = dltrain(*words, "checkpoint=last")
    assert code == 2
    assert "is not this export; move it away" in err
    file.write_bytes(file.read_bytes()[:-1])
    code, _, err = dltrain(*words)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(("words", "message"), [
    (["format=tflite"], "format=tflite: must be one of onnx, torch_export, safetensors"),
    (["format=onnx", "pixels=int8"], "pixels=int8: must be uint8 or float32"),
    (["format=onnx", "output=a.onnx"], "with format=onnx it is a folder"),
    (["format=safetensors", "pixels=float32"], "the inputs of this export are no images"),
    ([], "export needs format=onnx, format=torch_export, format=safetensors, or output=FILE"),
    (["format=safetensors", "checkpoint=first"], "must be best or last"),
    (["format=safetensors", "seed=3"], "seed cannot change in a run")])
def test_words_that_are_wrong_are_named(words, message, finished_run, dltrain):
    code, _, err = dltrain("export", "run=outputs/a", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert not (finished_run / "export").exists()


def test_missing_libraries_are_named_with_the_command_that_installs_them(monkeypatch, finished_run, dltrain):
    monkeypatch.setattr(formats, "find_spec", lambda name: None)
    code, _, err = dltrain("export", "run=outputs/a", "format=onnx")
    assert (code, err) == (2, 'dltrain: error: format=onnx needs onnx, onnxscript, onnxruntime: pip install -e '
                              '".[export]"\n')


def test_what_cannot_predict_and_what_was_changed_is_named(finished_run, dltrain):
    assert dltrain("export", "run=outputs/a", "format=safetensors")[0] == 0
    folder = finished_run / "export/safetensors"
    code, _, err = dltrain("predict", f"run={folder}", "input=x.png")
    assert code == 2
    assert "it holds the weights alone" in err
    record = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**record, "format": "onnx", "run": "../../../b"}))
    code, _, err = dltrain("predict", f"run={folder}", "input=x.png")
    assert code == 2
    assert "predict needs its config" in err
    (folder / "model.yaml").write_text("")
    code, _, err = dltrain("predict", f"run={folder}", "input=x.png")
    assert code == 4
    assert "not as it was exported" in err
    (folder / "model.json").write_text("{}")
    code, _, err = dltrain("predict", f"run={folder}", "input=x.png")
    assert (code, err.count("\n")) == (4, 1)


def test_the_card_states_results_command_and_licences(finished_run, dltrain, monkeypatch):
    assert dltrain("export", "run=outputs/a", "format=safetensors")[0] == 0
    card = run_card(finished_run / "export/safetensors", monkeypatch)
    result = json.loads((finished_run / "result.json").read_text())
    assert f"| test/accuracy | {result['test/accuracy']:.4f} |" in card
    assert "- Command: `dltrain name=a model=sdresnet56 model.depth=8" in card
    assert "began with random weights" in card
    assert f"torch {torch.__version__.partition('+')[0]}" in card


# comparing


def test_differences_are_the_largest_absolute_ones():
    one = torch.tensor([1.0, -torch.inf, 2.0])
    assert largest_difference(one, one) == 0.0
    assert largest_difference(one, torch.tensor([1.0, -torch.inf, 2.5])) == 0.5
    assert largest_difference(one, torch.tensor([1.0, torch.nan, 2.0])) == torch.inf
    assert largest_difference(one, one[:2]) == torch.inf
    assert Check(3, {"outputs": 1e-3}).exceeded({}) == "outputs 0.001, at most 0.0001"
    assert Check(3, {"outputs": float("nan")}).exceeded({})
    assert not Check(3, {"boxes_px": 1e-3}).exceeded(DetectionForm.tolerances)


def test_boxes_are_matched_by_place_and_label():
    def target(*rows: tuple[float, int, float]) -> dict[str, torch.Tensor]:
        boxes = torch.tensor([[x, 0.0, x + 5, 5.0] for x, _, _ in rows]).view(-1, 4)
        return {"boxes": boxes, "labels": torch.tensor([label for _, label, _ in rows]),
                "scores": torch.tensor([score for _, _, score in rows])}

    own = target((10, 1, 0.9), (30, 2, 0.8), (10, 2, 0.7))
    moved = target((30.001, 2, 0.8), (10.002, 1, 0.9), (10, 2, 0.7))
    assert matched_boxes(own, moved) == [(0, 1), (1, 0), (2, 2)]
    form = DetectionForm(None)
    differences = form.differences([own], [moved])
    assert differences["boxes_px"] == pytest.approx(0.002, abs=1e-5)
    assert differences["boxes_without_counterpart"] == 0
    alone = "boxes_without_counterpart"
    assert form.differences([own], [target((10, 1, 0.9), (30, 3, 0.8))])[alone] == pytest.approx(2 / 3)
    assert form.differences([own], [target()])[alone] == 1
    assert matched_boxes(target(), own) == []
    assert matched_boxes(target((10, 1, 0.9), (10, 1, 0.9)), target((10, 1, 0.9))) == [(0, 0)]


def test_the_batches_of_a_check_have_different_sizes():
    assert sizes_up_to([1, 2, 33, 33], 40) == [1, 2, 33, 4]
    assert sizes_up_to([1, 2], 10) == [1, 2]
    assert sizes_up_to([5], 5) == [5]


def test_a_task_of_ones_own_can_be_exported_as_weights_alone():
    class Own:
        def export_form(self) -> None:
            return None

    with pytest.raises(UserError, match="Own has no export_form; this run can be exported as format=safetensors"):
        formats.refuse_format("onnx", Own())
    formats.refuse_format("safetensors", Own())


def test_resized_pixels_stay_pixels():
    from dltrain.tasks.image_forms import resize_pixels

    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    resized = resize_pixels(images)
    assert (resized.dtype, tuple(resized.shape)) == (torch.uint8, (2, 3, 10, 18))
    assert torch.equal(resized, F.interpolate(images.float(), size=(10, 18)).to(torch.uint8))
