"""The Grafana dashboard: `python -m k8s.monitoring.dashboard > k8s/monitoring/dashboard.json`.

ROWS and ANNOTATIONS define its content; the code below turns them into JSON with Grafana's SDK. Every query joins
`spikewise_run_info`, which alone carries the run's name, so the dashboard works with any Prometheus that scrapes a run.
"""

import json
import sys
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    ValueMap,
    ValueMappingResult,
    VariableRefresh,
    VariableSort,
)

from trainer.metrics import STATES


def of_run(expression: str, by: str = "run") -> str:
    """The series of the selected runs, whichever pod they come from."""
    return f'max by ({by}) ({expression} * on (job, instance) group_left (run) spikewise_run_info{{run=~"$run"}})'


def per_second(counter: str) -> str:
    return f"rate({counter}[$__rate_interval])"


def loss(split: str) -> str:
    return of_run(f'spikewise_loss{{split="{split}"}}')


def gpu(metric: str) -> str:
    """A GPU metric of the selected runs' pods; the label is `exported_pod` unless the scrape honors the exporter's labels."""
    pods = '"run-$run-[a-z0-9]+(-head|-workers-worker)?-[a-z0-9]+"'
    moved = f'label_replace({metric}{{exported_pod=~{pods}}}, "pod", "$1", "exported_pod", "(.*)")'
    return f"max by (pod, gpu) ({metric}{{pod=~{pods}}} or {moved})"


Panel = tuple[str, str, str, str, int]
"""Title, description, unit, kind (a key of KINDS), width (of 24)."""

STATE = " or ".join(f'{number} * spikewise_state{{state="{state}"}}' for number, state in enumerate(STATES))

ROWS: dict[str, dict[Panel, dict[str, str]]] = {
    "Run": {
        ("State", "The state of the run. Proving: remedies are tried after the last epoch.", "none", "states", 12): {
            "{{run}}": of_run(f"sum by (job, instance) ({STATE})")
        },
        ("Progress", "Finished fraction of the planned epochs.", "percentunit", "number", 4): {
            "{{run}}": of_run("spikewise_progress_ratio")
        },
        ("Time left", "Assumes that every epoch takes as long as the last one.", "s", "number", 4): {
            "{{run}}": of_run("spikewise_eta_seconds")
        },
        ("Epoch", "Last finished epoch and planned epochs.", "none", "number", 4): {
            "{{run}}": of_run("spikewise_epoch"),
            "{{run}} planned": of_run("spikewise_epochs_planned"),
        },
        ("Best validation loss", "Lowest validation loss so far (mean cross-entropy).", "suffix:nats", "number", 4): {
            "{{run}}": of_run("spikewise_best_validation_loss")
        },
        ("Best epoch", "Epoch of the lowest validation loss.", "none", "number", 4): {"{{run}}": of_run("spikewise_best_epoch")},
        ("Overfitting", "Epochs since the best one if the model overfits, else 0.", "none", "number", 4): {
            "{{run}}": of_run("spikewise_overfitting_epochs")
        },
        ("Images", "Images on each side of the split, and images left out because they cannot be decoded.", "none", "number", 6): {
            "{{run}} {{split}}": of_run("spikewise_dataset_images", "run, split"),
            "{{run}} quarantined": of_run("spikewise_quarantined_images"),
        },
        (
            "Workers and restarts",
            "Current workers, their restarts so far, and how often the run went back to a checkpoint because training diverged.",
            *("none", "number", 6),
        ): {
            "{{run}} workers": of_run("spikewise_workers"),
            "{{run}} restarts": of_run("spikewise_restarts_total"),
            "{{run}} roll-backs": of_run("spikewise_roll_backs_total"),
        },
    },
    "Loss": {
        (
            "Loss",
            "Mean cross-entropy. Training: over the epoch's batches, with dropout. Training, inference mode: a fixed sample of "
            "training images after the epoch; only this one is comparable with validation.",
            *("suffix:nats", "lines", 12),
        ): {
            "{{run}} validation": loss("validation"),
            "{{run}} training, inference mode": loss("train_inference"),
            "{{run}} training": loss("train"),
        },
        (
            "Generalization gap",
            "Validation minus training loss, both in inference mode. A growing gap is overfitting. If the validation loss jumps "
            "and the gap does not, the cause lies in the model, not in the validation images.",
            *("suffix:nats", "lines", 12),
        ): {"{{run}}": f"{loss('validation')} - {loss('train_inference')}"},
        ("Accuracy", "Fraction of images classified correctly.", "percentunit", "lines", 8): {
            "{{run}} {{split}}": of_run("spikewise_accuracy_ratio", "run, split")
        },
        (
            "Gradient and update norm",
            "L2 norms of the global gradient and of one step's weight change, averaged over the epoch.",
            "none",
            "lines",
            8,
        ): {
            "{{run}} gradient": of_run("spikewise_gradient_norm"),
            "{{run}} update": of_run("spikewise_update_norm"),
        },
        ("Learning rate", "Learning rate at the end of the epoch.", "sci", "lines", 8): {
            "{{run}}": of_run("spikewise_learning_rate")
        },
    },
    "What the validation loss is made of": {
        (
            "Parts of the validation loss",
            "Statistics: what BatchNorm's moving statistics add. Wandering: what the last steps' to and fro adds. Generalization: "
            "what does not carry over to unseen images. Fit: the loss on training images. Measured in some of the epochs.",
            *("suffix:nats", "lines", 16),
        ): {"{{run}} {{part}}": of_run("spikewise_validation_loss_part", "run, part")},
        ("Standing causes", "Found in the last measurement.", "none", "bars", 5): {
            "{{run}} {{cause}}": of_run("spikewise_standing_cause", "run, cause") + " > 0"
        },
        ("Measured", "Epoch of the last measurement.", "none", "number", 3): {
            "{{run}}": of_run("spikewise_validation_loss_measured_epoch")
        },
    },
    "Spikes of the validation loss": {
        ("Spikes by cause", "Spikes so far, by the first cause of their diagnosis.", "none", "bars", 12): {
            "{{run}} {{cause}}": of_run("spikewise_validation_spikes_total", "run, cause") + " > 0"
        },
        ("Last spike", "Epoch of the last spike.", "none", "number", 4): {"{{run}}": of_run("spikewise_validation_spike_epoch")},
        ("Rise", "Rise of the validation loss above its expected value, in the last spike.", "suffix:nats", "number", 4): {
            "{{run}}": of_run("spikewise_validation_spike_rise")
        },
        ("Explained", "Fraction of that rise that the first cause explains.", "percentunit", "number", 4): {
            "{{run}}": of_run("spikewise_validation_spike_explained_ratio")
        },
    },
    "Speed": {
        ("Training throughput", "Training images per second of all workers, excluding evaluation.", "suffix:img/s", "lines", 8): {
            "{{run}}": of_run("spikewise_images_per_second")
        },
        ("Overall throughput", "Steps and training images per second, including evaluation.", "suffix:/s", "lines", 8): {
            "{{run}} steps": of_run(per_second("spikewise_steps_total")),
            "{{run}} images": of_run(per_second("spikewise_images_processed_total")),
        },
        (
            "Waiting for input",
            "Fraction of the training time, by worker. The slowest worker delays all others.",
            "percentunit",
            "lines",
            8,
        ): {
            "{{run}} worker {{rank}}": of_run("spikewise_worker_input_wait_ratio", "run, rank"),
            "{{run}} slowest": of_run("spikewise_input_wait_ratio"),
        },
        ("Step duration", "Mean duration of one step.", "s", "lines", 12): {"{{run}}": of_run("spikewise_step_duration_seconds")},
        ("Epoch duration", "Duration of the last epoch, including evaluation.", "s", "lines", 12): {
            "{{run}}": of_run("spikewise_epoch_duration_seconds")
        },
    },
    "Storage": {
        (
            "Requests",
            "Requests of the driver and of worker 0, which saves checkpoints, to the run's storage and the data sources. Retries "
            "are included, except those of image reads.",
            "reqps",
            "lines",
            12,
        ): {"{{run}} {{operation}}": of_run(per_second("spikewise_storage_requests_total"), "run, operation")},
        ("Retries and errors", "Requests that were retried, and operations that failed after all retries.", "reqps", "lines", 12): {
            "{{run}} retries": of_run(per_second("spikewise_storage_retries_total")),
            "{{run}} errors": of_run(per_second("spikewise_storage_errors_total")),
        },
    },
    "Checkpoints": {
        (
            "Checkpoint age",
            "Time since the last committed checkpoint: the work that an interruption would lose.",
            "s",
            "lines",
            12,
        ): {"{{run}}": f"time() - {of_run('spikewise_checkpoint_last_success_timestamp_seconds')}"},
        ("Save duration", "Duration of the last successful save. Saving does not stop training.", "s", "lines", 6): {
            "{{run}}": of_run("spikewise_checkpoint_duration_seconds")
        },
        ("Checkpoint step", "Step of the last committed checkpoint.", "none", "number", 3): {
            "{{run}}": of_run("spikewise_checkpoint_step")
        },
        ("Failed saves", "Saves that failed after all retries.", "none", "number", 3): {
            "{{run}}": of_run("spikewise_checkpoint_failures_total")
        },
    },
    "GPU (needs NVIDIA's DCGM exporter)": {
        ("GPU utilization", "Fraction of time in which a kernel ran.", "percent", "lines", 8): {
            "{{pod}} {{gpu}}": gpu("DCGM_FI_DEV_GPU_UTIL")
        },
        ("GPU memory", "GPU memory in use.", "mbytes", "lines", 8): {"{{pod}} {{gpu}}": gpu("DCGM_FI_DEV_FB_USED")},
        ("GPU power", "Power drawn by the GPU.", "watt", "lines", 8): {"{{pod}} {{gpu}}": gpu("DCGM_FI_DEV_POWER_USAGE")},
    },
}

ANNOTATIONS = {
    "Spikes": ("red", "Spike: {{cause}}", of_run("spikewise_validation_spike_timestamp_seconds", "run, cause")),
    "Restarts": ("orange", "Resumed from a checkpoint", of_run("spikewise_restart_timestamp_seconds")),
    "Best epoch": ("green", "Best epoch", f"max_over_time({of_run('spikewise_best_timestamp_seconds')}[$__range:5s] @ end())"),
}
"""Name -> colour, title, and a query for the Unix time of the event in seconds. Only the last best epoch in view is marked."""

PROMETHEUS = DataSourceRef(type_val="prometheus", uid="${datasource}")


def _lines() -> timeseries.Panel:
    return timeseries.Panel().height(8).fill_opacity(5)


def _number() -> stat.Panel:
    return stat.Panel().height(4).graph_mode(BigValueGraphMode.NONE).reduce_options(_last())


def _bars() -> bargauge.Panel:
    return bargauge.Panel().height(6).reduce_options(_last()).min(0).no_value("none")


def _states() -> statetimeline.Panel:
    names = {str(number): ValueMappingResult(text=state, index=number) for number, state in enumerate(STATES)}
    return statetimeline.Panel().height(4).mappings([ValueMap(options=names)])


def _last() -> common.ReduceDataOptions:
    return common.ReduceDataOptions().calcs(["lastNotNull"])


KINDS: dict[str, Any] = {"lines": _lines, "number": _number, "bars": _bars, "states": _states}


def _panel(panel: Panel, queries: dict[str, str]) -> Any:
    title, description, unit, kind, width = panel
    built = KINDS[kind]().title(title).description(description).unit(unit).span(width).datasource(PROMETHEUS)
    for letter, (legend, expression) in zip("ABC", queries.items(), strict=False):
        built.with_target(
            prometheus.Dataquery().ref_id(letter).expr(expression).legend_format(legend).range().datasource(PROMETHEUS)
        )
    return built


def build() -> dict[str, Any]:
    """Builds the dashboard as Grafana's JSON."""
    made = (
        dashboard.Dashboard("Spikewise")
        .uid("spikewise")
        .description("Training runs: losses, spikes and their causes, speed, storage, checkpoints.")
        .tags(["spikewise", "training"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("run")
            .label("Run")
            .datasource(PROMETHEUS)
            .query("label_values(spikewise_run_info, run)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_DESC)
            .multi(True)
        )
    )
    for name, (colour, _, time) in ANNOTATIONS.items():
        made.annotation(dashboard.AnnotationQuery().name(name).datasource(PROMETHEUS).icon_color(colour).expr(f"{time} * 1000"))
    for title, panels in ROWS.items():
        made.with_row(dashboard.Row(title))
        for panel, queries in panels.items():
            made.with_panel(_panel(panel, queries))
    encoded = json.loads(JSONEncoder(sort_keys=True).encode(made.build()))
    for number, panel in enumerate(encoded["panels"], 1):
        panel["id"] = number
    for annotation in encoded["annotations"]["list"]:  # fields of Prometheus annotations that the SDK lacks
        title = ANNOTATIONS[annotation["name"]][1]
        annotation |= {"useValueForTime": True, "step": "15s", "titleFormat": title, "textFormat": "{{run}}"}
    return encoded


if __name__ == "__main__":
    sys.stdout.write(json.dumps(build(), indent=1) + "\n")
