"""The command dltrain, also as `python -m dltrain`. From its first line on a signal ends it without a traceback."""

import _signal  # the signal module without its names, which take longer to import than all before
import os
import sys

SIGNALS = {_signal.SIGINT: "SIGINT", _signal.SIGTERM: "SIGTERM", _signal.SIGHUP: "SIGHUP"}


def stop(signum: int, frame: object) -> None:
    os.write(2, f"dltrain: {SIGNALS[signum]}: stopped\n".encode())
    os._exit(128 + signum)


for number in SIGNALS:
    if number != _signal.SIGHUP or _signal.getsignal(number) != _signal.SIG_IGN:  # as under nohup
        _signal.signal(number, stop)

from dltrain.cli import main as run_command  # noqa: E402


def main() -> int:
    """The console script. Returns the exit code. A signal after the end of the command does not change it."""
    code = run_command()
    from dltrain.signals import end_children

    for number in SIGNALS:
        _signal.signal(number, lambda *_: os._exit(code))
    end_children()
    return code


if __name__ == "__main__":
    sys.exit(main())
