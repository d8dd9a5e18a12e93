"""The command dltrain, also as `python -m dltrain`. From its first line on a signal ends it without a traceback."""

import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def stop(signum: int, _: FrameType | None) -> None:
    os.write(2, f"dltrain: {signal.Signals(signum).name}: stopped\n".encode())
    os._exit(128 + signum)


for number in SIGNALS:
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
        signal.signal(number, stop)

from dltrain.cli import main as run_command  # noqa: E402  # takes a while


def main() -> int:
    """The console script. Returns the exit code. A signal after the end of the command does not change it."""
    code = run_command()
    for number in SIGNALS:
        signal.signal(number, lambda *_: os._exit(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
