"""A run's Prometheus metrics, and the only door to prometheus_client.

The driver reports what happens; an Exporter keeps the current value of every metric in `METRICS` and serves them as one consistent
snapshot. Its registry is its own or passed in, never the global one. `samples` reads a scrape.

Only `spikewise_run_info` carries the run's name as a label. The series of one job share their target's labels, so
`spikewise_loss * on (instance, job) group_left (run) spikewise_run_info` adds the name where a query needs it.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

import trainer
from spikewise.causes import NAMES as CAUSES
from spikewise.curve import PARTS, Parts
from spikewise.records import Diagnosis, Overfitting
from spikewise.standing import TITLES as STANDING
from spikewise.standing import Standing
from trainer.epoch import EpochReport

State = Literal["starting", "packing", "training", "proving", "completed", "failed", "interrupted"]
"""`proving`: all epochs are trained, and remedies are tried in replays, which save no checkpoints."""
STATES: tuple[State, ...] = get_args(State)


class MetricsError(trainer.UserError):
    """The metrics endpoint cannot be opened."""


class Definition(NamedTuple):
    """What a metric measures."""

    type: Literal["gauge", "counter"]
    unit: str
    """Empty for a count or a dimensionless number."""
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, Definition] = {
    "spikewise_run_info": Definition(
        "gauge", "", "Always 1; the labels describe the run.", ("run", "model", "precision", "version")
    ),
    "spikewise_state": Definition("gauge", "", "1 for the current state of the run, 0 for the others.", ("state",)),
    "spikewise_last_progress_timestamp_seconds": Definition(
        "gauge", "seconds", "Unix time of the last progress: images packed, steps trained, an epoch finished or a new state."
    ),
    "spikewise_last_success_timestamp_seconds": Definition("gauge", "seconds", "Unix time at which the run completed."),
    "spikewise_workers": Definition("gauge", "", "Workers of the run."),
    "spikewise_restarts_total": Definition("counter", "", "Restarts of the run's workers, over all drivers."),
    "spikewise_restart_timestamp_seconds": Definition("gauge", "seconds", "Unix time of the last restart."),
    "spikewise_roll_backs_total": Definition(
        "counter", "", "Times that the run went back to a checkpoint before a divergence, over all drivers."
    ),
    "spikewise_dataset_images": Definition("gauge", "", "Images on each side of the split.", ("split",)),
    "spikewise_quarantined_images": Definition("gauge", "", "Images left out because they cannot be decoded."),
    "spikewise_epoch": Definition("gauge", "", "Last finished epoch, from 1."),
    "spikewise_epochs_planned": Definition("gauge", "", "Epochs after which the run ends."),
    "spikewise_progress_ratio": Definition("gauge", "ratio", "Finished fraction of the planned epochs."),
    "spikewise_eta_seconds": Definition("gauge", "seconds", "Remaining time if every epoch takes as long as the last one."),
    "spikewise_steps_total": Definition("counter", "", "Training steps since the start of the run; repeated steps count once."),
    "spikewise_images_processed_total": Definition(
        "counter", "", "Training images since the start of the run; repeated steps count once."
    ),
    "spikewise_loss": Definition(
        "gauge",
        "nats per image",
        "Mean cross-entropy. train: over the epoch's batches, in training mode. train_inference: a fixed training sample after the "
        "epoch, comparable with validation. test: after the last epoch, with the weights of model.keras.",
        ("split",),
    ),
    "spikewise_regularization_loss": Definition(
        "gauge", "nats per image", "What the network adds to the training loss, such as L2 terms; not part of spikewise_loss."
    ),
    "spikewise_accuracy_ratio": Definition("gauge", "ratio", "Fraction of images classified correctly.", ("split",)),
    "spikewise_best_epoch": Definition("gauge", "", "Epoch of the lowest validation loss."),
    "spikewise_best_validation_loss": Definition("gauge", "nats per image", "Lowest validation loss."),
    "spikewise_best_timestamp_seconds": Definition("gauge", "seconds", "Unix time at which the best epoch ended."),
    "spikewise_overfitting_epochs": Definition(
        "gauge", "", "Epochs since the best one if the model overfits (validation loss rises, training loss falls), else 0."
    ),
    "spikewise_validation_loss_part": Definition(
        "gauge",
        "nats per image",
        "What the validation loss is made of, as last measured. statistics: BatchNorm's moving averages. wandering: the last "
        "steps' to and fro. generalization: what does not carry over to unseen images. fit: the loss on training images.",
        ("part",),
    ),
    "spikewise_validation_loss_measured_epoch": Definition("gauge", "", "Epoch in which the parts were measured."),
    "spikewise_standing_cause": Definition("gauge", "", "1 if the cause was found in the last measurement, else 0.", ("cause",)),
    "spikewise_validation_spikes_total": Definition(
        "counter", "", "Spikes of the validation loss, by their first cause.", ("cause",)
    ),
    "spikewise_validation_spike_timestamp_seconds": Definition(
        "gauge", "seconds", "Unix time at which the last spike with this first cause was detected.", ("cause",)
    ),
    "spikewise_validation_spike_epoch": Definition("gauge", "", "Epoch of the last spike."),
    "spikewise_validation_spike_rise": Definition("gauge", "nats per image", "Rise of the validation loss in the last spike."),
    "spikewise_validation_spike_explained_ratio": Definition(
        "gauge", "ratio", "Fraction of the last spike's rise that its first cause explains."
    ),
    "spikewise_learning_rate": Definition("gauge", "", "Learning rate at the end of the epoch."),
    "spikewise_gradient_norm": Definition("gauge", "", "L2 norm of the global gradient, averaged over the epoch."),
    "spikewise_update_norm": Definition("gauge", "", "L2 norm of the weight change of one step, averaged over the epoch."),
    "spikewise_images_per_second": Definition("gauge", "images per second", "Training throughput of all workers."),
    "spikewise_step_duration_seconds": Definition("gauge", "seconds", "Mean duration of one step."),
    "spikewise_epoch_duration_seconds": Definition("gauge", "seconds", "Duration of the last epoch, including evaluation."),
    "spikewise_input_wait_ratio": Definition(
        "gauge", "ratio", "Fraction of the training time that the slowest worker waited for input."
    ),
    "spikewise_worker_input_wait_ratio": Definition(
        "gauge", "ratio", "Fraction of the training time that a worker waited for input.", ("rank",)
    ),
    "spikewise_checkpoint_step": Definition("gauge", "", "Step of the last committed checkpoint."),
    "spikewise_checkpoint_last_success_timestamp_seconds": Definition(
        "gauge", "seconds", "Unix time of the last committed checkpoint."
    ),
    "spikewise_checkpoint_duration_seconds": Definition("gauge", "seconds", "Duration of the last successful save."),
    "spikewise_checkpoint_failures_total": Definition("counter", "", "Saves that failed after all retries."),
    "spikewise_checkpoint_skipped_total": Definition("counter", "", "Saves that were left out: storage is slower than the epochs."),
    "spikewise_storage_requests_total": Definition(
        "counter",
        "",
        "Requests of the driver and of worker 0 to storage and data sources: get, put, list or delete. Retries are included, "
        "except those of image reads.",
        ("operation",),
    ),
    "spikewise_storage_retries_total": Definition("counter", "", "Requests to the run's storage that were retried."),
    "spikewise_storage_errors_total": Definition("counter", "", "Operations on the run's storage that failed after all retries."),
}
"""Name of each metric -> its definition. No label has unbounded values."""


class Sample(NamedTuple):
    """One value of a scrape."""

    name: str
    labels: dict[str, str]
    value: float


def samples(text: str) -> list[Sample]:
    """Parses metrics in Prometheus' text format. Raises ValueError if the text is malformed."""
    return [
        Sample(sample.name, sample.labels, float(sample.value))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


Labels = tuple[str, ...]
"""Label values in the order of the metric's labels."""


class Exporter(Collector):
    """The metrics of one run. Thread-safe; every method that changes values makes one update, which a scrape sees as a whole."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._changed = threading.Condition()
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in METRICS}
        self._counted: dict[tuple[str, Labels, str], float] = {}
        self._updates = 0
        self._scraped = -1
        """Number of updates in the last answered scrape; -1 before the first scrape."""
        self._server: Any = None
        self._served_since = 0.0
        for name, metric in METRICS.items():
            if metric.type == "counter" and not metric.labels:
                self._values[name][()] = 0.0  # a counter starts at 0, or Prometheus misses its first increase
        for name in ("spikewise_restarts_total", "spikewise_steps_total", "spikewise_images_processed_total"):
            del self._values[name][()]  # `begin` sets these: an earlier driver may have counted already
        self.registry.register(self)
        self.enter("starting")

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client for each scrape: one consistent snapshot, without metrics that have no value yet."""
        with self._changed:
            values = {name: dict(series) for name, series in self._values.items() if series}
        for name, series in values.items():
            metric = METRICS[name]
            family = (CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily)(
                name, metric.help, labels=metric.labels
            )
            for labels, value in series.items():
                family.add_metric(labels, value)
            yield family

    def describe_run(self, *, run: str, model: str, precision: str, epochs: int, workers: int) -> None:
        """Sets what is known before the run begins. Call it again when the number of workers changes."""
        with self._changed:
            self._values["spikewise_run_info"] = {(run, model, precision, trainer.__version__): 1.0}
            self._set("spikewise_epochs_planned", epochs)
            self._set("spikewise_workers", workers)
            self._updates += 1

    def describe_data(self, *, train: int, validation: int, quarantined: int, test: int = 0) -> None:
        """Sets the numbers of images. `test`: 0 without a test set."""
        with self._changed:
            self._values["spikewise_dataset_images"] = {("train",): float(train), ("validation",): float(validation)}
            if test:
                self._values["spikewise_dataset_images"]["test",] = float(test)
            self._set("spikewise_quarantined_images", quarantined)
            self._updates += 1

    def enter(self, state: State) -> None:
        """Sets the state of the run."""
        with self._changed:
            self._values["spikewise_state"] = {(other,): float(other == state) for other in STATES}
            if state == "completed":
                self._set("spikewise_last_success_timestamp_seconds", time.time())
            self._set("spikewise_last_progress_timestamp_seconds", time.time())
            self._updates += 1

    def note_progress(self) -> None:
        """Records progress that no other method reports."""
        with self._changed:
            self._set("spikewise_last_progress_timestamp_seconds", time.time())
            self._updates += 1

    def begin(self, restarts: int, *, steps: int, images: int) -> None:
        """Training begins after `restarts` restarts, from a checkpoint after `steps` steps and `images` images. Totals below the
        known ones are ignored."""
        with self._changed:
            self._advance({"spikewise_steps_total": steps, "spikewise_images_processed_total": images})
            known = self._values["spikewise_restarts_total"].get((), 0.0)
            if restarts > known:
                self._set("spikewise_restart_timestamp_seconds", time.time())
            self._set("spikewise_restarts_total", max(restarts, known))
            self._updates += 1

    def update_roll_backs(self, total: int) -> None:
        """How often the run has gone back to a checkpoint before a divergence."""
        with self._changed:
            self._advance({"spikewise_roll_backs_total": total})
            self._updates += 1

    def update(
        self,
        report: EpochReport,
        *,
        best: EpochReport | None,
        images: int,
        input_waits: Sequence[float] = (),
        overfitting: Overfitting | None = None,
    ) -> None:
        """An epoch has finished.

        `best` is the epoch of the lowest validation loss so far, None if none was finite. `images` counts the training images since
        the start of the run. `input_waits` holds, by rank, the fraction of the training time that a worker waited for input.

        Non-finite values are exported as they are. Repeating an epoch after a resume never lowers a counter.
        """
        with self._changed:
            for name, value in {
                "spikewise_epoch": report.epoch,
                "spikewise_learning_rate": report.learning_rate,
                "spikewise_regularization_loss": report.regularization,
                "spikewise_gradient_norm": report.gradient_norm,
                "spikewise_update_norm": report.update_norm,
                "spikewise_images_per_second": report.images_per_second,
                "spikewise_step_duration_seconds": report.step_seconds,
                "spikewise_epoch_duration_seconds": report.seconds,
                "spikewise_input_wait_ratio": report.input_wait,
                "spikewise_last_progress_timestamp_seconds": time.time(),
                "spikewise_overfitting_epochs": report.epoch - overfitting.epoch if overfitting else 0,
            }.items():
                self._set(name, value)
            self._values["spikewise_loss"] = {
                ("train",): report.train_loss,
                ("train_inference",): report.train_loss_inference,
                ("validation",): report.validation_loss,
            }
            self._values["spikewise_accuracy_ratio"] = {
                ("train",): report.train_accuracy,
                ("validation",): report.validation_accuracy,
            }
            self._values["spikewise_worker_input_wait_ratio"] = {(str(rank),): wait for rank, wait in enumerate(input_waits)}
            if best is not None:
                if best.epoch == report.epoch:
                    self._set("spikewise_best_timestamp_seconds", time.time())
                self._set("spikewise_best_epoch", best.epoch)
                self._set("spikewise_best_validation_loss", best.validation_loss)
            self._advance({"spikewise_steps_total": report.step, "spikewise_images_processed_total": images})
            if planned := self._values["spikewise_epochs_planned"].get(()):
                self._set("spikewise_progress_ratio", report.epoch / planned)
                self._set("spikewise_eta_seconds", max(0.0, planned - report.epoch) * report.seconds)
            self._updates += 1

    def update_spikes(self, diagnoses: Sequence[Diagnosis]) -> None:
        """Sets the spikes of the run so far."""
        with self._changed:
            causes = Counter(diagnosis.verdict.name for diagnosis in diagnoses)
            counted = self._values["spikewise_validation_spikes_total"]
            for cause in CAUSES:  # every cause starts at 0, or Prometheus misses its first spike
                known = counted.get((cause,))
                if known is not None and causes[cause] > known:  # None: these spikes are older than this driver
                    self._values["spikewise_validation_spike_timestamp_seconds"][cause,] = time.time()
                counted[cause,] = max(known or 0.0, causes[cause])  # a verdict may change later
            if diagnoses:
                last = diagnoses[-1]
                self._set("spikewise_validation_spike_epoch", last.spike.epoch)
                self._set("spikewise_validation_spike_rise", last.spike.rise)
                self._set("spikewise_validation_spike_explained_ratio", last.verdict.fraction)
            self._updates += 1

    def update_parts(self, parts: Parts | None, standing: Sequence[Standing]) -> None:
        """Sets what the loss of an epoch is made of, if it was measured in it, and the standing causes of the run so far."""
        with self._changed:
            if parts is not None:
                self._values["spikewise_validation_loss_part"] = {(name,): float(getattr(parts, name)) for name in PARTS}
                self._set("spikewise_validation_loss_measured_epoch", parts.epoch)
            found = {one.name for one in standing if not one.over}
            self._values["spikewise_standing_cause"] = {(name,): float(name in found) for name in STANDING}
            self._updates += 1

    def update_test(self, *, loss: float, accuracy: float) -> None:
        """The test set is evaluated, after the last epoch."""
        with self._changed:
            self._values["spikewise_loss"]["test",] = loss
            self._values["spikewise_accuracy_ratio"]["test",] = accuracy
            self._updates += 1

    def progress(self, epoch: int, step: int, steps: int) -> None:
        """Within an epoch: `step` of its `steps` are done."""
        with self._changed:
            if planned := self._values["spikewise_epochs_planned"].get(()):
                self._set("spikewise_progress_ratio", (epoch - 1 + step / steps) / planned)
            self._set("spikewise_last_progress_timestamp_seconds", time.time())
            self._updates += 1

    def update_checkpoint(
        self, *, step: int | None, committed: float | None, seconds: float | None, failures: int, skipped: int = 0
    ) -> None:
        """Sets the state of the saves: step, Unix time and duration (seconds) of the last committed one, None before the first; and
        the failed and the skipped ones so far of the saving worker. The counters add them up over workers, each starting from 0."""
        with self._changed:
            for name, value in {
                "spikewise_checkpoint_step": step,
                "spikewise_checkpoint_last_success_timestamp_seconds": committed,
                "spikewise_checkpoint_duration_seconds": seconds,
            }.items():
                if value is not None:
                    self._set(name, value)
            self._count("spikewise_checkpoint_failures_total", (), failures, "")
            self._count("spikewise_checkpoint_skipped_total", (), skipped, "")
            self._updates += 1

    def update_storage(self, process: str, *, requests: Mapping[str, int], retries: int, errors: int) -> None:
        """Sets what a Store has counted since the start of `process` ("driver", "worker 0"). The counters add up all processes."""
        with self._changed:
            for operation, total in requests.items():
                self._count("spikewise_storage_requests_total", (operation,), total, process)
            self._count("spikewise_storage_retries_total", (), retries, process)
            self._count("spikewise_storage_errors_total", (), errors, process)
            self._updates += 1

    def serve(self, host: str, port: int) -> int:
        """Opens the endpoint and returns its port; `port` 0 takes a free one. `host` 0.0.0.0 means all addresses, of IPv6 too.

        Raises MetricsError if the address cannot be used.
        """
        try:
            everywhere = host == "0.0.0.0" and socket.has_dualstack_ipv6()
            self._server, _ = start_http_server(port, "::" if everywhere else host, self.registry)
        except (OSError, OverflowError) as error:
            raise MetricsError(
                f"Metrics endpoint {host}:{port} cannot be opened ({error}). Fix: set another metrics.port; 0 takes a free one."
            ) from None
        self._server.set_app(self._noting(self._server.get_app()))
        self._served_since = time.monotonic()
        return self._server.server_port

    @property
    def scraped(self) -> bool:
        """Whether the endpoint was ever scraped."""
        return self._scraped >= 0

    def wait_for_scrape(self, seconds: float) -> bool:
        """Waits up to `seconds` for a scrape that began after the last update; returns whether one was answered.

        Returns at once if the endpoint has been open for `seconds` without any scrape, because then nothing scrapes it. Every
        `GET /metrics` counts as a scrape, so health probes must use another path.
        """
        with self._changed:
            unused = not self.scraped and time.monotonic() - self._served_since >= seconds
            if self._server is None or unused:
                return False
            last = self._updates
            return self._changed.wait_for(lambda: self._scraped >= last, seconds)

    def close(self) -> None:
        """Closes the endpoint if it is open."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _noting(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """Wraps the WSGI `app`: records the updates that a scrape saw when it began, once its answer is sent."""

        def noting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            with self._changed:
                seen = self._updates
            yield from app(environ, start_response)
            if environ["REQUEST_METHOD"] == "GET" and environ["PATH_INFO"] == "/metrics":
                with self._changed:
                    self._scraped = max(self._scraped, seen)
                    self._changed.notify_all()

        return noting

    def _set(self, name: str, value: float) -> None:
        self._values[name][()] = float(value)

    def _advance(self, totals: Mapping[str, int]) -> None:
        for name, total in totals.items():
            self._set(name, max(total, self._values[name].get((), 0.0)))

    def _count(self, name: str, labels: Labels, total: float, process: str) -> None:
        """Advances a counter by what `process` counted since its last report. A lower total means that the process restarted."""
        last = self._counted.get((name, labels, process), 0)
        self._counted[name, labels, process] = total
        self._values[name][labels] = self._values[name].get(labels, 0.0) + (total - last if total >= last else total)
