"""A paused driver of a real job, and another one that takes its run over."""

import re
import signal

import pytest

from benchmarks.support.job import Job
from trainer.storage import results
from trainer.storage.checkpoint import Checkpoints
from trainer.storage.lineage import COMMIT
from trainer.storage.store import list_keys

pytestmark = pytest.mark.integration

SETTINGS = ("training.epochs=9999", "checkpoint.lease_seconds=4")
"""More epochs than the test waits for. Workers of a driver that does not answer pause for 80 s before they give up."""
EPOCH = r"^epoch +(\d+)/"


def written(store):
    """What the workers of the run have stored: commits of checkpoints, and records of epochs."""
    keys = list_keys(store, "runs/paused/")
    return {key for key in keys if key.endswith(COMMIT) or "/epochs/" in key}


def test_a_driver_that_was_paused_ends_and_its_workers_wait(workplace):
    """When a laptop wakes up, or a node that hung, its workers would go on for hours beside those of the job that has taken the run
    over; or they would delete checkpoints that the other has resumed from; or both jobs would fail."""
    _, configuration, store = workplace
    first = Job(configuration, "paused", *SETTINGS)
    jobs = [first]
    try:
        first.await_line("^epoch +3/")
        first.process.send_signal(signal.SIGSTOP)  # only the driver: its workers and Ray run on
        acknowledged = Checkpoints(store, "paused", 1).steps()[-1]
        second = Job(configuration, "paused", *SETTINGS)
        jobs.append(second)
        second.await_line('taking over run "paused" from process')
        before, newest = written(store), Checkpoints(store, "paused", 1).steps()[-1]
        second.await_line("^network: ")
        assert written(store) == before
        first.process.send_signal(signal.SIGCONT)
        assert first.wait() == 2, first.output
        assert first.lines[-1] == (
            "error: Another job has taken over run paused, so this one ends and writes nothing more. Fix: start only one job "
            "for each run.name."
        )
        assert "training pauses until the driver has renewed the lease" in first.output
        resumed = second.await_line(r"^resumed from the checkpoint of step (\d+), in epoch (\d+)")
        assert int(resumed[1]) == newest >= acknowledged
        trained = [int(epoch) for epoch in re.findall(EPOCH, first.output, re.MULTILINE)]
        assert trained[-1] <= int(resumed[2]) + 1  # the last two that it trained may have come too late to be stored
        assert second.await_line(EPOCH)[1] == resumed[2]
        epochs = [report.epoch for report in results.get_history(store, "paused")]
        assert epochs == list(range(1, len(epochs) + 1))
    finally:
        for job in jobs:
            if job.process.poll() is None:
                job.kill()
