"""Many steps in one call against a call a step: the same numbers, records and snapshots."""

import logging
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import ray.train
import tensorflow as tf

from spikewise.diagnose import Diagnostician
from tests.support import training
from tests.support.epochs import report
from tests.trainer.engine.test_golden import SHAPE, _Rows
from trainer import config
from trainer.engine import chunk, devices
from trainer.engine.chunk import Chunks, Steps, engine
from trainer.engine.distributed_network import DistributedNetwork
from trainer.engine.evaluate import evaluate
from trainer.run.mailbox import Outbox
from trainer.run.resume import Position, resume
from trainer.run.worker import _Worker
from trainer.storage import open_store
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.lease import Fence

STEPS = 10
FIRST = 2
"""Losses that are compared where rounding differs."""
EXACT = {"model": {"precision": "float64"}}
SMALL = {"model": {"precision": "float64", "network": f"{__name__}:small"}}
EVERYTHING = {
    "model": {"precision": "float64", "network": "tests.support.networks:residual", "arguments": {"l2": 0.01}},
    "augmentation": {"flip": True, "flip_vertical": True, "shift": 3, "cutout": 0.5},
    "optimizer": {"schedule": "cosine", "warmup_epochs": 1, "clip_norm": 0.5, "ema": 0.9, "weight_decay": 0.01},
    "training": {"label_smoothing": 0.1},
}


def small(image_shape, classes):
    """A network that XLA compiles in a second or two. It has no bias before BatchNormalization, whose gradient would be nothing but
    rounding, which Adam makes a step of."""
    inputs = keras.Input(image_shape)
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(inputs)))
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8, activation="relu", use_bias=False)(x))
    return keras.Model(inputs, keras.layers.Dense(classes, activation="softmax")(keras.layers.Dropout(0.3)(x)))


@pytest.fixture(autouse=True)
def float32():
    """A test may set another precision, which is global in Keras."""
    yield
    keras.config.set_dtype_policy("float32")


def build(sections, **options):
    """A learner with resident images, and its feed. `sections`: of the configuration."""
    learning = {"learning_rate": 1e-3} | sections.get("optimizer", {})
    settings = training.settings(
        **sections | {"optimizer": learning, "training": {"batch_size": 16} | sections.get("training", {})}
    )
    feed = training.feed(settings, _Rows(), np.arange(160))
    assert feed.steps == STEPS
    learner = training.learner(settings, SHAPE, **options)
    if feed.resident:
        learner.resident = feed.load()
    return learner, feed


def many(learner, feed, *, compiled=True):
    return Chunks(learner, feed, traced=True, compiled=compiled)


def single(learner, feed):
    return Steps(learner, feed, traced=True)


def train(made, epoch, start=0, end=STEPS):
    """Trains steps of an epoch. Returns their records and the trace."""
    made.begin(epoch, start)
    while made.done < end:
        made.train(end, stop=False, save=False)
    assert made.done == end
    return made.records(), made.trace()


def course(kind, sections, epochs=2, **options):
    """Records, traces and the state after some epochs, one name each."""
    learner, feed = build(sections, **options)
    made = kind(learner, feed)
    found = {}
    for epoch in range(1, epochs + 1):
        steps, trace = train(made, epoch)
        if trace is not None:
            found[f"{epoch} trace"] = trace
        found |= {f"{epoch} {name}": steps[name] for name in steps.dtype.names}
    return found | {name: np.asarray(values) for name, values in learner.state().items()}


def check(found, expected, tolerance=1e-12):
    """Differences are relative to the largest value of an array. Traces are float32."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        allowed = (1e-6 if name.endswith(" trace") else tolerance) * np.max(np.abs(values.astype(float)), initial=1e-30)
        assert np.max(np.abs(found[name].astype(float) - values), initial=0) <= allowed, name


@pytest.mark.parametrize(
    ("sections", "options"), [(SMALL, {}), (EVERYTHING, {"class_weights": np.array([0.5, 2.0])})], ids=["small", "everything"]
)
def test_many_steps_in_one_call_are_the_same_steps(sections, options):
    """A GPU would train another model than a CPU: other images, dropout masks, learning rates, averages or statistics."""
    expected = course(single, sections, **options)
    check(course(lambda *a: many(*a, compiled=False), sections, **options), expected)
    with pytest.raises(AssertionError):  # the comparison can fail
        check(course(single, sections | {"run": {"seed": 1}}, **options), expected, 1e-3)


def test_xla_computes_the_same_steps():
    """XLA would draw other dropout masks, or round so that the curve of a GPU leaves that of a CPU."""
    check(course(many, SMALL), course(single, SMALL))


@pytest.mark.integration
@pytest.mark.parametrize(
    "sections",
    [
        EXACT,
        EVERYTHING,
        {
            "model": {"precision": "float64", "network": "tests.support.networks:depthwise"},
            "optimizer": {"schedule": "step", "step_epochs": [1]},
        },
    ],
    ids=["question", "everything", "depthwise"],
)
def test_xla_computes_the_same_steps_of_every_network(sections):
    """As above, for networks and settings of users."""
    check(course(many, sections), course(single, sections))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sections", "loss"),
    [
        ({}, 1e-3),
        ({"augmentation": {"rotation": 20.0, "crop": 0.8, "brightness": 0.3, "contrast": 0.3, "noise": 8.0, "jpeg": 60}}, 1e-3),
        ({"model": {"precision": "mixed_bfloat16"}}, 5e-2),
    ],
    ids=["float32", "augmented", "bfloat16"],
)
def test_xla_rounds_like_the_precision_allows(sections, loss):
    """In float32, another order of sums flips a few max-poolings, and fused multiplications change augmented pixels in the last
    bits; more than that would be another training. The first losses are compared: each step multiplies a difference."""
    found, expected = course(many, sections, epochs=1), course(single, sections, epochs=1)
    np.testing.assert_allclose(found["1 loss"][:FIRST], expected["1 loss"][:FIRST], rtol=loss)


@pytest.mark.parametrize("sections", [SMALL | {"pipeline": {"memory_bytes": 1}}, SMALL], ids=["from the disk", "resident"])
def test_a_resumed_epoch_is_the_undisturbed_one(sections):
    """After a crash on a GPU, training would leave the path of the undisturbed run; with images from the disk, too."""
    learner, feed = build(sections)
    first = many(learner, feed, compiled=False)
    train(first, 1)
    _, before = train(first, 2, end=2)
    state = learner.state()
    _, after = train(first, 2, start=2)
    resumed, feed = build(sections)
    second = many(resumed, feed, compiled=False)
    resumed.restore(state)
    _, again = train(second, 2, start=2)
    np.testing.assert_array_equal(again, after)
    np.testing.assert_array_equal(before[-1], after[0])
    for name, values in learner.state().items():
        np.testing.assert_array_equal(resumed.state()[name], values, err_msg=name)


def test_a_call_ends_where_it_must_and_is_bounded_in_time(monkeypatch):
    """A snapshot would be taken at the wrong step, or a request to stop would wait for minutes."""
    learner, feed = build(SMALL)
    made = many(learner, feed, compiled=False)
    made.begin(1, 0)
    seen = made.train(3, stop=False, save=True)
    assert (made.done, seen.stop, seen.save) == (3, False, True)
    monkeypatch.setattr(chunk, "CALL_SECONDS", 0.0)
    made.train(4, stop=False, save=False)
    made.begin(2, 0)
    made.train(STEPS, stop=False, save=False)
    assert made.done == 1
    assert len(made.records()) == 1
    assert made.trace().shape == (2, learner.moving_size)


DETERMINISTIC = """
import numpy as np
from tests.trainer.engine.test_chunk import build, many, train
learner, feed = build({})
made, before = many(learner, feed), learner.state()
runs = []
for _ in range(2):
    learner.restore(before)
    train(made, 1, end=3)
    runs.append(learner.state())
print(all(np.array_equal(values, runs[1][name]) for name, values in runs[0].items()))
print(any(not np.array_equal(values, runs[1][name]) for name, values in before.items()))
"""


@pytest.mark.integration
def test_deterministic_steps_compile():
    """XLA refuses TensorFlow's gradient of max-pooling in deterministic mode, so the run whose spikes are to be replayed on a GPU
    would make a call a step."""
    environment = os.environ | {"TF_DETERMINISTIC_OPS": "1"}
    done = subprocess.run([sys.executable, "-c", DETERMINISTIC], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["True", "True"], done.stderr[-2000:]


class Norm(keras.layers.Layer):
    """A layer with an operation that XLA does not have."""

    def call(self, x):
        return x / tf.math.reduce_euclidean_norm(x, -1, keepdims=True)


def refused(image_shape, classes):
    inputs = keras.Input(image_shape)
    return keras.Model(inputs, keras.layers.Dense(classes)(Norm()(keras.layers.Flatten()(inputs))))


def test_the_device_decides(monkeypatch, caplog):
    """A GPU would be a tenth as fast as it can be; a CPU would compile for nothing; a network that XLA refuses would not train; no
    one would learn why more GPUs make training slower."""
    learner, feed = build(SMALL)
    monkeypatch.setattr(devices, "has_gpu", lambda: False)
    assert isinstance(engine(learner, feed, trace_bytes=10**6), Steps)
    monkeypatch.setattr(devices, "has_gpu", lambda: True)
    made = engine(learner, feed, trace_bytes=10**6)
    assert isinstance(made, Chunks)
    assert train(made, 1)[1] is not None
    rows = np.arange(200)[::-1].copy()
    plain, _ = build(SMALL)
    plain.restore(learner.state())
    for found, expected in zip(evaluate(learner, feed, rows), evaluate(plain, feed, rows), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not caplog.messages
    for rank in range(2):
        learner.group = SimpleNamespace(size=2, rank=rank)
        assert isinstance(engine(learner, feed, trace_bytes=10**6), Steps)
    (line,) = caplog.messages
    assert line.startswith("2 workers make each training step a call of its own. One worker compiles many steps into a call")

    caplog.clear()

    learner, feed = build({"model": {"network": f"{__name__}:refused"}})
    with caplog.at_level(logging.WARNING):
        made = engine(learner, feed, trace_bytes=10**6)
    assert isinstance(made, Steps)
    (line,) = caplog.messages
    assert line.startswith("XLA does not compile the operation EuclideanNorm.")
    assert np.isfinite(train(made, 1)[0]["loss"]).all()


def test_statistics_that_take_too_much_memory_are_not_kept():
    """A large network would fill the memory with a copy of its statistics for every step."""
    learner, feed = build(SMALL)
    assert train(engine(learner, feed, trace_bytes=4 * learner.moving_size * STEPS), 1)[1] is None
    assert train(Chunks(learner, feed, traced=False, compiled=False), 2)[1] is None


class Alone:
    """The story of an epoch as a worker's own code has it, without Ray and without evaluation."""

    def __init__(self, kind, folder):
        self.worker = worker = object.__new__(_Worker)
        worker.learner, worker.feed = build(SMALL)
        worker.engine = kind(worker.learner, worker.feed)
        worker.network = DistributedNetwork(worker.learner, worker.feed, np.arange(160, 164), np.arange(4))
        worker.diagnostician = Diagnostician(worker.network, batch_size=16)
        worker.checkpoints = Checkpoints(open_store(str(folder), config.S3()), "first", 5)
        worker.task = SimpleNamespace(settings=training.settings(**SMALL).as_dict())
        worker.fence, worker.outbox = Fence(), Outbox(None, chief=False)
        worker.fence.extend(math.inf)
        worker.fence.pause = lambda: None
        worker.group, worker.chief, worker.replay, worker.diagnosed = worker.learner.group, True, None, True
        worker.position, worker.asked = Position(), -math.inf

    def train(self, stop_at=None):
        """The rest of an epoch; returns the steps at which snapshots were taken. `stop_at`: asks to stop at that snapshot."""
        worker, taken = self.worker, []

        def snapshot(step):
            taken.append((step, int(worker.learner.optimizer.iterations)))
            worker.outbox.stop = step == stop_at

        worker.diagnostician.snapshot = snapshot
        self.trained = worker._train_epoch()
        return taken


def test_the_story_of_an_epoch_is_the_same(monkeypatch, tmp_path):
    """On a GPU, the diagnosis would compare the weights of other steps, or a stopped run would not go on as it would have."""
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: None)
    kinds = {"single": single, "many": lambda *a: many(*a, compiled=False)}
    alone = {name: Alone(kind, tmp_path / name) for name, kind in kinds.items()}
    for _ in range(2):
        taken = {name: one.train() for name, one in alone.items()}
        assert taken["many"] == taken["single"]
        assert {step for step, _ in taken["many"]} == alone["many"].worker.diagnostician.snapshots(STEPS)
        positions = [one.worker.position for one in alone.values()]
        np.testing.assert_allclose(*[position.trace for position in positions], rtol=1e-6)
        np.testing.assert_allclose(*[position.steps["loss"] for position in positions], rtol=1e-12)
        for one in alone.values():
            assert one.trained.steps == STEPS
            one.worker.position = one.worker.position.next_epoch(report(one.worker.position.epoch))

    for name, one in alone.items():
        stopped = Alone(kinds[name], tmp_path / name)
        state = one.worker.learner.state()
        stopped.worker.learner.restore(state)
        stopped.worker.position = one.worker.position
        stopped.train(stop_at=2)
        assert stopped.trained is None
        resumed = Alone(kinds[name], tmp_path / name)
        found = resume(
            resumed.worker.checkpoints,
            resumed.worker.learner,
            resumed.worker.diagnostician,
            chief=True,
            broadcast=lambda step: step,
        )
        resumed.worker.position = found.position
        assert 2 < len(found.position.steps) < STEPS
        one.train()
        resumed.train()
        np.testing.assert_array_equal(resumed.worker.position.steps, one.worker.position.steps)
        np.testing.assert_array_equal(resumed.worker.position.trace, one.worker.position.trace)
        for key, values in one.worker.learner.state().items():
            np.testing.assert_array_equal(resumed.worker.learner.state()[key], values, err_msg=key)
