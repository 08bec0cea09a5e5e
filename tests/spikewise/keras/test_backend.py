"""Keras backends other than TensorFlow."""

import os
import subprocess
import sys

import keras
import pytest

from spikewise import SpikeDiagnosis, UserError

SCRIPT = """
import sys
import numpy as np
import keras
from spikewise import SpikeDiagnosis, UserError, explain

x, y = np.ones((8, 2), "float32"), np.zeros(8, int)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
model.compile(loss="sparse_categorical_crossentropy")
given = {"model": model, "earlier": model.get_weights(), "validation_data": (x, y), "training_data": (x, y)}
for attempt in (lambda: SpikeDiagnosis((x, y)), lambda: explain(np.ones(8), np.full(8, 2.0), **given)):
    try:
        attempt()
    except UserError as error:
        print(error)
assert explain(np.ones(300), np.linspace(1, 2, 300)).verdict.name == "unexplained"
assert "tensorflow" not in sys.modules
"""


@pytest.mark.parametrize("backend", ["jax", "numpy"])
def test_other_backends_are_refused_before_tensorflow_is_imported(backend):
    """Otherwise a JAX or PyTorch user would get an error from within TensorFlow, or load it beside their own framework."""
    environment = {**os.environ, "KERAS_BACKEND": backend}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    fix = "Fix: set KERAS_BACKEND=tensorflow before Keras is imported."
    assert run.stdout.splitlines() == [
        f"SpikeDiagnosis needs Keras' TensorFlow backend, but Keras runs on {backend}. {fix}",
        f"explain with a model needs Keras' TensorFlow backend, but Keras runs on {backend}. {fix}",
    ]


def test_torch_is_refused(monkeypatch):
    """A PyTorch user would get an error from within TensorFlow. PyTorch itself is not installed for the tests, so Keras only says
    that it runs on it."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(UserError, match=r"but Keras runs on torch\. Fix: set KERAS_BACKEND=tensorflow"):
        SpikeDiagnosis(([[0.0]], [0]))
