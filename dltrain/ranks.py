"""Which of the processes of a run this one is, and which of its nodes (machines) this one is.

On each node a command starts trainer.devices processes. torchrun and Slurm start the commands, one on each node, and
say by variables which node it is and where the first one is; so may a person.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from dltrain.errors import UserError

# By which torchrun, Slurm and others number the processes that they start. Libraries take them for those of one run.
OTHER_STARTERS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID",
                  "SLURM_NODEID", "JSM_NAMESPACE_RANK")
PORTS = range(20_000, 30_000)  # of the first node of a Slurm job, by the number of the job
started_with: dict[str, str] = {}  # those variables, as the command got them


def forget_other_starters() -> None:
    """To be called by a command: it starts the processes of its run itself, and is the first of them."""
    for name in OTHER_STARTERS:
        if (value := os.environ.pop(name, None)) is not None:
            started_with[name] = value


def rank() -> int:
    """The index of this process among all of its run."""
    return int(os.environ.get("RANK", "0"))


def is_first_process() -> bool:
    """Whether this process writes files and prints messages."""
    return rank() == 0


def is_rank() -> bool:
    """Whether this process is one of several."""
    return "LOCAL_RANK" in os.environ


def world_size(keys: Mapping[str, Any]) -> int:
    """The number of processes of a run. `keys`: the trainer's, of which older runs have no nodes."""
    return int(keys["devices"]) * int(keys.get("nodes", 1))


def trains_as_one(keys: Mapping[str, Any]) -> bool:
    """Whether a run has several processes, which train as one. Those of earlier versions do not."""
    return world_size(keys) > 1 and bool(keys.get("as_one", False))


class Node(NamedTuple):
    """A machine by its number, and where the first one listens: with port 0 it chooses a free one."""

    number: int
    address: str
    port: int


def this_node(nodes: int) -> Node:
    """Raises UserError where nobody says which of the nodes this one is, and where the first one is."""
    if nodes == 1:
        return Node(0, "127.0.0.1", 0)
    variables = {**os.environ, **started_with}
    number = next((variables[name] for name in ("GROUP_RANK", "NODE_RANK", "SLURM_NODEID") if name in variables), None)
    address = variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_JOB_NODELIST", ""))
    port = variables.get("MASTER_PORT") or port_of_job(variables.get("SLURM_JOB_ID", ""))
    if number is None or not address or not port:
        raise UserError(f"trainer.nodes={nodes}: the command must run on each node, started by torchrun or srun, or "
                        "with NODE_RANK, MASTER_ADDR and MASTER_PORT set (docs/scale.md)")
    if not number.isdigit() or int(number) >= nodes or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"trainer.nodes={nodes}: the number of this node must be in [0, {nodes}) and its port in "
                        f"[1, 65535], but they are {number} and {port}")
    starter = "GROUP_RANK" if "GROUP_RANK" in variables else "SLURM_NODEID"
    if variables.get("LOCAL_RANK" if starter == "GROUP_RANK" else "SLURM_LOCALID", "0") != "0":
        raise UserError(f"trainer.nodes={nodes}: this is the second command on its node; start one on each "
                        f"({'--nproc-per-node=1' if starter == 'GROUP_RANK' else '--ntasks-per-node=1'}), it starts "
                        "trainer.devices processes itself")
    if (started := variables.get("SLURM_NNODES")) not in (None, str(nodes)) and "GROUP_RANK" not in variables:
        raise UserError(f"trainer.nodes={nodes}: but the Slurm job has {started}")
    return Node(int(number), address, int(port))


def first_host(nodes: str) -> str:
    """The first name of a list as Slurm writes it: gpu[07-09,12],login1."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    return "".join(filter(None, match.groups())) if match else ""


def port_of_job(number: str) -> str:
    return str(PORTS[int(number) % len(PORTS)]) if number.isdigit() else ""
