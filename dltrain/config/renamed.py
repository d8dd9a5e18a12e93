"""Keys of earlier versions and what to type instead. An old key is refused in one line with its new name."""

from __future__ import annotations

RENAMED: dict[str, str] = {}


def new_name(key: str) -> str | None:
    """What replaces the key, or the longest prefix of it that is an old key; None if it is not an old key."""
    for old in sorted(RENAMED, key=len, reverse=True):
        if key == old:
            return RENAMED[old]
        if key.startswith(f"{old}."):
            return RENAMED[old] + key.removeprefix(old) if " " not in RENAMED[old] else RENAMED[old]
    return None
