"""All checks of a pair in order, each a line as soon as it is known, then the table of what a run takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from dltrain.preflight.contents import read_contents
from dltrain.preflight.findings import FAULT, WARNING, Finding
from dltrain.preflight.fitting import check_fit, check_gradients, fit
from dltrain.preflight.labels import check_labels
from dltrain.preflight.leaking import find_leaks
from dltrain.preflight.measuring import check_classes, measure_facts
from dltrain.preflight.mixing import check_future, check_samples
from dltrain.preflight.normalising import check_normalisation
from dltrain.preflight.pair import Pair
from dltrain.preflight.starting import check_start

Facts = list[tuple[str, str]]


def examine(pair: Pair, facts: Facts, say: Callable[[str], None]) -> Iterator[Finding]:
    """Yields the findings, and fills `facts`, rows of a table. `say`: shows what is being done."""
    say("the loss at the start")
    yield check_start(pair)
    say("a few samples, to be learned by heart")
    batch = pair.to_device(pair.samples(pair.kind.samples_fitted))
    with pair.kept(batch.size):
        fitted = fit(pair, batch)
        yield check_fit(pair, fitted)
        yield check_gradients(pair, fitted)
        if fitted.is_learned:  # such weights make every input count
            yield check_samples(pair, batch)
            yield check_future(pair, batch)
    if not fitted.is_learned:
        with pair.kept(batch.size):
            yield check_samples(pair, batch)
            yield check_future(pair, batch)
    say("labels")
    yield check_labels(pair)
    say("the samples of all splits")
    contents = read_contents(pair.source, pair.kind)
    yield find_leaks(pair, contents)
    yield check_normalisation(pair)
    yield check_classes(pair, contents)
    say("the time and memory of a step")
    facts += measure_facts(pair, contents)


def summary(findings: list[Finding], seconds: float) -> str:
    faults, warnings = ([one.check for one in findings if one.status == status] for status in (FAULT, WARNING))
    counted = [f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({', '.join(names)})"
               for names, noun in ((faults, "fault"), (warnings, "warning")) if names]
    return f"{' and '.join(counted) or 'no fault and no warning'}; {seconds:.1f} s"
