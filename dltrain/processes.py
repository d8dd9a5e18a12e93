"""Several processes on one run. Lightning starts the others with the same command line. In a sweep, or under another
verb, that command would start another run, so here they are started with `resume` and the run's folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from dltrain import trust


def is_first_process() -> bool:
    """Whether this process writes files and prints messages."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def join_command(run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "dltrain.cli", "resume", f"run={run_dir}", *trust.command_words()]


class RunStrategy(DDPStrategy):
    """DistributedDataParallel whose processes are started with `join_command`."""

    def __init__(self, run_dir: Path, find_unused_parameters: bool):
        super().__init__(find_unused_parameters=find_unused_parameters)
        self.run_dir = run_dir

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        self._launcher = RunLauncher(self.cluster_environment, self.num_processes, self.num_nodes)
        self._launcher.run_dir = self.run_dir


class RunLauncher(_SubprocessScriptLauncher):
    run_dir: Path

    def _call_children_scripts(self) -> None:
        self._check_can_spawn_children()
        os.environ.update(
            MASTER_ADDR=self.cluster_environment.main_address, MASTER_PORT=str(self.cluster_environment.main_port),
            NODE_RANK=str(self.cluster_environment.node_rank()), LOCAL_RANK=str(self.cluster_environment.local_rank()),
            WORLD_SIZE=str(self.num_processes * self.num_nodes))
        self.procs = [subprocess.Popen(join_command(self.run_dir), env={**os.environ, "LOCAL_RANK": str(rank)})
                      for rank in range(1, self.num_processes)]
