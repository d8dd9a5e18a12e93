"""What goes wrong in a run becomes one line on standard error, a traceback in error.txt, and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

import torch

from dltrain.errors import MachineError, UserError
from dltrain.run_dir import RunDir, write_text


def report(run_dir: RunDir, work: Callable[[], object]) -> int:
    """Calls `work`; an error becomes one line on standard error. Returns the exit code."""
    try:
        try:
            work()
            return 0
        except torch.OutOfMemoryError as error:
            raise MachineError("out of memory on the device; use a smaller data.batch_size, with "
                               "trainer.accumulate_batches to keep the number of samples per step") from error
    except UserError as error:
        print_failure(run_dir, str(error))
        return error.exit_code
    except SystemExit as error:
        print_failure(run_dir, f"the code ended the program with exit code {error.code}")
        return 1
    except Exception as error:
        message = " ".join(str(error).split())[:200]
        print_failure(run_dir, f"{type(error).__name__}: {message} (traceback in {run_dir.path / 'error.txt'})")
        return 1


def print_failure(run_dir: RunDir, message: str) -> None:
    """Prints one line on standard error. Removes the run's folder if it has only a lock and a log, else writes
    error.txt with the traceback there."""
    print(f"dltrain: error: {message}", file=sys.stderr, flush=True)
    if run_dir.path.is_dir() and not run_dir.remove_if_empty():
        write_text(run_dir.path / "error.txt", f"{message}\n\n{traceback.format_exc()}")
