"""What single images look like."""

import pytest

from spikewise.suspects import look, suspects
from tests.spikewise.test_causes import FEW, STABLE, THEN, case


@pytest.mark.parametrize(
    ("predicted", "probes", "looks"),
    [
        ({3: ("cat", "dog", 0.99), 8: ("cat", "dog", 0.98)}, [FEW, STABLE], ["mislabelled", "mislabelled"]),
        ({3: ("cat", "dog", 0.99), 8: ("cat", "dog", 0.6)}, [FEW, STABLE], ["mislabelled", None]),
        ({3: ("cat", "cat", 0.99)}, [FEW, STABLE], [None, None]),
        ({}, [FEW, STABLE, THEN], ["damaged", "damaged"]),
        ({}, [STABLE], []),
    ],
)
def test_what_an_image_looks_like_is_a_field(predicted, probes, looks):
    """Otherwise a program would have to extract it from a sentence."""
    found = suspects(case(probes, predicted=predicted))
    assert [one.looks for one in found] == looks
    assert [one.image for one in found] == [3, 8][: len(looks)]


def test_a_minority_does_not_describe_all_images():
    """Otherwise one mislabelled image among three would make the report call all of them mislabelled."""
    found = suspects(case([FEW, STABLE], predicted={3: ("cat", "dog", 0.99), 8: ("cat", "cat", 0.99)}))
    assert look(found) is None
    assert look(found[:1]) == "mislabelled"
    assert look(()) is None
