"""What the command line answers without torch: exit codes, one line on standard error, the nearest real name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from dltrain.cli import COMMANDS

# Hydra is imported once, and each command runs in a copy of this process, which is without torch as well.
WITHOUT_TORCH = """
import json, os, sys
from traceback import print_exc
from dltrain.cli import main
from dltrain.config import compose, launch

def run(words, folder, cwd, env):
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = ["dltrain", *words]
    try:
        code = main()
    except SystemExit as stop:
        code = stop.code
    assert "torch" not in sys.modules, "torch was imported"
    return code or 0

for line in sys.stdin:
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    try:
        code = run(*json.loads(line))
    except BaseException:
        print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Result]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """run("ls", "models", cwd=..., env=...): a command, which must not import torch, in a process of its own."""
    with subprocess.Popen([sys.executable, "-c", WITHOUT_TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as server:
        requests, answers = server.stdin, server.stdout
        assert requests
        assert answers

        def command(*words: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> Result:
            folder = tmp_path_factory.mktemp("command")
            print(json.dumps([words, str(folder), str(cwd or os.getcwd()), env or {}]), file=requests, flush=True)
            code = int(answers.readline())
            return Result(code, (folder / "stdout").read_text(), (folder / "stderr").read_text())

        yield command
        requests.close()


REFUSED = {
    "unknown model": (["model=rsnet56"], "unknown model 'rsnet56'; did you mean 'resnet56'?"),
    "unknown data": (["data=cifar"], "unknown data 'cifar'; did you mean 'cifar10'?"),
    "unknown in a sweep": (["-m", "model=resnet20,plainn20"], "unknown model 'plainn20'; did you mean 'plain20'?"),
    "unknown backbone": (["model=captioner", "model/backbone=lite1"],
                         "unknown model/backbone 'lite1'; did you mean 'lite0'?"),
    "unknown backbone in a sweep": (["-m", "model=fcn8s", "model/backbone=vgg,lite1"], "did you mean 'lite0'?"),
    "a model without a backbone": (["model=resnet20", "model/backbone=lite0"],
                                   "this model has no backbone to choose; those that have one: captioner,"),
    "unknown recipe": (["recipe=resnet20-on-digit"], "did you mean 'resnet20-on-digits'?"),
    "unknown verb": (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    "typo in a key": (["model=resnet20", "task.optimizer.lrr=1"],
                      "unknown key 'task.optimizer.lrr'; did you mean 'task.optimizer.lr'?"),
    "typo in a container": (["task.optimiser.lr=1"], "did you mean 'task.optimizer.lr'?"),
    "wrong type": (["model.depth=abc"], "model.depth='abc': must be an integer"),
    "wrong range": (["data.batch_size=0"], "data.batch_size=0: must be an integer >= 1"),
    "wrong remainder": (["model=fcn8s", "model.kernel=2"], "model.kernel=2: must be an integer >= 1, = 1 mod 2"),
    "wrong choice": (["model.shortcut=D"], "model.shortcut='D': must be one of A, A_centred, B, C, none"),
    "wrong bool": (["trainer.compile=3"], "trainer.compile=3: must be true or false"),
    "null where a number belongs": (["seed=null"], "seed=null: must be an integer >= 0"),
    "wrong list": (["task.schedule.milestones=[0.5,2]"], "each must be a number in (0, 1)"),
    "bad name": (["name=a b"], "name='a b': must be letters"),
    "no override": (["train", "resnet20"], "cannot read 'resnet20'"),
    "a list without a sweep": (["seed=0,1"], "Ambiguous value for argument 'seed=0,1'"),
    "unknown flag": (["--fast"], "unrecognized arguments: --fast"),
    "no such folder": (["--config-dir", "nowhere"], "--config-dir: no folder 'nowhere'"),
    "no run": (["resume", "run=outputs/none"], "run=outputs/none: not a run folder"),
    "no run given": (["eval"], "eval needs run=FOLDER"),
    "no run to predict with": (["predict", "run=x"], "run=x: not a run folder"),
    "old key": (["task.transfer.rest_until=stage1"], "'task.transfer.rest_until' is a key of an earlier version; use "
                                                     "task.freezing.until"),
    "old group": (["model=fcn8s", "encoder@model.encoder=lite0"], "use model/backbone"),
    "old key to explain": (["why", "task.frozen_epochs", "model=captioner"], "use task.freezing.until"),
    "unknown list": (["ls", "model"], "unknown list 'model'; did you mean 'models'?"),
    "a size that is none": (["ls", "models", "px=abc"], "ls models: px=abc: must be an integer >= 1"),
    "two channels": (["ls", "models", "px=32", "channels=2"], "channels=2: must be one of 1, 3"),
    "typo in a size": (["ls", "models", "pxx=3"], "ls models: cannot read 'pxx=3'; did you mean 'px'?"),
    "no size": (["ls", "models", "classes=5"], "needs px=, as px=224"),
    "a folder for Hydra": (["hydra.run.dir=x"], "hydra.run.dir: dltrain does not use it; name= and output_dir="),
    "another working folder": (["hydra.job.chdir=true"], "a run stays in the folder where it was started"),
    "a mode": (["hydra.mode=MULTIRUN"], "-m starts a sweep"),
    "another key of Hydra": (["hydra.verbose=true"], "of Hydra it takes hydra/sweeper, hydra.sweeper,"),
    "an interval": (["-m", "lr=interval(0.1,1)"], "a sweep takes a list, as lr=0.1,0.01; interval() needs -m and a"),
    "another config": (["--config-name", "x"], "unrecognized arguments: --config-name"),
    "no model": (["model=null"], "model=null: there must be one"),
    "no data in a sweep": (["-m", "data=null", "seed=0,1"], "data=null: there must be one"),
    "why nothing": (["why"], "why needs a key"),
    "why a typo": (["why", "task.optimizer.lrr"], "did you mean 'task.optimizer.lr'?"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case, tmp_path, run):
    words, message = REFUSED[case]
    result = run(*words, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("dltrain: error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert result.stdout == ""
    assert not list(tmp_path.iterdir()), "a refused command must leave nothing behind"


def test_help_teaches(run):
    result = run("--help")
    assert result.returncode == 0
    examples = result.stdout.partition("Examples\n")[2].partition("Choices")[0].strip().splitlines()
    assert len(examples) == 6
    for word in ("resume", "predict", "experiment=", "lr= is", "-m ", "tensorboard", "dltrain help codes"):
        assert word in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_its_own_help(verb, run):
    result = run(verb, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"dltrain {verb} ") or (verb == "train" and result.stdout.startswith("dltrain ["))
    assert max(map(len, result.stdout.splitlines())) <= 120


def test_examples_in_help_compose():
    """Every training example in the help text is a command that is not refused."""
    from dltrain.commands.help import overview
    from dltrain.config.compose import compose

    for line in overview().partition("Examples\n")[2].partition("Choices")[0].strip().splitlines():
        words = line.split("  ")[0].split() if line.startswith("dltrain") else line.strip().split("  ")[0].split()
        words = [word for word in words[1:] if not word.startswith("-")]
        if words[:1] != ["why"]:
            compose(words, multirun="," in "".join(words))


def test_ls_lists_everything(run):
    result = run("ls")
    assert result.returncode == 0
    for word in ("models", "resnet164", "ClassificationBatch", "image_folder", "cifar_resnet-on-cifar10", "lite0"):
        assert word in result.stdout


def test_cfg_job_shows_the_composed_config(run):
    result = run("--cfg", "job", "model=plain20", "seed=7")
    assert result.returncode == 0
    assert "shortcut: none" in result.stdout
    first = run("-m", "--cfg", "job", "seed=3,4").stdout
    assert first.startswith("# the first job of the sweep\n")
    assert "\nseed: 3\n" in first
    assert "seed: 7" in result.stdout


@pytest.mark.parametrize(("typed", "offered"), [
    ("dltrain re", "resume"), ("dltrain model=resnet5", "model=resnet56"),
    ("dltrain train model=resnet5", "model=resnet56"),
    ("dltrain why model=resnet5", "model=resnet56"), ("dltrain train task.optimizer.l", "task.optimizer.lr="),
    ("dltrain bench tr", "trace="), ("dltrain bench model=resnet5", "model=resnet56"),
    ("dltrain help task.optimizer.l", "task.optimizer.lr"), ("dltrain help cod", "codes"),
    ("dltrain summary d", "depth="), ("dltrain summary model=resnet5", "model=resnet56"),
    ("dltrain schema tr", "trainer"),
    ("dltrain ls mo", "models"), ("dltrain ls models p", "px="), ("dltrain ls runs so", "sort="),
    ("dltrain ls runs state=d", "state=diverged"), ("dltrain di", "diff")])
def test_completion(typed, offered, run):
    result = run("-sc", "query=bash", env={"COMP_LINE": typed, "COMP_POINT": str(len(typed))})
    assert result.returncode == 0
    assert offered in result.stdout.split()


def test_why_names_file_and_line_down_to_the_command_line(run):
    result = run("why", "task.optimizer.lr", "model=resnet56", "data=cifar10", "task.optimizer.lr=0.3")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "task.optimizer.lr = 0.3"
    assert "set by the command line" in lines[1]
    for line, (name, value) in zip(lines[2:], (("recipe/cifar_resnet-on-cifar10.yaml", "0.1"),
                                               ("task/base/task.yaml", "0.1")), strict=False):
        place, number = line.split()[1].rsplit(":", 1)
        assert place.endswith(name)
        assert value in Path(place).read_text().splitlines()[int(number) - 1]


def test_why_explains_a_choice(run):
    result = run("why", "augment", "data=cifar10")
    assert result.stdout.startswith("augment = cifar\n")
    assert "data/cifar10.yaml:5" in result.stdout


def own_configs(folder: Path, **files: str) -> str:
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


LETTERS = """# @package _global_
# Letters
data:
  _target_: x.Y
  batch_type: TokenBatch
  num_classes: 3
  channels: 1
"""
MINE = """# @package _global_
# Mine
defaults:
  - /task: classification
model:
  _target_: x.Y
  width: 4  # int in [1, 8]: channels
"""


def test_wrong_pair_is_refused_with_what_fits(tmp_path, run):
    folder = own_configs(tmp_path / "own", data__letters=LETTERS)
    result = run("--config-dir", folder, "model=resnet20", "data=letters")
    assert result.returncode == 2
    assert "model=resnet20 trains on ClassificationBatch, but data=letters yields TokenBatch" in result.stderr
    assert "cifar10" in result.stderr
    assert result.stderr.count("\n") == 1


def test_wrong_pair_made_by_experiment_and_model(tmp_path, run):
    """The experiment fixed the data; the model named beside it does not fit them."""
    folder = own_configs(tmp_path / "own", data__letters=LETTERS,
                         experiment__e1="# @package _global_\n# E\ndefaults:\n  - override /data: letters\n")
    result = run("--config-dir", folder, "experiment=e1", "model=resnet20")
    assert result.returncode == 2
    assert "trains on ClassificationBatch, but data=letters yields TokenBatch" in result.stderr


def test_own_rule_is_held(tmp_path, run):
    folder = own_configs(tmp_path / "own", model__mine=MINE)
    result = run("--config-dir", folder, "model=mine", "model.width=9")
    assert result.returncode == 2
    assert "model.width=9: must be an integer in [1, 8]" in result.stderr


def test_an_own_argument_may_have_the_name_of_an_old_key(tmp_path, run):
    """In a yaml, on the command line, and to `why`; of dltrain's own models the name is refused as before."""
    folder = own_configs(tmp_path / "own", model__mine=MINE + "  weights: 3  # int >= 1: of the vote\n")
    result = run("--config-dir", folder, "model=mine", "model.weights=4", "--cfg", "job")
    assert (result.returncode, result.stderr) == (0, "")
    assert "weights: 4" in result.stdout
    assert run("why", "model.weights", "model=mine", "--config-dir", folder).stdout.startswith("model.weights = 3\n")
    assert "'model.weights' is a key of an earlier version" in run("model=resnet20", "model.weights=4").stderr
    other = run("--config-dir", folder, "model=mine", "model.weights=4", "model.wiidth=4").stderr
    assert "unknown key 'model.wiidth'; did you mean 'model.width'?" in other, "the key that is at fault"


def test_a_recipe_that_chooses_is_told_where_choices_stand(tmp_path, run):
    text = "# @package _global_\n# Mine\ndefaults:\n  - override /augment: cifar\n"
    folder = own_configs(tmp_path / "own", **{"recipe__resnet20-on-mnist": text})
    result = run("--config-dir", folder, "data=mnist")
    assert result.returncode == 2
    assert "can choose no augment itself; let it set keys of augment, or put the choice into the yaml" in result.stderr


def test_hidden_own_config_is_warned_of(tmp_path, run):
    folder = own_configs(tmp_path / "own", model__resnet20="# Mine\n")
    result = run("--config-dir", folder, "--cfg", "job")
    assert result.returncode == 0
    assert "model/resnet20.yaml is not used: dltrain has its own model/resnet20; rename yours" in result.stderr


def test_the_parser_of_flags_obeys_argparse_of_python_3_14():
    """Python 3.14 formats every help text when an argument is added, so each must be a str that formats."""
    from dltrain.config.launch import FlagsParser

    parser = FlagsParser()
    for action in parser._actions:
        assert type(action.help) is str
        assert action.help % vars(action)
    assert "--config-dir" in parser.format_help()
    flags = parser.parse_intermixed_args(["a=1", "-m", "b=2", "--config-dir", "x", "--cfg", "job"])
    assert (flags.overrides, flags.multirun, flags.config_dir, flags.cfg) == (["a=1", "b=2"], True, "x", "job")
