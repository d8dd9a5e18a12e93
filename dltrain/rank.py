"""`python -m dltrain.rank`: one of the processes of a run, which `processes.train` starts."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, cast

from dltrain.late_imports import collect_after_imports, import_plots_late
from dltrain.own_modules import guard_imports, put_last
from dltrain.processes import CHANNEL, Channel, Message
from dltrain.signals import caught, deliver, end_children, recorders


def main() -> int:
    """Signals go to the command, which knows what they mean for all. Returns the exit code."""
    guard_imports()
    import_plots_late()
    collect_after_imports()
    end = socket.socket(fileno=int(os.environ.pop(CHANNEL)))
    os.register_at_fork(after_in_child=end.close)  # a process that outlives this one would keep it open
    channel = Channel(end)
    with caught(lambda signum: channel.send(signal=signum)):
        work = json.loads(next(channel.lines, "{}"))
        threading.Thread(target=obey, args=(channel,), daemon=True).start()
        return train(channel, **work) if work else 1


def obey(channel: Channel) -> None:
    """Does what the command says; ends the process when the command has ended."""

    def receive(message: Message) -> None:
        if "report_stack" in message:
            frame = sys._current_frames()[threading.main_thread().ident or 0]
            channel.send(stack="".join(traceback.format_stack(frame)))
        elif recorders:
            deliver(message["stop"])
        else:
            leave(128 + message["stop"])

    channel.listen(receive)
    leave(1)


def leave(exit_code: int) -> None:
    end_children()
    os._exit(exit_code)


def train(channel: Channel, run_dir: str, config: str, words: list[str], accepts_changed_data: bool,
          comments: dict[str, str] | None = None, command: list[str] | None = None,
          steps: dict[str, Any] | None = None, until_epoch: int | None = None) -> int:
    """`config`: yaml; `words`: what the command line trusts, see trust.command_words; `steps`: those that are trained
    again, see proof/rerun.py; None: the run itself is trained."""
    from omegaconf import DictConfig, OmegaConf

    from dltrain import reporting, run, trust
    from dltrain.config.words import take_config_folders
    from dltrain.disk import naming_full_disk
    from dltrain.errors import InterruptedRun
    from dltrain.proof.rerun import Steps, train_steps
    from dltrain.run_dir import RunDir

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it prints a line for each process
    folder = RunDir(Path(run_dir), accepts_changed_data)
    try:
        put_last(take_config_folders(trust.take(words))[1])
        with naming_full_disk(), reporting.naming_stored_files(folder):
            composed = cast(DictConfig, OmegaConf.create(config))
            if steps:
                train_steps(composed, Steps(**steps))
            else:
                run.train(composed, folder, comments, command, until_epoch)
    except InterruptedRun as stop:
        channel.send(stopped=str(stop), signum=stop.exit_code - 128, requeue=stop.requeue)
        return stop.exit_code
    except (Exception, SystemExit) as error:
        failure = reporting.failure_of(error, folder)
        channel.send(failure=failure.text, code=failure.exit_code, is_lost=reporting.has_lost_a_rank(error),
                     traceback=traceback.format_exc())
        return failure.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
