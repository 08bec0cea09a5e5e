"""SpikeDiagnosis in a plain model.fit: it finds what is there, changes nothing, and explains what a user got wrong."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise import SpikeDiagnosis, UserError
from tests.spikewise.keras.digits import DAMAGED, IMAGES, LABELS, TRAINING, VALIDATION, Damaged, network

EPOCHS = 7
ACCUMULATES = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(gradient_accumulation_steps=4))


@pytest.fixture(scope="module")
def watched():
    """A fit with a spike: model, callback and history."""
    model, spikes = network(), SpikeDiagnosis(VALIDATION, keys=[f"digit-{i:03d}" for i in range(597)])
    history = model.fit(Damaged(), epochs=EPOCHS, validation_data=VALIDATION, shuffle=False, verbose=0, callbacks=[spikes])
    return model, spikes, history.history


def test_a_damaged_batch_is_found_named_and_kept(watched):
    """This is what the callback is for: which batch ruined the epoch, and its images."""
    _, spikes, _ = watched
    (diagnosis,) = spikes.diagnoses
    assert (diagnosis.spike.epoch, diagnosis.verdict.name) == (6, "bad_batch")
    assert list(spikes.bad_batches) == [6]
    images, labels = spikes.bad_batches[6][DAMAGED]
    np.testing.assert_array_equal(images, (IMAGES * 255)[32 * DAMAGED : 32 * DAMAGED + 32].astype(np.float32))
    np.testing.assert_array_equal(labels, LABELS[32 * DAMAGED : 32 * DAMAGED + 32])
    assert spikes.summary.startswith("1 spike in 7 epochs: a bad training batch (epoch 6).")
    assert json.loads(json.dumps(spikes.as_dict()))["spikes"][0]["causes"][0]["name"] == "bad_batch"


def test_training_is_bit_for_bit_what_it_was(watched):
    """A diagnosis that changed the run would explain another run; this one has a spike, so that probes were made."""
    model, _, history = watched
    alone = network()
    assert alone.fit(Damaged(), epochs=EPOCHS, validation_data=VALIDATION, shuffle=False, verbose=0).history == history
    for with_it, without in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(with_it, without)


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_arrays_and_datasets_train_as_without_it(kind, capsys):
    """The same must hold for shuffled arrays and for tf.data, which Keras passes to the step in other ways."""
    checked = tf.data.Dataset.from_tensor_slices(VALIDATION).batch(100)
    found = []
    for callbacks in ([], [SpikeDiagnosis(checked)]):
        model = network()
        data = tf.data.Dataset.from_tensor_slices(TRAINING).shuffle(1200, seed=3).batch(50)
        arguments = {"x": data, "shuffle": None} if kind == "dataset" else {"x": TRAINING[0], "y": TRAINING[1], "batch_size": 50}
        found.append(model.fit(**arguments, epochs=3, verbose=0, callbacks=callbacks).history)
    assert found[0]["loss"] == found[1]["loss"]
    assert found[1]["val_loss"][-1] == pytest.approx(model.evaluate(*VALIDATION, verbose=0), rel=1e-5)
    assert capsys.readouterr().out == "No spike in 3 epochs.\n"


def test_a_spike_is_printed_between_two_epochs(capsys):
    """Otherwise the text would be torn apart by the progress bar, or appear when the run is over."""
    spikes = SpikeDiagnosis(VALIDATION)
    model = network()
    raise_it = keras.callbacks.LearningRateScheduler(lambda epoch: 0.3 if epoch == 5 else 1e-3)
    model.fit(*TRAINING, epochs=7, verbose=2, callbacks=[spikes, raise_it])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("SPIKE in epoch 6: validation loss"))
    assert lines.index("Epoch 6/7") < at < lines.index("Epoch 7/7")
    assert spikes.diagnoses[0].verdict.name == "run_event"
    assert "The learning rate was changed from 0.001 to 0.3 before step 1 of the epoch" in spikes.diagnoses[0].verdict.evidence
    assert lines[-1] == spikes.summary
    model.fit(*TRAINING, epochs=1, verbose=0, callbacks=[spikes])
    assert "in 8 epochs" in spikes.summary


PEAK = 1e-2
STEPS = 10 * 37
"""Ten epochs of warm-up."""


class Linear(keras.optimizers.schedules.LearningRateSchedule):
    """Rises to PEAK within STEPS steps."""

    def __call__(self, step):
        return PEAK * tf.minimum((tf.cast(step, tf.float32) + 1) / STEPS, 1.0)

    def get_config(self):
        return {}


@pytest.mark.parametrize(
    ("rate", "callback"),
    [
        (Linear(), None),
        (keras.optimizers.schedules.CosineDecay(0.0, 10 * STEPS, warmup_target=PEAK, warmup_steps=STEPS), None),
        (1e-3, keras.callbacks.LearningRateScheduler(lambda epoch: PEAK * (epoch + 1) / 10)),
        (3e-3, keras.callbacks.LearningRateScheduler(lambda epoch: 3e-3 if epoch < 3 else 3e-4)),
    ],
    ids=["linear", "cosine", "by epoch", "step down"],
)
def test_a_schedule_is_not_blamed_for_a_damaged_batch(rate, callback):
    """Warm-up is what the remedies themselves ask for; with it, everything in the first epochs would be blamed on it."""
    spikes, model = SpikeDiagnosis(VALIDATION, sensitivity=2), network(optimizer=keras.optimizers.Adam(rate))
    callbacks = [spikes, *([callback] if callback else [])]
    model.fit(Damaged(), epochs=6, shuffle=False, verbose=0, callbacks=callbacks)
    assert [(found.spike.epoch, found.verdict.name) for found in spikes.diagnoses][-1:] == [(6, "bad_batch")]
    assert not [cause for found in spikes.diagnoses for cause in found.causes if cause.name in ("run_event", "overshoot")]


def test_an_interrupted_fit_leaves_nothing_behind(watched):
    """In a notebook, fits are interrupted; the next one on the same model must be an ordinary one."""
    model, spikes, _ = watched

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            if batch == 20:
                raise KeyboardInterrupt

    assert f"in {EPOCHS} epochs" in spikes.summary
    with pytest.raises(KeyboardInterrupt):
        model.fit(*TRAINING, verbose=0, callbacks=[spikes, Stop()])
    model.fit(*TRAINING, verbose=0, callbacks=[spikes])
    assert f"in {EPOCHS + 1} epochs" in spikes.summary
    model.fit(*TRAINING, verbose=0)
    assert f"in {EPOCHS + 1} epochs" in spikes.summary


def test_a_failed_diagnosis_does_not_end_the_training(capsys, monkeypatch):
    """Otherwise a defect of the diagnosis would cost the user the training run."""
    spikes = SpikeDiagnosis(VALIDATION)

    def fail(*arguments, **options):  # noqa: ARG001
        raise RuntimeError("a defect")

    monkeypatch.setattr("spikewise.diagnose.Diagnostician.close_epoch", fail)
    history = network().fit(*TRAINING, epochs=2, verbose=0, callbacks=[spikes]).history
    assert len(history["loss"]) == len(history["val_loss"]) == 2
    assert "warning: the diagnosis of epoch" in capsys.readouterr().out


def _fit(data, *, fresh=None, **options):
    (fresh or network()).fit(IMAGES[:64], LABELS[:64], epochs=2, verbose=0, callbacks=[SpikeDiagnosis(data, **options)])


def _fit_two_models():
    spikes = SpikeDiagnosis(VALIDATION)
    for model in (network(), network()):
        model.fit(IMAGES[:64], LABELS[:64], verbose=0, callbacks=[spikes])


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: _fit(VALIDATION[0]), "validation_data is of type ndarray"),
        (lambda: _fit((VALIDATION[0],)), r"validation_data has 1 parts. Fix: pass \(x, y\)"),
        (lambda: _fit((VALIDATION[0], VALIDATION[1][:5])), r"y of shape \(5,\). Fix: pass equally many"),
        (lambda: _fit((IMAGES[:0], LABELS[:0])), "at least 1"),
        (lambda: _fit(([[1], [1, 2]], LABELS[:2])), "two arrays of numbers"),
        (lambda: _fit(iter([VALIDATION])), "can be read only once"),
        (lambda: _fit((VALIDATION[0][:, :4], VALIDATION[1])), r"cannot evaluate a batch of .* x of shape \(128, 4, 8\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION).batch(9).repeat()), "never ends"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION)), "cannot evaluate"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION[0]).batch(9)), r"are not pairs \(x, y\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION).shuffle(597).batch(99)), "in a different order each time"),
        (lambda: _fit(VALIDATION, keys=["a"]), "keys has 1 entries for 597"),
        (lambda: _fit(VALIDATION, fresh=network(steps_per_execution=4)), "steps_per_execution=4"),
        (lambda: _fit(VALIDATION, fresh=network(optimizer=ACCUMULATES)), "gradient_accumulation_steps=4"),
        (_fit_two_models, "watches another model"),
    ],
)
def test_mistakes_are_explained_in_one_line(attempt, message):
    """Otherwise a user would get a traceback from within TensorFlow, or wrong numbers."""
    with pytest.raises(UserError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)
