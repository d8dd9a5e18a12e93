"""Captioning: the loss over padded captions, a run and its scores, its figures, predict, exact resume."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from dltrain import build, checkpoints, cli, evaluation, run
from dltrain.batches import END, PAD, START, BatchError, CaptionBatch
from dltrain.config.compose import compose
from dltrain.data.captioning import CaptionKeys, stack_captions
from dltrain.data.images import read_image
from dltrain.data.scene_captions import SceneCaptions
from dltrain.drawing.captions import draw_attention, draw_caption
from dltrain.errors import DataError, UserError
from dltrain.models.captioner import Captioner
from dltrain.models.cifar_resnet import CifarResNet
from dltrain.run_dir import RunDir
from dltrain.tasks.captioning import Captioning, caption_scores
from dltrain.tasks.decoding import beam_search, start_tokens, until_end
from tests.finished_run import FinishedRun

WORDS = ["model=captioner", "model.backbone.depth=8", "data.num_train=24", "data.batch_size=8", "trainer=cpu",
         "trainer.max_epochs=2", "task.optimizer.lr=0.005", "recipe=none", "model.hidden=16", "model.embedding=8",
         "data._target_=tests.test_captions.FewCaptions"]


class FewCaptions(SceneCaptions):
    """24 + 8 + 8 scenes with their captions."""

    def __init__(self, *, sizes_px: list[int], max_objects: int, num_train: int, **keys: Unpack[CaptionKeys]):
        super().__init__(sizes_px=sizes_px, max_objects=max_objects, num_train=num_train, **keys)
        self.num_scenes = {"train": num_train, "val": 8, "test": 8}


@dataclass
class Trained(FinishedRun):
    sampled: list[float]  # of each training step the fraction of words that the model reads of its own

    def restore(self) -> Captioning:
        task = evaluation.restore(self.config, self.run_dir)
        assert isinstance(task, Captioning)
        return task


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    run_dir = RunDir.named(tmp_path_factory.mktemp("captions"), "run")
    fractions, forward = [], Captioner.forward

    def record(self: Captioner, images: Tensor, captions: Tensor, sampled: Tensor | None = None) -> Tensor:
        if self.training:
            assert sampled is not None
            fractions.append(sampled.float().mean().item())
        return forward(self, images, captions, sampled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Captioner, "forward", record)
        result = run.train(compose([*WORDS, "task.sampled_share=0.9"]).job_config(), run_dir)
    return Trained(run_dir, result, fractions)


@pytest.fixture
def build_both(config) -> Callable[..., tuple[FewCaptions, Captioning]]:
    """build_both("task.x=1") -> the loaded data and the task."""

    def both(*words: str) -> tuple[FewCaptions, Captioning]:
        composed = config(*WORDS, *words)
        data, task = build.build_data(composed), build.build_task(composed)
        assert isinstance(data, FewCaptions)
        assert isinstance(task, Captioning)
        return data, task

    return both


def test_padding_does_not_count_in_the_loss(build_both):
    data, task = build_both()
    task.fit_statistics(data)
    batch = next(data.read("train", [torch.arange(3)]))
    images = task.augment(batch).images
    task.eval()
    with torch.no_grad():
        logits = task.model(images, batch.captions[:, :, :-1])
        total, count = task.loss_sum(logits, batch.captions)
        losses = []
        for image in range(3):
            for row, caption in enumerate(batch.captions[image].tolist()):
                length = len([word for word in caption if word != PAD])
                losses += [-float(logits[image, row, place].log_softmax(0)[caption[place + 1]])
                           for place in range(length - 1)]
        assert int(count) == len(losses)
        assert float(total) == pytest.approx(sum(losses), rel=1e-5)
        wider = F.pad(batch.captions, (0, 3, 0, 2))
        wider_total, wider_count = task.loss_sum(task.model(images, wider[:, :, :-1]), wider)
    assert int(wider_count) == int(count)
    assert float(wider_total) == pytest.approx(float(total), rel=1e-5)


def test_a_model_of_another_vocabulary_is_refused(build_both):
    data, task = build_both()
    task.fit_statistics(data)
    batch = next(data.read("train", [torch.arange(2)]))
    task.check(batch)
    shape = (2, 5, batch.captions.shape[2] - 1)
    assert isinstance(task.model, Captioner)
    task.model.head = nn.Linear(task.model.head.in_features, 7)
    message = re.escape(f"it must return logits {(*shape, task.vocab_size)}, but returns {(*shape, 7)}")
    with pytest.raises(UserError, match=message):
        task.check(batch)


def test_batches_have_every_reference():
    rows = stack_captions([[[START, 5, END], [START, 5, 6, END]], [[START, 7, END]], []])
    assert rows.tolist() == [[[START, 5, END, PAD], [START, 5, 6, END]], [[START, 7, END, PAD], [PAD] * 4],
                             [[PAD] * 4, [PAD] * 4]]
    batch = CaptionBatch(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), rows, torch.tensor([0, 1, -1]))
    batch.check(8)
    with pytest.raises(BatchError, match="each caption must begin with START"):
        batch._replace(captions=rows.clone().fill_(5)).check(8)
    with pytest.raises(BatchError, match=r"captions must be int64 in \[0, 7\), but the first batch has 7"):
        batch.check(7)


def test_the_fraction_of_sampled_words_grows_over_the_run(trained):
    assert len(trained.sampled) == 6
    assert trained.sampled[0] == 0
    assert trained.sampled == pytest.approx([0.9 * step / 6 for step in range(6)], abs=0.05)


def test_evaluation_scores_each_sentence_against_its_own_references(trained, monkeypatch):
    """Of eight sentences each second one is true of its image."""
    data, task = build.build_data(trained.config), trained.restore()
    assert isinstance(data, FewCaptions)
    references = {number: data.references("test", number) for number in range(8)}
    texts = {number: references[number - number % 2][number % 5] for number in range(8)}
    indices = {word: index for index, word in enumerate(data.vocabularies["words"])}
    queue = [[indices[word] for word in text.split()] for text in texts.values()]
    monkeypatch.setattr(Captioning, "write", lambda self, state, count: [queue.pop(0) for _ in range(count)])
    batch = next(data.read("test", [torch.arange(8)]))
    with torch.no_grad():
        logits = task.model(task.augment(batch).images, batch.captions[:, :, :-1])
        total, count = task.loss_sum(logits, batch.captions)
    expected = caption_scores(texts, references)
    expected["loss"], expected["perplexity"] = (total / count).item(), (total / count).exp().item()
    expected["caption_accuracy"] = 0.5
    result = evaluation.evaluate(trained.config, trained.run_dir, "test").metrics
    assert not queue
    assert result == pytest.approx({f"test/{name}": value for name, value in expected.items()}, rel=1e-5)
    assert result.keys() == {name for name in trained.result if name.startswith("test/")}


def test_evaluation_encodes_each_image_once(trained, monkeypatch):
    counts, features = list[int](), CifarResNet.features

    def count(self: CifarResNet, images: Tensor) -> Tensor:
        counts.append(len(images))
        return features(self, images)

    monkeypatch.setattr(CifarResNet, "features", count)
    evaluation.evaluate(trained.config, trained.run_dir, "test")
    assert counts == [8]


def test_evaluation_with_a_beam_writes_its_best_sentences(trained):
    data, task = build.build_data(trained.config), trained.restore()
    assert isinstance(task.model, Captioner)
    task.model.head.weight.data *= 6
    images = task.augment(next(data.read("test", [torch.arange(8)]))).images
    with torch.no_grad():
        greedy = task.write(task.model.begin(images), 8)
        task.beam_width = 3
        written = task.write(task.model.begin(images), 8)
        rows, _ = beam_search(task.model.step, task.model.begin(images), start_tokens(8, images.device),
                              task.max_length, 3)
    assert written == until_end(rows[:, 0])
    assert written != greedy


def test_a_frozen_stage_keeps_weights_and_statistics_until_its_epoch(config, trained, tmp_path):
    """The backbone is frozen in the first of two epochs, all but its last stage in the second."""
    words = [*WORDS, "task.freezing.until=all", "task.freezing.unfreeze_every_epochs=1"]
    composed = config(*words)
    build.build_data(composed)
    initial = build.build_task(composed).state_dict()
    run_dir = RunDir.named(tmp_path, "unfrozen")
    run.train(config(*words), run_dir)
    unfrozen, free = (checkpoints.load(path.path / "checkpoints" / checkpoints.LAST)["state_dict"]
                      for path in (run_dir, trained.run_dir))
    backbone = {name for name in initial if name.startswith("model.backbone.")}
    last_stage = {name for name in backbone if name.startswith("model.backbone.blocks.2.")}
    assert (len(backbone), len(last_stage)) == (6 + 3 * 12, 12)
    changed = {name for name in backbone if not torch.equal(unfrozen[name], initial[name])}
    assert changed == last_stage
    num_batches = {name for name in backbone if name.endswith("num_batches_tracked")}
    assert {name: int(free[name]) for name in num_batches} == dict.fromkeys(num_batches, 6), "three steps an epoch"
    assert {int(unfrozen[name]) for name in num_batches & last_stage} == {3}


def test_predict_writes_the_beam_and_the_pictures(trained, monkeypatch, capsys):
    path = trained.run_dir.path
    file = path / "samples/00.png"
    monkeypatch.setattr("sys.argv", ["dltrain", "predict", f"run={path}", f"input={file}", "beam=2"])
    assert cli.main() == 0
    (record,) = json.loads((path / "predictions.json").read_text())
    assert record["file"] == str(file)
    data, task = build.build_data(trained.config), trained.restore()
    name, *lines, last = capsys.readouterr().out.splitlines()
    assert (name, last) == ("00.png", f"1 input; {path}/predictions and {path}/predictions.json")
    pixels, texts = task.augment.normalize(read_image(file, 3)[None]), []
    for caption, line in zip(record["captions"], lines, strict=True):
        text, score = caption["caption"], caption["log_probability"]
        words = [data.vocabularies["words"].index(word) for word in text.split()]
        symbols = [START, *words, *([END] if len(words) < task.max_length else [])]
        with torch.no_grad():
            log_p = task.model(pixels, torch.tensor([[symbols[:-1]]]))[0, 0].log_softmax(1)
        expected = sum(float(log_p[place, symbol]) for place, symbol in enumerate(symbols[1:]))
        assert score == pytest.approx(expected, abs=1e-3)
        printed_score, printed_text = line.split(maxsplit=1)
        assert (float(printed_score), printed_text) == (pytest.approx(score, abs=1e-3), text)
        texts.append(text)
    assert len(set(texts)) == 2
    with Image.open(path / "predictions/00.png") as picture:
        assert picture.width == 288, "six times 48 px"
    with Image.open(path / "predictions/00_attention.png") as picture:
        num_words = len(record["captions"][0]["caption"].split())
        assert picture.width == (min(num_words, 4) * (144 + 6) + 6 if num_words > 1 else 144)


def test_figures_of_a_run(trained):
    board = EventAccumulator(str(trained.run_dir.path), size_guidance={"images": 0}).Reload()
    assert {*board.Tags()["images"]} == {"train/augmented_batch", "val/captions", "test/captions", "val/attention",
                                         "test/attention"}
    assert [(image.step, image.width) for image in board.Images("val/captions")] == [
        (step, 4 * (288 + 6) + 6) for step in (3, 6)]


def test_a_picture_with_its_sentences():
    image = torch.full((3, 32, 64), 200, dtype=torch.uint8)
    picture = draw_caption(image, ["a red three"], ["another"])
    assert picture.shape[2] == 256
    assert (picture[:, :128] == 200).all()
    only_reference = draw_caption(image, [], ["another"])
    assert picture[:, 128:].min() < 50, "the sentence in black"
    assert only_reference[:, 128:].min() == 128, "the reference in grey"
    assert picture.shape[1] - only_reference.shape[1] == 15, "one line more"


def test_attention_glows_on_the_image_where_its_weights_are_high():
    weights = torch.zeros(2, 4, 4)
    weights[0, 0, 0] = weights[1, 3, 3] = 1.0
    picture = draw_attention(torch.full((1, 72, 72), 200, dtype=torch.uint8), ["red", "three"], weights)
    assert picture.shape[2] == 2 * (144 + 6) + 6
    corners = [(picture[:, 6 + 5, left + 5].tolist(), picture[:, 6 + 138, left + 138].tolist()) for left in (6, 156)]
    glowing, plain = [int(0.3 * 200 + 0.7 * colour) for colour in (255, 120, 0)], [200, 200, 200]
    assert corners == [(glowing, plain), (plain, glowing)]


def test_word_vectors_from_a_file(build_both, tmp_path):
    file = tmp_path / "glove.txt"
    file.write_text("2 8\nred " + " ".join(["0.5"] * 8) + "\nunheard 1 2 3 4 5 6 7 8\nthree 1 2 3 4 5 6 7 8\n")
    data, task = build_both(f"task.vectors={file}")
    before = task.model.word_embedding.detach().clone()
    task.fit_statistics(data)
    words = data.vocabularies["words"]
    rows = dict(zip(words, task.model.word_embedding.tolist(), strict=True))
    assert rows.pop("red") == [0.5] * 8
    assert rows.pop("three") == list(range(1, 9))
    assert rows == {word: row for word, row in zip(words, before.tolist(), strict=True) if word in rows}
    for text, message in (("red 1 2\n", r"glove.txt:1: 2 values, but model.embedding=8"),
                          ("red 1 2 3 4 5 6 7 x\n", r"glove.txt: not a file of word vectors"),
                          ("oui 1 2 3 4 5 6 7 8\n", r"glove.txt: has none of the \d+ words of the vocabulary")):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            task.fit_statistics(data)
    with pytest.raises(DataError, match=r"none.txt: No such file"):
        data.word_vectors(str(tmp_path / "none.txt"), 8)


def learning_rates(task: Captioning) -> dict[float, list[str]]:
    """The names of the parameters by their peak learning rate."""
    names = {id(parameter): name for name, parameter in task.model.named_parameters()}
    return {round(group["initial_lr"], 9): [names[id(parameter)] for parameter in group["params"]]
            for group in task.configure_optimizers()["optimizer"].param_groups}


def test_the_backbone_has_a_learning_rate_of_its_own(build_both):
    _, task = build_both("task.optimizer.lr_factors=[backbone:0.1]")
    names = [name for name, _ in task.model.named_parameters()]
    backbone = [name for name in names if name.startswith("backbone.")]
    others = [name for name in names if name not in backbone]
    assert learning_rates(task) == {0.005: others, 0.0005: backbone}
    _, task = build_both("task.optimizer.lr_factors=[backbone:0.1,backbone.stem:0.01]")
    stem = ["backbone.stem.0.weight", "backbone.stem.1.weight", "backbone.stem.1.bias"]
    assert learning_rates(task) == {0.005: others, 0.0005: [n for n in backbone if n not in stem], 0.00005: stem}


@pytest.mark.parametrize(("factor", "message"), [
    ("backbne:0.1", r"lr_factors: 'backbne' is neither a stage of .*; did you mean 'backbone'"),
    ("backbone", r"lr_factors: 'backbone' must be NAME:FACTOR, as backbone:0.1")])
def test_learning_rates_of_unknown_stages_are_refused(factor, message, build_both):
    _, task = build_both(f"task.optimizer.lr_factors=[{factor}]")
    with pytest.raises(UserError, match=message):
        task.configure_optimizers()
