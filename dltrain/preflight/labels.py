"""Whether the targets belong to their inputs."""

from __future__ import annotations

from dltrain.preflight.findings import FAULT, OK, SKIPPED, WARNING, Finding
from dltrain.preflight.pair import Pair
from dltrain.preflight.probing import measure_gain

CHECK = "labels"
LEAST_DEVIATIONS = 5.0  # of permuted targets: by luck alone not once in a million
ENOUGH = 200  # samples, below which a probe may fail on what can be learned


def check_labels(pair: Pair) -> Finding:
    association = pair.kind.association(pair.kind.probed(pair.source))
    if association is None or len(association.inputs) < 8:
        return Finding(CHECK, SKIPPED, "nothing that a linear probe can predict")
    gain = measure_gain(association, pair.config.seed)
    figure = (f"a linear probe predicts them better than shuffled ones by {gain.deviations:.1f} standard deviations; "
              f"at least {LEAST_DEVIATIONS:.0f} are needed ({gain.samples:,} rows)")
    if gain.deviations >= LEAST_DEVIATIONS:
        return Finding(CHECK, OK, figure)
    return Finding(CHECK, FAULT if gain.samples >= ENOUGH else WARNING, figure,
                   "labels shuffled against the inputs? see with dltrain show whether each input has its own label, "
                   "and how files and labels are matched")
