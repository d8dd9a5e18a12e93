"""Which of the processes of a run this one is."""

import os


def is_first_process() -> bool:
    """Whether this process writes files and prints messages."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def is_rank() -> bool:
    """Whether this process is one of several."""
    return "LOCAL_RANK" in os.environ
