"""Several processes train as one process with the batch of all of them would."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dltrain import checkpoints
from dltrain.batches import TokenBatch, generator
from dltrain.callbacks.figures import Figures
from dltrain.data.loader import SplitLoaders, TrainLoader
from dltrain.models.overfeat import WindowSampler
from dltrain.parallel.as_one import AsOne
from dltrain.parallel.draws import RowsOfAll
from dltrain.parallel.sampling import SamplerOfAll
from dltrain.tasks.language_modeling import LanguageModeling

ROWS = {2: [4, 3], 3: [3, 2, 2]}  # of 7, in each process


def rows_of(processes, draw):
    """What `draw`, called with the rows of a process, returns in each of them, put together as the batch of all."""
    own = []
    for rank, rows in enumerate(ROWS[processes]):
        torch.manual_seed(0)
        with RowsOfAll(rank, processes).of(rows, 7):
            own.append(draw(slice(rank, None, processes), rows))
    return torch.stack([own[row % processes][row // processes] for row in range(7)])


def inputs(*shape):
    return torch.randn(shape, generator=generator("inputs"))


X = {"rows": inputs(7, 5), "images": inputs(7, 3, 4, 4), "transposed": inputs(6, 7, 5).transpose(0, 1),
     "last": inputs(7, 3, 4, 4).to(memory_format=torch.channels_last)}


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("draw", [
    lambda own, rows: torch.rand(rows),
    lambda own, rows: torch.rand(rows, 2, generator=generator("a")),
    lambda own, rows: torch.randn((rows, 3, 2), generator=generator("b")),
    lambda own, rows: torch.randint(9, (rows, 2)),
    lambda own, rows: torch.randint(-3, 9, size=(rows, 2), generator=generator("c")),
    lambda own, rows: torch.empty(rows, 1, 1).bernoulli_(0.6),
    lambda own, rows: torch.rand_like(X["last"][own]),
    lambda own, rows: torch.randn_like(X["rows"][own], dtype=torch.float64),
    *[lambda own, rows, x=x: F.dropout(x[own], 0.4) for x in X.values()],
    lambda own, rows: nn.Dropout2d(0.5)(X["last"][own]),
    lambda own, rows: nn.Dropout(0.5, inplace=True)(X["rows"][own].clone()),
    lambda own, rows: F.dropout(X["images"][own].flatten(0, 1), 0.4).unflatten(0, (rows, 3))])
def test_each_process_draws_its_rows_of_what_one_process_draws(processes, draw):
    torch.manual_seed(0)
    alone = draw(slice(None), 7)
    torch.testing.assert_close(rows_of(processes, draw), alone, rtol=0, atol=0)
    assert len(alone.unique()) > 1


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_dropout_between_recurrent_layers_is_that_of_one_process(kind, batch_first):
    net = kind(5, 8, 3, dropout=0.4, batch_first=batch_first, bidirectional=batch_first)
    x = inputs(7, 6, 5)

    def draw(own, rows):
        out, state = net(x[own] if batch_first else x[own].transpose(0, 1))
        last = state[0] if kind is nn.LSTM else state
        return torch.cat([(out if batch_first else out.transpose(0, 1)).flatten(1), last.transpose(0, 1).flatten(1)], 1)

    torch.manual_seed(0)
    alone = draw(slice(None), 7)
    assert not torch.equal(alone, draw(slice(None), 7))
    torch.testing.assert_close(rows_of(2, draw), alone)


def test_packed_sequences_are_read_as_without_it():
    net = nn.LSTM(5, 8, 2, dropout=0.4, bias=False)
    packed = nn.utils.rnn.pack_padded_sequence(inputs(6, 3, 5), [6, 4, 2])
    torch.manual_seed(0)
    alone = net(packed)[0].data
    torch.manual_seed(0)
    with RowsOfAll(1, 2).of(3, 6):
        assert torch.equal(net(packed)[0].data, alone)


def test_what_is_drawn_for_no_sample_is_the_same_in_every_process():
    values = []
    for rank in (0, 1):
        torch.manual_seed(0)
        with RowsOfAll(rank, 2).of(3, 6):
            values.append([torch.rand(4), torch.empty(3).uniform_(), torch.rand(()), torch.randperm(3),
                           F.dropout(nn.Parameter(torch.ones(3, 4)))])
    assert all(map(torch.equal, *values))


class Numbers(SplitLoaders):
    """Samples that are their own indices."""

    def __init__(self, count, rank, processes, keys=None, as_one=True):
        super().__init__(batch_size=3, seed=4)
        self.count, self.keys = count, keys
        self.rank, self.world_size, self.as_one = rank, processes, as_one

    def num_samples(self, split):
        return self.count

    def bucket_keys(self):
        return self.keys

    def read(self, split, batches):
        return iter(batches)


@pytest.mark.parametrize("keys", [None, torch.arange(23) % 7])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(processes, keys):
    """Also the last batch of an epoch, of 23 - 3 * 6 = 5 samples or of 23 - 12 = 11, and those of the next epoch."""
    alone = TrainLoader(iter, 23, 3 * processes, seed=4, bucket_keys=keys)
    loaders = [Numbers(23, rank, processes, keys).train_dataloader() for rank in range(processes)]
    assert {len(loader) for loader in loaders} == {len(alone)}
    for _ in range(2):
        for batch, *shares in zip(alone, *loaders, strict=True):
            joined = [int(shares[row % processes][row // processes]) for row in range(len(batch))]
            assert joined == batch.tolist()
            assert sum(map(len, shares)) == len(batch)
            assert {loader.rows_of_all for loader in loaders} == {len(batch)}


def test_a_process_without_a_sample_gets_one_of_another():
    loaders = [Numbers(10, rank, 3).train_dataloader() for rank in range(3)]
    *_, last = zip(*loaders, strict=True)
    assert [len(batch) for batch in last] == [1, 1, 1]
    assert last[1].tolist() == last[2].tolist() == last[0].tolist()
    assert loaders[2].rows_of_all == 1


@pytest.mark.parametrize("count", [10, 24, 19, 13])
def test_fewest_rows_is_the_smallest_batch_of_a_process(count):
    for as_one in (True, False):
        data = [Numbers(count, rank, 3, as_one=as_one) for rank in range(3)]
        sizes = [len(batch) for one in data for batch in one.train_dataloader()]
        assert data[0].fewest_rows(3) == min(sizes)


def test_a_batch_that_the_task_skips_is_skipped():
    batches = Numbers(12, 0, 2).train_dataloader()
    assert AsOne(0, 2).training_step(lambda batch: None, [], batches, TokenBatch(*torch.zeros(2, 3, 4).long())) is None


class Joined(AsOne):
    """With the counts that all processes would exchange."""

    def __init__(self, rank, processes, all_rows, counts):
        super().__init__(rank, processes)
        self.draws.all_rows, self.counts = all_rows, counts

    def join(self, own, dim=0):
        assert own.tolist() == [*self.counts[self.rank :: self.processes].tolist(), [0, 0]][: len(own)]
        return self.counts


def test_regions_are_sampled_as_by_one_process():
    labels = [torch.randint(-1, 2, (40,), generator=generator("labels", image)) for image in range(5)]
    labels[1][3:], labels[2][1:] = -1, 0  # of few regions, of few positive ones
    torch.manual_seed(0)
    alone = WindowSampler(8)(labels)
    counts = torch.tensor([[int((one == kind).sum()) for kind in (1, 0)] for one in labels] + [[0, 0]])
    means: list[list[torch.Tensor]] = [[], []]
    for rank in (0, 1):
        torch.manual_seed(0)
        as_one = Joined(rank, 2, 5, counts)
        sampler = SamplerOfAll(WindowSampler(8), as_one, ["all"], ["positive"])
        own = sampler(labels[rank::2])
        for kind in (0, 1):
            assert [one.tolist() for one in own[kind]] == [one.tolist() for one in alone[kind][rank::2]]
        for numbers, name, chosen in ((means[0], "all", [*own[0], *own[1]]), (means[1], "positive", own[0])):
            images = len(own[0])  # the mean over its regions, weighted by its images among those of all
            numbers.append(torch.cat(chosen).double().mean() * sampler.weights[name] * images / 5)
    assert torch.stack(means[0]).sum().item() == pytest.approx(torch.cat([*alone[0], *alone[1]]).double().mean().item())
    assert torch.stack(means[1]).sum().item() == pytest.approx(torch.cat(alone[0]).double().mean().item())


def write_texts(folder: Path) -> None:
    """Sequences of several lengths; 103, so that of the last batch of an epoch one process has 2, the other 1."""
    (folder / "story.txt").write_text("".join(f"day {number} of the year\n" for number in range(700)))
    for split, count in (("train", 103), ("val", 3), ("test", 3)):
        (folder / "labelled").mkdir(exist_ok=True)
        (folder / "tagged").mkdir(exist_ok=True)
        (folder / "pairs").mkdir(exist_ok=True)
        words = [" ".join(["day", *("of", "the", "long", "year")[: i % 5], str(i)]) for i in range(count)]
        (folder / f"labelled/{split}.txt").write_text("".join(f"{'ab'[i % 2]}\t{w}\n" for i, w in enumerate(words)))
        (folder / f"pairs/{split}.txt").write_text("".join(f"{w}\t{w[::-1]}\n" for w in words))
        (folder / f"tagged/{split}.txt").write_text("".join(
            "".join(f"{k}\t{word}\tx\t{'AB'[k % 2]}\n" for k, word in enumerate(w.split(), 1)) + "\n" for w in words))


NO_NORM = "model.backbone.norm=none"
FAMILIES = {
    "resnet20": ("data=scene_digits", "data.num_train=103", "data.image_px=32", "model.depth=8", "model.norm=none",
                 "augment=cifar"),
    "seq_classifier": ("data=labelled_text", "data.root=FOLDER/labelled", "model.hidden=16", "model.dropout=0.3"),
    "tagger": ("data=conll", "data.root=FOLDER/tagged", "model.hidden=16", "model.dropout=0.3"),
    "seq2seq": ("data=pairs", "data.root=FOLDER/pairs", "model.hidden=16", "model.dropout=0.3"),
    "char_rnn": ("data=text", "data.root=FOLDER/story.txt", "data.window=32", "model.hidden=16", "model.layers=2",
                 "model.dropout=0.3"),
    "localizer": ("data=scenes", "data.num_train=103", "model.backbone.depth=8", "data.max_objects=1",
                  "data.image_px=32", "data.sizes_px=[10,20]", NO_NORM),
    "overfeat": ("data=scenes", "data.num_train=103", "model.width=4", "model.hidden=16", "augment=detection"),
    "faster_rcnn": ("data=scenes", "data.num_train=103", "model.backbone.depth=8", "model.hidden=16", NO_NORM,
                    "augment=detection"),
    "fast_rcnn": ("data=scenes", "data.num_train=103", "model.backbone.depth=8", "model.hidden=16", NO_NORM),
    "fcn8s": ("data=scene_masks", "data.num_train=103", "data.image_px=64", "data.sizes_px=[20,40]",
              "model.backbone.width=4", "model.hidden=8", "model.dropout=0.3", "augment=segmentation", NO_NORM),
    "hypercolumn": ("data=scene_masks", "data.num_train=103", "data.image_px=64", "data.sizes_px=[20,40]",
                    "model.backbone.width=4", "model.hidden=8", "model.dropout=0.3", "task.pixels=32", NO_NORM),
    "captioner": ("data=scene_captions", "data.num_train=103", "model.backbone.depth=8", "model.dropout=0.3",
                  "task.sampled_share=0.5", NO_NORM),
}
QUICK = ("seq_classifier",)  # in the plain tests
SHORT = ("trainer=cpu", "trainer.max_steps=50", "trainer.max_epochs=null", "recipe=none", "trainer.log_every_n_steps=1",
         "trainer.gradient_clip_norm=1", "task.optimizer.lr=0.01", "trainer.precision=64-true")


def train(folder: Path, *words: str) -> Path:
    done = subprocess.run([sys.executable, "-m", "dltrain", *words], cwd=folder, timeout=300, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1",
                                                    "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr
    return folder / "outputs" / next(word for word in words if word.startswith("name=")).removeprefix("name=")


def losses(run: Path) -> list[float]:
    with open(run / "metrics.csv", newline="") as rows:
        return [float(row["train/loss"]) for row in csv.DictReader(rows) if row.get("train/loss")]


@pytest.mark.parametrize("model", [model if model in QUICK else pytest.param(model, marks=pytest.mark.slow)
                                   for model in FAMILIES])
def test_two_processes_equal_one_with_the_batch_of_both(model, tmp_path):
    write_texts(tmp_path)
    words = [f"model={model}", *(word.replace("FOLDER", str(tmp_path)) for word in FAMILIES[model]), *SHORT]
    one = train(tmp_path, *words, "data.batch_size=4", "name=one")
    two = train(tmp_path, *words, "data.batch_size=2", "trainer.devices=2", "name=two")
    assert len(losses(one)) == 50
    assert losses(two) == pytest.approx(losses(one), rel=1e-5, abs=1e-6)
    weights = [checkpoints.read(run / "checkpoints/last.ckpt")["state_dict"] for run in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=1e-5, atol=1e-7, msg=name)


class CountingTask:
    """Counts how often its figures are made."""

    def __init__(self):
        self.count = 0

    def all_figures(self, *_):
        self.count += 1
        return {}

    training_figures = summary_figures = all_figures


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_alone_draws(is_first):
    """The first batch of another one may have no sample to draw."""
    task: Any = CountingTask()
    board = SimpleNamespace(add_charts=lambda headline: None, add_figure=lambda *arguments: None)
    task.headline, task.model = "val/map", torch.nn.Linear(1, 1)
    trainer = SimpleNamespace(lightning_module=task, is_global_zero=is_first, global_step=0)
    figures: Any = Figures(board)  # type: ignore[arg-type]
    figures.on_train_batch_start(trainer, task, None, 0)
    figures.on_validation_batch_end(trainer, task, None, None, 0)
    figures.on_validation_end(trainer, task)
    figures.on_train_end(trainer, task)
    assert task.count == (3 if is_first else 0)


class OwnSteps(LanguageModeling):
    """Goes through Lightning's own loop."""

    def optimizer_step(self, *arguments, **keys):
        super().optimizer_step(*arguments, **keys)


@pytest.mark.slow
def test_a_task_with_its_own_optimizer_step_trains_in_two_processes(tmp_path):
    write_texts(tmp_path)
    words = ["model=char_rnn", *(word.replace("FOLDER", str(tmp_path)) for word in FAMILIES["char_rnn"]), *SHORT]
    run = train(tmp_path, *words, "trainer.max_steps=5", "data.batch_size=4", "trainer.devices=2", "name=own",
                "trust=[tests]", "task._target_=tests.test_as_one.OwnSteps")
    assert len(losses(run)) == 5


@pytest.mark.slow
@pytest.mark.parametrize("model", ["faster_rcnn", "seq2seq"])
def test_a_process_without_a_sample_in_evaluation(model, tmp_path):
    """Of 200 images three processes have 67, 67 and 66, one by one; of one pair the first has it."""
    write_texts(tmp_path)
    for split in ("val", "test"):
        (tmp_path / f"pairs/{split}.txt").write_text("day\tyad\n")
    words = [f"model={model}", *(word.replace("FOLDER", str(tmp_path)) for word in FAMILIES[model])]
    run = train(tmp_path, *words, *SHORT, "trainer.max_steps=6", "data.batch_size=1", "trainer.devices=3", "name=three")
    result = json.loads((run / "result.json").read_text())
    done = subprocess.run([sys.executable, "-m", "dltrain", "eval", f"run={run}"], cwd=tmp_path, timeout=300,
                          capture_output=True, env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    alone = json.loads((run / "eval.json").read_text())
    metrics = {name: value for name, value in result.items() if name.startswith("test/")}
    assert metrics
    assert {name: value for name, value in find_metrics(alone).items() if name in metrics} == pytest.approx(
        metrics, rel=1e-5)


def find_metrics(node: object) -> dict[str, float]:
    """The numbers of test/ in what `eval` writes."""
    if not isinstance(node, dict):
        return {}
    own = {name: value for name, value in node.items() if name.startswith("test/")}
    return own | {name: value for inner in node.values() for name, value in find_metrics(inner).items()}
