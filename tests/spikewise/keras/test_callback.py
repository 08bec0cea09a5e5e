"""The diagnosis for a plain model.fit: it finds what is there, changes nothing, and says what a user got wrong."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from spikewise.compare import explain
from spikewise.keras.callback import SpikeDiagnosis, _Batches, _Recorder
from spikewise.steps import GRADIENT, LOSS, UPDATE
from trainer import UserError

IMAGES, LABELS = load_digits().images / 16, load_digits().target
VALIDATION = IMAGES[1200:], LABELS[1200:]
DAMAGED, EPOCHS = 30, 7
ACCUMULATES = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(gradient_accumulation_steps=4))


class Damaged(keras.utils.PyDataset):
    """The digits in batches of 32; in the sixth epoch one batch was not scaled."""

    epoch = 0

    def on_epoch_begin(self):
        self.epoch += 1

    def __len__(self):
        return 37

    def __getitem__(self, number):
        rows = slice(32 * number, 32 * number + 32)
        return IMAGES[rows] * (255 if self.epoch == 6 and number == DAMAGED else 1), LABELS[rows]


def network(momentum=0.9, optimizer=None):
    """A small one with BatchNormalization and dropout, always the same."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8)),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.BatchNormalization(momentum=momentum),
            layers.Dropout(0.2),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer or keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


@pytest.fixture(scope="module")
def watched():
    """A fit that spikes: model, callback, history and what was printed before each epoch's end."""
    model, spikes = network(), SpikeDiagnosis(VALIDATION, keys=[f"digit-{i:03d}" for i in range(597)])
    history = model.fit(Damaged(), epochs=EPOCHS, validation_data=VALIDATION, shuffle=False, verbose=0, callbacks=[spikes])
    return model, spikes, history.history


def test_a_damaged_batch_is_found_named_and_kept(watched):
    """What the callback is for: which batch ruined the epoch, and its images."""
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
    """A diagnosis that changes the run explains another one; here with a spike, so that probes were made."""
    model, _, history = watched
    alone = network()
    assert alone.fit(Damaged(), epochs=EPOCHS, validation_data=VALIDATION, shuffle=False, verbose=0).history == history
    for with_it, without in zip(model.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_array_equal(with_it, without)


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_arrays_and_datasets_train_as_without_it(kind, capsys):
    """The same for shuffled arrays and for tf.data, where Keras feeds the step in other ways."""
    checked = tf.data.Dataset.from_tensor_slices(VALIDATION).batch(100)
    found = []
    for callbacks in ([], [SpikeDiagnosis(checked)]):
        model = network()
        data = tf.data.Dataset.from_tensor_slices((IMAGES[:1200], LABELS[:1200])).shuffle(1200, seed=3).batch(50)
        arguments = (
            {"x": data, "shuffle": None} if kind == "dataset" else {"x": IMAGES[:1200], "y": LABELS[:1200], "batch_size": 50}
        )
        found.append(model.fit(**arguments, epochs=3, verbose=0, callbacks=callbacks).history)
    assert found[0]["loss"] == found[1]["loss"]
    assert found[1]["val_loss"][-1] == pytest.approx(model.evaluate(*VALIDATION, verbose=0), rel=1e-5)
    assert capsys.readouterr().out == "No spike in 3 epochs.\n"


def test_a_spike_is_told_between_two_epochs(capsys):
    """It would be torn apart by the progress bar, or come when the run is over."""
    spikes = SpikeDiagnosis(VALIDATION)
    model = network()
    raise_it = keras.callbacks.LearningRateScheduler(lambda epoch: 0.3 if epoch == 5 else 1e-3)
    model.fit(IMAGES[:1200], LABELS[:1200], epochs=7, verbose=2, callbacks=[spikes, raise_it])
    lines = capsys.readouterr().out.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("SPIKE in epoch 6: validation loss"))
    assert lines.index("Epoch 6/7") < at < lines.index("Epoch 7/7")
    assert spikes.diagnoses[0].verdict.name == "run_event"
    assert "The learning rate was changed from 0.001 to 0.3 before step 1 of the epoch" in spikes.diagnoses[0].verdict.evidence
    assert lines[-1] == spikes.summary
    model.fit(IMAGES[:1200], LABELS[:1200], epochs=1, verbose=0, callbacks=[spikes])
    assert "in 8 epochs" in spikes.summary


@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.Adam(1e-3), keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.RMSprop()],
    ids=["adam", "sgd", "momentum", "another"],
)
def test_steps_are_measured_from_outside(optimizer):
    """Wrong lengths or gradients: the wrong step would be blamed."""
    model = network(optimizer=optimizer)
    model.layers[3].rate = 0.0  # without dropout, so that gradients can be taken again
    optimizer.build(model.trainable_variables)
    recorder = _Recorder(model)
    expected = []
    total = 0.0
    for number in range(3):
        x, y = tf.constant(IMAGES[:32], tf.float32), tf.constant(LABELS[:32])
        before = [v.numpy() for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, model(x, training=True)))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        total += float(loss)

        def train(gradients=gradients, mean=total / (number + 1)):
            optimizer.apply(gradients, model.trainable_variables)
            return {"loss": mean}

        recorder(32, train)
        length = np.sqrt(sum(np.sum((v.numpy() - b) ** 2) for v, b in zip(model.trainable_variables, before, strict=True)))
        known = not isinstance(optimizer, keras.optimizers.RMSprop)
        expected.append((float(loss), float(tf.linalg.global_norm(gradients)) if known else 1.0, length))
    steps, rates = recorder.steps()
    np.testing.assert_allclose(steps[:, [LOSS, GRADIENT, UPDATE]], expected, rtol=1e-4)
    np.testing.assert_allclose(rates, float(optimizer.learning_rate), rtol=1e-6)


def test_batches_beyond_the_memory_are_thinned():
    """A large data set would fill the machine's memory."""
    batches = _Batches(4 * 80)
    for number in range(20):
        batches.add(np.full((8, 1), number, float), np.zeros(2, float))
    assert len(batches._kept) <= 4
    assert [float(batches(i)[0][0, 0]) for i in (0, 7, 19)] == [0, 8, 16]


def test_an_interrupted_fit_leaves_nothing_behind(watched):
    """In a notebook fits are interrupted; the next one, on the same model, must be an ordinary one."""
    model, first, _ = watched

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
            if batch == 20:
                raise KeyboardInterrupt

    known = first._diagnostician.detector.epoch
    with pytest.raises(KeyboardInterrupt):
        model.fit(IMAGES[:1200], LABELS[:1200], verbose=0, callbacks=[first, Stop()])
    model.fit(IMAGES[:1200], LABELS[:1200], verbose=0, callbacks=[first])
    assert first._diagnostician.detector.epoch == known + 1
    model.fit(IMAGES[:1200], LABELS[:1200], verbose=0)
    assert first._diagnostician.detector.epoch == known + 1


def _fit(data, *, fresh=None, train=(IMAGES[:64], LABELS[:64]), **options):
    (fresh or network()).fit(*train, epochs=2, verbose=0, callbacks=[SpikeDiagnosis(data, **options)])


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: _fit(VALIDATION[0]), "validation data: .* got ndarray"),
        (lambda: _fit((VALIDATION[0],)), r"\(x, y\) is expected, got 1 part"),
        (lambda: _fit((VALIDATION[0], VALIDATION[1][:5])), "the same number of examples"),
        (lambda: _fit((IMAGES[:0], LABELS[:0])), "the same number of examples, not 0"),
        (lambda: _fit(iter([VALIDATION])), "can be read only once"),
        (lambda: _fit((VALIDATION[0][:, :4], VALIDATION[1])), r"cannot evaluate a batch with x of shape \(128, 4, 8\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION).batch(9).repeat()), "never ends"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION)), "cannot evaluate"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION[0]).batch(9)), r"batches of \(x, y\)"),
        (lambda: _fit(tf.data.Dataset.from_tensor_slices(VALIDATION).shuffle(597).batch(99)), "in another order each time"),
        (lambda: _fit(VALIDATION, keys=["a"]), "keys: there are 1 for 597"),
        (lambda: _fit(VALIDATION, fresh=_compiled(steps_per_execution=4)), "steps_per_execution=4"),
        (lambda: _fit(VALIDATION, fresh=network(optimizer=ACCUMULATES)), "gradient_accumulation_steps=4"),
        (lambda: explain(np.ones(3), np.ones(4)), r"got shapes \(3,\) and \(4,\)"),
        (lambda: explain(np.ones(3), np.ones(3)), "did not rise: 1 before, 1 now"),
        (lambda: explain(np.ones(3), np.full(3, np.nan)), "must be a finite number"),
        (lambda: explain(np.ones(3), np.full(3, 2.0), model=network()), "earlier and validation_data and training_data must"),
    ],
)
def test_mistakes_end_in_a_line(attempt, message):
    """A traceback from within TensorFlow tells a user nothing, and a wrong number worse than nothing."""
    with pytest.raises(UserError, match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def _compiled(**options):
    model = network()
    model.compile("adam", "sparse_categorical_crossentropy", **options)
    return model


def test_losses_alone_tell_single_images_from_chance():
    """Whoever has nothing but two sets of losses would get no answer."""
    before = np.random.default_rng(0).gamma(1, 0.3, 400)
    few, chance = before.copy(), before + np.random.default_rng(1).normal(0, 1, 400) * (np.arange(400) % 2)
    few[[3, 5]] += 40
    chance += before.mean() + 0.02 - chance.mean()
    told = explain(before, few, keys=[f"image-{i}" for i in range(400)])
    assert told.verdict.name == "few_examples"
    assert "image-3" in told.verdict.remedy
    assert explain(before, chance).verdict.name == "sampling_noise"


def test_two_sets_of_losses_and_a_model_tell_lost_statistics(watched):
    """The plain function would not reach the causes that need the network, or leave it changed."""
    model, _, _ = watched
    rise = keras.models.clone_model(model)
    rise.compile(loss=keras.losses.SparseCategoricalCrossentropy())
    rise.set_weights(model.get_weights())
    norm = next(layer for layer in rise.layers if isinstance(layer, keras.layers.BatchNormalization))
    earlier, before = rise.get_weights(), _losses(rise)
    norm.moving_variance.assign(norm.moving_variance * 40)
    spoiled, now = rise.get_weights(), _losses(rise)
    told = explain(
        before, now, model=rise, earlier=earlier, validation_data=VALIDATION, training_data=(IMAGES[:1200], LABELS[:1200])
    )
    assert told.verdict.name == "batchnorm_statistics"
    assert told.verdict.fraction > 0.9
    for kept, was in zip(rise.get_weights(), spoiled, strict=True):
        np.testing.assert_array_equal(kept, was)


def _losses(model):
    return keras.losses.sparse_categorical_crossentropy(VALIDATION[1], model.predict(VALIDATION[0], verbose=0)).numpy()


def test_no_ray_no_cluster_no_storage():
    """Somebody who wants the diagnosis alone would have to install all of it."""
    script = (
        "import sys\n"
        "for name in ('ray', 'boto3', 'botocore', 'prometheus_client', 'pyarrow', 'pydantic', 'jinja2'):\n"
        "    sys.modules[name] = None\n"
        "import spikewise, spikewise.describe, spikewise.diagnose\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
        "import spikewise.keras.callback, spikewise.compare\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
