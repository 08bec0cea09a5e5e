"""The check that Keras runs on TensorFlow. Imports Keras, but not TensorFlow."""

import keras

from spikewise.errors import UserError


def require_tensorflow(what: str) -> None:
    """Raises UserError if Keras runs on another backend; `what` needs TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UserError(
            f"{what} needs Keras' TensorFlow backend, but Keras runs on {backend}. "
            "Fix: set KERAS_BACKEND=tensorflow before Keras is imported."
        )
