"""One rise of a validation loss explained after the fact, from two sets of per-example losses and a Keras model.

Less is known here than while a run goes on (SpikeDiagnosis): not the steps in between, so that no step, batch or event can be
blamed; what then remains may be `unexplained`.

Shapes: n validation examples, k batches.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import keras
import numpy as np

from spikewise import attribute, probes
from spikewise.detect import Resampler, threshold
from spikewise.errors import UserError
from spikewise.keras.data import Examples, classes, loss_of, predicted
from spikewise.keras.network import KerasNetwork
from spikewise.probes import IMAGES, Scene, Weights
from spikewise.records import Case, Diagnosis, Hyperparameters, Probe, Spike, Training
from spikewise.steps import GRADIENT, UPDATE
from spikewise.suspects import suspects

BATCH = 50


def explain(
    before: np.ndarray,
    now: np.ndarray,
    *,
    model: keras.Model | None = None,
    earlier: Weights | None = None,
    validation_data: Any = None,
    training_data: Any = None,
    keys: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
    epoch: int = 1,
) -> Diagnosis:
    """Why the mean of `now` [n] is above that of `before` [n], the losses of the same examples in the same order.

    The losses alone tell chance and single examples. With the compiled `model` as it is now, its weights from before (`earlier`,
    from `get_weights()`), `validation_data` and `training_data` (arrays (x, y), a batched tf.data.Dataset or a
    keras.utils.PyDataset) it is evaluated again under changed conditions; afterwards the model is as it was. `keys`, `groups` [n]:
    name and source of each example; `epoch` is the number that the spike is told under. Raises UserError.
    """
    began = time.perf_counter()
    before, now = (np.asarray(losses, float) for losses in (before, now))
    _check(before, now, keys, groups)
    resampler = Resampler(len(now), groups)
    rise, draws = float(now.mean() - before.mean()), resampler.means(now - before)
    low, high = (float(value) for value in np.quantile(draws, [0.025, 0.975]))
    baseline = float(before.mean())
    limit = float(threshold(baseline, 0.0))
    error = float(draws.std())
    spike = Spike(epoch, float(now.mean()), baseline, 0.0, limit, rise, low, high, error, len(now), groups=resampler.groups)
    group, part = resampler.largest(now - before)
    spike = replace(spike, group=group, group_fraction=part)
    scene = Scene(
        network=None,  # type: ignore[arg-type]  # the losses alone do not need one
        spike=spike,
        resampler=resampler,
        losses=now,
        reference_losses=before,
        reference=[],
        path=[],
        reference_average=None,
        steps=np.zeros((0, 7)),
        earlier=np.zeros((0, 7)),
        batch_size=BATCH,
    )
    few = probes.few_examples(scene)
    case = Case(spike, {few.name: few} if few else {}, keys=keys)
    if model is not None:
        case = _probed(case, scene, model, earlier, validation_data, training_data)
    causes = attribute.attribute(case)
    return Diagnosis(spike, causes, tuple(case.probes.values()), case.training, time.perf_counter() - began, suspects(case))


def _check(before: np.ndarray, now: np.ndarray, *names: Sequence[Any] | None) -> None:
    if before.ndim != 1 or before.shape != now.shape or not len(now):
        raise UserError(f"before, now: one loss for each validation example is expected, got shapes {before.shape} and {now.shape}")
    if not np.isfinite(before).all() or not np.isfinite(now).all():
        raise UserError("before, now: every loss must be a finite number; a network whose losses are not has diverged")
    if now.mean() <= before.mean():
        raise UserError(f"the mean loss did not rise: {before.mean():.4g} before, {now.mean():.4g} now")
    for values in names:
        if values is not None and len(values) != len(now):
            raise UserError(f"keys, groups: there are {len(values)} for {len(now)} validation examples")


def _probed(
    case: Case, scene: Scene, model: keras.Model, earlier: Weights | None, validation_data: Any, training_data: Any
) -> Case:
    """The case with what the network shows under changed conditions."""
    given = {"earlier": earlier, "validation_data": validation_data, "training_data": training_data}
    if missing := [name for name, value in given.items() if value is None]:
        raise UserError(f"with a model, {' and '.join(missing)} must be given too")
    loss, validation = loss_of(model), Examples(validation_data)
    batches = _batches(training_data)
    network = KerasNetwork(
        model, lambda: validation.evaluate(network.infer, loss)[0], lambda number: batches[number % len(batches)], loss
    )
    current = network.weights()
    if [np.shape(weight) for weight in earlier or []] != [weight.shape for weight in current]:
        raise UserError("earlier: these are not weights of this model: pass what its get_weights() returned before the rise")
    losses, outputs, labels = validation.evaluate(network.infer, loss)
    if len(losses) != len(scene.losses):
        raise UserError(f"validation_data: it holds {len(losses)} examples, losses were given for {len(scene.losses)}")
    scene.network, scene.reference, scene.path = network, list(earlier or []), [(0, list(earlier or [])), (len(batches), current)]
    scene.steps = np.zeros((len(batches), 7))
    scene.steps[:, [GRADIENT, UPDATE]] = 1.0
    with network.untouched():
        found: list[Probe | None] = [*probes.evaluation(scene), probes.statistics(scene), probes.variance_shift(scene)]
        means = []
        for weights in (scene.reference, current):
            network.assign(weights)
            means.append(float(np.mean([network.batch_losses(number).mean() for number in range(min(len(batches), 10))])))
    known = {probe.name: probe for probe in (*case.probes.values(), *found) if probe is not None}
    few, numbers = known.get("few_examples"), classes(labels, outputs)
    listed = [entry["image"] for entry in few.facts["images"]] if few else []
    return Case(
        case.spike,
        known,
        Training(train_rise=means[1] - means[0], train_loss=means[0]),
        Hyperparameters(momentum=network.momentum),
        keys=case.keys,
        predicted=predicted(listed, numbers, outputs),
    )


def _batches(training_data: Any) -> list[tuple[Any, Any]]:
    """Enough training examples for two estimates of BatchNormalization's statistics; of arrays a random choice."""
    examples = Examples(training_data, "training_data")
    if isinstance(training_data, (tuple, list)):
        x, y = (np.asarray(part) for part in training_data[:2])
        chosen = np.random.default_rng(0).permutation(len(x))[: 2 * IMAGES]
        return [(x[chosen[i : i + BATCH]], y[chosen[i : i + BATCH]]) for i in range(0, len(chosen), BATCH)]
    return list(islice(examples.batches(), 2 * IMAGES // BATCH))
