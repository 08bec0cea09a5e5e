"""What the driver learns about a network, from a process of its own."""

import io
import subprocess
import sys

import pytest

from tests.support.training import settings
from trainer.engine import facts
from trainer.engine.facts import NetworkRefusedError, inspect


def test_the_facts_of_a_network():
    """The dry run would state wrong sizes, or the driver would load TensorFlow."""
    found = inspect(settings(), 2)
    assert (found.parameters, found.trainable) == (527_442, 527_122)
    assert found.optimizer == 2 * 527_122 + 1  # Adam's two moments and its step
    assert (found.batch_normalization, found.dropout, found.ending) == (5, 3, "softmax")
    assert found.activations > 64 * 64 * 16 * 4


@pytest.fixture
def in_this_process(monkeypatch):
    """Runs here what runs in the new process, which would import TensorFlow first."""

    def run(command, **options):
        answer = io.StringIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(options["input"]))
            patch.setattr(sys, "stdout", answer)
            facts._main()
        return subprocess.CompletedProcess(command, 0, answer.getvalue(), "")

    monkeypatch.setattr(subprocess, "run", run)


@pytest.mark.usefixtures("in_this_process")
def test_refusals_arrive_in_one_line():
    """A user would have to find the error in the log of a worker, after the images were packed."""
    with pytest.raises(NetworkRefusedError, match=r"no_such_module does not import: .*\. Fix: "):
        inspect(settings(model={"network": "no_such_module:build"}), 2)


@pytest.mark.usefixtures("in_this_process")
def test_a_layer_that_fails_in_training():
    """The last line of a traceback, which is often a list of arguments, would stand for the error."""
    said = (
        r"network = 'tests\.support\.networks:fails_in_training' cannot be trained: RuntimeError: .*two lines.*Fix: correct it\.$"
    )
    with pytest.raises(NetworkRefusedError, match=said):
        inspect(settings(model={"network": "tests.support.networks:fails_in_training"}), 2)


def test_a_network_that_is_never_built(monkeypatch):
    """A download that hangs would keep the job waiting without a line, deaf to SIGTERM."""
    monkeypatch.setattr(facts, "IMPORT_SECONDS", 0.0)
    with pytest.raises(NetworkRefusedError, match=r"is not built after launch\.start_timeout = 0\.2 s\. Fix: "):
        inspect(settings(launch={"start_timeout": 0.2}), 2)
