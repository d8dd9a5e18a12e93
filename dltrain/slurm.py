"""Jobs of the Slurm scheduler, which starts a job again, with the same number, on `scontrol requeue`.

`#SBATCH --signal=USR1@120` sends SIGUSR1 to the command 120 s before the time limit: the run saves, then asks for a new
start. SIGTERM comes before a preemption, at the time limit and also from `scancel`; so it does the same only with
trainer.requeue=true.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

from dltrain.ranks import started_with


def job_id() -> str | None:
    """The number of the job that this process belongs to, of an array with that of its task."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue_after(signum: int, on_sigterm: bool) -> str:
    """Asks Slurm to start the job again where the signal that stopped the run calls for it. Returns a note, or "".
    `on_sigterm`: trainer.requeue of the run."""
    job = job_id()
    if started_with.get("SLURM_NODEID", "0") != "0":  # of several nodes the first one does
        return ""
    if job is None or not (signum == signal.SIGUSR1 or (on_sigterm and signum == signal.SIGTERM)):
        return ""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        fault = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        fault = str(error)
    return f"; scontrol requeue {job} failed: {fault}" if fault else f"; Slurm starts job {job} again"


def folders_of_job(parent: Path) -> list[Path]:
    """The run folders below `parent` that this job began before Slurm started it again, the newest first."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return []
    files = sorted(parent.glob("*/environment.json"), reverse=True)
    return [file.parent for file in files if job_of(file) == job_id()]


def job_of(file: Path) -> object:
    """The job that an environment.json names; of a damaged one, which may be another run's, none."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))).get("slurm_job")
    except (OSError, ValueError, TypeError):
        return None
