"""Which of the processes of a run this one is."""

import os

# By which torchrun, Slurm and others number the processes that they start. Libraries take them for those of one run.
OTHER_STARTERS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID",
                  "SLURM_NODEID", "JSM_NAMESPACE_RANK")


def forget_other_starters() -> None:
    """To be called by a command: it starts the processes of its run itself, and is the first of them."""
    for name in OTHER_STARTERS:
        os.environ.pop(name, None)


def is_first_process() -> bool:
    """Whether this process writes files and prints messages."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def is_rank() -> bool:
    """Whether this process is one of several."""
    return "LOCAL_RANK" in os.environ
