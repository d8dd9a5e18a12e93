"""Tab completion. Hydra completes overrides from the environment's COMP_LINE, without the verb; verbs, run folders and
lists are completed here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dltrain.commands.ls_words import LISTS, RUN_OPTIONS, SIZES
from dltrain.config.groups import GROUPS
from dltrain.config.json_schema import KINDS as SCHEMA_KINDS
from dltrain.config.key_index import KeyIndex
from dltrain.leftovers import KINDS
from dltrain.runs.record import STATES


def complete(verbs: Sequence[str]) -> int:
    line = os.environ["COMP_LINE"]
    words = line.split()
    typing = "" if line.endswith(" ") else words[-1]
    done = words[1:] if line.endswith(" ") else words[1:-1]
    if not done and "=" not in typing:
        print(" ".join(verb for verb in verbs if verb.startswith(typing)), end=" ")
    verb = done[0] if done and done[0] in verbs else "train"
    if verb in ("resume", "eval", "predict", "report", "export", "verify", "replay"):
        offer((f"run={path.parent}" for path in sorted(Path("outputs").glob("**/config.yaml"))), typing)
        return 0
    if verb == "ls":
        offer(words_of_list(done[1] if done[1:] else ""), typing)
        return 0
    if verb == "diff":
        offer((str(path.parent) for path in sorted(Path("outputs").glob("**/config.yaml"))), typing)
        return 0
    if verb == "help":
        offer((*verbs, *GROUPS, "codes", *KeyIndex().settings), typing)
        return 0
    if verb == "schema":
        offer((*SCHEMA_KINDS, "output="), typing)
        return 0
    if verb == "doctor":
        offer(("output_dir=", "json="), typing)
        return 0
    if verb == "clean":
        offer(["apply=true", *(f"what={kind}" for kind in KINDS)], typing)
        return 0
    if verb == "prove":
        if not done[1:]:
            offer(["resume"], typing)
            return 0
        line = line.replace("resume ", "", 1)
    if done and done[0] in verbs:
        line = line.replace(f"{done[0]} ", "", 1)
        os.environ["COMP_LINE"], os.environ["COMP_POINT"] = line, str(len(line))
    if verb == "bench":
        from dltrain.commands.bench_words import KEYS

        print(" ".join(f"{key}=" for key in KEYS if f"{key}=".startswith(typing)), end=" ")
    if verb == "summary":
        print(" ".join(word for word in ("depth=", "json=") if word.startswith(typing)), end=" ")
    from dltrain.config import launch  # Hydra, which the other completions do without

    return launch.hand_to_hydra(launch.parse_flags(["-sc", "query=bash"]))


def words_of_list(name: str) -> Iterable[str]:
    """`name`: of the list of `dltrain ls` that was typed, if there is one."""
    match name:
        case "models":
            return (f"{key}=" for key in SIZES)
        case "runs":
            return [*(f"{key}=" for key in RUN_OPTIONS if key not in ("seeds", "json")), "seeds=each", "json=true",
                    *(f"state={name}" for name in STATES)]
    return LISTS


def offer(words: Iterable[str], typing: str) -> None:
    print(" ".join(word for word in words if word.startswith(typing)))
