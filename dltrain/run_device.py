"""The device that a run was trained on, which its environment.json names."""

from __future__ import annotations

import torch

from dltrain.devices import device_name
from dltrain.errors import CheckpointError
from dltrain.run_dir import RunDir
from dltrain.stored_files import read_json


def describe_other_device(run_dir: RunDir, device: torch.device, is_training: bool) -> str:
    """A line where a run continues, or is measured, on another device than environment.json names; "" if not. Another
    number of threads changes the last bits of the weights, but no digit of a metric."""
    file = run_dir.path / "environment.json"
    try:
        stored = read_json(file, "delete it, nothing else needs it") if file.is_file() else {}
    except CheckpointError as error:
        return str(error)
    then, now = str(stored.get("device") or ""), device_name(device)
    is_same = then == now if is_training else then.partition(",")[0] == now.partition(",")[0]
    if is_same or not then:
        return ""
    verb = "continues" if is_training else "is measured"
    return f"{run_dir} was trained on {then} and {verb} on {now}: the last bits may differ"
