"""Which module may import which, how long chains of imports are, how many files one reads to follow a batch, and which
names are not used."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

import dltrain
from dltrain.build import build_data, build_task
from dltrain.cli import COMMANDS
from dltrain.data import stdlib
from tests.conftest import TINY

PACKAGE = Path(dltrain.__file__).parent
LONGEST_CHAIN = 9  # dltrain.cli and a verb included
MOST_LINES = 320  # of a file

# What each room or module may import of dltrain, at the top of a file or inside a function.
ALLOWED = {
    "batches.py": set(),
    "errors.py": set(),
    "disk.py": {"errors"},
    "dotted.py": set(),
    "contracts.py": {"batches"},
    "models": {"models", "contracts", "batches"},
    "augment": {"batches", "augment"},
    "data": {"batches", "errors", "data", "image_files"},
    "drawing": {"batches", "disk", "drawing", "errors"},
    "reports": {"config", "disk", "dotted", "drawing", "errors", "reports", "run_dir", "run_lock", "run_parent",
                "run_pause", "stored_files"},
    "tasks": {"batches", "contracts", "errors", "optim", "augment", "drawing", "parallel", "tasks",
              "trust"},
    "tutorial": {"disk", "drawing", "errors", "machine", "studies", "tutorial", "verbs"},
    "parallel": {"parallel"},
    "callbacks": {"batches", "contracts", "errors", "checkpoints", "digests", "disk", "drawing", "own_code",
                  "callbacks", "tensor_files", "signals", "step_record"},
    "digests.py": set(),
    "step_record.py": {"errors"},
    "config": {"config", "dotted", "errors", "pretrained", "image_files", "run_dir", "trust", "own_modules",
               "stored_files"},
    "optim.py": {"errors", "contracts"},
    "checkpoints.py": {"disk", "errors", "out_of_memory", "tensor_files"},
    "tensor_files.py": {"dotted"},
    "stored_files.py": {"config", "disk", "dotted", "errors", "own_modules"},
}
WITHOUT_TORCH = ["cli", "commands.ls", "commands.why", "commands.help", "commands.completion", "commands.stored",
                 "commands.doctor", "commands.diff", "commands.extend", "commands.fork", "commands.prove",
                 "commands.replay", "commands.report", "commands.tune", "commands.tutorial", "commands.verify",
                 "config.compose", "config.launch", "reports.run_page", "run_dir", "processes"]
BANNED = {"found", "told", "said", "asked", "wanted", "drawn", "trunk", "encoder_", "part", "parts", "rest", "wake",
          "wakes", "chance", "chances", "ground", "thing", "things", "utils", "helper", "helpers", "misc"}


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for file in PACKAGE.rglob("*.py")}


@cache
def imports_of(name: str) -> frozenset[str]:
    """The modules of dltrain that a module imports, at any depth of its code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dltrain":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                names.add(full if full in MODULES else str(node.module))
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "dltrain"}
    if name == "dltrain.cli":  # loads the files of the verbs by their names
        names |= {f"dltrain.commands.{file}" for file in COMMANDS.values()}
    return frozenset(names - {name, "dltrain"})


def test_rooms_import_only_what_they_may():
    for room, allowed in ALLOWED.items():
        files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).glob("*.py"))
        assert files
        for file in files:
            rooms = {name.split(".")[1] for name in imports_of(module_name(file))}
            assert rooms <= allowed, f"{file.name} imports {rooms - allowed}"


def chain_from(name: str, path: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The longest chain of imports that starts at a module. Fails on a cycle."""
    assert name not in path, f"a cycle of imports: {' -> '.join([*path, name])}"
    return max(((name, *longest_chain(other, (*path, name))) for other in imports_of(name)), key=len, default=(name,))


CHAINS: dict[str, tuple[str, ...]] = {}


def longest_chain(name: str, path: tuple[str, ...]) -> tuple[str, ...]:
    if name not in CHAINS:
        CHAINS[name] = chain_from(name, path)
    return CHAINS[name]


def test_imports_have_no_cycle_and_no_long_chain():
    names = [name for name in MODULES if name != "dltrain.__main__"]  # which only calls the command
    longest = max((longest_chain(name, ()) for name in names), key=len)
    assert len(longest) <= LONGEST_CHAIN, " -> ".join(longest)


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_module_imports_no_torch_at_its_top(name):
    """Followed through every import at the top of a module."""
    seen: set[str] = set()

    def visit(module: str) -> None:
        if module in seen:
            return
        seen.add(module)
        for node in ast.parse(MODULES[module].read_text()).body:
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & {"torch", "torchvision"}, module
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in ("torch", "torchvision", "pytorch_lightning"), module
                for alias in node.names if (node.module or "").startswith("dltrain") else ():
                    full = f"{node.module}.{alias.name}"
                    visit(full if full in MODULES else str(node.module))

    visit(f"dltrain.{name}")


def test_models_import_torch_torchvision_batches_and_sibling_models_only():
    own = ("dltrain.models.", "dltrain.contracts", "dltrain.batches")
    standard = {"torch", "torchvision", "math", "collections", "functools", "itertools", "typing", "__future__"}
    for file in (PACKAGE / "models").glob("*.py"):
        allowed = standard | ({"timm", "difflib"} if file.name == "timm_model.py" else set())
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            names = [name for name in names if not name.startswith(own)]
            assert {name.split(".")[0] for name in names} <= allowed, file


def test_packages_hold_a_docstring_and_nothing_else():
    for file in PACKAGE.rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        assert isinstance(body[0], ast.Expr), file
        assert len(body) == 1 or file.parent == PACKAGE, file


# A small run of each kind of problem, and the files in which code runs from loading the data to the loss.
KINDS = {
    "classification": ["data=digits", "augment=cifar"],
    "sequence_classification": ["model=seq_classifier"],
    "tagging": ["model=tagger", "data.num_train=20"],
    "language_modeling": ["model=char_rnn"],
    "translation": ["model=seq2seq", "data.num_train=200"],
    "detection": ["model=faster_rcnn", "data.num_train=8"],
}


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("tagging", "translation", "detection"))) for kind in KINDS])
def test_a_batch_is_followed_through_at_most_eight_files_in_four_folders(kind, config, monkeypatch):
    modules = stdlib.library_files()[:12]
    monkeypatch.setattr(stdlib, "library_files", lambda: modules)
    files: set[Path] = set()

    def note(frame, event, arg):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PACKAGE):
            files.add(file)

    data = build_data(config(*KINDS[kind]))
    composed = config(*KINDS[kind])
    for key, value in data.sizes().items():
        composed.data[key] = value
    task = build_task(composed, data.vocabularies)
    fresh = build_data.__globals__["build"](composed.data, "data", seed=0)
    sys.setprofile(note)
    try:
        fresh.load()
        batch = next(iter(fresh.train_dataloader()))
        loss = task.training_step(batch, 0)
    finally:
        sys.setprofile(None)
    assert isinstance(loss, torch.Tensor)
    assert torch.isfinite(loss)
    names = sorted(str(file.relative_to(PACKAGE)) for file in files)
    assert len(files) <= 8, names
    assert len({file.parent for file in files} - {PACKAGE}) <= 4, names
    assert f"tasks/{kind}.py" in names
    assert "data/loader.py" in names


def test_files_are_short_enough_to_read():
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= MOST_LINES, file


def names_in(tree: ast.AST) -> set[str]:
    """Functions, classes, arguments, variables and attributes that a module defines."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.arg):
            names.add(node.arg)
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


@pytest.mark.parametrize("folder", [PACKAGE, Path(__file__).parent], ids=["dltrain", "tests"])
def test_names_say_what_a_value_is(folder):
    for file in folder.rglob("*.py"):
        banned = names_in(ast.parse(file.read_text())) & BANNED
        assert not banned, f"{file}: {banned}"


def test_tiny_words_name_what_exists(config):
    assert config(*TINY).data._target_ == "tests.tiny.FewDigits"
