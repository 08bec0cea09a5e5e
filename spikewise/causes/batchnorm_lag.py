"""BatchNormalization's moving statistics lag behind the weights: with a lower momentum there is no rise."""

from dataclasses import replace

from spikewise.causes import batchnorm_statistics
from spikewise.causes.kind import Claim
from spikewise.records import Case


def _rule(case: Case) -> Claim | None:
    return batchnorm_statistics.claim(case) if batchnorm_statistics.which(case) == "lag" else None


CAUSE = replace(batchnorm_statistics.CAUSE, name="batchnorm_lag", title="lagging BatchNorm statistics", rule=_rule)
