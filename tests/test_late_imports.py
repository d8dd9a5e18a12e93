"""torchmetrics is imported without matplotlib and scipy.signal, and works with the real ones afterwards."""

import gc
import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

import matplotlib.axes
import matplotlib.figure
import pytest
import torch

from dltrain.late_imports import (
    IMPORTED_OBJECTS,
    USUAL_THRESHOLDS,
    LateModule,
    TorchmetricsFinder,
    TorchmetricsLoader,
    collect_after_imports,
    import_plots_late,
    leave_out_imports,
)


def is_late(name: str) -> bool:
    return name.partition(".")[0] == "matplotlib" or name.startswith("scipy.signal")


def load_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, set[str]]:
    """A second copy of a module, loaded as in a process without the two; and what of them was imported then."""
    for other in [other for other in sys.modules if is_late(other)]:
        monkeypatch.delitem(sys.modules, other)
    spec = find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    TorchmetricsLoader(spec.loader).exec_module(module)
    imported = {other for other in sys.modules if is_late(other)}
    monkeypatch.undo()
    return module, imported


@pytest.mark.parametrize("name", ["torchmetrics", "torchmetrics.audio", "torchmetrics.functional.audio",
                                  "torchmetrics.utilities.plot"])
def test_torchmetrics_imports_neither(name, monkeypatch):
    module, imported = load_anew(name, monkeypatch)
    assert imported == set()
    assert {"scipy", "plt"} & vars(module).keys()  # it does ask for them


def test_torchmetrics_plots(monkeypatch):
    plot, _ = load_anew("torchmetrics.utilities.plot", monkeypatch)
    figure, axes = plot.plot_single_or_multi_val(torch.tensor([0.25, 0.5]), name="recall")
    assert type(figure) is matplotlib.figure.Figure
    assert isinstance(axes, plot._AX_TYPE)
    assert not isinstance(figure, plot._AX_TYPE)
    assert axes.get_ylabel() == "recall"
    assert plot.plot_single_or_multi_val(torch.tensor(0.5), ax=axes)[1] is axes


class Uses(TorchmetricsLoader):
    """Imports more of matplotlib than there are stand-ins for."""

    def __init__(self) -> None:
        super().__init__(self)

    def exec_module(self, module: ModuleType) -> None:
        ticker = importlib.import_module("matplotlib.ticker")
        vars(module).update(value=importlib.import_module("matplotlib").value, other=ticker.other)


def test_stand_ins_give_way_to_the_real_module(tmp_path, monkeypatch):
    for other in [other for other in sys.modules if is_late(other)]:
        monkeypatch.delitem(sys.modules, other)
    folder = Path(tmp_path, "matplotlib")
    folder.mkdir()
    (folder / "__init__.py").write_text("value = 3\n")
    (folder / "ticker.py").write_text("other = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = ModuleType("torchmetrics")
    TorchmetricsLoader(Uses()).exec_module(module)
    assert (module.value, module.other) == (3, 4)
    assert importlib.import_module("matplotlib").value == 3
    for other in ("matplotlib", "matplotlib.ticker"):
        del sys.modules[other]


def test_stand_ins_are_removed_after_an_error():
    class Fails(Uses):
        def exec_module(self, module: ModuleType) -> None:
            raise ImportError("no such file")

    with pytest.raises(ImportError, match="no such file"):
        TorchmetricsLoader(Fails()).exec_module(ModuleType("torchmetrics"))
    assert not [name for name, module in sys.modules.items() if type(module) is LateModule]


def test_only_the_import_of_torchmetrics_is_changed(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    import_plots_late()  # torchmetrics is there already
    assert not [finder for finder in sys.meta_path if type(finder) is TorchmetricsFinder]
    monkeypatch.delitem(sys.modules, "torchmetrics")
    import_plots_late()
    import_plots_late()
    assert [type(finder) for finder in sys.meta_path].count(TorchmetricsFinder) == 1
    other = find_spec("tabulate_of_nobody")
    assert other is None
    spec = find_spec("torchmetrics")
    assert type(spec) is ModuleSpec
    assert type(spec.loader) is TorchmetricsLoader
    assert not [finder for finder in sys.meta_path if type(finder) is TorchmetricsFinder]


def test_garbage_is_collected_again_after_the_imports_and_only_those_are_left_out(monkeypatch):
    thresholds = gc.get_threshold()  # those of the tests
    gc.set_threshold(*USUAL_THRESHOLDS)
    try:
        gc.unfreeze()  # what the tests have imported
        collect_after_imports()  # torch is there already
        assert gc.get_threshold() == USUAL_THRESHOLDS
        leave_out_imports()
        assert gc.get_freeze_count() == 0
        monkeypatch.delitem(sys.modules, "torch")
        collect_after_imports()
        assert gc.get_threshold()[0] == IMPORTED_OBJECTS
        leave_out_imports()
        assert gc.get_threshold() == USUAL_THRESHOLDS
        frozen = gc.get_freeze_count()
        assert frozen > 0
        kept: list[list[int]] = [[] for _ in range(1000)]  # of a run: a second call does not leave it out
        leave_out_imports()
        assert gc.get_freeze_count() <= frozen
        assert len(kept) == 1000
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
