"""A torch and a torchvision that were not made for each other, which fails in whatever imports both."""

from __future__ import annotations

import re
from importlib.metadata import version

# What torchvision says where its compiled operators do not load, and what loading them says.
MISMATCH = re.compile(r"operator torchvision::\w+ does not exist|torchvision\S*\.so: undefined symbol")


def describe_mismatch(error: BaseException) -> str:
    """What is wrong, and what to do; "" for another error."""
    if not (match := MISMATCH.search(str(error))):
        return ""
    return (f"torch {version('torch')} and torchvision {version('torchvision')} do not fit ({match[0]}); install both "
            "from one source, as pip install --force-reinstall torch torchvision; dltrain doctor tries them")
