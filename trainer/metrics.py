"""What a run shows to Prometheus: the only door to prometheus_client.

Separation of concerns: the driver tells what happened; this module keeps the current value of every metric of `METRICS` and
serves all of them, always from one and the same moment. The registry is its own or handed in, never the global one.

The run's name is a label of `spikewise_run_info` alone, as is the custom: the series of one job share their target's labels, and
`spikewise_loss * on (instance, job) group_left (run) spikewise_run_info` adds the name where it is wanted.
"""

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
from spikewise.records import Diagnosis, Overfitting
from trainer.epoch import EpochReport
from trainer.storage.checkpoint import SaveStats

State = Literal["starting", "packing", "training", "completed", "failed", "interrupted"]
STATES: tuple[State, ...] = get_args(State)


class MetricsError(trainer.UserError):
    """The endpoint cannot be opened; one line with the address, why, and the way out."""


class Described(NamedTuple):
    type: Literal["gauge", "counter"]
    unit: str
    """Empty: a count, or without dimension."""
    help: str
    labels: tuple[str, ...] = ()


METRICS: dict[str, Described] = {
    "spikewise_run_info": Described("gauge", "", "Always 1: what this job runs.", ("run", "model", "precision", "version")),
    "spikewise_state": Described("gauge", "", "1 for the state in which the run is, 0 for the others.", ("state",)),
    "spikewise_last_progress_timestamp_seconds": Described(
        "gauge", "seconds", "Unix time of the last sign of progress: images packed, steps made, an epoch, another state."
    ),
    "spikewise_last_success_timestamp_seconds": Described("gauge", "seconds", "Unix time at which the run completed."),
    "spikewise_workers": Described("gauge", "", "Workers of the run."),
    "spikewise_restarts_total": Described("counter", "", "Times that the run's workers were started again, by any process."),
    "spikewise_restart_timestamp_seconds": Described("gauge", "seconds", "Unix time at which it was resumed last."),
    "spikewise_dataset_images": Described("gauge", "", "Images on each side of the split.", ("split",)),
    "spikewise_quarantined_images": Described("gauge", "", "Images left out because they could not be decoded."),
    "spikewise_epoch": Described("gauge", "", "Last finished epoch, from 1."),
    "spikewise_epochs_planned": Described("gauge", "", "Epochs after which the run ends."),
    "spikewise_progress_ratio": Described("gauge", "ratio", "Share of the planned epochs that is done."),
    "spikewise_eta_seconds": Described("gauge", "seconds", "Time left if every epoch takes as long as the last one."),
    "spikewise_steps_total": Described("counter", "", "Updates since the start of the run, repeated ones counted once."),
    "spikewise_images_processed_total": Described(
        "counter", "", "Training images since the start of the run, repeats counted once."
    ),
    "spikewise_loss": Described(
        "gauge",
        "nats per image",
        "Mean cross-entropy. train: over the epoch's batches, dropout on; train_inference: a fixed training sample after the "
        "epoch, comparable with validation.",
        ("split",),
    ),
    "spikewise_accuracy_ratio": Described("gauge", "ratio", "Share of images classified correctly.", ("split",)),
    "spikewise_best_epoch": Described("gauge", "", "Epoch of the lowest validation loss."),
    "spikewise_best_validation_loss": Described("gauge", "nats per image", "Lowest validation loss."),
    "spikewise_best_timestamp_seconds": Described("gauge", "seconds", "Unix time at which the best epoch ended."),
    "spikewise_overfitting_epochs": Described(
        "gauge", "", "Epochs for which the validation loss has climbed while training images get better; 0: it does not."
    ),
    "spikewise_validation_spikes_total": Described(
        "counter", "", "Spikes of the validation loss, by their first cause.", ("cause",)
    ),
    "spikewise_validation_spike_timestamp_seconds": Described(
        "gauge", "seconds", "Unix time at which the last spike of this first cause was found.", ("cause",)
    ),
    "spikewise_validation_spike_epoch": Described("gauge", "", "Epoch of the last spike."),
    "spikewise_validation_spike_rise": Described("gauge", "nats per image", "Rise of the validation loss in the last spike."),
    "spikewise_validation_spike_explained_ratio": Described("gauge", "ratio", "Share of that rise which its first cause explains."),
    "spikewise_learning_rate": Described("gauge", "", "Learning rate at the end of the epoch."),
    "spikewise_gradient_norm": Described("gauge", "", "L2 norm of the global gradient, mean over the epoch."),
    "spikewise_update_norm": Described("gauge", "", "L2 norm of one step's change of the weights, mean over the epoch."),
    "spikewise_images_per_second": Described("gauge", "images per second", "Training throughput of all workers together."),
    "spikewise_step_duration_seconds": Described("gauge", "seconds", "Mean duration of one step."),
    "spikewise_epoch_duration_seconds": Described("gauge", "seconds", "Duration of the last epoch, evaluation included."),
    "spikewise_input_wait_ratio": Described("gauge", "ratio", "Share of training time that the slowest worker waited for input."),
    "spikewise_worker_input_wait_ratio": Described("gauge", "ratio", "Share of training time spent waiting for input.", ("rank",)),
    "spikewise_checkpoint_step": Described("gauge", "", "Step of the last committed checkpoint."),
    "spikewise_checkpoint_last_success_timestamp_seconds": Described("gauge", "seconds", "Unix time of the last commit."),
    "spikewise_checkpoint_duration_seconds": Described("gauge", "seconds", "Duration of the last successful save."),
    "spikewise_checkpoint_failures_total": Described("counter", "", "Saves that failed after all retries."),
    "spikewise_object_store_requests_total": Described(
        "counter", "", "Requests to object storage, tries included.", ("operation",)
    ),
    "spikewise_object_store_retries_total": Described("counter", "", "Requests to object storage that were tried again."),
    "spikewise_object_store_errors_total": Described("counter", "", "Operations on object storage that were given up."),
}
"""Every metric: what it is called, its type, unit and labels. No label takes unboundedly many values."""


class Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float


def samples(text: str) -> list[Sample]:
    """The samples of a scrape in Prometheus' text format."""
    return [
        Sample(each.name, each.labels, each.value) for family in text_string_to_metric_families(text) for each in family.samples
    ]


Labels = tuple[str, ...]
"""Label values, in the order of the metric's labels."""


class Exporter(Collector):
    """The metrics of one run. Every method may be called from any thread; every one that changes a value is one update."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._changed = threading.Condition()
        self._values: dict[str, dict[Labels, float]] = {name: {} for name in METRICS}
        self._counted: dict[tuple[str, Labels, str], float] = {}
        self._updates = 0
        self._scraped = -1
        """Updates that the last complete scrape had seen; -1: nobody has scraped."""
        self._server: Any = None
        self._served_since = 0.0
        for name, metric in METRICS.items():
            if metric.type == "counter" and not metric.labels:
                self._values[name][()] = 0.0  # a counter begins at 0, or Prometheus cannot tell the first increase
        for name in ("spikewise_restarts_total", "spikewise_steps_total", "spikewise_images_processed_total"):
            del self._values[name][()]  # but earlier processes may have counted these: see `begin`
        self.registry.register(self)
        self.enter("starting")

    def collect(self) -> Iterable[Metric]:
        """Called by prometheus_client for each scrape: all values of one moment. A metric without a value is left out."""
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
        """What is known of the run before it begins. Called again after a restart with another number of workers."""
        with self._changed:
            self._values["spikewise_run_info"] = {(run, model, precision, trainer.__version__): 1.0}
            self._set("spikewise_epochs_planned", epochs)
            self._set("spikewise_workers", workers)
            self._updates += 1

    def describe_data(self, *, train: int, validation: int, quarantined: int) -> None:
        """Numbers of images."""
        with self._changed:
            self._values["spikewise_dataset_images"] = {("train",): float(train), ("validation",): float(validation)}
            self._set("spikewise_quarantined_images", quarantined)
            self._updates += 1

    def enter(self, state: State) -> None:
        """The run enters a state of `STATES`."""
        with self._changed:
            self._values["spikewise_state"] = {(other,): float(other == state) for other in STATES}
            if state == "completed":
                self._set("spikewise_last_success_timestamp_seconds", time.time())
            self._set("spikewise_last_progress_timestamp_seconds", time.time())
            self._updates += 1

    def note_progress(self) -> None:
        """Something went on that no other method tells."""
        with self._changed:
            self._set("spikewise_last_progress_timestamp_seconds", time.time())
            self._updates += 1

    def begin(self, restarts: int, *, steps: int, images: int) -> None:
        """Training begins, after the workers were started again `restarts` times, and so many steps with so many images that a
        checkpoint holds; fewer than were known change nothing."""
        with self._changed:
            self._advance({"spikewise_steps_total": steps, "spikewise_images_processed_total": images})
            known = self._values["spikewise_restarts_total"].get((), 0.0)
            if restarts > known:
                self._set("spikewise_restart_timestamp_seconds", time.time())
            self._set("spikewise_restarts_total", max(restarts, known))
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
        """An epoch is finished. `best`: the report of the lowest validation loss so far, None if none was finite. `images`:
        training images processed since the start of the run. `input_waits`: each worker's share of waiting, by rank.
        `overfitting`: the trend, if there is one.

        Values that are not finite are exported as they are. A resumed run that repeats an epoch never lowers a counter.
        """
        with self._changed:
            for name, value in {
                "spikewise_epoch": report.epoch,
                "spikewise_learning_rate": report.learning_rate,
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
        """All spikes of the run so far."""
        with self._changed:
            causes = Counter(diagnosis.verdict.name for diagnosis in diagnoses)
            counted = self._values["spikewise_validation_spikes_total"]
            for cause in CAUSES:  # all of them, from 0 on, or Prometheus cannot tell the first one
                known = counted.get((cause,))
                if known is not None and causes[cause] > known:  # None: those before a restart, found at another time
                    self._values["spikewise_validation_spike_timestamp_seconds"][cause,] = time.time()
                counted[cause,] = max(known or 0.0, causes[cause])  # a verdict may change later
            if diagnoses:
                last = diagnoses[-1]
                self._set("spikewise_validation_spike_epoch", last.spike.epoch)
                self._set("spikewise_validation_spike_rise", last.spike.rise)
                self._set("spikewise_validation_spike_explained_ratio", last.verdict.fraction)
            self._updates += 1

    def progress(self, epoch: int, step: int, steps: int) -> None:
        """Inside an epoch: `step` of its `steps` are done."""
        with self._changed:
            if planned := self._values["spikewise_epochs_planned"].get(()):
                self._set("spikewise_progress_ratio", (epoch - 1 + step / steps) / planned)
            self._set("spikewise_last_progress_timestamp_seconds", time.time())
            self._updates += 1

    def update_checkpoint(self, stats: SaveStats) -> None:
        """What became of the saves of the worker that saves; its successor after a restart counts from 0 again."""
        with self._changed:
            for name, value in {
                "spikewise_checkpoint_step": stats.step,
                "spikewise_checkpoint_last_success_timestamp_seconds": stats.committed,
                "spikewise_checkpoint_duration_seconds": stats.seconds,
            }.items():
                if value is not None:
                    self._set(name, value)
            self._count("spikewise_checkpoint_failures_total", (), stats.failures, "")
            self._updates += 1

    def update_object_store(self, process: str, *, requests: Mapping[str, int], retries: int, errors: int) -> None:
        """Counts of a Store since the start of `process` ("driver", "worker 0"); all processes are added up."""
        with self._changed:
            for operation, total in requests.items():
                self._count("spikewise_object_store_requests_total", (operation,), total, process)
            self._count("spikewise_object_store_retries_total", (), retries, process)
            self._count("spikewise_object_store_errors_total", (), errors, process)
            self._updates += 1

    def serve(self, host: str, port: int) -> int:
        """Opens the endpoint and returns its port: `port`, or a free one if that is 0. Raises MetricsError if it cannot."""
        try:
            self._server, _ = start_http_server(port, host, self.registry)
        except (OSError, OverflowError) as error:
            raise MetricsError(
                f"metrics endpoint {host}:{port} cannot be opened: {error}: choose another metrics.port, 0 takes a free one"
            ) from None
        self._server.set_app(self._noting(self._server.get_app()))
        self._served_since = time.monotonic()
        return self._server.server_port

    @property
    def scraped(self) -> bool:
        """Whether anybody ever scraped."""
        return self._scraped >= 0

    def wait_for_scrape(self, seconds: float) -> bool:
        """Waits up to `seconds` until a scrape that began after the last update was answered; says whether it was.

        Does not wait when nobody ever scraped although the endpoint was open for `seconds`: then nobody will. Any client's
        `GET /metrics` is a scrape, so point health probes to another path.
        """
        with self._changed:
            deserted = not self.scraped and time.monotonic() - self._served_since >= seconds
            if self._server is None or deserted:
                return False
            last = self._updates
            return self._changed.wait_for(lambda: self._scraped >= last, seconds)

    def close(self) -> None:
        """Closes the endpoint, if it was opened."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _noting(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """`app`, which notes what an answered scrape has seen: what was there when it began, and only once it is sent."""

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
        """Advances a counter by what `process` counted since last time; a lower total is that of a process that began anew."""
        last = self._counted.get((name, labels, process), 0)
        self._counted[name, labels, process] = total
        self._values[name][labels] = self._values[name].get(labels, 0.0) + (total - last if total >= last else total)
