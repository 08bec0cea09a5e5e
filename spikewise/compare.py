"""Explains one rise of a validation loss after the fact, from two sets of per-example losses and, optionally, a Keras model.

Less is known here than during a run (SpikeDiagnosis): no steps, batches or events, so none of them can be named as the cause, and
the verdict is more often `unexplained`.

Shapes: n validation examples.
"""

import time
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from spikewise import causes, probes
from spikewise.detect import Resampler
from spikewise.errors import UserError
from spikewise.forecast import threshold
from spikewise.records import Case, Diagnosis, Spike
from spikewise.suspects import suspects


def explain(
    before: np.ndarray,
    now: np.ndarray,
    *,
    model: Any = None,
    earlier: Sequence[np.ndarray] | None = None,
    validation_data: Any = None,
    training_data: Any = None,
    keys: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
    epoch: int = 1,
) -> Diagnosis:
    """Explains why the mean of `now` [n] is above that of `before` [n]: losses of the same examples in the same order.

    The losses alone reveal chance and single examples; this needs only NumPy. For other causes, also pass the compiled
    `keras.Model` as it is now, `earlier` (what its `get_weights()` returned before the rise), `validation_data` and
    `training_data` (arrays (x, y), a batched tf.data.Dataset or a keras.utils.PyDataset). The model is then evaluated under
    changed conditions, and restored afterwards. `keys`, `groups` [n]: name and source of each example. `epoch`: the epoch number
    in the diagnosis.

    Raises UserError if the losses did not rise, or the arguments do not fit each other.
    """
    began = time.perf_counter()
    before, now = (np.asarray(losses, float) for losses in (before, now))
    _check(before, now, {"keys": keys, "groups": groups})
    resampler = Resampler(len(now), groups)
    case = _case(before, now, resampler, keys, epoch)
    if model is not None:
        from spikewise.keras.probing import probed  # imports Keras

        case = probed(
            case,
            resampler,
            (before, now),
            model=model,
            earlier=list(earlier) if earlier is not None else None,
            validation_data=validation_data,
            training_data=training_data,
        )
    elif any(value is not None for value in (earlier, validation_data, training_data)):
        raise UserError("explain was given weights or data, but no model. Fix: pass the model too, or the losses alone.")
    ranked = causes.attribute(case)
    return Diagnosis(case.spike, ranked, tuple(case.probes.values()), case.training, time.perf_counter() - began, suspects(case))


def _case(before: np.ndarray, now: np.ndarray, resampler: Resampler, keys: Sequence[str] | None, epoch: int) -> Case:
    """What the losses [n] alone say."""
    change = now - before
    draws = resampler.means(change)
    low, high = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
    baseline = float(before.mean())
    group, fraction = resampler.largest(change)
    spike = Spike(
        epoch,
        loss=float(now.mean()),
        baseline=baseline,
        scale=0.0,
        threshold=float(threshold(baseline, 0.0)),
        rise=float(now.mean() - before.mean()),
        low=low,
        high=high,
        error=float(draws.std()),
        images=len(now),
        groups=resampler.groups,
        group=group,
        group_fraction=fraction,
    )
    few = probes.few_examples(spike, now, before)
    return Case(spike, {few.name: few} if few else {}, keys=keys)


def _check(before: np.ndarray, now: np.ndarray, names: dict[str, Sequence[Any] | None]) -> None:
    """Raises UserError unless the losses rose, and each of `names` has one entry for each example."""
    if before.ndim != 1 or before.shape != now.shape or not len(now):
        raise UserError(
            f"before has shape {before.shape} and now has shape {now.shape}. Fix: pass one loss for each validation example."
        )
    if not np.isfinite(before).all() or not np.isfinite(now).all():
        raise UserError("before or now contains a loss that is not finite: the model has diverged. Fix: pass finite losses.")
    if now.mean() <= before.mean():
        raise UserError(
            f"The mean loss did not rise: {before.mean():.4g} before, {now.mean():.4g} now. Fix: pass the higher losses as now."
        )
    for name, values in names.items():
        if values is not None and len(values) != len(now):
            raise UserError(f"{name} has {len(values)} entries for {len(now)} validation examples. Fix: pass one for each.")
