"""Several processes on one run, each a rank from 0 on.

The command, on each node where there are several, starts them with `python -m dltrain.rank` and watches them; it does
not train itself. Each rank has a socket to the command: it brings the work, and takes signals, failures and stacks. So
the command alone decides:

- a signal to any of them reaches rank 0, which saves and stops. All ranks have the same weights after a step, and a
  step needs them all: nothing is lost when the others are killed then;
- where a rank fails, the others soon fail too, since they cannot reach it. The error of the first one is reported;
- where ranks wait for one that does not answer, that rank is named, with the line of code where it is;
- whatever ends, all end: the ranks when the socket is closed, and the other way round.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from dltrain import trust
from dltrain.errors import MACHINE, InterruptedRun, UserError, printable
from dltrain.ranks import this_node, world_size
from dltrain.run_dir import RunDir
from dltrain.signals import Signals, end_children

CHANNEL = "DLTRAIN_CHANNEL"  # the environment variable with the file number of a rank's socket
POLL_SECONDS = 0.02  # a signal to the command reaches rank 0 within that time
SECONDS_TO_BLAME = 3.0  # after the first rank has lost another one, until it is clear which one does not answer
SECONDS_TO_END = 60.0  # for the others, after the first rank has ended
Message = dict[str, Any]


class RankError(UserError):
    """What ended a run of several processes, with the exit code that it has in one process."""

    def __init__(self, message: str, exit_code: int, details: str = ""):
        super().__init__(message)
        self.exit_code = exit_code
        if details:
            self.add_note(details)

    def __str__(self) -> str:
        """Below the message may be the line of the user's code that it comes from."""
        return "\n".join(map(printable, str(self.args[0]).split("\n")))


class Channel:
    """One end of a socket. Sends and receives messages of plain values."""

    def __init__(self, end: socket.socket):
        self.end, self.lines = end, end.makefile(encoding="utf-8")

    def send(self, **message: object) -> None:
        with suppress(OSError):  # the other process has ended
            self.end.sendall(json.dumps(message).encode() + b"\n")

    def listen(self, receive: Callable[[Message], None]) -> None:
        """Calls `receive` with each message; returns when the other end is closed."""
        with suppress(OSError):
            for line in self.lines:
                receive(json.loads(line))


class Event(NamedTuple):
    rank: int
    message: Message


class Rank:
    """A process of the run, as the command sees it."""

    def __init__(self, number: int, local: int, environment: Mapping[str, str], events: queue.Queue[Event]):
        """`number`: among all processes of the run, `local`: among those of this node."""
        mine, its = socket.socketpair()
        variables = {"TORCH_CPP_LOG_LEVEL": "FATAL", **os.environ, **environment, "RANK": str(number),
                     "LOCAL_RANK": str(local), CHANNEL: str(its.fileno())}  # torch's log would repeat its errors
        self.number, self.events, self.channel = number, events, Channel(mine)
        self.process = subprocess.Popen([sys.executable, "-m", "dltrain.rank"], env=variables,
                                        pass_fds=[its.fileno()])
        its.close()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        self.channel.listen(lambda message: self.events.put(Event(self.number, message)))
        self.events.put(Event(self.number, {"exit_code": self.process.wait()}))

    def kill(self) -> None:
        end_children(self.process.pid)
        self.process.kill()
        self.process.wait()


def train(config: DictConfig, run_dir: RunDir, comments: Mapping[str, str] | None, command: list[str] | None,
          until_epoch: int | None = None) -> None:
    """run.train in the processes of this node. Raises InterruptedRun after a signal, and RankError."""
    train_in_ranks(config, run_dir, comments=comments, command=sys.argv[1:] if command is None else command,
                   until_epoch=until_epoch)


def train_in_ranks(config: DictConfig, run_dir: RunDir, **work: object) -> None:
    """`work`: the other arguments of rank.train, plain values. Raises InterruptedRun after a signal, and RankError."""
    from dltrain.strategy import dist_timeout_of

    watch(config.trainer, dist_timeout_of(config.trainer), {
        "run_dir": str(run_dir), "config": OmegaConf.to_yaml(config), "words": trust.command_words(),
        "accepts_changed_data": run_dir.accepts_changed_data, **work})


def watch(keys: Mapping[str, Any], timeout_seconds: float, work: Mapping[str, object]) -> None:
    """Starts the ranks of this node, which get `work`, see rank.py, and waits for their end. `keys`: the trainer's."""
    events: queue.Queue[Event] = queue.Queue()
    node = this_node(keys.get("nodes", 1))
    with Signals() as signals:
        signals.record()
        environment = {"MASTER_ADDR": node.address, "MASTER_PORT": str(node.port or free_port()),
                       "NODE_RANK": str(node.number), "WORLD_SIZE": str(world_size(keys))}
        ranks = [Rank(node.number * keys["devices"] + local, local, environment, events)
                 for local in range(keys["devices"])]
        try:
            for rank in ranks:
                rank.channel.send(**work)
            others = f"node {node.number} lost the others (the first one is {node.address}:{node.port})"
            Watch(ranks, events, signals, timeout_seconds, others if world_size(keys) > len(ranks) else "").run()
        finally:
            for rank in ranks:
                rank.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Watch:
    """Waits until all ranks of this node have ended, or until it is clear what ends the run. `lost_nodes`: the message
    where other nodes cannot be reached; "" if there are none."""

    def __init__(self, ranks: list[Rank], events: queue.Queue[Event], signals: Signals, timeout_seconds: float,
                 lost_nodes: str = ""):
        self.ranks, self.events, self.signals = ranks, events, signals
        self.timeout_seconds, self.lost_nodes = timeout_seconds, lost_nodes
        self.lost: dict[int, Message] = {}  # the failures of ranks that could not reach another one
        self.ended: set[int] = set()
        self.is_stopping = self.is_done = False  # done: by the first rank
        self.deadline: float | None = None

    def run(self) -> None:
        while len(self.ended) < len(self.ranks):
            with suppress(queue.Empty):
                self.handle(self.events.get(timeout=POLL_SECONDS))
            if self.signals.received is not None and not self.is_stopping:
                self.is_stopping = True
                if self.is_on_first_node():
                    self.ranks[0].channel.send(stop=self.signals.received)
                else:  # the first node gets the signal too, saves and stops
                    self.deadline = time.monotonic() + SECONDS_TO_END
            if self.deadline is not None and time.monotonic() > self.deadline:
                break
        if self.is_stopping and not self.is_done and not self.is_on_first_node():
            raise InterruptedRun(self.signals.received or 0, f"{signal.Signals(self.signals.received or 0).name}: "
                                 "stopped; the first node saves")
        if self.lost and not self.is_done:
            raise self.blame()

    def is_on_first_node(self) -> bool:
        return self.ranks[0].number == 0

    def handle(self, event: Event) -> None:
        rank, message = event
        if "signal" in message and self.signals.received is None:
            self.signals.received = message["signal"]
        elif "stopped" in message:
            raise InterruptedRun(message["signum"], message["stopped"], message["requeue"])
        elif "failure" in message and not message["is_lost"]:
            raise RankError(f"rank {rank}: {message['failure']}", message["code"], message["traceback"])
        elif "failure" in message:
            self.lost[rank] = message
            self.deadline = self.deadline or time.monotonic() + SECONDS_TO_BLAME
        elif "exit_code" in message:
            self.handle_end(rank, message["exit_code"])

    def handle_end(self, rank: int, code: int) -> None:
        self.ended.add(rank)
        if code == 0:
            if rank == self.ranks[0].number:
                self.is_done = True
                self.deadline = self.deadline or time.monotonic() + SECONDS_TO_END
        elif self.is_stopping and code == 128 + (self.signals.received or 0):
            raise InterruptedRun(code - 128, f"{signal.Signals(code - 128).name}: stopped")
        elif code == -signal.SIGABRT:  # what NCCL does with a process that waits too long for another one
            self.handle(Event(rank, {"failure": "lost another process", "is_lost": True, "traceback": ""}))
        elif rank not in self.lost:
            raise RankError(f"rank {rank} {describe_end(code)}", MACHINE)

    def blame(self) -> RankError:
        """The error for a rank that does not answer; if all do, for one that could not reach another."""
        silent = [rank for rank in self.ranks if rank.number not in {*self.lost, *self.ended}]
        if not silent:
            number, message = next(iter(self.lost.items()))
            if self.lost_nodes:
                return RankError(f"{self.lost_nodes}: one that has failed says why; the same commands on all nodes "
                                 "continue the run", MACHINE, message["traceback"])
            return RankError(f"rank {number}: {message['failure']}", MACHINE, message["traceback"])
        stacks = self.ask(silent)
        names = " and ".join(f"rank {rank.number}" for rank in silent)
        places = [line.strip() for stack in stacks.values() for line in stack.splitlines() if line.startswith("  File")]
        place = places[-1] if places else "not in Python code"
        return RankError(f"{names} did not answer within trainer.dist_timeout_seconds={self.timeout_seconds:g}: "
                         f"{place}", MACHINE, "\n".join(f"rank {number}:\n{stack}" for number, stack in stacks.items()))

    def ask(self, ranks: list[Rank]) -> dict[int, str]:
        """The stacks of the main threads of those ranks that still answer, which they do unless they are in C code."""
        for rank in ranks:
            rank.channel.send(report_stack=True)
        stacks, until = dict[int, str](), time.monotonic() + 1
        with suppress(queue.Empty):
            while len(stacks) < len(ranks) and (seconds := until - time.monotonic()) > 0:
                number, message = self.events.get(timeout=seconds)
                if "stack" in message:
                    stacks[number] = message["stack"]
        return stacks


def describe_end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    hint = ": if the system was out of memory, use a smaller data.batch_size" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}; the same command continues the run"
