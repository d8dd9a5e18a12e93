"""torchmetrics, which Lightning imports, without matplotlib and scipy.signal, which it imports in its turn and a run
seldom needs: a quarter of the time to the first step.

While torchmetrics is imported, stand-ins have the few names that it needs of the two at that time. Any other name makes
them give way to the real module, and after the import they are gone: whoever imports the two then, gets the real ones.

Nor is garbage collected while libraries are imported.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

USUAL_THRESHOLDS = gc.get_threshold()
IMPORTED_OBJECTS = 1_000_000  # more than all libraries have


class LateModule(ModuleType):
    """Stands for the module of its name, which is imported when something else of it is used."""

    def __init__(self, name: str, **names: object):
        super().__init__(name)
        vars(self).update(names)

    def __getattr__(self, name: str) -> object:
        if name == "__file__":  # the module inspect asks every module for it
            raise AttributeError(name)
        remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


class LateClass(type):
    """Stands for a class of a module that is not imported yet: in annotations, and as what an object is checked for."""

    def __instancecheck__(cls, instance: object) -> bool:
        real: type = getattr(importlib.import_module(cls.__module__), cls.__name__)
        return issubclass(type(instance), real)


def late_class(module: str, name: str) -> LateClass:
    return LateClass(name, (), {"__module__": module})


@contextmanager
def style_context(*arguments: object, **keys: object) -> Iterator[None]:
    """matplotlib.pyplot.style.context."""
    pyplot = importlib.import_module("matplotlib.pyplot")
    with pyplot.style.context(*arguments, **keys):
        yield


def make_stand_ins() -> list[LateModule]:
    axes = LateModule("matplotlib.axes", Axes=late_class("matplotlib.axes", "Axes"))
    colors = LateModule("matplotlib.colors", Colormap=late_class("matplotlib.colors", "Colormap"))
    style = LateModule("matplotlib.style", context=style_context)
    pyplot = LateModule("matplotlib.pyplot", style=style, Figure=late_class("matplotlib.figure", "Figure"))
    library = LateModule("matplotlib", axes=axes, colors=colors, pyplot=pyplot)
    return [library, axes, colors, pyplot, LateModule("scipy.signal", hamming=None)]  # torchmetrics adds hamming


def remove_stand_ins() -> None:
    for name in [name for name, module in [*sys.modules.items()] if type(module) is LateModule]:
        del sys.modules[name]


class TorchmetricsLoader(Loader):
    """Imports torchmetrics as `loader` does, with the stand-ins for what is not imported already."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if not {"matplotlib", "scipy.signal"} & sys.modules.keys():
            sys.modules.update({stand_in.__name__: stand_in for stand_in in make_stand_ins()})
        try:
            self.loader.exec_module(module)
        finally:
            remove_stand_ins()


class TorchmetricsFinder(MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = TorchmetricsLoader(spec.loader)
        return spec


def import_plots_late() -> None:
    """From now on torchmetrics is imported in this way."""
    if "torchmetrics" not in sys.modules and not any(type(finder) is TorchmetricsFinder for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchmetricsFinder())


def collect_after_imports() -> None:
    """No garbage is collected while libraries are imported, which make hardly any: a sixth of the time of the imports.
    `leave_out_imports` makes an end to that."""
    if "torch" not in sys.modules:
        gc.set_threshold(IMPORTED_OBJECTS)


def leave_out_imports() -> None:
    """If garbage is not collected: it is again. What the libraries have made, some 600,000 objects, is left out of all
    collections, of which each would look through it for 0.2 s, and freed at the end of the process as usual."""
    if gc.get_threshold()[0] == IMPORTED_OBJECTS:
        gc.set_threshold(*USUAL_THRESHOLDS)
        gc.freeze()
        atexit.register(gc.unfreeze)
