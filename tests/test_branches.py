"""dltrain extend and fork: runs that go on from a checkpoint of another one."""

import csv
import math
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dltrain import run, run_parent
from dltrain.callbacks.keeping import KeptCheckpoints
from dltrain.optim import Extension, fraction_in_extended, fraction_of_peak
from dltrain.run_dir import RunDir
from tests.conftest import TINY
from tests.faults.test_exact_resume import QUICK, few_scenes, words_of  # noqa: F401
from tests.test_resume import Crash, assert_equal_tree, assert_same, crash_at, load_last

pytestmark = pytest.mark.usefixtures("without_figures")

CONSTANT = "task.schedule.name=constant"
EMA = ("trainer.average=ema", "trainer.average_decay=0.8")
EVERY = "trainer.keep_checkpoints.every_epochs=1"


def halved_after_two_epochs(step: int, total_steps: int) -> float:
    return 0.5 if step >= 6 else 1.0


def readings(folder: Path) -> list[dict[str, str]]:
    """Those of metrics.csv, without the rate, which depends on the machine."""
    with open(folder / "metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key != "images_per_second"}
                for row in csv.DictReader(file)]


def rates(folder: Path) -> list[float]:
    return [float(row["lr"]) for row in readings(folder) if row["lr"]]


# extend


@pytest.mark.parametrize("more", [[], [*EMA], ["task.optimizer.name=adam", "task.optimizer.lr=0.01"]])
def test_a_longer_run_of_constant_rate_ends_in_the_bits_of_one_that_was_so_long_from_its_start(more, dltrain):
    words = [*TINY, CONSTANT, *more]
    assert dltrain("name=a", *words)[0] == 0
    assert dltrain("name=straight", *words, "trainer.max_epochs=5")[0] == 0
    code, out, err = dltrain("extend", "run=outputs/a", "epochs=5")
    assert (code, err) == (0, "")
    assert "begins after epoch 3, step 9 of outputs/a, with trainer.max_epochs=5, schedule=continue; 6 more" in out
    assert_same(Path("outputs/straight"), Path("outputs/a_epochs5"))
    assert readings(Path("outputs/straight")) == readings(Path("outputs/a_epochs5"))
    straight, longer = (RunDir(Path("outputs", name)).read_result() for name in ("straight", "a_epochs5"))
    same = {"test/accuracy", "test/loss", "val/accuracy", "best_epoch", "steps"}
    assert {key: straight[key] for key in same} == {key: longer[key] for key in same}


@pytest.mark.parametrize(("step", "more"), [*((step, ()) for step in range(10, 16)), (11, EMA), (12, EMA)])
def test_it_does_so_when_it_is_killed_after_any_step(step, more, dltrain, monkeypatch):
    words = [*TINY, CONSTANT, *more, "trainer.checkpoint_every_steps=1"]
    assert dltrain("name=a", *words)[0] == 0
    assert dltrain("extend", "run=outputs/a", "epochs=5", "name=whole")[0] == 0
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        assert dltrain("extend", "run=outputs/a", "epochs=5", "name=killed")[0] == 8
    assert load_last(Path("outputs/killed"))["global_step"] == step
    assert dltrain("extend", "run=outputs/a", "epochs=5", "name=killed")[0] == 0
    assert_same(Path("outputs/whole"), Path("outputs/killed"))
    assert readings(Path("outputs/whole")) == readings(Path("outputs/killed"))


@pytest.mark.parametrize("place", ["copy_checkpoints", "run_parent.write"])
def test_a_folder_whose_making_was_cut_short_is_made_again(place, dltrain, monkeypatch):
    assert dltrain("name=a", *TINY, CONSTANT)[0] == 0
    assert dltrain("extend", "run=outputs/a", "epochs=5", "name=whole")[0] == 0

    def refuse(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(f"dltrain.branches.{place}", refuse)
        assert dltrain("extend", "run=outputs/a", "epochs=5", "name=killed")[0] == 8
    assert not Path("outputs/killed/config.yaml").exists()
    assert dltrain("extend", "run=outputs/a", "epochs=5", "name=killed")[0] == 0
    assert_same(Path("outputs/whole"), Path("outputs/killed"))


def cosine(step: int, total: int) -> float:
    return fraction_of_peak(step, total, "cosine", warmup_steps=2)


@pytest.mark.parametrize(("extended", "expected"), [
    ([], [cosine(step, 30) for step in range(30)]),
    ([Extension(10, 10, 1, "stretch")], [cosine(step, 30) for step in range(30)]),
    ([Extension(10, 10, 1, "continue")], [cosine(step, 10) for step in range(10)] + [cosine(9, 10)] * 20),
    ([Extension(10, 10, 1, "warm")],
     [cosine(step, 10) for step in range(10)] + [cosine(step, 20) for step in range(20)]),
    # ended early, at 6 of 10 steps
    ([Extension(6, 10, 1, "continue")], [cosine(step, 10) for step in range(6)] + [cosine(5, 10)] * 24),
    # twice
    ([Extension(10, 10, 1, "warm"), Extension(20, 20, 2, "continue")],
     [cosine(step, 10) for step in range(10)] * 2 + [cosine(9, 10)] * 10),
    ([Extension(10, 10, 1, "stretch"), Extension(20, 20, 2, "warm")],
     [cosine(step, 20) for step in range(20)] + [cosine(step, 10) for step in range(10)])])
def test_the_rates_of_a_run_that_was_made_longer(extended, expected):
    assert [fraction_in_extended(step, 30, extended, cosine) for step in range(30)] == expected


def test_the_rates_that_it_trains_with(dltrain):
    words = [*TINY, "task.schedule.name=step", "task.schedule.milestones=[0.34,0.67]", "trainer.log_every_n_steps=1"]
    assert dltrain("name=a", *words)[0] == 0
    expected = {"continue": [0.0005] * 9, "stretch": [0.005] * 3 + [0.0005] * 6,
                "warm": [0.05] * 3 + [0.005] * 3 + [0.0005] * 3}
    for how, last in expected.items():
        code, out, _ = dltrain("extend", "run=outputs/a", "epochs=6", f"schedule={how}")
        assert code == 0
        assert f"learning rate 0.0005 before, {last[0]:.4g} from here on" in out
        # a reading has the rate of the next step
        assert rates(Path(f"outputs/a_epochs6_{how}"))[9:17] == pytest.approx(last[1:])


def test_a_schedule_of_torch_can_only_be_stretched(dltrain):
    assert dltrain("name=a", *TINY, "task.schedule.name=torch.optim.lr_scheduler.PolynomialLR",
                   "+task.schedule.total_iters=20")[0] == 0
    code, _, err = dltrain("extend", "run=outputs/a", "epochs=5", "schedule=warm")
    assert (code, "dltrain extend can only make it longer with schedule=stretch" in err) == (2, True)
    assert not Path("outputs/a_epochs5_warm").exists()
    assert dltrain("extend", "run=outputs/a", "epochs=5", "schedule=stretch")[0] == 0


def test_what_extend_refuses(finished_run, dltrain):
    for words, message in ((["epochs=3"], "trainer.max_epochs=3: 3 epochs are done already"),
                           (["steps=9"], "trainer.max_steps=9: 9 steps are done already"),
                           ([], "extend needs epochs=N, or steps=N"),
                           (["epochs=5", "lr=1"], "task.optimizer.lr cannot change")):
        code, _, err = dltrain("extend", "run=outputs/a", "schedule=stretch", *words)
        assert (code, message in err, err.count("\n")) == (2, True, 1), err
    code, _, err = dltrain("extend", "run=outputs/a", "epochs=5")
    assert (code, "schedule=: must be one of continue, stretch, warm" in err) == (2, True)
    assert [path.name for path in Path("outputs").iterdir()] == ["a"]


# fork


def test_a_fork_is_the_run_with_other_values_from_there_on(dltrain):
    """Its bits are those of a run whose schedule changes there."""
    words = [*TINY, EVERY, "trust=tests"]
    assert dltrain("name=a", *words, CONSTANT)[0] == 0
    assert dltrain("name=reference", *words, "task.schedule.name=tests.test_branches.halved_after_two_epochs")[0] == 0
    code, out, err = dltrain("fork", "run=outputs/a", "at=epoch:2", "lr=0.025")
    assert (code, err) == (0, "")
    assert ("begins after epoch 2, step 6 of outputs/a, with task.optimizer.lr=0.025; 3 more steps, to epoch 3; "
            "learning rate 0.05 before, 0.025 from here on") in out
    fork = Path("outputs/a_from2_lr0.025")
    assert_equal_tree(load_last(fork)["state_dict"], load_last(Path("outputs/reference"))["state_dict"], "weights")
    assert_equal_tree(load_last(fork)["optimizer_states"][0]["state"],
                      load_last(Path("outputs/reference"))["optimizer_states"][0]["state"], "moments")
    assert run_parent.read(fork) == ("../a", 2, 6, {"task.optimizer.lr": 0.025})


@pytest.mark.parametrize("step", [7, 8, 9])
def test_a_fork_that_is_killed_ends_in_the_same_bits(step, dltrain, monkeypatch):
    assert dltrain("name=a", *TINY, EVERY, *EMA, "trainer.checkpoint_every_steps=1")[0] == 0
    words = ["fork", "run=outputs/a", "at=epoch:2", "lr=0.01"]
    assert dltrain(*words, "name=whole")[0] == 0
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == step)
        assert dltrain(*words, "name=killed")[0] == 8
    assert dltrain("resume", "run=outputs/killed")[0] == 0
    assert_same(Path("outputs/whole"), Path("outputs/killed"))
    assert readings(Path("outputs/whole")) == readings(Path("outputs/killed"))


def test_another_optimizer_begins_without_moments(dltrain):
    assert dltrain("name=a", *TINY, EVERY)[0] == 0
    code, out, err = dltrain("fork", "run=outputs/a", "at=epoch:2", "task.optimizer.name=adam", "lr=0.01", "name=b")
    assert (code, err) == (0, "")
    assert "; the optimizer begins without its moments\n" in out
    states = load_last(Path("outputs/b"))["optimizer_states"][0]["state"]
    assert max(int(state["step"]) for state in states.values()) == 3  # of 9, counted from the fork on


def test_the_best_weights_of_a_fork_are_not_those_of_a_later_epoch_of_its_parent(dltrain):
    assert dltrain("name=a", *TINY, EVERY, CONSTANT)[0] == 0
    values = [float(row["val/accuracy"]) for row in readings(Path("outputs/a")) if row["val/accuracy"]]
    assert max(values) > values[0]
    assert dltrain("fork", "run=outputs/a", "at=epoch:1", "lr=1e-12", "trainer.max_epochs=2", "name=b")[0] == 0
    result = RunDir(Path("outputs/b")).read_result()
    assert result["best_epoch"] in (1, 2)
    assert result["val/accuracy"] == max(
        float(row["val/accuracy"]) for row in readings(Path("outputs/b")) if row["val/accuracy"])


def test_a_fork_begins_with_the_best_weights_up_to_its_place(dltrain, monkeypatch):
    """Those of the checkpoint itself, where the parent's best are of a later epoch."""
    assert dltrain("name=a", *TINY, EVERY, CONSTANT)[0] == 0
    assert torch.load("outputs/a/checkpoints/best.ckpt", weights_only=True)["global_step"] > 3
    monkeypatch.setattr(run, "train", lambda *_: {})
    assert dltrain("fork", "run=outputs/a", "at=epoch:1", "lr=0.01", "name=b")[0] == 0
    best, place = (torch.load(file, weights_only=True) for file in (
        "outputs/b/checkpoints/best.ckpt", "outputs/a/checkpoints/epoch-1.ckpt"))
    assert best["global_step"] == 3
    assert_equal_tree(best["state_dict"], place["state_dict"], "weights")


def test_what_fork_refuses_leaves_nothing_behind(finished_run, dltrain):
    for words, message in ((["at=epoch:1"], "no whole checkpoint of epoch 1; at= may be last (epoch 3, step 9)"),
                           (["at=first"], "at=first: must be last, best or epoch:N"),
                           (["data.batch_size=16", "trainer.max_epochs=4"], "an epoch has 6 batches, but the run"),
                           (["model.depth=14", "trainer.max_epochs=4"], "model"),
                           ([], "trainer.max_epochs=3: 3 epochs are done already"),
                           (["name=a", "trainer.max_epochs=4"], "name=a: is the run itself"),
                           (["augment=cifar"], "augment cannot change")):
        code, _, err = dltrain("fork", "run=outputs/a", *words)
        assert (code in (2, 4), message in err, err.count("\n")) == (True, True, 1), err
    assert [path.name for path in Path("outputs").iterdir()] == ["a"]


def test_verify_and_replay_of_a_child_point_to_its_parent(dltrain):
    assert dltrain("name=a", *TINY, EVERY)[0] == 0
    assert dltrain("fork", "run=outputs/a", "at=epoch:2", "lr=0.025", "name=b")[0] == 0
    assert "dltrain verify run=outputs/a gives the steps before it" in dltrain("verify", "run=outputs/b")[2]
    assert "dltrain replay run=outputs/a gives the steps before it" in dltrain("replay", "run=outputs/b", "step=2")[2]
    shutil.rmtree("outputs/b/replay", ignore_errors=True)
    code, out, err = dltrain("replay", "run=outputs/a", "step=5")
    assert (code, err) == (0, "")
    assert "given again from epoch-1.ckpt at step 3" in out


# trainer.keep_checkpoints


def kept(folder: Path) -> set[str]:
    return {file.stem for file in (folder / "checkpoints").glob("epoch-*.ckpt")}


@pytest.mark.parametrize("crash_step", [None, 7, 13])
def test_the_checkpoints_that_are_kept(crash_step, dltrain, monkeypatch):
    words = ["name=a", *TINY, "trainer.max_epochs=6", "trainer.keep_checkpoints.best=2",
             "trainer.keep_checkpoints.every_epochs=3"]
    if crash_step:
        with monkeypatch.context() as patch:
            crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == crash_step)
            assert dltrain(*words)[0] == 8
    assert dltrain(*words)[0] == 0
    values = [float(row["val/accuracy"]) for row in readings(Path("outputs/a")) if row["val/accuracy"]]
    best = sorted(range(1, 7), key=lambda epoch: (values[epoch - 1], epoch))[-2:]
    assert kept(Path("outputs/a")) == {f"epoch-{epoch}" for epoch in {3, 6, *best}}
    state = torch.load("outputs/a/checkpoints/epoch-3.ckpt", weights_only=True)
    assert (state["global_step"], len(state["optimizer_states"])) == (9, 1)


@pytest.mark.parametrize(("mode", "dropped"), [("max", [[], [], [1], [2], [4]]), ("min", [[], [], [1], [3], [5]])])
def test_a_value_that_is_not_a_number_is_worse_than_any_other(mode, dropped, tmp_path):
    keeping = KeptCheckpoints(tmp_path, "val/loss", mode, 2, None)
    assert [keeping.rank(epoch, value) for epoch, value in enumerate((math.nan, 0.5, 0.7, 0.6, 0.65), 1)] == dropped


def test_nothing_begins_with_a_smoke_run(dltrain):
    assert dltrain("name=a", *TINY, "trainer.smoke_steps=2")[0] == 0
    code, _, err = dltrain("fork", "run=outputs/a", "lr=0.01", "name=b")
    assert (code, err.count("\n")) == (2, 1)
    assert "trainer.smoke_steps=2: such a run only shows that it runs" in err
    assert not Path("outputs/b").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("few_scenes")
@pytest.mark.parametrize("model", QUICK)
def test_every_family_is_extended_and_forked_to_the_same_bits(model, tmp_path, dltrain):
    """A run of one epoch that is extended to two, and a fork of that of two epochs after its first one with the same
    values, end as the run of two epochs. Scheduled sampling is left out: how often a captioner reads its own words
    depends on the length of the run."""
    words = [*words_of(model, tmp_path), CONSTANT, EVERY, *["task.sampled_share=0"] * (model == "captioner")]
    assert dltrain("name=straight", *words)[0] == 0
    assert dltrain("name=a", *words, "trainer.max_epochs=1")[0] == 0
    assert dltrain("extend", "run=outputs/a", "epochs=2", "name=longer")[0] == 0
    assert dltrain("fork", "run=outputs/straight", "at=epoch:1", "name=fork")[0] == 0
    for name in ("longer", "fork"):
        assert_same(Path("outputs/straight"), Path("outputs", name))


# by signals


@pytest.mark.slow
@pytest.mark.parametrize("verb", [["extend", "epochs=14", "schedule=warm"], ["fork", "at=epoch:2", "lr=0.01"]])
def test_killed_at_random_moments_it_ends_in_the_same_bits(verb, tmp_path, dltrain):
    words = ["model=sdresnet56", "model.depth=8", "data=digits", "trainer=cpu", EVERY, *EMA, "trainer.max_epochs=8",
             "trainer.checkpoint_every_steps=1"]
    assert dltrain("name=a", *words)[0] == 0
    command = [sys.executable, "-m", "dltrain", verb[0], "run=outputs/a", *verb[1:]]
    subprocess.run([*command, "name=whole"], check=True, capture_output=True)
    rng, kills = random.Random(0), 0
    for _ in range(12):
        process = subprocess.Popen([*command, "name=killed"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(rng.uniform(2.0, 5.0))
            break
        except subprocess.TimeoutExpired:
            process.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM]))
            process.wait()
            kills += 1
    subprocess.run([*command, "name=killed"], check=True, capture_output=True)
    assert kills
    assert_same(Path("outputs/whole"), Path("outputs/killed"))
    assert readings(Path("outputs/whole")) == readings(Path("outputs/killed"))


def test_a_run_of_an_earlier_version_has_the_keys_of_this_one(dltrain):
    shutil.copytree(Path(__file__).parent / "fixtures/digits_0.2", "outputs/old")
    code, out, err = dltrain("fork", "run=outputs/old", "trainer.keep_checkpoints.every_epochs=1", "lr=0.01",
                             "name=new")
    assert (code, err) == (0, "")
    (line,) = [line for line in out.splitlines() if line.startswith("begins after epoch 2, step 24 of outputs/old")]
    assert "task.optimizer.lr=0.01" in line
    assert "trainer.keep_checkpoints.every_epochs=1" in line
    assert kept(Path("outputs/new")) == {"epoch-3", "epoch-4"}
    assert dltrain("extend", "run=outputs/old", "epochs=6", "schedule=warm")[0] == 0
    assert RunDir(Path("outputs/old_epochs6_warm")).read_result()["steps"] == 60


def test_a_finished_branch_is_not_taken_for_one_with_other_values(dltrain):
    assert dltrain("name=a", *TINY, EVERY)[0] == 0
    words = ["fork", "run=outputs/a", "at=epoch:1", "name=b"]
    assert dltrain(*words, "lr=0.01")[0] == 0
    assert "finished after" in dltrain(*words, "lr=0.01")[1]
    for others in (["lr=0.02"], [], ["lr=0.01", "at=epoch:2"]):
        code, _, err = dltrain(*words, *others)
        assert code == 2
        assert "outputs/b began otherwise (it begins after epoch 1, step 3 of outputs/a" in err
    longer = ["extend", "run=outputs/a", "schedule=continue", "name=c"]
    assert dltrain(*longer, "epochs=4")[0] == 0
    shutil.rmtree("outputs/a/checkpoints")
    assert "finished after" in dltrain(*longer, "epochs=4")[1]
    assert dltrain(*longer, "epochs=5")[0] == 2
    assert dltrain("extend", "run=outputs/a", "schedule=warm", "name=c", "epochs=4")[0] == 2


def test_a_branch_with_weights_of_other_shapes_is_refused(dltrain):
    assert dltrain("name=a", *TINY, EVERY)[0] == 0
    code, _, err = dltrain("fork", "run=outputs/a", "at=epoch:1", "model.depth=14", "name=b")
    assert code == 2
    assert "dltrain fork keeps them" in err
    assert "damaged" not in err
    assert not Path("outputs/b").exists()


def test_what_is_null_in_the_config_of_a_run_is_null_in_its_branch(dltrain):
    lengths = ("trainer.max_epochs=null", "trainer.target_steps=9", "trainer.validate_every_epochs=null")
    assert dltrain("name=a", *TINY, *lengths, EVERY)[0] == 0
    assert dltrain("fork", "run=outputs/a", "at=epoch:1", "lr=0.01", "name=b")[0] == 0
    parent, branch = (RunDir(Path("outputs", name)).read_config()["trainer"] for name in "ab")
    assert parent == branch
    assert RunDir(Path("outputs/b")).read_result()["steps"] == 9


def test_a_branch_that_another_process_trains_is_left_alone(dltrain, monkeypatch):
    assert dltrain("name=a", *TINY, EVERY)[0] == 0
    words = ["fork", "run=outputs/a", "at=epoch:1", "lr=0.01", "name=b"]
    with monkeypatch.context() as patch:
        crash_at(patch, "on_train_batch_end", lambda trainer: trainer.global_step == 4)
        assert dltrain(*words)[0] == 8
    other = subprocess.Popen([sys.executable, "-c", "from pathlib import Path; from dltrain.run_lock import locked\n"
                              "with locked(Path('outputs/b')): print('locked', flush=True); input()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "locked\n"
    code, _, err = dltrain(*words)
    other.communicate("\n")
    assert code == 2
    assert "is in use by process" in err
    assert Path("outputs/b/checkpoints/last.ckpt").is_file()
    assert dltrain(*words)[0] == 0


def test_a_parent_with_a_damaged_file_leaves_no_folder(dltrain):
    assert dltrain("name=a", *TINY, EVERY)[0] == 0
    Path("outputs/a/checkpoints/best.ckpt").write_bytes(b"damaged")
    code, _, err = dltrain("fork", "run=outputs/a", "at=epoch:2", "lr=0.01", "name=b")
    assert code == 4
    assert "outputs/a/checkpoints/best.ckpt: damaged" in err
    assert not Path("outputs/b").exists()
