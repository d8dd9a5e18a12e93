"""A language model: training against a loop, the carried state, exact resume, sampling, eval and predict."""

import itertools
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dltrain import build, checkpoints, evaluation, run
from dltrain.batches import END, IGNORED_LABEL, UNKNOWN, generator, seed_of
from dltrain.config.compose import compose
from dltrain.data.language_modeling import TextStreams
from dltrain.errors import UserError
from dltrain.run_dir import RunDir
from dltrain.tasks.language_modeling import generate
from tests.command_line import run_command
from tests.test_resume import Crash, assert_same, crash_at, load_last

TEXT = "the cat sat on the mat and the rat sat on the cat; " * 9
NUM_WINDOWS = 11  # of an epoch


def overrides_for(folder: Path) -> list[str]:
    """A run of 4 streams in windows of 10 symbols, 2 epochs."""
    (folder / "cats.txt").write_text(TEXT)
    return ["model=char_rnn", "data=text", f"data.root={folder}/cats.txt", "recipe=none", "model.hidden=12",
            "model.layers=2", "model.dropout=0.1", "data.batch_size=4", "data.window=10", "trainer=cpu",
            "trainer.max_epochs=2", "trainer.gradient_clip_norm=0.5", "trainer.log_every_n_steps=5",
            "task.optimizer.lr=0.5", "task.optimizer.name=sgd", "task.schedule.name=step",
            "task.optimizer.weight_decay=0"]


@pytest.fixture
def overrides(tmp_path):
    return overrides_for(tmp_path)


class Trained(NamedTuple):
    """A finished run, the overrides it was started with, and its result."""

    run_dir: RunDir
    overrides: list[str]
    result: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    overrides, run_dir = overrides_for(folder), RunDir.named(folder, "run")
    composed = compose(overrides)
    return Trained(run_dir, overrides, run.train(composed.job_config(), run_dir, composed.comments()))


def read_streams(overrides: list[str], vocabularies: dict[str, list[str]] | None = None) -> TextStreams:
    data = build.build_data(compose(overrides).job_config(), vocabularies)
    assert isinstance(data, TextStreams)
    return data


def load_weights(run_dir: RunDir, name: str) -> dict[str, Tensor]:
    return checkpoints.load(run_dir.path / "checkpoints" / name)["state_dict"]


def test_training_equals_a_loop_by_hand_with_its_state_norms_and_clipping(trained):
    """Its weights end bit-identical, and metrics.csv has the same metrics of the first 5 steps."""
    data = read_streams(trained.overrides)
    assert data.num_samples("train") == len(data.train_dataloader()) == NUM_WINDOWS
    config = compose(trained.overrides).job_config()
    config.data.vocab_size = data.sizes()["vocab_size"]
    torch.manual_seed(seed_of("init", 0))
    net = build.build(config.model, "model")
    sgd = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9)
    losses, counts, norms = [], [], []
    for epoch in range(2):
        state = net.zeros(4)
        for number in range(NUM_WINDOWS):
            window = data.tokens["train"][:, number * 10 : number * 10 + 11].long()
            torch.manual_seed(seed_of("model", 0, epoch, number, 0))
            logits, state = net(window[:, :-1], state)
            state = tuple(s.detach() for s in state)
            loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
            sgd.zero_grad()
            loss.backward()
            norms.append(math.sqrt(sum(float(p.grad.double().square().sum()) for p in net.parameters())))
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            step = epoch * NUM_WINDOWS + number
            sgd.param_groups[0]["lr"] = 0.5 * 0.1 ** sum(step >= round(s * 2 * NUM_WINDOWS) for s in (0.5, 0.75))
            sgd.step()
            losses.append(float(loss.detach()))
            counts.append(window[:, 1:].numel())
    weights = load_weights(trained.run_dir, "last.ckpt")
    for name, value in net.state_dict().items():
        assert torch.equal(weights[f"model.{name}"], value), name
    assert min(norms) < 0.5 < max(norms), "the test must have clipped and unclipped steps"
    row = next(row for row in trained.run_dir.read_metrics() if row["train/loss"])
    assert row["step"] == "5"
    mean_loss = sum(loss * count for loss, count in zip(losses[:5], counts[:5], strict=True)) / sum(counts[:5])
    assert float(row["train/loss"]) == pytest.approx(mean_loss, rel=1e-5)
    assert float(row["train/bits_per_character"]) == pytest.approx(mean_loss / math.log(2), rel=1e-5)
    assert float(row["train/gradient_norm"]) == pytest.approx(sum(norms[:5]) / 5, rel=1e-5)
    assert float(row["train/clipped_fraction"]) == pytest.approx(sum(norm > 0.5 for norm in norms[:5]) / 5)


def loss_in_one_pass(run_dir: RunDir, overrides: list[str]) -> float:
    """The test loss of the best weights, each stream read at once and not window by window."""
    data = read_streams(overrides, run_dir.read_vocabularies())
    config = compose([*overrides, f"data.vocab_size={data.sizes()['vocab_size']}"]).job_config()
    task = evaluation.restore(config, run_dir)
    rows = data.tokens["test"].long()
    assert rows.shape[1] > 2 * 10, "several windows"
    with torch.no_grad():
        logits, _ = task.model(rows[:, :-1].clamp_min(0))
    return float(F.cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten(), ignore_index=IGNORED_LABEL))


def test_held_out_loss_equals_one_pass_over_each_stream(trained):
    loss = loss_in_one_pass(trained.run_dir, trained.overrides)
    assert trained.result["test/loss"] == pytest.approx(loss, rel=1e-5)
    assert trained.result["test/bits_per_character"] == pytest.approx(loss / math.log(2), rel=1e-5)


def test_bits_per_character_do_not_depend_on_the_batch_size(trained, tmp_path):
    """The test split has 4,003 characters, two of them unknown: 15 streams, each read from a state of zeros."""
    held_out = (TEXT * 9)[:4000].replace("the", "teh") + "dxq"
    (tmp_path / "more.txt").write_text((TEXT * 180)[: 19 * 4003] + held_out)
    bits = []
    for batch_size in (1, 7, 64):
        words = [*trained.overrides, f"data.root={tmp_path}/more.txt", f"data.batch_size={batch_size}"]
        config = compose([*words, "data.vocab_size=17"]).job_config()
        bits.append(evaluation.evaluate(config, trained.run_dir, "test").metrics["test/bits_per_character"])
    task = evaluation.restore(compose([*trained.overrides, "data.vocab_size=17"]).job_config(), trained.run_dir)
    symbols = trained.run_dir.read_vocabularies()["characters"]
    indices = [symbols.index(character) if character in symbols else UNKNOWN for character in held_out]
    net, nats, length = task.model.double(), 0.0, -(-(len(indices) - 1) // 15)
    with torch.no_grad():
        for start in range(0, len(indices) - 1, length):
            row = indices[start : start + length + 1]
            logits, _ = net(torch.tensor([row[:-1]]), tuple(state.double() for state in net.zeros(1)))
            nats -= sum(float(logits[0, place].log_softmax(0)[symbol]) for place, symbol in enumerate(row[1:]))
    assert bits == pytest.approx([nats / math.log(2) / (len(indices) - 1)] * 3, abs=1e-6)


@pytest.mark.parametrize("step", [4, NUM_WINDOWS, 13])
def test_a_resumed_run_carries_the_hidden_state(step, trained, tmp_path, monkeypatch, without_figures):
    crashed = RunDir.named(tmp_path, "crashed")
    crash_after(step, trained.overrides, crashed, monkeypatch)
    assert load_last(crashed.path)["global_step"] == step
    run.train(compose([*trained.overrides, "trainer.checkpoint_every_steps=1"]).job_config(), crashed)
    assert_same(trained.run_dir.path, crashed.path)


def crash_after(step: int, overrides: list[str], run_dir: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        with pytest.raises(Crash):
            run.train(compose([*overrides, "trainer.checkpoint_every_steps=1"]).job_config(), run_dir)


def test_without_its_state_a_resumed_run_differs(trained, tmp_path, monkeypatch):
    """The control of the test above."""
    crashed = RunDir.named(tmp_path, "crashed")
    crash_after(4, trained.overrides, crashed, monkeypatch)
    file = crashed.path / "checkpoints/last.ckpt"
    saved = checkpoints.load(file)
    for name in ("state0", "state1"):
        assert saved["state_dict"][name].any()
        saved["state_dict"][name].zero_()
    checkpoints.save(saved, file)
    run.train(compose(trained.overrides).job_config(), crashed)
    weights, expected = load_weights(crashed, "last.ckpt"), load_weights(trained.run_dir, "last.ckpt")
    assert weights.keys() == expected.keys()
    assert not any(torch.equal(weights[name], expected[name]) for name in weights if name.startswith("model."))


def test_another_vocabulary_is_refused_at_resume(overrides, tmp_path, monkeypatch):
    run_dir = RunDir.named(tmp_path, "run")
    crash_after(3, overrides, run_dir, monkeypatch)
    (tmp_path / "cats.txt").write_text(TEXT.replace("c", "ç"))
    message = r"the data have changed since .*run began: 1 changed in files \(.*cats.txt\).*; restore the files"
    with pytest.raises(UserError, match=message):
        run.train(compose(overrides).job_config(), run_dir)


class Counting(torch.nn.Module):
    """Logits 3 for the symbol after the last one, 5 to 9 in a circle, and 0 for the others."""

    def zeros(self, batch):
        return (torch.zeros(1, batch, 1),)

    def step(self, tokens, state):
        logits = torch.zeros(len(tokens), 10)
        logits[:, : END + 1] = 50.0  # what must never be written
        for row, token in enumerate(tokens.tolist()):
            logits[row, 5 + (token - 4) % 5] = 3.0
        return logits, state


class Ranked(Counting):
    """The larger the symbol, the more probable."""

    def step(self, tokens, state):
        return torch.arange(10.0).expand(len(tokens), -1) / 10, state


def sample(model: Counting, count: int, **options) -> list[int]:
    return list(itertools.islice(generate(model, torch.tensor([5]), generator("s"), **options), count))


def test_sampled_symbols_follow_the_probabilities():
    assert sample(Counting(), 7, temperature=0) == [6, 7, 8, 9, 5, 6, 7]
    symbols = sample(Counting(), 6000, temperature=1.5)
    assert {*symbols} == {4, 5, 6, 7, 8, 9}
    share = sum(after == 5 + (before - 4) % 5 for before, after in itertools.pairwise(symbols)) / 5999
    expected = math.exp(3 / 1.5) / (math.exp(3 / 1.5) + 5)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 5999))
    assert not torch.is_inference_mode_enabled()


def test_only_the_most_probable_symbols_are_written():
    assert sample(Counting(), 4, top_k=1) == [6, 7, 8, 9]
    assert {*sample(Ranked(), 300, top_k=3)} == {7, 8, 9}


def test_a_figure_shows_what_the_model_writes_after_a_line_break(trained):
    """The training text has none, so it is what follows the last symbol of the vocabulary."""
    task = evaluation.restore(compose([*trained.overrides, "data.vocab_size=17"]).job_config(), trained.run_dir)
    symbols = task.vocabularies["characters"]
    written = generate(task.model, torch.tensor([len(symbols) - 1]), generator("sample", 0))
    expected = "".join(symbols[token] for token in itertools.islice(written, 300))
    assert {*expected} <= {*TEXT}
    (batch,) = read_streams(trained.overrides).read("test", [torch.tensor([0])])
    assert task.figures(batch, None) == task.figures(batch, None) == {"sample": expected}


def test_eval_measures_with_the_vocabulary_of_the_run(trained, tmp_path, monkeypatch, capsys):
    code, out, err = run_command(monkeypatch, capsys, "eval", f"run={trained.run_dir}")
    assert (code, err) == (0, "")
    bits = trained.result["test/bits_per_character"]
    assert f"test/bits_per_character {bits:.4f}" in out.splitlines()
    (tmp_path / "other.txt").write_text("dogs and cats. " * 30)
    other = f"data.root={tmp_path}/other.txt"
    code, out, _ = run_command(monkeypatch, capsys, "eval", f"run={trained.run_dir}", other)
    expected = loss_in_one_pass(trained.run_dir, [*trained.overrides, other])
    assert (code, f"test/loss {expected:.4f}" in out.splitlines()) == (0, True)


def test_predict_continues_a_prompt_from_the_run_folder_alone(trained, tmp_path, monkeypatch, capsys):
    run_dir = RunDir(tmp_path / "copy")
    shutil.copytree(trained.run_dir.path, run_dir.path)
    config = (run_dir.path / "config.yaml").read_text()
    assert config.count("cats.txt") == 1
    (run_dir.path / "config.yaml").write_text(config.replace("cats.txt", "deleted.txt"))
    assert run_dir.read_vocabularies()["characters"][4:] == sorted(set(TEXT))

    def predict(*words: str) -> tuple[int, str, str]:
        return run_command(monkeypatch, capsys, "predict", f"run={run_dir}", *words)

    answers = [predict("prompt=the ", "length=30", f"seed={seed}") for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]
    code, out, err = answers[0]
    assert (code, len(out), out[:4], err) == (0, 4 + 30 + len("\n"), "the ", "")
    assert predict("prompt=Zug") == (
        2, "", "dltrain: error: prompt has characters that the training text does not have: 'Z', 'g', 'u'\n")
    assert predict("prompt=") == (2, "", "dltrain: error: prompt must have at least one character\n")
    assert predict("temperatur=1") == (
        2, "", "dltrain: error: unknown key 'temperatur'; did you mean 'temperature'?\n")
    assert predict("prompt=the", "length=0") == (2, "", "dltrain: error: length=0: must be an integer >= 1\n")
