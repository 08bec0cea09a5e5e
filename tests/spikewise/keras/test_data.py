"""What users of Keras pass in as labels, and what models return for them."""

import numpy as np
import pytest

from spikewise.keras.data import classes, predicted, probabilities

THREE, TWO = np.array([0, 1, 2, 0, 1, 2]), np.array([0, 1, 1, 0, 1, 0])
LOGITS = np.random.default_rng(0).normal(0, 2, (6, 3))


@pytest.mark.parametrize(
    ("labels", "outputs", "expected"),
    [
        (THREE, (6, 3), THREE),
        (THREE[:, None], (6, 3), THREE),
        (np.eye(3)[THREE], (6, 3), THREE),
        (TWO, (6, 1), TWO),
        (TWO[:, None].astype(float), (6, 1), TWO),
        (np.linspace(0, 1, 6), (6, 1), None),
        (LOGITS, (6, 3), None),
        (THREE + 1, (6, 3), None),
        (np.zeros((6, 4), int), (6, 4, 3), None),
        (np.array(["a"] * 6), (6, 3), None),
    ],
)
def test_labels_are_read_as_classes_where_they_are(labels, outputs, expected):
    """Suspicious images are listed with their class; a regression has none."""
    found = classes(labels, outputs)
    assert expected is None if found is None else np.array_equal(found, expected)


@pytest.mark.parametrize("kind", ["probabilities", "logits", "one probability", "one logit"])
def test_outputs_are_read_as_probabilities(kind):
    """A suspicious image is listed with what the network takes it for, and how sure it is."""
    powers = np.exp(LOGITS)
    p = powers / powers.sum(1, keepdims=True)
    one = 1 / (1 + np.exp(-LOGITS[:, :1]))
    outputs = {"probabilities": p, "logits": LOGITS, "one probability": one, "one logit": LOGITS[:, :1]}[kind]
    expected = np.concatenate([1 - one, one], 1) if kind.startswith("one") else p
    np.testing.assert_allclose(probabilities(outputs.astype(np.float32)), expected, rtol=1e-4)
    known = TWO if kind.startswith("one") else THREE
    assert predicted(known, {4: expected[4]})[4] == (str(known[4]), str(expected[4].argmax()), expected[4].max())
    assert predicted(None, {4: expected[4]}) == {}
