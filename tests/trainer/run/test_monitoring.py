"""A run's events as metrics."""

from spikewise.diagnose import News
from tests.support.runs import diagnosis, finished
from trainer.metrics import Exporter
from trainer.run import events
from trainer.run.monitoring import Monitoring
from trainer.run.status import RunStatus
from trainer.storage.checkpoint import SaveStats


def metrics(*seen, epochs=10, batch_size=32):
    """The registry after these events."""
    exporter, status = Exporter(), RunStatus(epochs)
    exporter.describe_run(run="first", model="cnn", precision="float32", epochs=epochs, workers=2)
    monitoring = Monitoring(exporter, batch_size, linger=1000.0)
    for event in seen:
        status.update(event)
        monitoring.hear(event, status)
    monitoring.count_requests("driver", events.Requests({"put": 2, "get": 5}, 0, 0))
    return exporter.registry.get_sample_value


def test_an_epoch_reaches_the_metrics():
    """Dashboards and alerts would show nothing, or another epoch's values."""
    value = metrics(finished(1, 0.25), finished(2, 0.5))
    assert value("spikewise_epoch") == 2
    assert value("spikewise_loss", {"split": "validation"}) == 0.5
    assert value("spikewise_best_epoch") == 1
    assert value("spikewise_images_processed_total") == 20 * 32
    assert value("spikewise_worker_input_wait_ratio", {"rank": "1"}) == 0.125
    assert value("spikewise_checkpoint_step") == 20
    assert value("spikewise_storage_requests_total", {"operation": "put"}) == 3 + 2


def test_progress_and_restarts_reach_the_metrics():
    """A run that makes no progress, or restarts again and again, would raise no alert."""
    value = metrics(events.Started(step=20, restarts=2, workers=2, steps_per_epoch=10, resident=True), events.Progress(3, 5, 10))
    assert value("spikewise_restarts_total") == 2
    assert value("spikewise_images_processed_total") == 20 * 32
    assert value("spikewise_progress_ratio") == 0.25


def test_spikes_reach_the_metrics():
    """A spike would raise no alert; or those before a restart would be forgotten."""
    value = metrics(events.Resumed(20, 3, 1, (), (diagnosis(2),)), finished(3, news=News(diagnosis(3), ())))
    assert value("spikewise_validation_spikes_total", {"cause": "few_examples"}) == 2
    assert value("spikewise_validation_spike_epoch") == 3


def test_a_checkpoint_inside_an_epoch_reaches_the_metrics():
    """The alert on old checkpoints would fire although the run has just saved one."""
    value = metrics(events.CheckpointSaved(27, SaveStats(step=27, committed=1.0, skipped=4)))
    assert value("spikewise_checkpoint_step") == 27
    assert value("spikewise_checkpoint_skipped_total") == 4  # the log names the first one only


def test_the_wait_for_the_last_scrape_is_skipped_where_nothing_scrapes():
    """A user who presses Ctrl-C, or whose configuration is wrong, would wait at the terminal for `metrics.linger` seconds."""
    exporter = Exporter()
    exporter.serve("127.0.0.1", 0)
    try:
        monitoring = Monitoring(exporter, 32, linger=1000.0)  # the test would time out
        monitoring.wait_for_last_scrape(trained=True, interrupted=True)
        monitoring.wait_for_last_scrape(trained=False)
    finally:
        exporter.close()


def test_the_test_set_reaches_the_metrics():
    """A dashboard could not compare runs by their test results."""
    end = events.Finished("completed", 2, SaveStats(), events.Tested(40, 0.75, 0.5))
    value = metrics(finished(1, 0.25), end)
    assert value("spikewise_loss", {"split": "test"}) == 0.75
    assert value("spikewise_accuracy_ratio", {"split": "test"}) == 0.5
    assert value("spikewise_loss", {"split": "validation"}) == 0.25
    assert metrics(finished(1), events.Finished("completed", 2, SaveStats()))("spikewise_loss", {"split": "test"}) is None
