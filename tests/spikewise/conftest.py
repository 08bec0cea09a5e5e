"""A small network in training that several modules probe."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.spikewise.training import ProbedTraining


@pytest.fixture(scope="session")
def _probed() -> "ProbedTraining":
    from tests.spikewise.training import ProbedTraining  # here, because it loads TensorFlow

    return ProbedTraining()


@pytest.fixture
def training(_probed: "ProbedTraining") -> "ProbedTraining":
    """A network after six healthy epochs."""
    _probed.restore()
    return _probed
