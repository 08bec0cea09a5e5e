"""The life of a SpikeDiagnosis: interrupted, resumed, two at a time, compiled again, and never in the way."""

import copy
import gc
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise import SpikeDiagnosis, UserError
from spikewise.keras.tap import BatchTap
from tests.spikewise.keras.digits import DAMAGED, IMAGES, LABELS, TRAINING, VALIDATION, Damaged, network

FEW, CHECKED = (IMAGES[:96], LABELS[:96]), (IMAGES[1200:1300], LABELS[1200:1300])
several_fits = pytest.mark.integration
"""For tests of several seconds."""


class Raises(keras.callbacks.Callback):
    """Raises at one of the places where other callbacks do."""

    def __init__(self, where, error=KeyboardInterrupt):
        super().__init__()
        self.where, self.error = where, error

    def _raise(self, where, number=1):
        if where == self.where and number:
            raise self.error

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        self._raise("batch begin", batch)

    def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
        self._raise("batch end", batch)

    def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
        self._raise("epoch end")


def unsteady():
    """Data that fail in the middle; Keras reads the first batches before it trains."""
    for _ in range(5):
        yield FEW[0][:32], FEW[1][:32]
    raise RuntimeError("a broken file")


@pytest.mark.parametrize(
    "where", ["batch end", *(pytest.param(one, marks=several_fits) for one in ("data", "batch begin", "epoch end"))]
)
def test_however_a_fit_ends_the_model_is_an_ordinary_one(where):
    """In a notebook, fits are interrupted. What comes next must neither fail nor be watched, and hold no batches."""
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    data = {"x": unsteady()} if where == "data" else {"x": FEW[0], "y": FEW[1]}
    with pytest.raises((KeyboardInterrupt, tf.errors.OpError)):
        model.fit(**data, epochs=2, verbose=0, callbacks=[spikes, Raises(where)])
    assert isinstance(model.train_function, BatchTap) == (where == "batch begin")  # until the next step
    model.train_on_batch(*FEW)
    assert not isinstance(model.train_function, BatchTap)
    x = tf.data.Dataset.from_tensor_slices((FEW[0].astype("float32"), FEW[1].astype("int32"))).batch(48)
    model.fit(x, epochs=2, verbose=0)
    gc.collect()  # the frames of the interrupted fit
    assert not len(spikes._watch._batches)
    model.fit(*FEW, initial_epoch=2, epochs=5, verbose=0, callbacks=[spikes])
    assert f"No spike in {4 if where == 'epoch end' else 3} epochs." in spikes.summary
    assert spikes._watch._diagnostician.detector.epoch == 5


@several_fits
def test_an_interrupted_step_leaves_no_tap_to_a_fit_on_other_data():
    """The tap that waits for its step may meet a fit without this callback, on data that it would refuse."""
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    with pytest.raises(KeyboardInterrupt):
        model.fit(*FEW, verbose=0, callbacks=[spikes, Raises("batch begin")])
    x = tf.data.Dataset.from_tensor_slices((FEW[0].astype("float16"), FEW[1].astype("int32"))).batch(48)
    model.fit(x, verbose=0)
    assert not isinstance(model.train_function, BatchTap)
    assert not len(spikes._watch._batches)


@several_fits
def test_two_watch_one_fit():
    """A second validation set, say in another domain: both must see every step, and training must not change."""
    histories, found = [], []
    for count in (0, 2):
        model = network()
        callbacks = [SpikeDiagnosis((IMAGES[i : i + 100], LABELS[i : i + 100])) for i in range(1200, 1200 + 100 * count, 100)]
        history = model.fit(Damaged(), epochs=6, shuffle=False, verbose=0, callbacks=callbacks).history
        histories.append((history["loss"], model.get_weights()))
        found = callbacks
    assert histories[0][0] == histories[1][0]
    for weights, others in zip(histories[0][1], histories[1][1], strict=True):
        np.testing.assert_array_equal(weights, others)
    assert [[(d.spike.epoch, d.verdict.name) for d in spikes.diagnoses] for spikes in found] == [[(6, "bad_batch")]] * 2
    assert [list(spikes.bad_batches[6]) for spikes in found] == [[DAMAGED]] * 2


@several_fits
def test_a_fit_within_a_fit_is_its_own():
    """Callbacks train other models between epochs: probes of features, students, discriminators."""
    inner = SpikeDiagnosis(CHECKED)
    small = network()

    class Nested(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):  # noqa: ARG002
            small.fit(*FEW, verbose=0, callbacks=[inner])
            self.model.train_on_batch(*FEW)

    outer = SpikeDiagnosis(CHECKED)
    network().fit(*FEW, epochs=3, verbose=0, callbacks=[outer, Nested()])
    assert [spikes.summary.partition(".")[0] for spikes in (outer, inner)] == ["No spike in 3 epochs"] * 2


def test_a_copy_is_a_new_one():
    """Tuners copy the callbacks for each trial, before and after it."""
    spikes = SpikeDiagnosis(CHECKED, keys=[str(i) for i in range(100)], sensitivity=2, batch_size=64)
    network().fit(*FEW, verbose=0, callbacks=[spikes])
    other = copy.deepcopy(spikes)
    assert other.summary == "No epoch was finished."
    assert "No spike in 1 epoch." in spikes.summary
    network().fit(*FEW, verbose=0, callbacks=[other])
    assert "No spike in 1 epoch." in other.summary


def _trained(tmp_path=None):
    """A model trained for five epochs, and its callback."""
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    model.fit(IMAGES[:1184], LABELS[:1184], epochs=5, verbose=0, shuffle=False, callbacks=[spikes])
    if tmp_path is not None:
        spikes.save(tmp_path / "spikes.npz")
        model.save(tmp_path / "model.keras")
    return model, spikes


@several_fits
@pytest.mark.parametrize("kept", ["optimizer too", "weights alone"])
def test_a_resumed_fit_remembers(tmp_path, kept):
    """The first epoch after a restart is the one that people ask about: it is often the optimizer that was lost."""
    model, before = _trained(tmp_path)
    if kept == "weights alone":
        weights = model.get_weights()
        model = network(optimizer=keras.optimizers.Adam(0.3))
        model.set_weights(weights)
    else:
        model = keras.models.load_model(tmp_path / "model.keras")
    spikes = SpikeDiagnosis(CHECKED)
    spikes.load(tmp_path / "spikes.npz")
    assert spikes.summary == before.summary
    assert "No spike in 5 epochs." in spikes.summary
    seen = []
    notes = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(_events(spikes)))  # noqa: ARG005
    model.fit(IMAGES[:1184], LABELS[:1184], initial_epoch=5, epochs=7, verbose=0, shuffle=False, callbacks=[spikes, notes])
    watch = spikes._watch
    assert watch._diagnostician.detector.means[:5] == before._watch._diagnostician.detector.means
    if kept == "weights alone":
        assert spikes.diagnoses[0].verdict.name == "run_event"
        assert seen == [[("optimizer_reset", 6)], []]
    else:
        assert seen == [[], []]
        assert "No spike in 7 epochs." in spikes.summary
    assert np.array_equal(watch._sample[0][0], before._watch._sample[0][0])


@several_fits
def test_bad_batches_are_saved(tmp_path):
    """The images of a bad batch are what a person looks at, perhaps after the machine is gone."""
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    model.fit(Damaged(), epochs=6, shuffle=False, verbose=0, callbacks=[spikes])
    spikes.save(tmp_path / "spikes.npz")
    other = SpikeDiagnosis(CHECKED)
    other.load(tmp_path / "spikes.npz")
    assert json.dumps(other.as_dict()) == json.dumps(spikes.as_dict())
    for part, expected in zip(other.bad_batches[6][DAMAGED], spikes.bad_batches[6][DAMAGED], strict=True):
        np.testing.assert_array_equal(part, expected)


@several_fits
def test_epochs_have_the_numbers_of_the_progress_bar():
    """A spike in "epoch 5" could not be found where Keras says "Epoch 35/36"."""
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    model.fit(Damaged(), initial_epoch=30, epochs=36, shuffle=False, verbose=0, callbacks=[spikes])
    assert [diagnosis.spike.epoch for diagnosis in spikes.diagnoses] == [36]
    assert spikes.summary.startswith("1 spike in 6 epochs")
    model.fit(Damaged(), initial_epoch=40, epochs=41, shuffle=False, verbose=0, callbacks=[spikes])
    assert spikes._watch._diagnostician.detector.epoch == 41
    model.fit(Damaged(), epochs=1, shuffle=False, verbose=0, callbacks=[spikes])
    assert spikes._watch._diagnostician.detector.epoch == 42


@several_fits
def test_a_rise_in_the_first_resumed_epoch_is_explained_without_a_saved_state():
    """The weights and the validation loss with which a resumed training begins are known, even to a new callback."""
    model, _ = _trained()
    weights = model.get_weights()
    model = network(optimizer=keras.optimizers.Adam(0.3))
    model.set_weights(weights)
    spikes = SpikeDiagnosis(CHECKED)
    model.fit(*FEW, initial_epoch=5, epochs=6, verbose=0, callbacks=[spikes])
    (diagnosis,) = spikes.diagnoses
    assert (diagnosis.spike.epoch, diagnosis.verdict.name, diagnosis.verdict.event) == (6, "run_event", "optimizer_reset")
    assert diagnosis.training.train_rise > 0


@several_fits
def test_a_bad_batch_in_the_first_resumed_epoch_is_not_blamed_on_the_optimizer():
    """A new optimizer is no harm by itself, and the batch would not be looked at."""
    model = network()
    model.fit(IMAGES[:1184], LABELS[:1184], epochs=5, verbose=0, shuffle=False)
    weights = model.get_weights()
    model = network()
    model.set_weights(weights)
    spikes = SpikeDiagnosis(VALIDATION)
    model.fit(Damaged(epoch=5), initial_epoch=5, epochs=6, shuffle=False, verbose=0, callbacks=[spikes])
    assert [(one.spike.epoch, one.verdict.name) for one in spikes.diagnoses] == [(6, "bad_batch")]


@several_fits
@pytest.mark.parametrize("place", ["before", "behind"])
def test_weights_that_another_callback_replaces_are_reported(place, capsys):
    """With SwapEMAWeights before it, the callback evaluates averages that no training step explains."""
    model = network(optimizer=keras.optimizers.Adam(1e-3, use_ema=True))
    spikes, swap = SpikeDiagnosis(CHECKED), keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    callbacks = [swap, spikes] if place == "before" else [spikes, swap]
    model.fit(*FEW, epochs=3, verbose=0, callbacks=callbacks)
    found = capsys.readouterr().out.count("another callback replaced the weights, as SwapEMAWeights does.")
    assert found == (1 if place == "before" else 0)


def _events(spikes):
    return [(event.kind, event.epoch) for event in spikes._watch._events]


@several_fits
def test_what_was_compiled_anew_is_an_event():
    """Two-phase training changes layers, loss and optimizer on purpose; that is where its losses jump."""
    model, spikes = network(momentum=0.99), SpikeDiagnosis(CHECKED)
    model.layers[2].trainable = model.layers[1].trainable = False
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    model.fit(*FEW, epochs=2, batch_size=32, verbose=0, callbacks=[spikes])
    assert not _events(spikes)
    assert np.isnan(spikes._watch._diagnostician._hyperparameters.momentum)
    model.layers[2].trainable = model.layers[1].trainable = True
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy())
    model.fit(*FEW, epochs=2, batch_size=16, verbose=0, callbacks=[spikes])
    known = spikes._watch._diagnostician._hyperparameters
    assert (known.momentum, known.batch_size) == (0.99, 16)
    model.fit(*FEW, epochs=1, batch_size=16, verbose=0, callbacks=[spikes])
    assert not _events(spikes)
    model.compile("sgd", lambda y, p: 2 * keras.losses.sparse_categorical_crossentropy(y, p))
    model.fit(*FEW, epochs=1, batch_size=16, verbose=0, callbacks=[spikes])
    assert _events(spikes) == [("loss", 6), ("optimizer", 6)]
    assert spikes._watch._watched == 6


@several_fits
def test_a_callback_may_unfreeze_layers_in_the_middle_of_a_fit():
    """Such callbacks compile the training function anew, so that the step is another one from there on."""

    class Unfreezes(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 2:
                self.model.layers[2].trainable = True
                self.model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
                self.model.make_train_function()

    seen = []
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    model.layers[2].trainable = False
    model.compile("adam", "sparse_categorical_crossentropy")
    notes = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(_events(spikes)))  # noqa: ARG005
    history = model.fit(*FEW, epochs=4, verbose=0, callbacks=[spikes, Unfreezes(), notes]).history
    assert seen == [[], [], [("frozen_layers", 3), ("optimizer_reset", 3)], []]
    assert len(history["val_loss"]) == 4


@several_fits
@pytest.mark.parametrize("first", [True, False], ids=["the first is frozen", "the second is frozen"])
def test_a_spike_after_unfreezing_batchnorm_is_explained(first):
    """Unfreezing is where losses jump. The moments of the epoch before have no values for the layers that were frozen then."""
    keras.utils.set_random_seed(1)
    norms = [keras.layers.BatchNormalization(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)]
    dense = keras.layers.Dense(24, activation="relu"), keras.layers.Dense(10, activation="softmax")
    model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), norms[0], dense[0], norms[1], dense[1]])
    (norms[0] if first else norms[1]).trainable = False
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    spikes = SpikeDiagnosis(VALIDATION)
    model.fit(*TRAINING, epochs=4, verbose=0, callbacks=[spikes])
    norms[0].trainable = norms[1].trainable = True
    model.compile(keras.optimizers.Adam(3.0), "sparse_categorical_crossentropy")
    model.fit(*TRAINING, epochs=1, verbose=0, callbacks=[spikes])
    assert [one.spike.epoch for one in spikes.diagnoses] == [5]
    assert (spikes.diagnoses[0].verdict.name, spikes.diagnoses[0].verdict.event) == ("run_event", "learning_rate")


@several_fits
@pytest.mark.parametrize("kind", ["squared error", "L2", "class weights", "validation weights"])
def test_losses_are_compared_with_guessing_and_with_training_where_they_can_be(kind):
    """A penalty would read as worse than guessing, a squared error as lost, and weights as other validation images."""
    model, data, labels, weights = network(), {}, LABELS, ()
    if kind == "L2":
        last = keras.layers.Dense(10, activation="softmax", kernel_regularizer=keras.regularizers.L2(0.1))
        model = keras.Sequential([keras.Input((8, 8)), keras.layers.Flatten(), last])
    elif kind == "squared error":
        labels = np.eye(10)[LABELS]
    elif kind == "validation weights":
        weights = (np.where(np.arange(len(LABELS) - 1200) % 5, 1.0, 36.0),)  # 8 on average
    else:
        data["class_weight"] = dict.fromkeys(range(10), 0.1)
    model.compile(keras.optimizers.Adam(1e-3), "mse" if kind == "squared error" else "sparse_categorical_crossentropy")
    spikes = SpikeDiagnosis((IMAGES[1200:], labels[1200:], *weights))
    model.fit(IMAGES[:1200], labels[:1200], epochs=6, verbose=0, callbacks=[spikes], **data)
    assert np.isfinite(spikes._watch._diagnostician.course.guess) == (kind == "class weights")
    assert not {"fit", "preparation"} & {one.name for one in spikes.standing}


@several_fits
def test_the_same_model_loaded_again_may_go_on(tmp_path):
    """load_model gives another object; another model, though, is not what was watched."""
    _, spikes = _trained(tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(*FEW, epochs=1, verbose=0, callbacks=[spikes])
    assert "No spike in 6 epochs." in spikes.summary
    with pytest.raises(UserError, match="watches another model"):
        network().fit(*FEW, verbose=0, callbacks=[spikes])


@pytest.mark.parametrize("content", [None, "text", "other arrays", "another format"])
def test_a_file_that_is_no_state_is_refused_in_one_line(tmp_path, content):
    """A mistaken path would end in a traceback from NumPy."""
    path = tmp_path / "spikes.npz"
    if content == "text":
        path.write_text("text")
    elif content == "other arrays":
        np.savez(path, x=np.ones(3))
    elif content == "another format":
        np.savez(path, facts=np.frombuffer(b'{"format": 0}', np.uint8))
    with pytest.raises(UserError, match="Fix: ") as caught:
        SpikeDiagnosis(CHECKED).load(path)
    assert "\n" not in str(caught.value)


@several_fits
def test_nothing_to_save_and_other_examples_are_refused_in_one_line(tmp_path):
    """Otherwise an empty state would be found when it is needed, or losses of other images be compared."""
    with pytest.raises(UserError, match="nothing to save"):
        SpikeDiagnosis(CHECKED).save(tmp_path / "spikes.npz")
    model, _ = _trained(tmp_path)
    spikes = SpikeDiagnosis((CHECKED[0][:50], CHECKED[1][:50]))
    spikes.load(tmp_path / "spikes.npz")
    with pytest.raises(UserError, match="has watched 100 validation examples, and validation_data has 50"):
        model.fit(*FEW, verbose=0, callbacks=[spikes])


@several_fits
def test_callbacks_that_monitor_find_what_they_ask_for(tmp_path):
    """val_accuracy was missing, so that early stopping on it never stopped; the callback needs no validation_data in fit."""
    decided = []
    for given in (True, False):
        model = network(metrics=["accuracy"])
        stop = keras.callbacks.EarlyStopping("val_accuracy", patience=1, restore_best_weights=True)
        plateau = keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.05)
        best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_accuracy", save_best_only=True, mode="max")
        arguments = {"validation_data": CHECKED} if given else {}
        callbacks = [SpikeDiagnosis(CHECKED), stop, plateau, best]
        history = model.fit(*FEW, epochs=12, shuffle=False, verbose=0, callbacks=callbacks, **arguments).history
        decided.append((stop.best_epoch, history["val_accuracy"], history["learning_rate"]))
    assert decided[0] == decided[1]


@several_fits
def test_a_fit_goes_on_after_backup_and_restore(tmp_path):
    """BackupAndRestore loads the weights after this callback has looked at the model, and counts the epochs on by itself."""
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    saving = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: spikes.save(tmp_path / "s.npz"))  # noqa: ARG005

    class Dies(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):  # noqa: ARG002
            if epoch == 3:
                raise RuntimeError("preempted")

    with pytest.raises(RuntimeError, match="preempted"):
        model.fit(*FEW, epochs=5, verbose=0, callbacks=[spikes, saving, backup, Dies()])
    model, spikes = network(), SpikeDiagnosis(CHECKED)
    spikes.load(tmp_path / "s.npz")
    seen = []
    notes = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append((epoch, _events(spikes))))  # noqa: ARG005
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    model.fit(*FEW, epochs=5, verbose=0, callbacks=[spikes, notes, backup])
    assert "No spike in 5 epochs." in spikes.summary
    assert seen == [(3, []), (4, [])]  # the optimizer is the one from before, and so are the epochs
