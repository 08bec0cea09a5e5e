"""The losses of single examples: their mean is what `model.evaluate` returns, whatever a user compiles a model with."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from spikewise.errors import UserError
from spikewise.keras.data import BATCH, Examples
from spikewise.keras.loss import Losses

COUNT = 70
"""Two batches and a part of one."""
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(0, 1, (COUNT, 5)).astype(np.float32)
CLASS = RANDOM.integers(0, 3, COUNT)
TWO = CLASS % 2
HOT = np.eye(3, dtype=np.float32)[CLASS]
WEIGHTS = RANDOM.uniform(0, 3, COUNT).astype(np.float32)
SERIES, STEPS = RANDOM.normal(0, 1, (COUNT, 4, 5)).astype(np.float32), RANDOM.integers(0, 3, (COUNT, 4))
SERIES[:, 2:] *= RANDOM.integers(0, 2, (COUNT, 1, 1))  # some end early
layers, losses, ops = keras.layers, keras.losses, keras.ops


def dense(units=3, activation="softmax", *, loss, regularizer=None, shape=(5,), before=(), run_eagerly=True, **options):
    """A compiled model of one layer; eager, because compiling takes longer than everything else."""
    keras.utils.set_random_seed(0)
    last = layers.Dense(units, activation=activation, kernel_regularizer=regularizer)
    model = keras.Sequential([keras.Input(shape), *before, last])
    model.compile(loss=loss, run_eagerly=run_eagerly, **options)
    return model


class Weighs(losses.Loss):
    """Does its own reduction, as focal losses found on the web do."""

    def __call__(self, y, p, sample_weight=None):
        values = (1 - ops.take_along_axis(p, ops.cast(y, "int32")[:, None], 1)[:, 0]) ** 2
        return ops.mean(values if sample_weight is None else values * ops.reshape(sample_weight, (-1,)))


class Penalty(keras.Layer):
    def call(self, x):
        self.add_loss(0.5 * ops.mean(x**2))
        return x


class Total(keras.Sequential):
    """Computes its loss itself."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # noqa: ARG002
        return ops.mean((y_pred - y) ** 2) * (7.0 if training else 1.0)


class Tested(keras.Sequential):
    """Has a test step of its own, as models with a training step of their own do."""

    def test_step(self, data):
        x, y = data
        loss = 3 * self.compute_loss(y=y, y_pred=self(x, training=False))
        self._loss_tracker.update_state(loss)
        return {"loss": self._loss_tracker.result()}


def total(cls, loss):
    keras.utils.set_random_seed(0)
    model = cls([keras.Input((5,)), layers.Dense(3, activation="softmax")])
    model.compile(loss=loss, run_eagerly=True)
    return model


def squares(y, p):
    return (ops.cast(y, p.dtype) - p) ** 2


MODELS = {
    "string": (lambda: dense(loss="sparse_categorical_crossentropy"), X, CLASS),
    "labels as a column": (lambda: dense(loss="sparse_categorical_crossentropy"), X, CLASS[:, None]),
    "crossentropy": (lambda: dense(loss="crossentropy"), X, CLASS),
    "function": (lambda: dense(loss=losses.categorical_crossentropy), X, HOT),
    "class": (lambda: dense(loss=losses.CategoricalCrossentropy), X, HOT),
    "list": (lambda: dense(loss=["categorical_crossentropy"], loss_weights=[0.3]), X, HOT),
    "from_logits": (lambda: dense(activation=None, loss=losses.SparseCategoricalCrossentropy(from_logits=True)), X, CLASS),
    "label_smoothing": (lambda: dense(loss=losses.CategoricalCrossentropy(label_smoothing=0.1)), X, HOT),
    "focal": (lambda: dense(loss=losses.CategoricalFocalCrossentropy()), X, HOT),
    "sum": (lambda: dense(loss=losses.CategoricalCrossentropy(reduction="sum")), X, HOT),
    "none": (lambda: dense(loss=losses.CategoricalCrossentropy(reduction=None)), X, HOT),
    "mean_with_sample_weight": (lambda: dense(loss=losses.MeanSquaredError(reduction="mean_with_sample_weight")), X, HOT),
    "two classes": (lambda: dense(1, "sigmoid", loss="binary_crossentropy"), X, TWO),
    "two classes, flat": (lambda: dense(1, "sigmoid", loss="binary_crossentropy"), X, TWO[:, None]),
    "values of each output": (lambda: dense(loss=squares), X, HOT),
    "a scalar": (lambda: dense(loss=lambda y, p: ops.mean(squares(y, p))), X, HOT),
    "a sum": (lambda: dense(loss=lambda y, p: ops.sum(squares(y, p))), X, HOT),
    "its own reduction": (lambda: dense(loss=Weighs()), X, CLASS),
    "its own compute_loss": (lambda: total(Total, None), X, HOT),
    "its own test_step": (lambda: total(Tested, "mse"), X, HOT),
    "L2": (lambda: dense(loss="sparse_categorical_crossentropy", regularizer=keras.regularizers.L2(0.1)), X, CLASS),
    "add_loss": (lambda: dense(loss="sparse_categorical_crossentropy", before=[Penalty()]), X, CLASS),
    "a scalar and add_loss": (lambda: dense(loss=lambda y, p: ops.mean(squares(y, p)), before=[Penalty()]), X, HOT),
    "series": (lambda: dense(loss="sparse_categorical_crossentropy", shape=(4, 5)), SERIES, STEPS),
    "mask": (lambda: dense(loss="sparse_categorical_crossentropy", shape=(4, 5), before=[layers.Masking()]), SERIES, STEPS),
    "images": (
        lambda: dense(loss="mse", shape=(2, 2, 5)),
        SERIES.reshape(COUNT, 2, 2, 5),
        np.eye(3)[STEPS].reshape(COUNT, 2, 2, 3),
    ),
    "images, reduced": (
        lambda: dense(loss=lambda y, p: ops.mean(squares(y, p), (1, 2, 3)), shape=(2, 2, 5)),
        SERIES.reshape(COUNT, 2, 2, 5),
        np.eye(3)[STEPS].reshape(COUNT, 2, 2, 3),
    ),
    "double precision": (lambda: dense(loss="mse"), X.astype(float), HOT.astype(float)),
    "compiled": (lambda: dense(loss="sparse_categorical_crossentropy", run_eagerly=False), X, CLASS),
    "compiled, a scalar": (lambda: dense(loss=lambda y, p: ops.mean(squares(y, p)), run_eagerly=False), X, HOT),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_is_the_loss_of_evaluate(name):
    """Otherwise another loss would be watched, and put into the history, than the one the user trains on."""
    make, x, y = MODELS[name]
    model = make()
    found = Losses(model).evaluate(Examples((x, y), "data"))
    assert found.losses.shape == (COUNT,)
    assert found.losses.mean() == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    # Apart from terms that all examples share, each has its own loss.
    alone = np.array([model.evaluate(x[i : i + 1], y[i : i + 1], verbose=0) for i in range(5)])
    assert np.ptp(found.losses) > 0
    if name not in ("sum", "a sum", "its own test_step", "mask", "add_loss", "a scalar and add_loss"):
        np.testing.assert_allclose(found.losses[:5], alone, rtol=1e-4)


@pytest.mark.parametrize("kind", ["arrays", "dataset"])
@pytest.mark.parametrize("name", ["string", "sum", "mean_with_sample_weight", "its own reduction", "L2", "a scalar"])
def test_sample_weights_count_as_in_evaluate(name, kind):
    """People pass class weights and masks this way; without them another loss would be explained."""
    make, x, y = MODELS[name]
    model, data = make(), (x, y, WEIGHTS)
    if kind == "dataset":
        data = tf.data.Dataset.from_tensor_slices(data).batch(BATCH)
    found = Losses(model).evaluate(Examples(data, "data"))
    assert found.losses.mean() == pytest.approx(model.evaluate(x, y, sample_weight=WEIGHTS, verbose=0), rel=1e-5)
    if name == "string":
        unweighted = Losses(model).evaluate(Examples((x, y), "data")).losses
        np.testing.assert_allclose(found.losses, WEIGHTS * unweighted, rtol=1e-4)


def test_weights_of_single_steps_count_as_in_evaluate():
    """Padded steps of a series have weight 0."""
    make, x, y = MODELS["series"]
    model, weights = make(), np.repeat([[1, 1, 1, 0]], COUNT, 0)
    found = Losses(model).evaluate(Examples((x, y, weights), "data"))
    assert found.losses.mean() == pytest.approx(model.evaluate(x, y, sample_weight=weights, verbose=0), rel=1e-5)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_precision_is_that_of_keras(policy):
    """In float16, 1 - 1e-7 is 1 and its logarithm infinite: a sound training would be called a divergence."""
    before = keras.mixed_precision.dtype_policy()
    try:
        keras.mixed_precision.set_global_policy(policy)
        regularizer = None if policy == "float64" else "l2"  # Keras cannot add the two
        model = dense(1, "sigmoid", loss="binary_crossentropy", regularizer=regularizer)
    finally:
        keras.mixed_precision.set_global_policy(before)
    x = 30 * X  # sure of everything
    found = Losses(model).evaluate(Examples((x, TWO), "data"))
    assert np.isfinite(found.losses).all()
    assert found.losses.mean() == pytest.approx(model.evaluate(x, TWO, verbose=0), rel=1e-4)


def test_one_loss_that_is_not_a_number_leaves_the_others_alone():
    """Otherwise a single damaged image would look like the end of the network."""
    model, x = dense(loss="sparse_categorical_crossentropy", regularizer="l2"), X.copy()
    x[3] = np.nan
    found = Losses(model).evaluate(Examples((x, CLASS), "data")).losses
    assert list(np.flatnonzero(~np.isfinite(found))) == [3]


def test_metrics_are_those_of_evaluate_and_begin_where_they_were():
    """Callbacks watch val_accuracy; and the metrics of the training must not contain validation images."""
    model = dense(loss="sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=["accuracy"])
    expected = model.evaluate(X, CLASS, sample_weight=WEIGHTS, return_dict=True, verbose=0)
    model.evaluate(X[:9], CLASS[:9], verbose=0)
    before = [variable.numpy() for variable in model.metrics_variables]
    logs = Losses(model).evaluate(Examples((X, CLASS, WEIGHTS), "data"), metrics=True).logs
    assert logs == pytest.approx({name: value for name, value in expected.items() if name != "loss"})
    for variable, value in zip(model.metrics_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


class Samples(keras.Layer):
    """Draws random numbers in inference, too; `own`: from a generator of its own, else from the global one."""

    def __init__(self, own):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(7) if own else None

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed_generator)


@pytest.mark.parametrize("own", [True, False], ids=["own generator", "global generator"])
def test_random_numbers_of_an_evaluation_are_put_back(own):
    """Otherwise a variational autoencoder would be trained with other random numbers when it is watched."""
    model = dense(loss="sparse_categorical_crossentropy", before=[Samples(own)], run_eagerly=False)
    found = Losses(model)
    first, second = (found.evaluate(Examples((X, CLASS), "data")).losses for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("loss", [None, ["mse", "mse"], {"a": "mse", "b": "mse"}])
def test_a_model_without_one_loss_is_refused(loss):
    """Otherwise the diagnosis would explain one of several losses, perhaps not the one that jumped."""
    model = dense(loss="mse")
    model.loss = loss
    with pytest.raises(UserError, match="not compiled with exactly one loss"):
        Losses(model)


def test_a_model_with_two_outputs_is_refused():
    """Its loss is a sum; only one part of it may have jumped."""
    x = keras.Input((5,))
    model = keras.Model(x, [layers.Dense(1)(x), layers.Dense(1)(x)])
    model.compile(loss="mse")
    with pytest.raises(UserError, match="2 outputs; only one is supported"):
        Losses(model).evaluate(Examples((X, TWO), "data"))
