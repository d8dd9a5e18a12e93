"""What came of the kills of a run: a row each, and what is not as it must be, in words."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

from dltrain.proof.killing import Ending, Kill

HEADER = ("kill", "signal", "sent to", "in", "after step", "exit code", "continued from", "")
LATE = "ended before the signal"  # which is no fault
EARLY = "Python itself was starting"  # its own traceback of KeyboardInterrupt: before a line of dltrain has run
LONGEST = 160  # characters of a line that is quoted


def rows_of(kills: Sequence[Kill], endings: Sequence[Ending]) -> list[list[str]]:
    """A row for each kill, and one for the last start, which is not killed: `endings` has one more."""
    rows = []
    for number, (kill, ending, following) in enumerate(triples(kills, endings), start=1):
        rows.append([str(number), signal.Signals(kill.signum).name, "its group" if kill.to_group else "the process",
                     kill.place, "-" if ending.sent_at is None else str(ending.sent_at), code_of(ending),
                     following.continued_from, fault_of(kill, ending, following)])
    return [*rows, ["-", "none", "", "", "", code_of(endings[-1]), "", fault_of_last(endings[-1])]]


def faults_of(kills: Sequence[Kill], endings: Sequence[Ending]) -> list[str]:
    """What is not as it must be."""
    faults = [fault_of(*three) for three in triples(kills, endings)]
    return [fault for fault in (*faults, fault_of_last(endings[-1])) if fault not in ("", LATE, EARLY)]


def triples(kills: Sequence[Kill], endings: Sequence[Ending]) -> Iterator[tuple[Kill, Ending, Ending]]:
    """Each kill, how it ended, and the next start that came so far as to continue the run, or the last one."""
    for number, kill in enumerate(kills):
        later = endings[number + 1 :]
        yield kill, endings[number], next((ending for ending in later if ending.continued_from), later[-1])


def fault_of(kill: Kill, ending: Ending, following: Ending) -> str:
    """"" if all is as it must be after a kill. `following`: the next start of the same command that
    continued the run."""
    if ending.sent_at is None:
        return LATE if ending.code == 0 else f"failed before the signal: {last_line(ending)}"
    if ending.code is None:
        return "did not end"
    if is_early(kill, ending):
        return EARLY
    if ending.code not in (0, 128 + kill.signum):
        return f"the exit code must be {128 + kill.signum}: {last_line(ending)}"
    if ending.has_traceback:
        return f"a traceback: {last_line(ending)}"
    if ending.left:
        return f"{ending.left} of its processes did not end"
    return "" if kill.signum == signal.SIGKILL else fault_of_save(ending, following)


def is_early(kill: Kill, ending: Ending) -> bool:
    """Whether a SIGINT came while Python imported its own first modules, in the first few hundredths of a second."""
    frames = [line for line in ending.output.splitlines() if line.strip().startswith("File ")]
    return (kill.signum == signal.SIGINT and kill.place == "start" and bool(frames)
            and last_line(ending) == "KeyboardInterrupt" and not any("dltrain" in frame for frame in frames))


def fault_of_save(ending: Ending, following: Ending) -> str:
    """A signal that can be caught loses no step: the next start continues from the step at the signal, or later."""
    word, _, number = following.continued_from.partition(" ")
    reached = int(number) if word == "step" else 0
    if following.continued_from in ("its end", "") or reached >= (ending.sent_at or 0):
        return ""
    return f"sent after step {ending.sent_at}, but continued from {following.continued_from}"


def fault_of_last(ending: Ending) -> str:
    return "" if ending.code == 0 else f"the last start failed: {last_line(ending)}"


def code_of(ending: Ending) -> str:
    return "none" if ending.code is None else str(ending.code)


def last_line(ending: Ending) -> str:
    lines = [line for line in ending.output.splitlines() if line.strip()]
    return lines[-1][:LONGEST] if lines else "no output"
