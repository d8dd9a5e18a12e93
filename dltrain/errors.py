"""The user-facing errors. Each is shown as one line on standard error and ends the program with its own exit code.

0 all is well; 1 a bug in dltrain (traceback in the run folder); 2 the command or a config; 3 the data; 4 a checkpoint;
5 the numbers diverged; 6 the machine (disk, memory, device); 7 some jobs of a sweep failed; 128 + n ended by signal n.
"""


class UserError(Exception):
    """What the person at the keyboard can mend: the message names it and says how. By itself: command or config."""

    exit_code = 2


class DataError(UserError):
    exit_code = 3


class CheckpointError(UserError):
    exit_code = 4


class DivergedError(UserError):
    exit_code = 5


class MachineError(UserError):
    exit_code = 6


class InterruptedRun(BaseException):
    """A signal asked the run to stop and the run has saved itself. Not an Exception: a sweep must end with it."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean 'x'?` for the real name closest to `name`, or nothing where none is close."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
