"""A config is data, not code: what a hostile one names is neither imported nor called, whichever door it comes by."""

import json
import os
import random
import re
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError

from dltrain import build, own_modules, run, run_lock, trust
from dltrain.commands.stored import load_config
from dltrain.config import allowed, checks, groups, interpolations, yaml_text
from dltrain.config.compose import compose, to_plain
from dltrain.config.groups import CONFIGS
from dltrain.errors import DataError, InterruptedRun, UserError
from dltrain.run_dir import RunDir
from tests.conftest import MODELS, TINY
from tests.faults import hostile

SEED = 29
PAYLOAD = ("from pathlib import Path\nPath({!r}).touch()\n"
           "class Payload:\n    def __init__(self, **keys):\n        pass\n")
OWN = """\
import os
from functools import partial

import torch

class Net(torch.nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))

small, shell = partial(Net, num_classes=10), os.system
"""


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a payload writes. The current folder has a received run, run/, with payload.py in it; a package
    `installed` lies elsewhere on sys.path, and writes the file when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.setattr(trust, "trusted", set())
    file = tmp_path / "canary"
    for folder in ("run", "site-packages"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run/payload.py").write_text(PAYLOAD.format(str(file)))
    (tmp_path / "site-packages/installed.py").write_text(PAYLOAD.format(str(file)))
    for name in ("payload", "installed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    sys.path += [str(tmp_path / "run"), str(tmp_path / "site-packages")]
    return file


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The config of a run, as its config.yaml has it."""
    return {"version": "0.2.0", **to_plain(compose(["augment=cifar"]).job_config())}


def refusal_of(config: object) -> str:
    """What `eval`, `predict` and `resume` answer to a received run with this config, which is its value or its text."""
    text = config if type(config) is str else yaml.dump(config, Dumper=yaml.CSafeDumper)
    Path("run/config.yaml").write_text(str(text), encoding="utf-8")
    try:
        built = load_config(RunDir(Path("run")), {}, ())
        build.locate_all(built, *build.BUILT, "trainer", "study")
    except UserError as error:
        return str(error) * (error.exit_code == 2)
    return ""


def row_29(config: dict[str, Any], canary: Path) -> None:
    """A received run whose config is hostile."""
    message = refusal_of(config)
    assert message
    assert "\n" not in message
    assert not canary.exists()


def test_row_29_hostile_run_runs_nothing(canary, plain):
    """A run folder that somebody sends can be evaluated, predicted with and resumed: what its config names beyond the
    allowed classes is refused in one line, and not run."""
    rng = random.Random(SEED)
    nodes = hostile.targets(canary, Path("run"))
    for node in nodes:
        row_29(hostile.placed(plain, node, rng), canary)
    for config in hostile.named(plain, canary):
        row_29(config, canary)
    assert len(nodes) > 50


def test_row_29_control(canary, plain, monkeypatch):
    monkeypatch.setattr(trust, "refuse_name", lambda *_: None)
    monkeypatch.setattr(trust, "refuse_object", lambda *_: None)
    node = {"_target_": "payload.Payload"}
    with pytest.raises(AssertionError):
        row_29({**plain, "augment": {**plain["augment"], "on_pixels": [node]}}, canary)
    assert canary.exists()


def row_29_b(text: str, canary: Path) -> float:
    """The text as a run's config.yaml. Returns the CPU seconds."""
    start = time.process_time()
    message = refusal_of(text)
    assert message
    assert "\n" not in message
    return time.process_time() - start


def test_row_29_b_yaml_bombs_are_refused_by_size(canary, plain):
    """A yaml file that is no plain yaml, or whose aliases and interpolations stand for more than memory holds, is
    refused before it is expanded."""
    for text in hostile.texts():
        row_29_b(f"{yaml.dump(plain, Dumper=yaml.CSafeDumper)}{text}", canary)
    Path("huge.yaml").write_text("a: " + "x" * (5 * 2**20))
    with pytest.raises(ValueError, match=r"^huge\.yaml: a config has at most 4 MB, but this file has 5$"):
        yaml_text.read_yaml_text(Path("huge.yaml"))


def test_row_29_b_control(canary, plain, monkeypatch):
    twice = f"{yaml.safe_dump(plain)}seed: 2\n"
    row_29_b(twice, canary)
    monkeypatch.setattr(yaml_text, "refuse_text", lambda *_: None)
    with pytest.raises(AssertionError):
        row_29_b(twice, canary)


def experiment(text: str) -> str:
    """The refusal of `dltrain --config-dir conf experiment=evil`."""
    Path("conf/experiment").mkdir(parents=True, exist_ok=True)
    Path("conf/experiment/evil.yaml").write_text(f"# @package _global_\n{text}\n")
    try:
        compose(["experiment=evil"], "conf")
    except UserError as error:
        return str(error)
    return ""


def row_29_c(text: str, canary: Path) -> None:
    message = experiment(text)
    assert "\n" not in message
    assert "evil.yaml" in message or "hydra" in message
    assert not canary.exists()


def test_row_29_c_hostile_recipe_is_refused_with_its_file(canary):
    """A config file that somebody sends cannot start code through Hydra's settings, trust itself, or name what is not
    allowed; the message names the file and the line."""
    for node in hostile.HYDRA:
        with pytest.raises(UserError, match=r"^hydra\."):
            allowed.refuse_hydra(OmegaConf.create({"hydra": OmegaConf.create(node)}).hydra)
    for text in ("trust: [os]", "trainer: {callbacks: [{_target_: installed.Payload}]}", "b: !!python/name:os.system",
                 hostile.texts()[0], hostile.texts()[4], *(f"hydra: {node}" for node in hostile.HYDRA[:4])):
        row_29_c(text, canary)
    for pair in hostile.SWEPT:
        row_29_c(f"hydra: {{mode: MULTIRUN, sweeper: {{params: {{seed: '0,1', {pair}}}}}}}", canary)
    for sweeper in ("{params: [1]}", "5", "{}"):
        row_29_c(f"hydra: {{mode: MULTIRUN, sweeper: {sweeper}}}", canary)
    assert "(set in conf/experiment/evil.yaml:2)" in experiment("model: {_target_: os.system}")


def test_row_29_c_control(canary, monkeypatch):
    monkeypatch.setattr(allowed, "refuse_hydra", lambda *_: None)
    with pytest.raises(AssertionError):
        row_29_c(f"hydra: {hostile.HYDRA[0]}", canary)
    monkeypatch.setattr("dltrain.config.compose.SWEPT_KEY", re.compile(".*"))
    with pytest.raises(AssertionError):
        row_29_c(f"hydra: {{mode: MULTIRUN, sweeper: {{params: {{{hostile.SWEPT[0]}}}}}}}", canary)


def row_29_d(monkeypatch: pytest.MonkeyPatch, dltrain: Any, canary: Path) -> None:
    """The command in a folder with a file for a library that is missing, and with plugins for Hydra."""
    Path("pynvml_missing.py").write_text(PAYLOAD.format(str(canary)))
    Path("hydra_plugins").mkdir(exist_ok=True)
    Path("hydra_plugins/evil.py").write_text(PAYLOAD.format(str(canary)))
    Path("random.py").write_text(PAYLOAD.format(str(canary)))
    library: dict[str, Any] = {"__name__": "library"}
    own_modules.guard_imports()
    Path("onnx_missing").mkdir(exist_ok=True)
    source = ("try:\n    import pynvml_missing\nexcept ImportError:\n    pass\nimport hydra_plugins as plugins\n"
              "from importlib.util import find_spec\nspec = find_spec('onnx_missing')")
    for name in ("hydra_plugins", "random"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    exec(compile(source + "\nimport random", os.path.join(yaml.__path__[0], "library.py"), "exec"), library)
    assert str(Path("hydra_plugins").resolve()) not in library["plugins"].__path__
    assert library["spec"] is None
    assert not canary.exists()


def test_row_29_d_files_of_the_folder_hide_no_library(canary, dltrain, monkeypatch):
    """A file of the current folder is not imported in the place of a library's module, nor as one that a library
    misses, nor as a plugin of Hydra's."""
    (canary.parent / "site-packages/hydra_plugins").mkdir()
    row_29_d(monkeypatch, dltrain, canary)
    assert sys.path[-1] == str(canary.parent)


def test_row_29_d_control(canary, dltrain, monkeypatch):
    (canary.parent / "site-packages/hydra_plugins").mkdir()
    monkeypatch.setattr(own_modules, "guard_imports", lambda: sys.path.insert(0, str(canary.parent)))
    monkeypatch.setattr(sys, "meta_path", [PathFinder if finder is own_modules.OwnModulesLast else finder
                                           for finder in sys.meta_path])  # an earlier test may have put it there
    with pytest.raises(AssertionError):
        row_29_d(monkeypatch, dltrain, canary)


def row_29_h(program: str, canary: Path) -> None:
    """`python -m` in a folder with a file for a module that Python tries to import on another system."""
    Path("nt.py").write_text(f"open({str(canary)!r}, 'w')")
    root = str(CONFIGS.parent)
    subprocess.run([sys.executable, "-m", program, "--version"], env={**os.environ, "PYTHONPATH": root}, check=True)
    assert not canary.exists()


def test_row_29_h_nothing_of_the_folder_is_run_before_the_guard(canary):
    """`python -m dltrain` imports nothing from the current folder before it knows which modules are the user's."""
    row_29_h("dltrain", canary)


def test_row_29_h_control(canary):
    Path("first.py").write_text("import pathlib\n")
    with pytest.raises(AssertionError):
        row_29_h("first", canary)


def row_29_i(dltrain: Any, plain: dict[str, Any]) -> None:
    """A received run whose texts, and a name in an error, have what a terminal obeys; its lock is a pipe."""
    config = {**plain, "choices": {"model": "\x1b]0;title\x07net", "data": "digits"}}
    config["model"] = {"\x1b[2J": {"_target_": "os.system"}, **plain["model"]}
    Path("run/config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, sort_keys=False))
    Path("run/error.txt").write_text("\x1b[2Jgone")
    answers = [dltrain("ls", "runs", "."), dltrain("eval", "run=run")]
    Path("run/payload.py").unlink()
    os.mkfifo("run/.lock")
    pipe = os.open("run/.lock", os.O_RDWR)  # so that a reader of it need not wait
    assert run_lock.owner_of(Path("run")) == ""
    os.close(pipe)
    Path("run/.lock").unlink()
    answers.append(dltrain("clean", "."))
    texts = [out + err for _, out, err in answers]
    assert not [text for text in texts if "\x1b" in text or "\x07" in text]
    assert "\\x1b]0;title\\x07net on digits" in texts[0]
    assert r"model.\x1b[2J._target_=os.system is not allowed" in texts[1]
    assert r"\x1b[2Jgone" in texts[2]


def test_row_29_i_texts_of_a_run_do_not_steer_the_terminal(dltrain, canary, plain):
    """What the files of a run say is printed without characters that a terminal obeys."""
    row_29_i(dltrain, plain)


@pytest.mark.parametrize("module", ["errors", "drawing.tables"])
def test_row_29_i_control(module, dltrain, canary, plain, monkeypatch):
    monkeypatch.setattr(f"dltrain.{module}.printable", str)
    with pytest.raises(AssertionError):
        row_29_i(dltrain, plain)


def row_29_g(canary: Path, plain: dict[str, Any]) -> None:
    """The weights of a run that somebody sends can be taken: code in its folder is never the user's, however its
    config is written."""
    config = {**plain, "model": {**plain["model"], "layers": [{"_target_": "run.payload.Payload"}]}}
    Path("run/config.yaml").write_text(yaml.dump(config, Dumper=yaml.CSafeDumper, default_flow_style=True, width=10**6))
    Path("run/checkpoints").mkdir()
    Path("run/checkpoints/best.ckpt").touch()
    with pytest.raises(UserError, match=r"^model\.layers\.0\._target_=run\.payload\.Payload is not allowed"):
        compose(["model=resnet20", "model.pretrained.from_run=run"])
    node = {"_target_": "${builder}", "model_name": "resnet18", "checkpoint_path": "run/evil.pt"}
    with pytest.raises(UserError, match=r"^model\.layers\.checkpoint_path: a config may not name files for timm"):
        list(trust.names_of({"model": {"layers": node}}, lambda key: "timm.create_model"))


def test_row_29_g_weights_of_a_hostile_run_run_nothing(canary, plain):
    """The weights of a run that somebody sends can be taken: code in its folder is never the user's, however its config
    is written."""
    row_29_g(canary, plain)


def test_row_29_g_control(canary, plain, monkeypatch):
    monkeypatch.setattr(own_modules, "in_run_folder", lambda path: False)
    with pytest.raises(pytest.fail.Exception):
        row_29_g(canary, plain)


def row_29_e(kind: str, elsewhere: Path) -> None:
    """A run folder with a file that leads to another place."""
    elsewhere.write_text("mine")
    for name in ("log.txt", "config.yaml", "metrics.csv", "result.json", ".config.yaml.tmp", ".lock", "checkpoints",
                 "checkpoints/last.ckpt", "error.txt"):
        folder = Path(f"runs/{kind}/{name.replace('/', '_')}")
        folder.mkdir(parents=True)
        (folder / name).parent.mkdir(exist_ok=True)
        os.symlink(elsewhere, folder / name) if kind == "link" else os.mkfifo(folder / name)
        with pytest.raises(UserError, match=f"{name} is (a symbolic link to|neither a file nor a folder)"):
            run.train(OmegaConf.create(), RunDir(folder))
    assert elsewhere.read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_row_29_e_files_that_lead_elsewhere_are_refused(kind, canary, tmp_path):
    """A file of a run folder that is a link out of it, or no file at all, is refused before anything is written."""
    row_29_e(kind, tmp_path / "elsewhere")


def test_row_29_e_control(canary, tmp_path, monkeypatch):
    monkeypatch.setattr("dltrain.run_dir.stray_file", lambda folder: "")
    with pytest.raises(ConfigAttributeError):  # the run begins, and the empty config has no keys
        row_29_e("link", tmp_path / "elsewhere")


def row_29_f(dltrain: Any) -> None:
    """A run whose output folder and class come from the environment."""
    code, _, err = dltrain(*TINY, "trainer=smoke", "name=a", "task.predict.input='${oc.env:SECRET_NOTE}'")
    assert (code, err) == (0, "")
    files = [file for file in Path("outputs/a").rglob("*") if file.is_file()]
    assert not [file for file in files if b"hunter2" in file.read_bytes()]
    assert "${oc.env:SECRET_NOTE}" in Path("outputs/a/config.yaml").read_text()


def test_row_29_f_secrets_are_in_no_file(dltrain, monkeypatch, without_figures):
    """A value of the environment, ${oc.env:NAME}, is in no file of a run, which can still be evaluated and resumed."""
    monkeypatch.setenv("SECRET_NOTE", "hunter2")
    row_29_f(dltrain)
    assert load_config(RunDir(Path("outputs/a")), {}, ()).task.predict.input == "hunter2"
    Path("outputs/a/result.json").unlink()
    code, out, err = dltrain("resume", "run=outputs/a")
    assert (code, err) == (0, "")
    assert "resuming outputs/a" in out
    monkeypatch.delenv("SECRET_NOTE")
    code, _, err = dltrain("eval", "run=outputs/a")
    assert code == 2
    assert "Environment variable 'SECRET_NOTE' not found" in err


def test_row_29_f_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setenv("SECRET_NOTE", "hunter2")
    for module in ("dltrain.trainer", "dltrain.run", "dltrain.same_config"):
        monkeypatch.setattr(f"{module}.to_plain", lambda config: OmegaConf.to_container(config, resolve=True))
    with pytest.raises(AssertionError):
        row_29_f(dltrain)


def row_25(words: list[str], message: str) -> None:
    try:
        compose(words)
        answer = ""
    except UserError as error:
        answer = str(error)
    assert message in answer
    assert "\n" not in answer


@pytest.mark.parametrize(("words", "message"), [
    (["model=rsnet56"], "unknown model 'rsnet56'; did you mean 'resnet56'?"),
    (["task.optimizer.lrr=1"], "unknown key 'task.optimizer.lrr'; did you mean 'task.optimizer.lr'?"),
    (["model.depth=abc"], "model.depth='abc': must be an integer"),
    (["data.batch_size=0"], "data.batch_size=0: must be an integer >= 1"),
    (["name=../x"], "must stay below output_dir"),
    (["name=/x"], "must be letters, digits"), (["name=a\tb"], "must be letters, digits")])
def test_row_25_a_wrong_word_is_answered(words, message):
    """An unknown choice or key, or a value of another type or out of range, is answered in one line with the nearest
    name or the rule, before torch is imported."""
    row_25(words, message)


def test_row_25_control(monkeypatch):
    monkeypatch.setattr(checks, "check_values", lambda *_: None)
    with pytest.raises(AssertionError):
        row_25(["data.batch_size=0"], "must be an integer >= 1")


def row_26() -> None:
    data = {name: groups.batch_type_of_data(name) for name in groups.names("data")}
    refused = 0
    for needed, model in MODELS.items():
        assert groups.batch_type_of_model(model) == needed
        for name, yielded in data.items():
            config = OmegaConf.create({"task": {"batch_type": needed}, "data": {"batch_type": yielded}})
            if needed == yielded:
                checks.check_pair(config, {"model": model, "data": name}, [])
                continue
            with pytest.raises(UserError, match=f"^model={model} trains on {needed}, but data={name} yields"):
                checks.check_pair(config, {"model": model, "data": name}, [])
            refused += 1
    assert refused > len(data)


def test_row_26_pairs_that_do_not_fit_are_refused():
    """A model and data of another kind are refused with the data that fit: a model of each kind, with all data."""
    row_26()


def test_row_26_control(monkeypatch):
    monkeypatch.setattr(checks, "check_pair", lambda *_: None)
    with pytest.raises(pytest.fail.Exception):
        row_26()


def row_27(dltrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.train

    def fail(config, run_dir, *others):
        if config.seed == 0:
            sys.exit(3)
        if config.seed == 1:
            raise DataError("photos/17.jpg: truncated")
        return real(config, run_dir, *others)

    monkeypatch.setattr(run, "train", fail)
    code, out, err = dltrain("-m", "seed=0,1,2", "model.depth=8", "trainer=smoke", "recipe=none")
    assert code == 7
    assert [line for line in err.splitlines() if line.startswith("dltrain: error: ")] == [
        "dltrain: error: the code ended the program with exit code 3", "dltrain: error: photos/17.jpg: truncated"]
    assert "1 of 3 jobs done" in out


def test_row_27_a_failed_job_does_not_end_a_sweep(dltrain, monkeypatch, without_figures):
    """A job of a sweep that fails, or ends the program, is reported at once; the others run, and the exit code is 7."""
    row_27(dltrain, monkeypatch)


def test_row_27_control(dltrain, monkeypatch):
    monkeypatch.setattr("dltrain.reporting.report", lambda run_dir, work: work() or 0)
    with pytest.raises(SystemExit):
        row_27(dltrain, monkeypatch)


def row_28(dltrain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("-m", "seed=0,1,2", "model.depth=8", "trainer=smoke", "recipe=none", "name=s")
    real = run.train

    def stop(config, run_dir, *others):
        if config.seed == 1:
            raise InterruptedRun(2, "SIGINT: saved")
        return real(config, run_dir, *others)

    with monkeypatch.context() as patch:
        patch.setattr(run, "train", stop)
        code, out, err = dltrain(*words)
    assert (code, err) == (130, "dltrain: SIGINT: saved\n")
    assert "1 of 3 jobs done" in out
    assert len([*Path("outputs/s").glob("*/overrides.txt")]) == 2
    code, out, _ = dltrain(*words)
    assert code == 0
    assert "3 of 3 jobs done" in out
    assert "1 of 3 jobs done before" in out


def test_row_28_a_stopped_sweep_continues(dltrain, monkeypatch, without_figures):
    """A signal ends a sweep with a table of what is done; the same command skips the finished jobs and runs the
    others."""
    row_28(dltrain, monkeypatch)


def test_row_28_control(dltrain, monkeypatch, without_figures):
    monkeypatch.setattr("dltrain.reporting.report", lambda run_dir, work: 0)  # whatever ends a job, the next one starts
    with pytest.raises(AssertionError):
        row_28(dltrain, monkeypatch)


def test_what_needs_no_trust(canary, monkeypatch):
    """The user's own modules in the current folder or beside --config-dir, and the classes of the libraries."""
    monkeypatch.delitem(sys.modules, "mine29", raising=False)
    Path("mine29.py").write_text(OWN)
    own_modules.guard_imports()
    for path in ("mine29.Net", "mine29.small", "torch.nn.Linear", "torch.optim.NAdam", "torchmetrics.F1Score",
                 "torch.optim.lr_scheduler.CosineAnnealingLR", "torchvision.models.resnet18",
                 "torchvision.models.googlenet", "torchvision.ops.DropBlock2d", "timm.create_model",
                 "torchvision.transforms.v2.RandomCrop", "pytorch_lightning.callbacks.EarlyStopping",
                 "pytorch_lightning.loggers.CSVLogger",
                 "dltrain.models.mlp.MLP", "dltrain.studies.comparison.study"):
        assert callable(trust.locate("model._target_", path))
    for path in ("mine29.shell", "mine29.os.system", "mine29.torch.load", "mine29.os", "timm.models.load_state_dict",
                 "torch.nn.modules.module.OrderedDict"):
        with pytest.raises(UserError, match=r"^model\._target_="):
            trust.locate("model._target_", path)
    Path("elsewhere").mkdir()
    Path("elsewhere/beside29.py").write_text("class Net:\n    pass\n")
    monkeypatch.chdir("run")
    with pytest.raises(UserError, match="No module named 'beside29'"):
        trust.locate("model._target_", "beside29.Net")
    own_modules.put_last([str(canary.parent / "elsewhere/conf")])
    assert trust.locate("model._target_", "beside29.Net").__module__ == "beside29"


def test_trust_is_given_on_the_command_line_alone(canary):
    assert trust.take(["seed=1", "trust=[installed, other.part]", "+trust=third"]) == ["seed=1"]
    assert trust.trusted == {"installed", "other.part", "third"}
    assert trust.locate("model._target_", "installed.Payload").__name__ == "Payload"
    assert canary.exists()
    assert trust.command_words() == ["trust=[installed,other.part,third]"]
    with pytest.raises(UserError, match="must name packages"):
        trust.take(["trust=[a b]"])


def test_no_config_of_dltrain_is_refused(canary):
    for file in CONFIGS.rglob("*.yaml"):
        yaml_text.read_yaml_text(file)
        content = yaml.safe_load(file.read_text()) or {}
        interpolations.refuse_interpolations(content)
        if "hydra" in file.relative_to(CONFIGS).parts:
            continue  # launchers, which are not among the names of a run
        trust.refuse_config(content, lambda key: None, lambda key: "")


def test_a_file_with_the_name_of_a_module_is_named(canary):
    Path("random.py").write_text("class Net:\n    pass\n")
    with pytest.raises(UserError, match=r"hides your random\.py"):
        trust.locate("model._target_", "random.Net")


def test_a_run_says_when_the_code_it_was_trained_with_has_changed(dltrain, monkeypatch, tmp_path, without_figures):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine30", raising=False)
    (tmp_path / "mine30.py").write_text(OWN)
    (tmp_path / "conf/model").mkdir(parents=True)
    (tmp_path / "conf/model/own.yaml").write_text(
        "# @package _global_\n# A layer\ndefaults:\n  - /task: classification\nmodel:\n  _target_: mine30.small\n")
    code, _, err = dltrain("--config-dir", "conf", "model=own", "trainer=smoke", "name=a")
    assert (code, err) == (0, "")
    assert [*json.loads((tmp_path / "outputs/a/own_code.json").read_text())] == ["mine30.py"]
    assert dltrain("eval", "run=outputs/a")[2] == ""
    (tmp_path / "mine30.py").write_text(OWN + "# changed\n")
    assert "code has changed since outputs/a was trained: mine30.py (sha256 " in dltrain("eval", "run=outputs/a")[2]


ROW = re.compile(r"^\| `([^`]+=[^`]+)` \| ([^|]+) \|$", re.MULTILINE)


@pytest.mark.parametrize(("word", "answer"), ROW.findall((CONFIGS.parent / "docs/trust.md").read_text()))
def test_the_page_on_trust_says_what_is_answered(word, answer, canary):
    key, _, value = word.partition("=")
    with pytest.raises(UserError, match=f"^{re.escape(key)}.*{re.escape(answer)}"):
        compose([f"{key}={value}" if value.startswith("[") else f"{key}='{value}'"])
