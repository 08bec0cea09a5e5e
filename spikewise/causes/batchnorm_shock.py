"""A few batches shocked BatchNormalization's moving statistics: with a higher momentum there is no rise."""

from dataclasses import replace

from spikewise.causes import batchnorm_statistics
from spikewise.causes.kind import Claim
from spikewise.records import Case
from spikewise.suspects import HALF


def _rule(case: Case) -> Claim | None:
    """Only if estimating the statistics anew, with dropout as in training, removes the rise too. More dropout than before also
    changes the statistics, and a higher momentum hides that as well."""
    return _alone(case) if case.fraction("statistics") >= HALF else None


def _alone(case: Case) -> Claim | None:
    return batchnorm_statistics.claim(case) if batchnorm_statistics.which(case) == "shock" else None


CAUSE = replace(
    batchnorm_statistics.CAUSE, name="batchnorm_shock", title="BatchNorm statistics shocked by a few batches", rule=_rule
)
MOMENTUM_ONLY = replace(CAUSE, rule=_alone)
"""A higher momentum removes the rise, but estimating the statistics anew does not. Other causes are considered first."""
