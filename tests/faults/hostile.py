"""Hostile configs, made from a seed: each would write the file `canary` if what it names were imported or called."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

Config = dict[str, Any]


class Touch:
    """Unpickling it writes a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


def targets(canary: Path, folder: Path) -> list[Config]:
    """Nodes with a `_target_` that runs code, reads a pickle or writes a file."""
    pickled = folder / "evil.pt"
    pickled.write_bytes(pickle.dumps(Touch(canary)))
    touch, code = f"touch '{canary}'", f"open({str(canary)!r}, 'w')"
    return [{"_target_": target, **keys} for target, keys in (
        ("os.system", {"command": touch}), ("posix.system", {"command": touch}), ("os.popen", {"cmd": touch}),
        ("subprocess.run", {"args": touch, "shell": True}), ("subprocess.Popen", {"args": ["touch", str(canary)]}),
        ("builtins.exec", {"source": code}), ("builtins.eval", {"source": code}),
        ("builtins.open", {"file": str(canary), "mode": "w"}), ("io.open", {"file": str(canary), "mode": "w"}),
        ("pathlib.Path.touch", {"self": str(canary)}), ("code.InteractiveInterpreter", {}),
        ("functools.partial", {"func": "os.system"}), ("importlib.import_module", {"name": "payload"}),
        ("runpy.run_path", {"path_name": str(folder / "payload.py")}), ("pickle.load", {"file": str(pickled)}),
        ("shutil.copy", {"src": str(pickled), "dst": str(canary)}), ("antigravity.fly", {}), ("timeit.timeit", {}),
        ("hydra.utils.call", {"config": {"_target_": "os.system"}}), ("hydra.utils.get_method", {"path": "os.system"}),
        ("hydra.utils.instantiate", {"config": {"_target_": "os.system", "command": touch}}),
        ("omegaconf.OmegaConf.save", {"config": {}, "f": str(canary)}), ("numpy.load", {"file": str(pickled)}),
        ("torch.load", {"f": str(pickled), "weights_only": False}), ("torch.save", {"obj": 1, "f": str(canary)}),
        ("torch.nn.functional.torch.load", {"f": str(pickled), "weights_only": False}),
        ("torch.optim.optimizer.torch.load", {"f": str(pickled), "weights_only": False}),
        ("torch.serialization.load", {"f": str(pickled), "weights_only": False}),
        ("torch.hub.load", {"repo_or_dir": str(folder), "source": "local", "model": "evil"}),
        ("torch.jit.load", {"f": str(pickled)}), ("torch.package.PackageImporter", {"file_or_buffer": str(pickled)}),
        ("torch.utils.cpp_extension.load", {"name": "evil", "sources": ["evil.cpp"]}),
        ("torch.nn.Module.__init__.__globals__", {}), ("torch.nn.modules.module.__builtins__", {}),
        ("torch.nn.functional.boolean_dispatch", {}), ("torchvision.datasets.CIFAR10", {"root": str(folder)}),
        ("torchvision.io.write_file", {"filename": str(canary), "data": 0}),
        ("torchmetrics.utilities.data.torch.load", {"f": str(pickled)}),
        ("pytorch_lightning.utilities.cloud_io.get_filesystem", {}), ("pytorch_lightning.Trainer", {}),
        ("pytorch_lightning.loggers.csv_logs.os.system", {"command": touch}),
        ("dltrain.run_dir.write_text", {"path": str(canary), "text": ""}), ("dltrain.cli.main", {}),
        ("dltrain.data.download.fetch", {}), ("dltrain.checkpoints.load", {"path": str(pickled)}),
        ("dltrain.callbacks.metrics.MetricsFile", {"file": str(canary)}),
        ("payload.Payload", {}), ("run.payload.Payload", {}), ("installed.Payload", {}), (["os.system"], {}),
        ({"a": 1}, {}), (5, {}), ("", {}), ("os", {}), ("..os.system", {}), ("os.system\n", {"command": touch}))]


def placed(config: Config, node: Config, rng: random.Random) -> Config:
    """A copy of a config with the node in one of the places where something is built."""
    copy = pickle.loads(pickle.dumps(config))
    place = rng.choice(("model", "data", "task", "augment", "on_pixels", "argument", "metrics", "callbacks", "loggers",
                        "deep"))
    if place in ("model", "data", "task", "augment"):
        copy[place] = {**copy[place], **node}
    elif place == "on_pixels":
        copy["augment"]["on_pixels"] = [node]
    elif place == "argument":
        copy["augment"]["on_pixels"] = [{"_target_": "dltrain.augment.erasing.Cutout", "px": node}]
    elif place == "metrics":
        copy["task"]["metrics"] = {"f1": node}
    elif place == "deep":
        copy["model"]["layers"] = {"a": [[{"b": [node]}]]}
    else:
        copy["trainer"][place] = [node]
    return copy


def named(config: Config, canary: Path) -> list[Config]:
    """Configs that name code in other ways than by `_target_`, and through interpolations."""
    changes: list[tuple[str, str, object]] = [
        ("task", "optimizer", {**config["task"]["optimizer"], "name": "os.system"}),
        ("task", "schedule", {**config["task"]["schedule"], "name": "builtins.eval"}),
        ("task", "figures", ["os.system"]), ("trainer", "callbacks", ["torch.load"]),
        ("trainer", "callbacks", ["../evil"]), ("trainer", "loggers", ["payload.Payload"]),
        ("model", "_target_", "${evil}"), ("model", "_target_", "${oc.select:evil}"),
        ("model", "_target_", "os.${last}"), ("model", "_target_", "${oc.decode:'os.system'}"),
        ("model", "_target_", "${eval:1+1}"), ("model", "_target_", "${oc.${oc}:HOME}"),
        ("model", "_target_", "${oc.create:{_target_: os.system}}"), ("augment", "on_pixels", "${evil_nodes}")]
    extra = {"evil": "os.system", "last": "system", "oc": "env",
             "evil_nodes": [{"_target_": "os.system", "command": f"touch '{canary}'"}]}
    return [{**config, **extra, group: {**config[group], key: value}} for group, key, value in changes]


def texts() -> list[str]:
    """Yaml that is no plain yaml, or that stands for more than memory holds."""
    def laughs(form: str) -> str:
        return "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} {form % ','.join([f'*a{i - 1}'] * 9)}\n" for i in range(1, 30))

    letters = "lol0: lol\n" + "".join(f"lol{i}: '${{lol{i - 1}}}${{lol{i - 1}}}'\n" for i in range(1, 40))
    return [laughs("[%s]"), laughs("{<<: [%s]}"), "a: &a [*a]\n", "a: &a {b: *a}\n", letters, "a: ${b}\nb: ${a}\n",
            "a: " + "[" * 20000, "a: " + "{a: " * 5000, "seed: 1\nseed: 2\n", "a: {b: 1, b: 2}\n", "a: *nothing\n",
            "a: !!python/object/apply:os.system [id]\n", "a: !!python/name:os.system\n", "a: !evil 3\n",
            "a: !!binary aGk=\n", "a: \t- [\n", "a: 'x\n", "\x00\x01",
            "".join(f"k{i}: 1\n" for i in range(120_000))]


# What a file may not set of Hydra, below `hydra:`.
HYDRA = ["{callbacks: {x: {_target_: os.system, command: id}}}", "{searchpath: ['file:///tmp']}",
         "{job_logging: {version: 1, handlers: {x: {(): os.system, command: id}}}}",
         "{hydra_logging: {handlers: {x: {class: 'payload.Payload'}}}}", "{job: {env_set: {LD_PRELOAD: evil.so}}}",
         "{sweeper: {_target_: os.system}}", "{launcher: {_target_: payload.Payload}}", "{run: {dir: /tmp/evil}}",
         "{sweeper: {sampler: {_target_: os.system}}}", "{launcher: {setup: ['id']}}", "[1]",
         "{launcher: {x: {_target_: hydra._internal.core_plugins.bash_completion.os.system}}}",
         "{sweeper: {sampler: {_target_: optuna.samplers.os.system}}}",
         "{sweeper: {custom_search_space: os.system}}", "{output_subdir: ../../evil}"]
# What the sweep of an experiment may not go over: these become words of the command line.
SWEPT = ["+hydra.callbacks: '{x: {_target_: os.system, command: id}}'", "hydra.searchpath: '[file:///tmp]'",
         "hydra/launcher: evil", "++hydra.job.chdir: true", "+trust: os", "--config-dir: evil", "5: 6"]
