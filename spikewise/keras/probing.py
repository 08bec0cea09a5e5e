"""Probes a Keras model for `spikewise.compare.explain`.

Shapes: n validation examples, k batches.
"""

from dataclasses import replace
from itertools import islice
from typing import Any

import keras
import numpy as np

from spikewise import probes
from spikewise.detect import Resampler
from spikewise.errors import UserError
from spikewise.keras.backend import require_tensorflow
from spikewise.probes import IMAGES, Scene, Weights
from spikewise.records import STEP, Case, Hyperparameters, Probe, Training

BATCH = 50
"""Batch size in which training arrays are read."""
COMPARED = 10
"""Number of training batches whose losses before and now are compared."""


def probed(
    case: Case,
    resampler: Resampler,
    losses: tuple[np.ndarray, np.ndarray],
    *,
    model: keras.Model,
    earlier: Weights | None,
    validation_data: Any,
    training_data: Any,
) -> Case:
    """The case, extended by what the model shows under changed conditions. The model is restored afterwards.

    `losses` [n] before and now; `earlier`: the weights before. Raises UserError.
    """
    given = {"earlier": earlier, "validation_data": validation_data, "training_data": training_data}
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"explain was given a model, but not {' and '.join(missing)}. Fix: pass all four, or the losses alone.")
    require_tensorflow("explain with a model")
    from spikewise.keras.data import Examples, predicted  # imports TensorFlow
    from spikewise.keras.loss import CompiledNetwork, Losses

    reference, (before, now) = list(earlier or []), losses
    found_by, validation = Losses(model), Examples(validation_data, "validation_data")
    batches = list(islice(Examples(_mixed(training_data), "training_data", BATCH).batches(), 2 * IMAGES // BATCH))
    network = CompiledNetwork(model, found_by, validation, lambda number: batches[number % len(batches)])
    current = network.weights()
    if [np.shape(weight) for weight in reference] != [weight.shape for weight in current]:
        raise UserError("earlier does not fit the model. Fix: pass what its get_weights() returned before the rise.")
    evaluation = found_by.evaluate(validation)
    if len(evaluation.losses) != len(now):
        raise UserError(
            f"validation_data holds {len(evaluation.losses)} examples, but there are {len(now)} losses. "
            "Fix: pass the same examples."
        )
    steps = np.ones(len(batches), STEP)  # unknown: no step stands out
    scene = Scene(
        network=network,
        spike=case.spike,
        resampler=resampler,
        losses=now,
        reference_losses=before,
        reference=reference,
        path=[(0, reference), (len(batches), current)],
        reference_average=None,
        steps=steps,
        earlier=steps,
        batch_size=BATCH,
    )
    with network.untouched():
        found: list[Probe | None] = [*probes.evaluation(scene), probes.statistics(scene), probes.variance_shift(scene)]
        means = []
        for weights in (reference, current):
            network.assign(weights)
            means.append(float(np.mean([network.batch_losses(number).mean() for number in range(min(len(batches), COMPARED))])))
    known = {probe.name: probe for probe in (*case.probes.values(), *found) if probe is not None}
    few = known.get("few_examples")
    listed = [entry["image"] for entry in few.facts["images"]] if few else []
    return replace(
        case,
        probes=known,
        training=Training(train_rise=means[1] - means[0], train_loss=means[0]),
        hyperparameters=Hyperparameters(momentum=network.momentum, dropout=network.dropout),
        predicted=predicted(evaluation.classes, found_by.predictions(validation, listed)),
    )


def _mixed(data: Any) -> Any:
    """Enough training examples for two estimates of BatchNormalization's statistics: from arrays, a random choice."""
    if not isinstance(data, (tuple, list)) or not len(data):
        return data
    chosen = np.random.default_rng(0).permutation(len(data[0]))[: 2 * IMAGES]
    return [np.asarray(values)[chosen] for values in data if values is not None]
