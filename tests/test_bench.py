"""`dltrain bench`: the bare loop trains as a run does, to the bit; times and ratios by hand; what it prints."""

import json
import time
from itertools import count

import pytest
import torch
from omegaconf import OmegaConf

from dltrain.benchmark import peaks, settings, timing
from dltrain.benchmark.loops import rate_setter, train_bare, watched
from dltrain.benchmark.measure import Bench, compared_steps, round_steps, warm_up_of
from dltrain.benchmark.settings import Measured, Trial
from dltrain.benchmark.trainer_run import train_with_trainer
from dltrain.build import build_data, build_task
from dltrain.commands import bench_words as command
from dltrain.config import groups
from dltrain.config.compose import compose
from dltrain.config.renamed import SHORT_FORMS
from dltrain.errors import UserError
from tests.conftest import TINY

CPU = torch.device("cpu")


def prepared(config, *words):
    made = config(*words)
    data = build_data(made)
    made.class_names = data.class_names
    task = build_task(made, data.vocabularies)
    task.fit_statistics(data)
    return made, data, task


@pytest.mark.parametrize("words", [
    [*TINY, "trainer.accumulate_batches=2", "trainer.max_epochs=5", "trainer.gradient_clip_norm=0.5",
     "task.schedule.warmup_steps=4",
     "trainer.memory_format=contiguous"],
    [*TINY, "trainer.precision=64-true", "task.schedule.name=torch.optim.lr_scheduler.OneCycleLR",
     "+task.schedule.max_lr=0.1"],
    ["model=captioner", "data.num_train=24", "data.batch_size=8", "task.sampled_share=0.5", "trainer=cpu",
     "task.freezing.until=null", "model.backbone.depth=8", "model.hidden=16"],
    ["model=char_rnn", "recipe=none", "model.hidden=8", "data.window=8", "data.batch_size=4", "trainer=cpu",
     "trainer.max_epochs=1"]])
def test_the_bare_loop_trains_as_a_run_does(words, config, monkeypatch):
    """Equal losses and, after some steps over more than one epoch where it is short, equal weights, to the bit."""
    monkeypatch.setattr("dltrain.data.scenes.NUM_EVAL_IMAGES", 4)
    made, data, task = prepared(config, *words)
    start = {name: value.clone() for name, value in task.state_dict().items()}
    results = []
    for train in (lambda: train_with_trainer(made, data, task, 4),
                  lambda: train_bare(made, data, task, CPU, 4, seeded=True)):
        task.load_state_dict(start)
        losses: list[torch.Tensor] = []
        with watched(task, lambda batch: None, losses):
            train()
        results.append((torch.stack(losses), {name: value.clone() for name, value in task.model.state_dict().items()}))
    assert torch.equal(results[0][0], results[1][0])
    assert len(results[0][0]) >= 4
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name]), name
    assert any(not torch.equal(value, start[f"model.{name}"]) for name, value in results[0][1].items())


def test_the_rate_of_a_step_is_that_of_the_schedule(config):
    _, _, task = prepared(config, *TINY, "task.schedule.name=cosine")
    task.total_steps = 8
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    set_rate = rate_setter(optimizer, task)
    set_rate(4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)  # half of the cosine


def bench_of(config, *words, train=train_with_trainer):
    made, data, task = prepared(config, *words)
    return Bench(made, data, task, CPU, train, lambda other: build_task(other, data.vocabularies), lambda text: None)


def test_another_training_is_an_error(config):
    """A trainer that trains with another learning rate: the first loss is equal, the second is not."""
    def train(made, data, task, num_steps):
        task.optimizer_keys = {**task.optimizer_keys, "lr": 0.01}
        train_with_trainer(made, data, task, num_steps)
        task.optimizer_keys = {**task.optimizer_keys, "lr": 0.05}

    with pytest.raises(UserError, match=r"losses of the trainer and of the bare loop differ from step 1 on, [\d.]+"):
        bench_of(config, *TINY, "task.schedule.warmup_steps=0", train=train).compare_losses(3)


def test_a_setting_leaves_nothing_behind(config):
    bench = bench_of(config, *TINY)
    weight = next(parameter for parameter in bench.task.parameters() if parameter.dim() == 4 and parameter.shape[1] > 1)
    plain = bench.measure([], 4, True)
    before = torch.get_num_threads()
    seen: list[tuple[int, bool]] = []
    step = bench.task.training_step

    def note(*arguments):
        seen.append((torch.get_num_threads(), weight.is_contiguous()))
        return step(*arguments)

    bench.task.training_step = note
    other = bench.measure(["OMP_NUM_THREADS=3", "trainer.memory_format=contiguous"], 4, True)
    assert {*seen} == {(3, True)}
    assert torch.get_num_threads() == before
    assert settings.loss_difference(other.losses, plain.losses) < 1e-5
    precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    bench.measure(["trainer.matmul_precision=high"], 4, True)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == precision
    again = bench.measure([], 4, True)
    assert torch.equal(again.losses, plain.losses)
    assert not torch.equal(again.losses[1:], bench.measure([], 4, False).losses[1:])  # at the rate of the run
    assert bench.task.optimizer_keys["lr"] == 0.05
    assert not weight.is_contiguous()


# times


def clock_at(times: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    iterator = iter(times)
    monkeypatch.setattr(time, "perf_counter", lambda: next(iterator))


def test_a_clock_counts_steps_and_ends_of_epochs_apart(monkeypatch):
    """Three batches an epoch, one step to warm up: steps of 2, 2, 4 seconds, an end of 11 in place of a step."""
    clock = timing.StepClock(3, 6, 1, CPU)
    clock_at([0, 9, 11, 22, 24, 28], monkeypatch)
    for _ in range(6):
        clock.tick()
    assert clock.intervals() == ([2, 2, 4], [11])
    assert clock.step_seconds() == pytest.approx(8 / 3)
    assert clock.epoch_seconds() == [pytest.approx(11 - 8 / 3)]


def test_where_an_epoch_is_one_batch_its_end_counts(monkeypatch):
    clock = timing.StepClock(1, 4, 1, CPU)
    clock_at([0, 5, 6, 8], monkeypatch)
    for _ in range(4):
        clock.tick()
    assert clock.step_seconds() == 1.5
    assert clock.epoch_seconds() == []
    short = timing.StepClock(3, 1, 1, CPU)
    short.starts = [0.0]
    with pytest.raises(ValueError, match="1 steps with 1 to warm up"):
        short.step_seconds()


def test_a_split_sums_what_ends_with_each_mark(monkeypatch):
    """The first batch warms up."""
    clock_at([0, 1, 2, 5, 7, 8, 9, 13], monkeypatch)
    split = timing.Split(CPU, 1)
    for name in ("data", "forward", "backward", "data", "forward", "forward", "optimizer"):
        split.mark(name)
    assert split.seconds() == {"data": 2, "forward": 2, "optimizer": 4}


def test_pairs_and_how_long_things_take():
    result = timing.compare_pairs([(1.0, 2.0), (3.0, 4.0), (9.0, 6.0)])
    assert result["ours"] == {"median": 3.0, "low": 1.0, "high": 9.0, "n": 3}
    assert result["ratio"] == {"median": 0.75, "low": 0.5, "high": 1.5, "n": 3}
    calls = count()
    assert timing.compare(lambda: float(next(calls)), lambda: 1.0, 3)["ours"]["median"] == 2.0  # of 1, 2, 3
    assert (compared_steps(0.01, 30), compared_steps(0.5, 30), compared_steps(100, 30)) == (20, 7, 3)
    assert (round_steps(0.01, 15, 5), round_steps(1, 15, 5), round_steps(1e-6, 15, 5)) == (150, 4, 200)
    assert [warm_up_of(steps) for steps in (3, 4, 20)] == [0, 1, 3]


def test_a_peak_is_that_of_the_work_alone():
    def allocate() -> None:
        torch.ones(50_000_000)  # 200 MB, touched

    small, large, again = (peaks.peak_mb(CPU, work) for work in (lambda: None, allocate, lambda: None))
    assert large > small + 150
    if peaks.STATUS.exists():
        assert again < large - 150
    assert peaks.process_peak_mb() > 50  # libraries alone


# settings


def test_differences_of_losses():
    assert settings.loss_difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5])) == 0.2
    assert settings.loss_difference(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")


# seconds of a step and the change of the loss, by words
SPEEDS = {(): (1.0, 0.0), ("OMP_NUM_THREADS=1",): (2.0, 0.0), ("OMP_NUM_THREADS=4",): (0.5, 0.0),
          ("OMP_NUM_THREADS=4", "trainer.memory_format=contiguous"): (0.4, 1e-6),
          ("OMP_NUM_THREADS=4", "trainer.memory_format=contiguous", "trainer.compile=true",
           "trainer.compile_mode=reduce-overhead"): (0.395, 0.0),
          ("OMP_NUM_THREADS=4", "trainer.memory_format=contiguous", "trainer.precision=bf16-mixed"): (0.2, 1e-2)}
CHOICES = {"threads": ["OMP_NUM_THREADS=1", "OMP_NUM_THREADS=4"], "memory_format": ["trainer.memory_format=contiguous"],
           "compile": ["trainer.compile=true trainer.compile_mode=reduce-overhead"],
           "precision": ["trainer.precision=bf16-mixed"]}


def test_each_setting_is_tried_on_top_of_the_best_before_it():
    measured: list[tuple[str, ...]] = []

    def measure(words, num_steps, seeded):
        measured.append(tuple(words))
        step, change = SPEEDS[tuple(words)]
        return Measured(step, torch.full((20,), 2.0 + 2 * change))

    plain = torch.full((20,), 2.0)
    trials = settings.search(CHOICES, lambda words: settings.try_words(words, measure, plain, 5))
    assert [trial.words for trial in trials] == [list(words) for words in SPEEDS if words]
    assert [trial.rate for trial in trials] == pytest.approx([0.5, 2, 2.5, 1 / 0.395, 5])
    assert measured.count(("OMP_NUM_THREADS=1",)) == 1  # too slow to be measured any further
    assert settings.best(trials).words == ["OMP_NUM_THREADS=4", "trainer.memory_format=contiguous"]  # 1 % is nothing
    assert settings.best(trials, keeping=False).words[-1] == "trainer.precision=bf16-mixed"
    assert settings.best(trials[:1]).words == []


def test_a_setting_that_does_not_run_is_reported():
    def refuse(words, num_steps, seeded):
        raise RuntimeError("no compiler\nat all")

    trial = settings.try_words(["trainer.compile=true"], refuse, torch.ones(3), 5)
    assert trial == Trial(["trainer.compile=true"], None, None, "no compiler")
    assert not trial.keeps_numbers


def test_what_can_be_tried(config, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(8), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    conv, linear = torch.nn.Conv2d(1, 1, 3), torch.nn.Linear(1, 1)
    assert settings.alternatives(config(), conv, CPU) == {
        "threads": ["OMP_NUM_THREADS=1", "OMP_NUM_THREADS=4"], "memory_format": ["trainer.memory_format=contiguous"],
        "compile": ["trainer.compile=true"], "precision": ["trainer.precision=bf16-mixed"]}
    given = config("trainer.compile=true", "trainer.precision=bf16-mixed")
    assert settings.alternatives(given, linear, torch.device("cuda")) == {
        "threads": [], "memory_format": [], "compile": [], "precision": []}
    keys = OmegaConf.create({"trainer": {**config().trainer, "compile_mode": "default", "matmul_precision": "highest"}})
    on_gpu = settings.alternatives(keys, linear, torch.device("cuda"))
    assert on_gpu["compile"] == ["trainer.compile=true", "trainer.compile=true trainer.compile_mode=reduce-overhead"]
    assert on_gpu["precision"] == ["trainer.matmul_precision=high", "trainer.precision=bf16-mixed",
                                   "trainer.precision=16-mixed"]


# the command


def test_its_keys_are_no_keys_of_the_config():
    composed = compose([])
    assert not {*command.KEYS} & {*SHORT_FORMS, *groups.GROUPS, *composed.config, *composed.job_config()}
    assert command.NAMES == settings.DIMENSIONS
    assert command.take_options(["model=resnet20", "seconds=3", "try=compile,threads", "steps=2", "trace=false"]) == (
        command.Options(3, 5, ("compile", "threads"), True), ["model=resnet20", "steps=2"])


@pytest.mark.parametrize(("words", "message"), [
    (["try=speed"], "try=speed: 'speed' must be one of threads, memory_format, compile, precision, or it is"),
    (["rounds=0"], "rounds=0: must be an integer >= 1"), (["seconds=-1"], "seconds=-1: must be a number > 0"),
    (["-m", "seed=0,1"], "bench measures the training of one run"),
    (["experiment=memory"], "bench measures the training of one run"),
    (["secnds=3"], "unknown key 'secnds'")])
def test_mistakes(words, message, dltrain):
    code, _, err = dltrain("bench", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_the_command_prints_tables_and_writes_json_and_a_trace(dltrain, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.benchmark.measure.COMPARED_STEPS", 4)
    code, out, err = dltrain("bench", *TINY, "seconds=0.01", "rounds=2", "try=memory_format", "json=true",
                             "trace=steps.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "sdresnet56 on digits, batches of 32"
    assert "3 equal to the bit" in out
    result = json.loads((tmp_path / "outputs/bench/sdresnet56-on-digits.json").read_text())
    assert result["images_per_batch"] == 32
    assert result["losses"] == {"compared_steps": 3, "largest_difference": 0.0}
    ours = result["images_per_second"]["ours"]
    assert ours["n"] == result["rounds"] == 2
    assert ours["high"] == pytest.approx(32e3 / result["step_ms"]["ours"]["low"])
    assert {*result["split_ms"]} == {"data", "augmentation", "forward", "backward", "optimizer"}
    assert result["epoch_end_ms"]["n"] == 2
    assert [trial["words"] for trial in result["trials"]] == [["trainer.memory_format=contiguous"]]
    assert result["not_requested"][-2:] == ["compile", "precision"]
    assert result["first_step_seconds"] > 0
    assert result["peak_mb"]["ours"] > 100
    names = {event.get("name") for event in json.loads((tmp_path / "steps.json").read_text())["traceEvents"]}
    assert "aten::convolution" in names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "steps.json"]


def test_code_that_fails_is_named(dltrain, monkeypatch):
    def fail(self, batch, batch_idx):
        raise RuntimeError("no such thing")

    monkeypatch.setattr("dltrain.tasks.classification.Classification.training_step", fail)
    code, _, err = dltrain("bench", *TINY, "try=none")
    assert code == 8  # it stands in a file of the tests
    assert err.startswith("dltrain: error: RuntimeError: no such thing")


def test_a_key_of_the_verb_with_a_slip_is_not_looked_up_in_the_config():
    with pytest.raises(UserError, match=r"^unknown key 'secnds'; did you mean 'seconds'\?$"):
        command.take_options(["model=resnet20", "secnds=3"])
    assert command.take_options(["trainer.max_steps=3", "lr=0.1"])[1] == ["trainer.max_steps=3", "lr=0.1"]
