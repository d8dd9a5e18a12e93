"""The commit of dltrain's own source."""

from __future__ import annotations

import subprocess
from pathlib import Path


def git_commit() -> str | None:
    """None where it is installed without its repository."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    try:
        git = subprocess.run(["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
                             capture_output=True, text=True)
    except OSError:  # no git
        return None
    return git.stdout.strip() if git.returncode == 0 else None
