"""Events on their way from the workers to the driver."""

import logging
import time

import pytest

from trainer.run import events
from trainer.run.mailbox import Mailbox, Outbox, WarningHandler, start_mailbox


def test_events_arrive_once_and_in_order():
    """The driver would print an epoch twice, or a resume after the epochs that followed it."""
    mailbox, sent = Mailbox(), [events.Progress(1, step, 3) for step in range(3)]
    for event in sent:
        assert mailbox.post(event) is False
    assert mailbox.take() == sent
    assert mailbox.take() == []


def test_a_request_to_stop_is_the_answer_to_the_next_post():
    """A drained node would not save its checkpoint."""
    mailbox = Mailbox()
    mailbox.request_stop()
    assert mailbox.post(events.Progress(1, 1, 3)) is True


def test_a_failure_is_remembered_after_it_was_taken():
    """Workers that Ray restarts after a hopeless error would train again, and fail again."""
    mailbox = Mailbox()
    mailbox.post(events.Warned("a failed save"))
    assert not mailbox.failed()
    mailbox.post(events.Failed("a wrong configuration", False))
    mailbox.take()
    assert mailbox.failed()


@pytest.mark.integration
def test_a_workers_end_of_the_mailbox(cluster):
    """The driver would receive no events, or those of every worker; or a worker would not learn that it should stop."""
    import ray

    ray.init(cluster, log_to_driver=False)
    try:
        mailbox = start_mailbox()
        chief, other = Outbox(mailbox, chief=True), Outbox(mailbox, chief=False)
        for outbox in (chief, other):
            outbox.post_progress(1, 1, 3)
            outbox.post_progress(1, 2, 3)  # too soon after the first
        assert ray.get(mailbox.take.remote()) == [events.Progress(1, 1, 3)]
        assert not chief.stop
        mailbox.request_stop.remote()
        deadline = time.monotonic() + 60
        while not chief.stop:  # the answer to one post is read with a later one
            assert time.monotonic() < deadline
            chief.post(events.Progress(1, 3, 3))
            time.sleep(0.001)
        assert not other.stop
        ray.get(mailbox.take.remote())
        logger, handler = logging.getLogger("trainer.test"), WarningHandler(mailbox)
        logger.addHandler(handler)
        logger.warning("No checkpoint was saved: %s", "503")
        logger.info("nothing to report")
        logger.removeHandler(handler)
        assert ray.get(mailbox.take.remote()) == [events.Warned("No checkpoint was saved: 503")]
    finally:
        ray.shutdown()
