"""A worker's fence, with a real mailbox."""

import time

import pytest
import ray

from trainer.run import fencing
from trainer.run.fencing import WorkerFence
from trainer.run.mailbox import Mailbox, start_mailbox
from trainer.storage.lease import LeaseLost, clock


def test_the_mailbox_knows_how_long_the_lease_lasts():
    """Workers would believe in a lease that was not renewed."""
    mailbox = Mailbox()
    assert mailbox.lease_left() < 0
    mailbox.renew(clock() + 1000)
    assert 900 < mailbox.lease_left() <= 1000
    mailbox.renew(clock() - 1)
    assert mailbox.lease_left() < 0


@pytest.mark.integration
def test_workers_pause_until_the_lease_is_renewed(cluster, monkeypatch):
    """Workers of a driver that is paused or cut off would go on training and saving beside those of its successor, or a short
    outage would end the run."""
    ray.init(cluster, log_to_driver=False)
    try:
        mailbox = start_mailbox()
        fence = WorkerFence(mailbox, 3, 2.0)
        assert not fence.valid
        said = []
        monkeypatch.setattr(fence, "_say", lambda: said.append(mailbox.renew.remote(clock() + 1000)))
        fence.pause()
        assert fence.valid
        fence.pause()
        assert len(said) == 1
        ray.get(mailbox.renew.remote(clock() - 1))  # what a driver does that renews no more: time passes
        deadline = time.monotonic() + 60
        while fence.valid:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.setattr(fencing, "PATIENCE", 0.1)
        impatient = WorkerFence(mailbox, 3, 2.0)
        with pytest.raises(LeaseLost):  # an outage that does not end
            impatient.pause()
        impatient.lose()  # its thread would ask Ray after the test
        ray.kill(mailbox)  # the driver dies
        with pytest.raises(LeaseLost):
            fence.pause()
        assert fence.lost.is_set()
    finally:
        ray.shutdown()
