"""dltrain from Python: `train`, `compose` and `load`, with one run of every kind of problem."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

import dltrain
from dltrain.data import scenes, stdlib
from dltrain.errors import UserError
from dltrain.loaded import LoadedRun
from dltrain.tasks.task import Prediction
from tests.conftest import TINY, no_figures

# A run of two steps of each kind of problem, and what it predicts from.
KINDS: dict[str, list[str]] = {
    "classification": ["model=resnet20", "model.depth=8"],
    "sequence_classification": ["model=seq_classifier"],
    "tagging": ["model=tagger", "data.num_train=20"],
    "translation": ["model=seq2seq", "data.num_train=200"],
    "language_modeling": ["model=char_rnn"],
    "detection": ["model=faster_rcnn", "model.backbone.depth=8", "data.num_train=8"],
    "segmentation": ["model=fcn8s", "model.backbone.width=4", "model.hidden=8", "data.num_train=8"],
    "captioning": ["model=captioner", "model.backbone.depth=8", "data.num_train=32"],
}
TEXTS = {"tagging": "x = 1  # one\n", "translation": "3rd of March 1998", "language_modeling": "the "}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs("detection") -> the loaded run of that kind, trained once."""
    trained: dict[str, LoadedRun] = {}
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "NUM_EVAL_IMAGES", 4)
        files = stdlib.library_files()[:12]
        patch.setattr(stdlib, "library_files", lambda: files)
        patch.setattr("dltrain.trainer.Figures", no_figures)

        def loaded(kind: str) -> LoadedRun:
            if kind not in trained:
                trained[kind] = dltrain.train(*KINDS[kind], "recipe=none", "trainer=smoke", f"name={kind}",
                                              f"output_dir={folder}", "task.optimizer.lr=0.001")
            return trained[kind]

        yield loaded


def sample_images(run: LoadedRun) -> tuple[list[Path], list[Tensor], list[Image.Image]]:
    """Two of the run's test samples as paths, tensors (C, H, W) and PIL images."""
    paths = sorted((run.folder / "samples").glob("*.png"))[:2]
    pictures: list[Image.Image] = [Image.open(path) for path in paths]
    return paths, [pil_to_tensor(picture) for picture in pictures], pictures


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TEXTS])
def test_images_as_paths_tensors_and_pictures_are_the_same(kind, runs):
    run = runs(kind)
    paths, tensors, pictures = sample_images(run)
    by_path = run.predict(paths)
    assert [prediction.name for prediction in by_path] == [str(path) for path in paths]
    assert all(prediction.text for prediction in by_path)
    expected = [without_names(prediction) for prediction in by_path]
    for inputs in (tensors, pictures, [str(path) for path in paths]):
        assert [without_names(prediction) for prediction in run.predict(inputs)] == expected
    assert without_names(run.predict(paths[0])[0]) == expected[0], "one input needs no list"
    inputs = run.preprocess(paths)
    with torch.inference_mode():
        if isinstance(inputs, Tensor):
            assert inputs.dtype == torch.float32
            assert len(inputs) == 2
        else:
            assert inputs.size == 2, "rows of images are a batch"


def without_names(prediction: Prediction) -> list[dict[str, object]]:
    return [{key: value for key, value in record.items() if key not in ("file", "file_name", "mask")}
            for record in prediction.records]


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_as_strings_and_files(kind, runs, tmp_path):
    run, text = runs(kind), TEXTS[kind]
    (tmp_path / "texts.txt").write_text(text)
    (by_string,), (by_file,) = run.predict(text), run.predict(tmp_path / "texts.txt")
    if kind == "language_modeling":
        assert by_string.text == run.predict([text])[0].text, "the same arguments give the same text"
        assert by_string.text.startswith(text)
        assert by_string.text != run.predict(text, seed=1)[0].text
        assert len(run.predict(text, length=7)[0].text) == len(text) + 7
    else:
        assert by_string.records == by_file.records != []
    if kind == "tagging":
        assert "".join(piece for piece, _ in by_string.records[0]["tags"]) == text
    if kind == "translation":
        (beam,) = run.predict(text, decode="beam", beam=3)
        assert len(beam.records[0]["targets"]) == 3
    with pytest.raises(UserError, match="this run reads texts, but it is of type Tensor"):
        run.predict(torch.zeros(3))


def test_the_model_on_preprocessed_images_is_what_predict_uses(runs):
    run = runs("classification")
    paths, *_ = sample_images(run)
    with torch.inference_mode():
        probabilities = run.model(run.preprocess(paths)).softmax(1)
    top = [prediction.records[0]["top"][0] for prediction in run.predict(paths)]
    assert [run.classes[index] for index in probabilities.argmax(1)] == [entry["label"] for entry in top]
    assert [entry["probability"] for entry in top] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-5)


def test_evaluation_is_that_of_the_run(runs):
    run = runs("classification")
    assert run.result["model"] == "resnet20"
    again = run.evaluate("test", "trainer.smoke_steps=2")
    assert again["test/loss"] == pytest.approx(run.result["test/loss"], rel=1e-5)
    assert "val/loss" in run.evaluate("val", "data.batch_size=16")
    with pytest.raises(UserError, match="split=tests"):
        run.evaluate("tests")
    with pytest.raises(UserError, match=r"model\.depth cannot change"):
        run.evaluate("test", "model.depth=14")


def test_options_are_checked(runs):
    run = runs("detection")
    paths, *_ = sample_images(run)
    assert len(run.predict(paths, score=0.0)[0].records) >= len(run.predict(paths, score=0.99)[0].records)
    with pytest.raises(UserError, match="unknown option 'scor'; did you mean 'score'"):
        run.predict(paths, scor=0.1)
    with pytest.raises(UserError, match=r"score=2: must be a number in \[0, 1\)"):
        run.predict(paths, score=2)


def test_a_run_is_continued_and_a_sweep_refused(tmp_path):
    words = [*TINY, f"output_dir={tmp_path}", "name=a"]
    first = dltrain.train(*words)
    assert dltrain.train(*words).result == first.result, "finished: nothing to do"
    assert (tmp_path / "a/command.txt").read_text().split("  ", 1)[1] == f"dltrain train {' '.join(words)}\n"
    with pytest.raises(UserError, match="began with another config: seed"):
        dltrain.train(*words, "seed=1")
    with pytest.raises(UserError, match="this is a sweep"):
        dltrain.train("experiment=memory", f"output_dir={tmp_path}")
    with pytest.raises(UserError, match="did you mean 'resnet20'"):
        dltrain.compose("model=resne20")
    assert dltrain.compose("model=resnet56").model.depth == 56
    with pytest.raises(UserError, match="not a run folder"):
        dltrain.load(tmp_path / "b")


def test_a_refused_run_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="depth must be 6n"):
        dltrain.train("model.depth=21", f"output_dir={tmp_path}")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_import_is_quick_and_the_command_has_a_version():
    code = "import sys, dltrain; print(dltrain.__version__, {'torch', 'hydra', 'omegaconf'} & {*sys.modules})"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == f"{dltrain.__version__} set()\n"
    output = subprocess.run([sys.executable, "-m", "dltrain", "--version"], capture_output=True, text=True,
                            check=True).stdout
    assert output == f"dltrain {dltrain.__version__}\n"
    assert (Path(dltrain.__file__).parent / "py.typed").is_file()
