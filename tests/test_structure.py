"""Who may import whom, and how many files one has to read to follow a batch."""

import ast
import sys
from pathlib import Path

import torch

import dltrain
from dltrain.build import build_data, build_task
from tests.conftest import TINY

PACKAGE = Path(dltrain.__file__).parent
ALLOWED = {
    "models": {"contracts", "models"},
    "augment": {"batches", "augment"},
    "data": {"batches", "errors", "data"},
    "tasks": {"batches", "contracts", "errors", "optim", "augment", "tasks"},
    "callbacks": {"batches", "errors", "checkpoints", "callbacks"},
    "batches.py": {"errors"},
    "contracts.py": set(),
    "optim.py": {"contracts", "errors"},
    "errors.py": set(),
    "checkpoints.py": {"errors"},
    "config/groups.py": {"errors"},
    "config/schema.py": {"config"},
}


def imported(file: Path) -> set[str]:
    """The rooms of dltrain that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dltrain":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dltrain.")}
    return found


def test_rooms_import_only_what_they_may():
    for room, allowed in ALLOWED.items():
        files = [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).glob("*.py"))
        assert files
        for file in files:
            assert imported(file) <= allowed, f"{file.name} imports {imported(file) - allowed}"


def test_models_import_torch_torchvision_contracts_and_each_other_only():
    for file in (PACKAGE / "models").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
            allowed = {"torch", "torchvision", "math", "collections", "functools", "itertools", "typing", "__future__"}
            allowed |= {"timm", "difflib"} if file.name == "timm_model.py" else set()
            assert {name.split(".")[0] for name in names
                    if not name.startswith(("dltrain.models.", "dltrain.contracts"))} <= allowed, file


def test_packages_hold_a_docstring_and_nothing_else():
    for file in PACKAGE.rglob("__init__.py"):
        body = ast.parse(file.read_text()).body
        assert len(body) == 1, file
        assert isinstance(body[0], ast.Expr), file


def test_a_batch_is_followed_through_eight_files_in_four_folders(config):
    """Every file of dltrain in which code ran, from reading the data to the loss of one training step."""
    files: set[Path] = set()

    def note(frame, event, arg):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PACKAGE):
            files.add(file)

    data, task = build_data(config("augment=cifar")), build_task(config("augment=cifar"))
    data.splits, data.train_loader = {}, None
    task.__dict__["_trainer"] = None
    type(task).current_epoch, before = 0, type(task).current_epoch
    type(task).global_rank, rank = 0, type(task).global_rank
    sys.setprofile(note)
    try:
        data.load()
        batch = next(iter(data.train_dataloader()))
        loss = task.training_step(batch, 0)
    finally:
        sys.setprofile(None)
        del type(task).current_epoch, type(task).global_rank
    assert before is not None
    assert rank is not None
    assert torch.isfinite(loss)
    assert len(files) <= 8, sorted(str(f.relative_to(PACKAGE)) for f in files)
    assert len({file.parent for file in files} - {PACKAGE}) <= 4
    assert {"digits.py", "loader.py", "batches.py", "classification.py", "cifar_resnet.py"} <= {f.name for f in files}


def test_files_are_short_enough_to_read():
    for file in PACKAGE.rglob("*.py"):
        assert len(file.read_text().splitlines()) <= 320, file


def test_tiny_words_name_what_exists(config):
    assert config(*TINY).data._target_ == "tests.tiny.FewDigits"
