"""A command of dltrain as a person types it, in the process of the test."""

import pytest

from dltrain import cli


def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
                ) -> tuple[int, str, str]:
    """`dltrain WORDS`: its exit code, and what it writes to standard output and to standard error."""
    monkeypatch.setattr("sys.argv", ["dltrain", *words])
    capsys.readouterr()
    code = cli.main()
    output = capsys.readouterr()
    return code, output.out, output.err
