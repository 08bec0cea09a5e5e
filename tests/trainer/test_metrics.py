"""The metrics endpoint: what it exports, and when a scrape counts."""

import math
import re
import socket
import subprocess
import threading
import time
import urllib.request
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from spikewise.curve import Parts
from spikewise.records import Cause, Diagnosis, Overfitting, Spike
from spikewise.standing import Standing
from trainer.epoch import EpochReport
from trainer.metrics import METRICS, STATES, Exporter, MetricsError, Sample, samples


def report(epoch: int = 1, **changes: float) -> EpochReport:
    values: dict[str, Any] = {
        "epoch": epoch,
        "step": epoch * 10,
        "train_loss": 0.7,
        "train_accuracy": 0.6,
        "train_loss_inference": 0.65,
        "validation_loss": 0.8,
        "validation_accuracy": 0.55,
        "learning_rate": 1e-4,
        "gradient_norm": 2.0,
        "update_norm": 0.1,
        "images_per_second": 300.0,
        "input_wait": 0.25,
        "step_seconds": 0.1,
        "seconds": 12.0,
    }
    return EpochReport(**{**values, **changes})


PARTS = Parts(3, 1.0, 0.4, -0.1, 0.3, 0.4)
STANDING = Standing("statistics", "t", 1, 3, "Found.", "Seen.", "do.")


def filled() -> Exporter:
    """An exporter in which every metric has a value."""
    exporter = Exporter()
    exporter.describe_run(run="a-run", model="cnn", precision="float32", epochs=4, workers=2)
    exporter.describe_data(train=320, validation=80, quarantined=1)
    exporter.enter("training")
    exporter.update(report(), best=report(), images=320, input_waits=[0.1, 0.25])
    exporter.update_checkpoint(step=10, committed=1.7e9, seconds=0.5, failures=1)
    exporter.update_storage("driver", requests={"get": 5, "put": 2}, retries=3, errors=1)
    exporter.begin(1, steps=0, images=0)
    exporter.update_spikes([a_diagnosis("few_examples", 3)])
    exporter.update_spikes([a_diagnosis("few_examples", 3), a_diagnosis("unexplained", 4)])
    exporter.update_parts(PARTS, [STANDING])
    exporter.enter("completed")
    return exporter


def test_the_parts_of_the_loss_and_the_standing_causes_are_exported() -> None:
    """The dashboard would show neither what the loss is made of, nor that a cause is over."""
    exporter = filled()
    parts = [value(exporter, "spikewise_validation_loss_part", part=name) for name in ("statistics", "wandering", "generalization")]
    assert parts == [0.4, -0.1, 0.3]
    assert value(exporter, "spikewise_validation_loss_measured_epoch") == 3
    assert value(exporter, "spikewise_standing_cause", cause="statistics") == 1
    assert value(exporter, "spikewise_standing_cause", cause="fit") == 0
    exporter.update_parts(None, [replace(STANDING, over=True)])
    assert value(exporter, "spikewise_standing_cause", cause="statistics") == 0
    assert value(exporter, "spikewise_validation_loss_part", part="fit") == 0.4  # as last measured


def a_diagnosis(cause: str, epoch: int) -> Diagnosis:
    spike = Spike(epoch, 1.0, 0.6, 0.05, 0.2, 0.4, 0.3, 0.5, 0.05, 80)
    return Diagnosis(spike, (Cause(cause, 0.75, 0.6, 0.9, "seen.", "do."),))


def value(exporter: Exporter, name: str, **labels: str) -> float | None:
    return exporter.registry.get_sample_value(name, labels)


def scrape(port: int, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def test_every_metric_of_the_table_is_exported_with_its_labels() -> None:
    """A dashboard or alert on a metric that no code sets would stay empty."""
    families = {family.name: family for family in filled().registry.collect()}
    assert families.keys() == {name.removesuffix("_total") for name in METRICS}
    for name, metric in METRICS.items():
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.type, metric.help)
        for sample in family.samples:
            assert sample.name == name
            assert tuple(sample.labels) == metric.labels


def test_names_carry_type_and_unit() -> None:
    """A reader of a graph takes type and unit from the name, in Prometheus' base units."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"spikewise_[a-z0-9_]+", name)
        assert name.endswith("_total") == (metric.type == "counter")
        assert name.endswith("_info") == (name == "spikewise_run_info")
        for unit in ("seconds", "ratio"):
            assert name.endswith(f"_{unit}") == (metric.unit == unit)
        assert ("timestamp" in name) == name.endswith("_timestamp_seconds")
        assert not re.search(r"milli|minutes|hours|percent|kilo|mega", name)
        assert metric.help.endswith(".")


def test_a_scrape_is_read_back() -> None:
    """`python -m jobs.cluster status` would show other values than the driver exports."""
    exporter = filled()
    exporter.describe_run(run='a "quoted", run', model="cnn", precision="float32", epochs=4, workers=2)
    read = samples(generate_latest(exporter.registry).decode())
    assert Sample("spikewise_loss", {"split": "validation"}, 0.8) in read
    assert Sample("spikewise_steps_total", {}, 10.0) in read
    assert [sample.labels["run"] for sample in read if sample.name == "spikewise_run_info"] == ['a "quoted", run']
    assert samples("") == []
    with pytest.raises(ValueError):
        samples("<html>502 Bad Gateway</html>")


@pytest.mark.prometheus
def test_promtool_finds_no_fault() -> None:
    """Names or help texts would break the conventions that tools and people rely on."""
    exporter = filled()
    port = exporter.serve("127.0.0.1", 0)
    try:
        linted = subprocess.run(["promtool", "check", "metrics"], input=scrape(port), capture_output=True, text=True, timeout=60)
    finally:
        exporter.close()
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


def test_values_of_an_epoch() -> None:
    """The dashboard would show numbers that differ from the report, or show them under the wrong split or rank."""
    exporter = filled()
    assert value(exporter, "spikewise_loss", split="train") == 0.7
    assert value(exporter, "spikewise_loss", split="train_inference") == 0.65
    assert value(exporter, "spikewise_loss", split="validation") == 0.8
    assert value(exporter, "spikewise_accuracy_ratio", split="validation") == 0.55
    assert value(exporter, "spikewise_progress_ratio") == 0.25
    assert value(exporter, "spikewise_eta_seconds") == 36
    assert value(exporter, "spikewise_steps_total") == 10
    assert value(exporter, "spikewise_images_processed_total") == 320
    assert value(exporter, "spikewise_worker_input_wait_ratio", rank="1") == 0.25
    assert value(exporter, "spikewise_dataset_images", split="validation") == 80
    assert value(exporter, "spikewise_storage_requests_total", operation="get") == 5
    assert value(exporter, "spikewise_storage_retries_total") == 3
    assert value(exporter, "spikewise_checkpoint_failures_total") == 1


def test_one_state_at_a_time() -> None:
    """`spikewise_state == 1` would name two states, or none."""
    exporter = Exporter()
    for state in STATES:
        exporter.enter(state)
        assert {other: value(exporter, "spikewise_state", state=other) for other in STATES} == {
            other: float(other == state) for other in STATES
        }


def test_a_failed_run_has_no_success() -> None:
    """A failed run would silence an alert on a job that has not succeeded for days."""
    exporter = Exporter()
    exporter.enter("failed")
    assert value(exporter, "spikewise_last_success_timestamp_seconds") is None
    exporter.enter("completed")
    assert value(exporter, "spikewise_last_success_timestamp_seconds") is not None


def test_a_diverged_loss_is_exported_as_it_is() -> None:
    """The last finite loss would hide a divergence. NaN and infinity are legal values in Prometheus."""
    exporter = filled()
    exporter.update(report(2, validation_loss=math.nan, train_loss=math.inf), best=report(), images=640)
    assert math.isnan(value(exporter, "spikewise_loss", split="validation") or 0)
    assert value(exporter, "spikewise_loss", split="train") == math.inf
    assert value(exporter, "spikewise_best_validation_loss") == 0.8
    assert b"NaN" in generate_latest(exporter.registry)


def test_a_repeated_epoch_lowers_no_counter() -> None:
    """Prometheus would take a lower counter for a reset and count the repeated steps twice."""
    exporter = filled()
    exporter.update(report(3), best=report(), images=960)
    exporter.update(report(2), best=report(), images=640)
    assert value(exporter, "spikewise_epoch") == 2
    assert value(exporter, "spikewise_steps_total") == 30
    assert value(exporter, "spikewise_images_processed_total") == 960


def test_restarts_continue_those_of_earlier_drivers() -> None:
    """The alert on restarts would fire for a run resumed after weeks, or stay silent when its pods are replaced one by one."""
    exporter = Exporter()
    assert value(exporter, "spikewise_restarts_total") is None
    exporter.begin(0, steps=0, images=0)
    assert value(exporter, "spikewise_restarts_total") == 0
    assert value(exporter, "spikewise_restart_timestamp_seconds") is None
    exporter.begin(1, steps=0, images=0)
    exporter.begin(0, steps=0, images=0)
    assert value(exporter, "spikewise_restarts_total") == 1
    resumed = Exporter()
    resumed.begin(7, steps=500, images=16_000)
    assert value(resumed, "spikewise_restarts_total") == 7
    assert time.time() - (value(resumed, "spikewise_restart_timestamp_seconds") or 0) < 60


def test_steps_continue_those_of_earlier_drivers() -> None:
    """A new driver would seem to make thousands of steps a second: all earlier ones since its first scrape."""
    exporter = Exporter()
    names = {"spikewise_steps_total": 500, "spikewise_images_processed_total": 16_000}
    assert all(value(exporter, name) is None for name in names)
    exporter.begin(1, steps=500, images=16_000)
    assert {name: value(exporter, name) for name in names} == names
    exporter.begin(2, steps=490, images=15_680)
    assert {name: value(exporter, name) for name in names} == names


def test_events_carry_the_time_at_which_they_happened() -> None:
    """The dashboard marks spikes and the best epoch at these times; after a restart, earlier ones would move to the restart."""
    exporter = Exporter()
    name = "spikewise_validation_spike_timestamp_seconds"
    exporter.update_spikes([a_diagnosis("few_examples", 3)])
    assert value(exporter, name, cause="few_examples") is None
    exporter.update(report(5), best=report(2), images=320)
    assert value(exporter, "spikewise_best_timestamp_seconds") is None
    exporter.update_spikes([a_diagnosis("few_examples", 3), a_diagnosis("few_examples", 6)])
    exporter.update(report(6), best=report(6), images=320)
    assert time.time() - (value(exporter, name, cause="few_examples") or 0) < 60
    assert time.time() - (value(exporter, "spikewise_best_timestamp_seconds") or 0) < 60


def test_overfitting_is_a_number_of_epochs() -> None:
    """The alert on overfitting would never fire, or never resolve."""
    exporter = filled()
    exporter.update(report(9), best=report(2), images=640, overfitting=Overfitting(epoch=2, loss=0.5, climb=0.01, gap=0.3))
    assert value(exporter, "spikewise_overfitting_epochs") == 7
    exporter.update(report(10), best=report(2), images=640)
    assert value(exporter, "spikewise_overfitting_epochs") == 0


def test_packing_is_progress() -> None:
    """Packing a large data set takes hours; the alert on a hanging run would fire."""
    exporter = Exporter()
    began = value(exporter, "spikewise_last_progress_timestamp_seconds") or 0
    exporter.note_progress()
    assert (value(exporter, "spikewise_last_progress_timestamp_seconds") or 0) > began


def test_counts_of_processes_add_up_over_restarts() -> None:
    """A replaced worker counts requests and failed saves from zero; the counts of the first one would be lost."""
    exporter = Exporter()
    for process, total in (("driver", 5), ("worker 0", 7), ("worker 0", 9), ("worker 0", 2), ("driver", 6)):
        exporter.update_storage(process, requests={"get": total}, retries=0, errors=0)
    assert value(exporter, "spikewise_storage_requests_total", operation="get") == 6 + 9 + 2
    for failures in (0, 2, 1):
        exporter.update_checkpoint(step=None, committed=None, seconds=None, failures=failures)
    assert value(exporter, "spikewise_checkpoint_failures_total") == 3
    assert value(exporter, "spikewise_checkpoint_step") is None


def test_ranks_of_a_smaller_group_disappear() -> None:
    """After a restart with fewer workers, a rank that is gone would stay on the dashboard with its last value."""
    exporter = filled()
    exporter.update(report(2), best=report(), images=640, input_waits=[0.3])
    assert value(exporter, "spikewise_worker_input_wait_ratio", rank="1") is None


def test_registries_are_separate() -> None:
    """Two runs in one process (tests, notebooks) would collide, or pollute the global registry."""
    mine = CollectorRegistry()
    first, second = Exporter(mine), Exporter()
    first.enter("training")
    assert mine.get_sample_value("spikewise_state", {"state": "training"}) == 1
    assert value(second, "spikewise_state", state="training") == 0
    assert not any(family.name.startswith("spikewise_") for family in REGISTRY.collect())


def test_a_port_in_use_is_an_error_of_one_line() -> None:
    """The second run on a laptop would end in a traceback instead of a line that names the setting to change."""
    first, second = Exporter(), Exporter()
    port = first.serve("127.0.0.1", 0)
    try:
        with pytest.raises(MetricsError, match=rf"127\.0\.0\.1:{port} cannot be opened \(.*in use.*metrics\.port") as caught:
            second.serve("127.0.0.1", port)
        assert "\n" not in str(caught.value)
    finally:
        first.close()


def test_waits_for_a_scrape_that_began_after_the_last_update() -> None:
    """The job ends when the wait does; if an older scrape or another path counted, Prometheus would lack the last epoch."""
    exporter = filled()
    port = exporter.serve("127.0.0.1", 0)
    try:
        assert not exporter.scraped
        scrape(port)
        assert exporter.scraped
        exporter.enter("completed")
        scrape(port, "/healthz")
        assert not exporter.wait_for_scrape(0.05)
        waiting = threading.Event()
        answers: list[bool] = []

        def wait() -> None:
            waiting.set()
            answers.append(exporter.wait_for_scrape(60))

        thread = threading.Thread(target=wait)
        thread.start()
        waiting.wait()
        assert 'spikewise_state{state="completed"} 1.0' in scrape(port)
        thread.join()
        assert answers == [True]
        assert exporter.wait_for_scrape(0)
    finally:
        exporter.close()


def test_a_scrape_that_began_before_the_update_does_not_count() -> None:
    """A slow scrape that already holds the old values would end the job."""
    exporter = Exporter()
    in_scrape, may_go_on = threading.Event(), threading.Event()

    class Slow(Collector):
        def collect(self) -> list[Metric]:
            in_scrape.set()
            may_go_on.wait()
            return []

    exporter.registry.register(Slow())
    port = exporter.serve("127.0.0.1", 0)
    try:
        thread = threading.Thread(target=scrape, args=[port])
        thread.start()
        in_scrape.wait()
        exporter.enter("completed")
        may_go_on.set()
        thread.join()
        assert not exporter.wait_for_scrape(0.05)
        scrape(port)
        assert exporter.wait_for_scrape(60)
    finally:
        may_go_on.set()
        exporter.close()


def test_no_wait_without_a_scraper() -> None:
    """On a laptop without Prometheus the command would end a minute after the training."""
    exporter = filled()
    assert not exporter.wait_for_scrape(1000)
    exporter.serve("127.0.0.1", 0)
    try:
        exporter._served_since -= 1000
        assert not exporter.wait_for_scrape(1000)
    finally:
        exporter.close()


def test_spikes_are_counted_by_cause_and_never_uncounted() -> None:
    """The alert on unexplained spikes would not fire, or fire again whenever a verdict changes."""
    exporter = filled()
    name = "spikewise_validation_spikes_total"
    assert value(exporter, name, cause="few_examples") == 1
    assert value(exporter, name, cause="unexplained") == 1
    assert value(exporter, name, cause="overshoot") == 0
    assert value(exporter, "spikewise_validation_spike_epoch") == 4
    exporter.update_spikes([a_diagnosis("divergence", 3), a_diagnosis("unexplained", 4), a_diagnosis("unexplained", 9)])
    assert [value(exporter, name, cause=cause) for cause in ("few_examples", "divergence", "unexplained")] == [1, 1, 2]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_addresses_include_ipv6():
    """On a cluster with IPv6 only, Prometheus could not reach the metrics."""
    exporter = Exporter()
    port = exporter.serve("0.0.0.0", 0)
    try:
        for host in ("127.0.0.1", "[::1]"):
            assert b"spikewise_state" in urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10).read()
    finally:
        exporter.close()


def test_roll_backs_are_counted_over_all_drivers() -> None:
    """An alert on runs that go back again and again would never fire."""
    exporter = Exporter()
    value = exporter.registry.get_sample_value
    assert value("spikewise_roll_backs_total") == 0
    exporter.update_roll_backs(2)
    exporter.update_roll_backs(1)
    assert value("spikewise_roll_backs_total") == 2
