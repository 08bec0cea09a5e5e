"""SpikeDiagnosis in a plain model.fit: it finds what is there, changes nothing, and explains what a user got wrong."""

import copy
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise import SpikeDiagnosis, UserError
from tests.spikewise.keras.digits import DAMAGED, IMAGES, LABELS, TRAINING, VALIDATION, Damaged, network

EPOCHS = 7


class Shuffles(keras.utils.PyDataset):
    """Comes in another order in each epoch."""

    order = np.arange(64)

    def __len__(self):
        return 2

    def __getitem__(self, number):
        rows = self.order[32 * number : 32 * number + 32]
        return IMAGES[rows], LABELS[rows]

    def on_epoch_end(self):
        self.order = np.random.default_rng(self.order[0]).permutation(64)


SHUFFLES = Shuffles()
ACCUMULATES = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(gradient_accumulation_steps=4))


@pytest.fixture(scope="module")
def watched():
    """A fit with a spike: model, callback and history."""
    model, spikes = network(), SpikeDiagnosis(VALIDATION, keys=[f"digit-{i:03d}" for i in range(597)])
    history = model.fit(Damaged(), epochs=EPOCHS, validation_data=VALIDATION, shuffle=False, verbose=0, callbacks=[spikes])
    return model, spikes, history.history


def test_a_damaged_batch_is_found_named_and_kept(watched):
    """This is what the callback is for: which batch ruined the epoch, and its images."""
    model, spikes, _ = watched
    (diagnosis,) = spikes.diagnoses
    assert (diagnosis.spike.epoch, diagnosis.verdict.name) == (6, "bad_batch")
    assert list(spikes.bad_batches) == [6]
    images, labels = spikes.bad_batches[6][DAMAGED]
    np.testing.assert_array_equal(images, (IMAGES * 255)[32 * DAMAGED : 32 * DAMAGED + 32].astype(np.float32))
    np.testing.assert_array_equal(labels, LABELS[32 * DAMAGED : 32 * DAMAGED + 32])
    assert spikes.summary.startswith("1 spike in 7 epochs: a bad training batch (epoch 6).")
    assert json.loads(json.dumps(spikes.as_dict()))["spikes"][0]["causes"][0]["name"] == "bad_batch"
    (mover, *_) = next(probe.facts["movers"] for probe in diagnosis.probes if probe.name == "higher_momentum")
    (norm,) = (layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    assert mover["step"] == DAMAGED
    assert list(mover["channels"]) == [norm.name]


def test_training_is_bit_for_bit_what_it_was(watched):
    """A diagnosis that changed the run would explain another run; this one has a spike, so that probes were made."""
    model, _, history = watched
    alone = network()
    assert alone.fit(Damaged(), epochs=EPOCHS, validation_data=VALIDATION, shuffle=False, verbose=0).history == history
    for with_it, without in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(with_it, without)


def _layers(*more):
    layers = keras.layers
    return [
        layers.Flatten(),
        layers.Dense(16, activation="relu"),
        layers.BatchNormalization(),
        layers.Dropout(0.3),
        *more,
        layers.Dense(10, "softmax"),
    ]


class Samples(keras.Layer):
    """Draws random numbers in inference too, from Keras' global generator."""

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x))


class OwnStep(keras.Sequential):
    """A training step as Keras' guide writes it, which reports the loss of its batch."""

    def train_step(self, data):
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            loss = self.compute_loss(y=y, y_pred=self(x, training=True), sample_weight=weights)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


def _arrays():
    return {"x": TRAINING[0][:200], "y": TRAINING[1][:200], "batch_size": 64}


def _dataset():
    return tf.data.Dataset.from_tensor_slices(TRAINING).take(200).shuffle(200, seed=3).batch(64)


def _endless():
    while True:
        yield TRAINING[0][:50].astype("float32"), TRAINING[1][:50]


TRAININGS = {
    "arrays": (lambda: keras.Sequential([keras.Input((8, 8)), *_layers()]), _arrays, {}),
    "dataset": (lambda: keras.Sequential([keras.Input((8, 8)), *_layers()]), lambda: {"x": _dataset()}, {}),
    "unknown length": (
        lambda: keras.Sequential([keras.Input((8, 8)), *_layers()]),
        lambda: {"x": _dataset().filter(lambda x, y: True)},  # noqa: ARG005
        {},
    ),
    "generator": (
        lambda: keras.Sequential([keras.Input((8, 8)), *_layers()]),
        lambda: {"x": _endless(), "steps_per_epoch": 3},
        {},
    ),
    "class weights": (
        lambda: keras.Sequential([keras.Input((8, 8)), *_layers()]),
        lambda: {**_arrays(), "class_weight": {3: 5.0}},
        {},
    ),
    "not built": (lambda: keras.Sequential(_layers()), _arrays, {}),
    "samples in inference": (lambda: keras.Sequential(_layers(Samples())), _arrays, {}),
    "own step": (lambda: OwnStep([keras.Input((8, 8)), *_layers()]), _arrays, {}),
    "eager": (lambda: keras.Sequential(_layers()), _arrays, {"run_eagerly": True}),
    "jit_compile": (lambda: keras.Sequential(_layers()), _arrays, {"jit_compile": True}),
    "mixed_float16": (lambda: keras.Sequential([keras.Input((8, 8)), *_layers()]), _arrays, {}),
}


@pytest.mark.parametrize(
    "name", [name if name == "unknown length" else pytest.param(name, marks=pytest.mark.integration) for name in TRAININGS]
)
def test_every_kind_of_training_goes_on_as_without_it(name, capsys):
    """Keras passes batches to the step in many ways, and draws random numbers in several places. None may notice the callback; two
    fits, so that what it leaves behind would show."""
    make, data, options = TRAININGS[name]
    policy = "mixed_float16" if name == "mixed_float16" else "float32"
    found = []
    for watched in (False, True):
        keras.utils.set_random_seed(1)
        keras.mixed_precision.set_global_policy(policy)
        try:
            model = make()
            model.compile("adam", "sparse_categorical_crossentropy", **options)
            callbacks = [SpikeDiagnosis((IMAGES[1200:1264], LABELS[1200:1264]))] if watched else []
            histories = [model.fit(**data(), epochs=2, verbose=0, callbacks=callbacks).history for _ in range(2)]
        finally:
            keras.mixed_precision.set_global_policy("float32")
        iterations = int(getattr(model.optimizer, "inner_optimizer", model.optimizer).iterations)
        found.append(([history["loss"] for history in histories], iterations, model.get_weights(), histories))
    (losses, iterations, weights, _), (others, others_iterations, others_weights, histories) = found
    assert (losses, iterations) == (others, others_iterations)
    for one, other in zip(weights, others_weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert re.findall(r"No spike in \d epochs", capsys.readouterr().out) == ["No spike in 2 epochs", "No spike in 4 epochs"]
    if name != "samples in inference":
        shown = model.evaluate(IMAGES[1200:1264], LABELS[1200:1264], verbose=0)
        assert histories[1]["val_loss"][-1] == pytest.approx(shown, rel=1e-4)


@pytest.mark.integration
def test_training_in_float64_is_watched():
    """Keras then keeps the learning rate in float64 as well, and every epoch would end in an error."""
    keras.config.set_floatx("float64")
    try:
        spikes = SpikeDiagnosis(VALIDATION)
        network().fit(Damaged(5), initial_epoch=5, epochs=6, shuffle=False, verbose=0, callbacks=[spikes])
    finally:
        keras.config.set_floatx("float32")
    assert spikes.parts


@pytest.mark.integration
def test_validation_images_prepared_in_another_way_are_found_in_the_first_epoch():
    """Forgotten rescaling is what most people ask about; from the second epoch on, it looks like overfitting."""
    spikes = SpikeDiagnosis((255 * VALIDATION[0], VALIDATION[1]))
    network().fit(*TRAINING, epochs=2, verbose=0, callbacks=[spikes])
    (standing,) = spikes.standing
    assert standing.name == "appearance"
    assert re.match(r"Their contrast is \d\d\.\d on average, that of training images 0\.\d+; with", standing.finding)
    proven = re.search(r"their loss is ([0-9.]+) instead of ([0-9.]+)\.", standing.finding)
    assert 10 * float(proven[1]) < float(proven[2])


def test_an_epoch_is_diagnosed_on_request(capsys):
    """A user who wonders about a small rise would be told that there was no alarm, and nothing else."""
    keras.utils.set_random_seed(1)
    spikes = SpikeDiagnosis(VALIDATION, epochs=[6])
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: 0.05 if epoch == 5 else 1e-3)
    ask = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, _: spikes.epochs.add(7) if epoch == 6 else None)
    network().fit(*TRAINING, epochs=7, verbose=0, callbacks=[spikes, rates, ask])
    said = capsys.readouterr().out
    assert list(spikes.requested) == [6]
    assert spikes.requested[6].verdict.name == "run_event"
    assert "No alarm in epoch 6: the loss rose by" in said
    assert "Epoch 7: the validation loss did not rise above the expected one" in said
    assert spikes.diagnoses == []
    assert "No spike in 7 epochs" in spikes.summary or "No alarm in 7 epochs" in spikes.summary
    assert copy.deepcopy(spikes).epochs == {6}


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


SCHEDULES = {
    "linear": (Linear(), None),
    "cosine": (keras.optimizers.schedules.CosineDecay(0.0, 10 * STEPS, warmup_target=PEAK, warmup_steps=STEPS), None),
    "by epoch": (1e-3, keras.callbacks.LearningRateScheduler(lambda epoch: PEAK * (epoch + 1) / 10)),
    "step down": (3e-3, keras.callbacks.LearningRateScheduler(lambda epoch: 3e-3 if epoch < 3 else 3e-4)),
}
"""The optimizer's learning rate, and a callback that sets it."""


@pytest.mark.parametrize(
    "name", [name if name == "linear" else pytest.param(name, marks=pytest.mark.integration) for name in SCHEDULES]
)
def test_a_schedule_is_not_blamed_for_a_damaged_batch(name):
    """Warm-up is what the remedies themselves ask for; with it, everything in the first epochs would be blamed on it."""
    rate, callback = SCHEDULES[name]
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
    assert "warning: the diagnosis of epoch 2 failed" in capsys.readouterr().out


def test_validation_data_that_change_their_order_later_do_not_end_the_training(capsys):
    """An epoch of work may be hours; what was not found before is said, not raised."""
    data = Shuffles()
    data.on_epoch_end = lambda: None
    swap = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: setattr(data, "order", data.order[:: 1 - 2 * epoch]))  # noqa: ARG005
    history = network().fit(IMAGES[:64], LABELS[:64], epochs=2, verbose=0, callbacks=[SpikeDiagnosis(data), swap]).history
    assert len(history["val_loss"]) == 2
    assert "warning: validation_data came in another order in epoch 2" in capsys.readouterr().out


def test_numbers_of_numpy_are_numbers():
    """A batch size computed with NumPy would be refused as "not a number"."""
    SpikeDiagnosis(VALIDATION, batch_size=np.int64(64), sensitivity=np.float32(2), memory=np.int64(2**30))


def test_memory_bounds_the_batches_and_the_sample():
    """Large images would fill the machine's memory."""
    spikes = SpikeDiagnosis(VALIDATION, memory=2**17)  # 256 images of 512 bytes, in float32 twice as many
    kept = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: kept.append((len(spikes._watch._batches), len(spikes._watch._sample)))  # noqa: ARG005
    )
    network().fit(*TRAINING, batch_size=32, epochs=1, verbose=0, callbacks=[spikes, count])
    assert max(number for number, _ in kept) <= 12
    assert max(number for _, number in kept) == 3


def _fit(data, *, fresh=None, **options):
    (fresh or network()).fit(IMAGES[:64], LABELS[:64], epochs=2, verbose=0, callbacks=[SpikeDiagnosis(data, **options)])


class Augmented(keras.utils.PyDataset):
    """Turns images upside down at random."""

    generator = np.random.default_rng(0)

    def __len__(self):
        return 8

    def __getitem__(self, number):
        rows = slice(8 * number, 8 * number + 8)
        return IMAGES[rows, :: self.generator.choice([1, -1])], LABELS[rows]


def _loop():
    callbacks = keras.callbacks.CallbackList([SpikeDiagnosis(VALIDATION)], model=network())
    callbacks.on_train_begin()


def _mirrored():
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        return network()


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
        (lambda: _fit(([[1], [1, 2]], LABELS[:2])), "arrays of numbers"),
        (lambda: _fit(iter([VALIDATION])), "can be read only once"),
        (lambda: _fit((VALIDATION[0][:, :4], VALIDATION[1])), r"cannot evaluate a batch of .* x of shape \(32, 4, 8\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION).batch(9).repeat()), "never ends"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION)), "cannot evaluate"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION[0]).batch(9)), r"are not pairs \(x, y\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION).shuffle(597).batch(99)), "in a different order each time"),
        (lambda: _fit(Augmented()), r"other examples each time it is read, .* Fix: add \.cache\(\)"),
        (_loop, "watches model.fit alone"),
        (lambda: _fit(SHUFFLES), r"in a different order each time it is read\. Fix: add \.cache\(\)"),
        (lambda: _fit(VALIDATION, keys=["a"]), "keys has 1 entries for 597"),
        (lambda: _fit(VALIDATION, batch_size=0), "batch_size=0 is not a number of at least 1"),
        (lambda: _fit((*VALIDATION, LABELS[:3])), r"sample_weight of shape \(3,\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(({"a": IMAGES}, LABELS)).batch(9)), "only models with one input"),
        (lambda: _fit(VALIDATION, fresh=network(steps_per_execution=4)), "steps_per_execution=4"),
        (lambda: _fit(VALIDATION, fresh=network(optimizer=ACCUMULATES)), "gradient_accumulation_steps=4"),
        (lambda: _fit(VALIDATION, fresh=_mirrored()), "trains on 1 under MirroredStrategy"),
        (_fit_two_models, "watches another model"),
    ],
)
def test_mistakes_are_explained_in_one_line(attempt, message):
    """Otherwise a user would get a traceback from within TensorFlow, or wrong numbers."""
    with pytest.raises(UserError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)
    assert ". Fix: " in str(caught.value)
