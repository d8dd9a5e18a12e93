"""A config is data, not code: which dotted paths a config may name.

A config names classes and functions, as `_target_: stripes.Stripes`, and building them is running them. So each name is
compared with a list before anything is imported (`refuse_name`), and the imported object again (`locate`), because a
module gives away what it has imported itself: torch.nn.functional.torch.load is torch.load. Allowed are the classes of
LIBRARIES, the user's own modules (own_modules.py), and the packages that the command line trusts, trust=[package],
but none because a file says so. This module imports neither Hydra nor torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from dltrain import own_modules
from dltrain.errors import UserError, suggest

LIBRARIES = ("dltrain.augment", "dltrain.data", "dltrain.models", "dltrain.studies", "dltrain.tasks",
             "dltrain.trackers", "torch.nn", "torch.optim", "torchvision.models", "torchvision.ops",
             "torchvision.transforms", "torchmetrics", "pytorch_lightning.callbacks", "pytorch_lightning.loggers",
             "timm")
# The classes of libraries inherit from one of these, those of ANY_CLASS not all.
KINDS = {"torch.nn.modules.module.Module", "torch.optim.optimizer.Optimizer", "torch.optim.lr_scheduler.LRScheduler",
         "pytorch_lightning.callbacks.callback.Callback", "pytorch_lightning.loggers.logger.Logger"}
ANY_CLASS = ("dltrain.augment", "dltrain.data", "dltrain.models", "dltrain.tasks", "torchvision.transforms")
WITH_FUNCTIONS = ("dltrain.studies", "torchvision.models", "timm")
READS_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")  # of timm, by pickle in some versions
NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
# Keys that name something to import, where the value has a dot, beside `_target_`.
NAMED = ("task.optimizer.name", "task.schedule.name")
LISTED = {"task.figures": "", "trainer.callbacks": "pytorch_lightning.callbacks.",
          "trainer.loggers": "pytorch_lightning.loggers."}  # what is put before a name without a dot
# Words for loggers, beside the names of Lightning's; those that every run has, and others
ALWAYS = ("csv", "tensorboard")
TRACKERS = {"mlflow": "dltrain.trackers.mlflow_run.MLflow", "wandb": "dltrain.trackers.wandb_run.Wandb"}
DEEPEST = 60  # levels of a config

trusted: set[str] = set()  # packages, by the command line


def take(words: Iterable[str]) -> list[str]:
    """The words without trust=[PACKAGE, ...], whose packages are trusted from now on. Raises UserError."""
    others = []
    for word in words:
        key, _, text = word.partition("=")
        if key.lstrip("+") != "trust":
            others.append(word)
            continue
        names = [name.strip(" '\"") for name in text.strip(" []").split(",")]
        if not all(re.fullmatch(r"\w+(\.\w+)*", name) for name in names):
            raise UserError(f"{word}: must name packages, as trust=[my_package]")
        trusted.update(names)
    return others


def command_words() -> list[str]:
    """What the command line of another process of this run needs, to trust what this one does."""
    folders = [f"--config-dir={folder}" for folder in own_modules.config_folders]
    return [*([f"trust=[{','.join(sorted(trusted))}]"] if trusted else []), *folders]


def is_below(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def refuse_config(config: object, resolve: Callable[[str], object], place: Callable[[str], str]) -> None:
    """Raises UserError for the first name in the config that is not allowed. Nothing is imported. `resolve`: the value
    of a key that is an interpolation. `place`: where a key is set, to be put after the message."""
    for key, path in names_of(config, resolve):
        try:
            refuse_name(key, path)
        except UserError as error:
            raise UserError(f"{error}{place(key)}") from None


def names_of(node: object, resolve: Callable[[str], object], key: str = "", depth: int = 0
             ) -> Iterator[tuple[str, object]]:
    """Every name in a config that dltrain would import, with its key."""
    if depth > DEEPEST:
        raise UserError(f"{key[:60]}...: a config has at most {DEEPEST} levels")
    if type(node) is str and "${" in node:
        node = resolve(key)
    if type(node) is dict:
        for name, value in node.items():
            inner = f"{key}.{name}" if key else str(name)
            if name == "_target_":
                path = resolve(inner) if type(value) is str and "${" in value else value
                yield inner, path
                if str(path).startswith("timm.") and (reads := [name for name in READS_FILES if name in node]):
                    raise UserError(f"{key}.{reads[0]}: a config may not name files for timm to load; "
                                    "model.pretrained.weights can")
            else:
                yield from names_of(value, resolve, inner, depth + 1)
    elif type(node) is list:
        for index, value in enumerate(node):
            inner = f"{key}.{index}"
            if key in LISTED and type(value) is str:
                text = str(resolve(inner)) if "${" in value else value
                if key != "trainer.loggers" or text not in ALWAYS:
                    yield inner, text if "." in text else TRACKERS.get(text, f"{LISTED[key]}{text}")
            else:
                yield from names_of(value, resolve, inner, depth + 1)
    elif type(node) is str and key in NAMED and "." in node:
        yield key, node


def refuse_name(key: str, path: object) -> None:
    """Raises UserError unless a config may name this, by its words. Imports nothing."""
    if type(path) is not str or NAME.fullmatch(path) is None:
        raise UserError(f"{key}={str(path)[:80]!r}: must be the dotted path of a class, as my_module.MyClass")
    names = path.split(".")
    if any(name.startswith("__") for name in names if name != "__main__"):
        raise UserError(f"{key}={path} is not allowed: a config names no attributes with two underscores")
    files = own_modules.files_along(names)
    if is_below(path, trusted) or not files:  # no such module: `locate` says so
        return
    if names[0] != "dltrain" and all(own_modules.is_own(file) for file in files if file):
        return
    if not is_below(path, LIBRARIES):
        raise UserError(f"{key}={path} is not allowed: {why_not(names[0], files)}; {remedy(names[0])}")
    if len(names) - len(files) > 1:
        raise UserError(f"{key}={path} is not allowed: there is no module {'.'.join(names[: len(files) + 1])}; name a "
                        "class by the module that defines it")
    if not names[-1][0].isupper() and not is_below(path, WITH_FUNCTIONS):
        raise UserError(f"{key}={path} is not allowed: of {names[0]} a config may name classes only")


def remedy(name: str) -> str:
    return f"if you know this config and need it, add trust=[{name.partition('.')[0]}] to the command line"


def why_not(package: str, files: Sequence[str]) -> str:
    if hidden := own_modules.hidden_files(package):
        return f"it is an installed package, which hides your {hidden[0]} (rename your file)"
    if package in sys.stdlib_module_names:
        return f"{package} is a module of Python itself"
    if is_below(package, {name.partition(".")[0] for name in LIBRARIES}):
        return f"of {package} a config may name what is in {', '.join(n for n in LIBRARIES if is_below(n, [package]))}"
    if own_modules.in_run_folder(os.path.abspath(files[-1])):
        return f"{files[-1]} lies in the folder of a run"
    return f"{package} lies neither in this folder nor beside --config-dir"


def locate(key: str, path: object) -> Any:
    """Imports what a config names. Raises UserError for what it may not name, before or after the import, and where
    nothing has this name."""
    refuse_name(key, path)
    names = str(path).split(".")
    count = max(1, min(len(own_modules.files_along(names)), len(names) - 1))
    try:
        value: Any = importlib.import_module(".".join(names[:count]))
    except ModuleNotFoundError as error:
        raise UserError(f"{key}={path}: {error}; a module of your own must lie in this folder or beside --config-dir"
                        ) from error
    except Exception as error:
        raise UserError(f"{key}={path}: {' '.join(str(error).split())}") from error
    for place in range(count, len(names)):
        try:
            value = getattr(value, names[place])
        except AttributeError:
            known = [name for name in dir(value) if not name.startswith("_")]
            raise UserError(f"{key}={path}: {'.'.join(names[:place])} has no '{names[place]}'"
                            f"{suggest(names[place], known)}") from None
    refuse_object(key, str(path), value)
    return value


def refuse_object(key: str, path: str, value: Any) -> None:
    """Raises UserError unless the imported object is defined where a config may name it, and is of a kind that a
    config may name."""
    while type(value) is functools.partial:
        value = value.func
    value = value.__func__ if inspect.ismethod(value) else value
    try:
        home = str(value.__module__)
    except AttributeError:
        home = ""
    if inspect.ismodule(value) or not home:
        raise UserError(f"{key}={path}: must name a class or a function")
    file = vars(sys.modules[home]).get("__file__") if home in sys.modules else None
    if is_below(home, trusted) or (file is None and home == "__main__") or (file and own_modules.is_own(file)):
        return
    if is_below(home, LIBRARIES) and (has_kind(value, home) if inspect.isclass(value) else is_builder(value, home)):
        return
    raise UserError(f"{key}={path} is not allowed: it is {home}.{value.__name__}, and a config may name only classes "
                    f"of layers, optimizers, metrics, transforms, callbacks and loggers; {remedy(home)}")


def has_kind(value: type, home: str) -> bool:
    return is_below(home, ANY_CLASS) or any(f"{base.__module__}.{base.__qualname__}" in KINDS for base in value.__mro__)


def is_builder(function: Any, home: str) -> bool:
    """Whether it is a study, or a function that torchvision or timm lists as one that builds a model."""
    name = function.__name__
    if home.startswith("dltrain.studies."):
        return bool(name == "study")
    if home.startswith("torchvision.models."):
        from torchvision.models import list_models

        return name == "get_model" or name in list_models()
    if home.startswith("timm.models."):
        from timm import is_model

        return name == "create_model" or bool(is_model(name))
    return False
