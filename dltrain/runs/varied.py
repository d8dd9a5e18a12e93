"""In which values of their configs runs differ: what is worth a column."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from dltrain.config.free_keys import EARLIER, FREE
from dltrain.config.groups import GROUPS
from dltrain.config.renamed import SHORT_FORMS
from dltrain.config.schema import format_value
from dltrain.runs.record import Run

EMPTY = {"null", "[]", "{}"}
# Beside the keys that change no result, NO_RESULT: what follows from other keys, or is in a column of its own.
NO_RESULT = FREE - {"data.root"}
LEFT_OUT = NO_RESULT | {"model", "data", "task", "experiment", "model.anchor_boxes", "trainer.as_one",
                        "trainer.extended"}
NOT_COMPARED = NO_RESULT | {"seed", "recipe", "trainer", "trainer.as_one", "model.anchor_boxes"}
EARLIER_TEXTS = {key: format_value(value) for key, value in EARLIER.items()}
FIRST = ("task.optimizer.lr", "data.batch_size", "trainer.max_epochs")  # of the columns
SHORT_NAMES = {key: short for short, key in SHORT_FORMS.items()}


def known_value(values: Mapping[str, str], key: str) -> str:
    """As a run of this version has it; "" for null, an empty list, and a key that it does not have."""
    value = values.get(key)
    if value is None:
        value = EARLIER_TEXTS.get(key, "")
    return "" if value in EMPTY else value


def varied_keys(runs: Iterable[Run]) -> list[str]:
    """The keys whose values differ between runs of the same model and data: choices first, then in the order of the
    config. What a choice that differs determines, as augment= the transforms, is left out, and so is a key that always
    has the value of another one of the same name, as model.image_px that of data.image_px."""
    pairs: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        if run.is_readable:
            pairs[run.pair].append(run)
    varied: set[str] = set()
    order: dict[str, None] = {}
    for group in pairs.values():
        varied |= varied_in(group)
        order |= dict.fromkeys(group[0].values)
    keys = [key for key in order if key in varied]
    keys = [*(key for key in keys if key in GROUPS), *(key for key in FIRST if key in keys),
            *(key for key in keys if key not in GROUPS and key not in FIRST)]
    return without_repeats(keys, [run for group in pairs.values() for run in group])


def varied_in(runs: Sequence[Run]) -> set[str]:
    first = runs[0].values.items()
    differing = {key for run in runs[1:] for key, _ in first ^ run.values.items()}
    columns = {key: [known_value(run.values, key) for run in runs] for key in differing if is_of_interest(key)}
    columns = {key: values for key, values in columns.items() if len({*values}) > 1}
    choices = {key: values for key, values in columns.items() if key in GROUPS}
    keys = {key for key in columns if key not in choices}
    determined = {key for key in keys for group, values in choices.items() if group != "recipe"
                  and key.startswith(f"{group.replace('/', '.')}.") and follows(columns[key], values)}
    useful = {group for group in choices if any(group == "recipe" or key.startswith(f"{group.replace('/', '.')}.")
                                                for key in keys)}
    return (keys - determined) | useful


def is_of_interest(key: str) -> bool:
    return key not in LEFT_OUT and key.partition(".")[0] not in LEFT_OUT - {"model", "data", "task"}


def follows(values: Sequence[str], choices: Sequence[str]) -> bool:
    """Whether all runs with the same choice have the same value."""
    return len({*zip(choices, values, strict=True)}) == len({*choices})


def without_repeats(keys: Sequence[str], runs: Sequence[Run]) -> list[str]:
    kept: dict[tuple[str, tuple[str, ...]], str] = {}
    for key in keys:
        kept.setdefault((key.rpartition(".")[2], tuple(known_value(run.values, key) for run in runs)), key)
    return [*kept.values()]


def titles(keys: Sequence[str]) -> dict[str, str]:
    """The short form of each key, else its last name, where no other key of these has the same; else the key."""
    short = {key: SHORT_NAMES.get(key, key.rpartition(".")[2].rpartition("/")[2]) for key in keys}
    count = Counter(short.values())
    return {key: name if count[name] == 1 else key for key, name in short.items()}


def signature(run: Run) -> frozenset[tuple[str, str]]:
    """Equal for runs that differ in nothing but the seed and what changes no result."""
    return frozenset((key, value) for key, value in run.values.items() if value not in EMPTY and key not in NOT_COMPARED
                     and not key.startswith("choices.") and value != EARLIER_TEXTS.get(key))
