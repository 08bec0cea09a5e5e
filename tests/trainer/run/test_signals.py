"""SIGTERM and Ctrl-C."""

import os
import signal

import pytest

from trainer.run.signals import stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_requests_a_stop(number):
    """A drained node or a Ctrl-C would end the job without a checkpoint."""
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)  # Kubernetes may send it twice
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_the_process():
    """A user could not leave a job that is busy with saving."""
    with stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130
