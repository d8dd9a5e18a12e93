"""The user's own modules: those whose file lies in the current folder or beside --config-dir, but not in a run folder.

They are reached last: the own folders stand at the end of sys.path, and what only they have is not there for libraries,
which try to import modules that may be missing (torch tries pynvml). So a file random.py, or a pynvml.py that came with
somebody's data, hides nothing and is not run. A run records the content of the own modules that it is trained with.
"""

from __future__ import annotations

import inspect
import os
import re
import site
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder, all_suffixes
from pathlib import Path
from types import ModuleType

PACKAGE = os.path.dirname(os.path.realpath(__file__))
PLACES = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
INSTALLED = tuple({os.path.realpath(path) + os.sep for path in (
    *(sysconfig.get_path(name) for name in PLACES), *site.getsitepackages(), site.getusersitepackages())})
RUN_CONFIG = re.compile(r"^[\"']?(version|choices)\b", re.MULTILINE)  # keys of a run's config.yaml

config_folders: list[str] = []  # the user's, of --config-dir and hydra.searchpath
run_folders: set[str] = set()  # that the command reads


def own_folders() -> list[str]:
    """The current folder, that of the program if it is the user's, and where the config folders lie."""
    program = vars(sys.modules["__main__"]).get("__file__") if "__main__" in sys.modules else None
    folders = [os.getcwd(), *([os.path.dirname(os.path.abspath(program))] if program else [])]
    return not_installed((*folders, *map(os.path.dirname, config_folders)))


@cache
def not_installed(folders: tuple[str, ...]) -> list[str]:
    return [folder for folder in dict.fromkeys(folders) if not is_installed(folder)]


@cache
def is_installed(path: str) -> bool:
    real = os.path.realpath(path)
    return f"{real}{os.sep}".startswith((PACKAGE + os.sep, *INSTALLED)) or not {"site-packages", "dist-packages"
                                                                              }.isdisjoint(real.split(os.sep))


def is_own(file: str) -> bool:
    """Whether a module's file is the user's own code."""
    path = os.path.abspath(file)
    below = [folder for folder in own_folders() if path.startswith(folder.rstrip(os.sep) + os.sep)]
    return bool(below) and os.path.isfile(path) and not is_installed(path) and not in_run_folder(path)


def in_run_folder(path: str) -> bool:
    """What lies in the folder of a run came with the run."""
    folders = [*map(str, Path(path).parents), *map(str, Path(os.path.realpath(path)).parents)]
    return not run_folders.isdisjoint(folders) or any(map(is_run_folder, dict.fromkeys(folders)))


def is_run_folder(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "config.yaml"), encoding="utf-8", errors="replace") as file:
            return len({*RUN_CONFIG.findall(file.read(2**20))}) == 2
    except OSError:
        return False


def files_along(names: Sequence[str]) -> list[str]:
    """The file of each module along a dotted path, as far as there are modules; "" for a folder without __init__.py.
    Nothing is imported. Empty if there is no module."""
    files: list[str] = []
    locations: list[str] | None = None
    for count, name in enumerate(names, start=1):
        loaded = sys.modules.get(".".join(names[:count]))
        if type(loaded) is ModuleType and "__file__" in vars(loaded):
            file, locations = str(loaded.__file__ or ""), list(vars(loaded).get("__path__", ())) or None
        elif count == 1:
            file, locations = find_top(name)
        else:
            file, locations = find_below(locations, name)
        if not file and not locations:
            break
        files.append(file)
        if not locations:
            break
    return files if any(files) else []


def find_top(name: str) -> tuple[str, list[str] | None]:
    """The file of a module and, of a package, its folders."""
    for finder in sys.meta_path:
        if type(finder).__module__.partition(".")[0] == "dltrain":
            continue
        find = PathFinder.find_spec if finder is OwnModulesLast else finder.find_spec
        if (spec := find(name, None)) is not None:
            file = spec.origin or "" if spec.loader else ""
            locations = list(spec.submodule_search_locations or ()) or None
            return file if spec.has_location or not file else os.path.join(os.sep, file), locations
    return "", None


def find_below(locations: Sequence[str] | None, name: str) -> tuple[str, list[str] | None]:
    folders = []
    for location in locations or ():
        base = os.path.join(location, name)
        for suffix in all_suffixes():
            if os.path.isfile(file := os.path.join(base, f"__init__{suffix}")):
                return file, [base]
        for suffix in all_suffixes():
            if os.path.isfile(f"{base}{suffix}"):
                return f"{base}{suffix}", None
        folders += [base] if os.path.isdir(base) else []
    return "", folders or None


def hidden_files(package: str) -> list[str]:
    """Files of the current folder with the name of a package that is installed."""
    return [name for name in (f"{package}.py", package) if os.path.exists(name)
            and (name != package or os.path.isfile(os.path.join(name, "__init__.py")))]


def digests(modules: Mapping[str, ModuleType] = sys.modules) -> dict[str, str]:
    """The sha256 of each own module's file, by its path below the current folder."""
    import hashlib

    hashes = {}
    for name, module in [*modules.items()]:
        file = vars(module).get("__file__") if type(module) is ModuleType and name != "__main__" else None
        if file and not is_installed(file) and is_own(file):
            hashes[os.path.relpath(file)] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return dict(sorted(hashes.items()))


class OwnModulesLast(PathFinder):
    """In the place of Python's own finder of files. Keeps libraries from importing what only the user's own folders
    have, and Hydra from plugins that lie there: for them it is not there."""

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
                  ) -> ModuleSpec | None:
        own = own_folders()
        if path is not None or all(find_below([folder], name) == ("", None) for folder in own):
            return PathFinder.find_spec(name, path, target)
        others = [entry for entry in sys.path if os.path.abspath(entry) not in own]
        spec = PathFinder.find_spec(name, others)
        if spec is not None and spec.loader is None:  # a package in several folders: without the own one
            spec.submodule_search_locations = find_below(others, name)[1]
        if spec is None or spec.loader is None:
            mine = PathFinder.find_spec(name, own) if is_own_import() else None
            return mine if mine and (mine.loader or spec is None) else spec
        return spec


def is_own_import() -> bool:
    """Whether the import statement that runs stands in dltrain or in the user's code."""
    frame = inspect.currentframe()
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and "importlib" not in file:
            return not is_installed(file) or os.path.realpath(file).startswith(PACKAGE + os.sep)
        frame = frame.f_back
    return True


def put_last(folders: Sequence[str | Path] = ()) -> None:
    """Own folders go to the end of sys.path; `folders`: config folders that are theirs too."""
    config_folders.extend(folder for folder in map(os.path.abspath, folders) if folder not in config_folders)
    own = own_folders()
    sys.path[:] = [*(entry for entry in sys.path if os.path.abspath(entry) not in own), *own]


def guard_imports() -> None:
    """To be called once, before libraries are imported."""
    put_last()
    if OwnModulesLast not in sys.meta_path:
        sys.meta_path[:] = [OwnModulesLast if finder is PathFinder else finder for finder in sys.meta_path]
