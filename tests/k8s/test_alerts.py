"""The alerts, evaluated by promtool on invented runs: each fires when it should, and only then."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

pytestmark = pytest.mark.prometheus

RULES = yaml.safe_load(Path("k8s/monitoring/prometheusrule.yaml").read_text())["spec"]


class Course(NamedTuple):
    """An invented run, and whether an alert fires at one of its minutes."""

    alert: str
    what: str
    series: Mapping[str, str]
    """Metric with its own labels (`pod` defaults to 0) -> one value per minute, in promtool's notation."""
    minute: int
    summary: str | None
    """The alert's text at that minute; None: it does not fire."""
    labels: Mapping[str, str] = {}
    """The alert's labels besides namespace, run and severity."""


PROGRESS = "spikewise_last_progress_timestamp_seconds"
UNEXPLAINED, FEW = ('spikewise_validation_spikes_total{cause="' + cause + '"}' for cause in ("unexplained", "few_examples"))
DIVERGENCE = 'spikewise_validation_spikes_total{cause="divergence"}'
TRAINING, PROVING, COMPLETED, INTERRUPTED = (
    f'spikewise_state{{state="{state}"}}' for state in ("training", "proving", "completed", "interrupted")
)
COMMITTED = "spikewise_checkpoint_last_success_timestamp_seconds"

HANGS = "Run a-run in ml has made no progress for 17m 0s and has not ended."
JUMPED = "The validation loss of run a-run in ml jumped"
LOSES = "Run a-run in ml has no recent checkpoint; an interruption would lose the work since the last one."

COURSES = [
    Course("SpikewiseNoProgress", "hangs", {PROGRESS: "0+60x10 600x30", TRAINING: "1x40"}, 27, HANGS),
    Course("SpikewiseNoProgress", "moves", {PROGRESS: "0+60x40", TRAINING: "1x40"}, 40, None),
    Course("SpikewiseNoProgress", "evaluates for 14 minutes", {PROGRESS: "0+60x10 600x30", TRAINING: "1x40"}, 24, None),
    Course("SpikewiseNoProgress", "vanishes", {PROGRESS: "0+60x10 stale", TRAINING: "1x10 stale"}, 27, HANGS),
    Course(
        *("SpikewiseNoProgress", "completes"),
        {PROGRESS: "0+60x10 stale", TRAINING: "1x9 0 stale", COMPLETED: "0x9 1 stale"},
        *(27, None),
    ),
    Course(
        *("SpikewiseNoProgress", "vanishes and goes on in another pod"),
        {PROGRESS: "0+60x10 stale", TRAINING: "1x10 stale", f'{PROGRESS}{{pod="1"}}': "_x12 780+60x30"},
        *(40, None),
    ),
    Course(
        *("SpikewiseNoProgress", "is interrupted, goes on in another pod and hangs there"),
        {
            PROGRESS: "0+60x5 stale",
            INTERRUPTED: "0x4 1 stale",
            f'{PROGRESS}{{pod="1"}}': "_x5 360+60x4 600x30",
            'spikewise_state{pod="1",state="interrupted"}': "_x5 0x40",
        },
        *(27, HANGS),
    ),
    Course(
        *("SpikewiseNonFiniteLoss", "is not a number, and seen only once"),
        {'spikewise_loss{split="validation"}': "0.7 0.6 NaN stale", 'spikewise_loss{split="train"}': "0.7 0.6 0.5 stale"},
        *(10, "The validation loss of run a-run in ml is NaN.", {"split": "validation"}),
    ),
    Course(
        *("SpikewiseNonFiniteLoss", "is infinite"),
        {'spikewise_loss{split="train"}': "0.7 Inf Inf"},
        *(2, "The train loss of run a-run in ml is +Inf.", {"split": "train"}),
    ),
    Course("SpikewiseNonFiniteLoss", "is large", {'spikewise_loss{split="train"}': "0.7 1e9 1e9"}, 2, None),
    Course(
        "SpikewiseUnexplainedSpike", "one", {UNEXPLAINED: "0 0 0 1 1 1"}, 5, f"{JUMPED}, and no cause explains half of the rise."
    ),
    Course("SpikewiseUnexplainedSpike", "an explained one", {UNEXPLAINED: "0x9", FEW: "0 0 0 1 1 1"}, 5, None),
    Course("SpikewiseUnexplainedSpike", "before the pod began", {UNEXPLAINED: "_ _ 1 1 1 1"}, 5, None),
    Course("SpikewiseUnexplainedSpike", "more than an hour ago", {UNEXPLAINED: "0 1x80"}, 70, None),
    Course("SpikewiseDivergence", "seen only once", {DIVERGENCE: "0 0 0 1 stale"}, 8, f"{JUMPED} and did not recover."),
    Course("SpikewiseDivergence", "another spike", {DIVERGENCE: "0x9", FEW: "0 0 0 1 1 1"}, 5, None),
    Course(
        *("SpikewiseOverfitting", "since five epochs", {"spikewise_overfitting_epochs": "0 0 5"}, 2),
        "Run a-run in ml has been overfitting since its best epoch, 5 epochs ago.",
    ),
    Course("SpikewiseOverfitting", "no longer", {"spikewise_overfitting_epochs": "0 5 0"}, 2, None),
    Course(
        *("SpikewiseInputStarvation", "half of the time", {"spikewise_input_wait_ratio": "0.5x20", TRAINING: "1x20"}, 11),
        "Run a-run in ml spends 50% of its training time waiting for images.",
    ),
    Course("SpikewiseInputStarvation", "a little", {"spikewise_input_wait_ratio": "0.2x20", TRAINING: "1x20"}, 11, None),
    Course("SpikewiseInputStarvation", "not for long", {"spikewise_input_wait_ratio": "0.5x8", TRAINING: "1x8"}, 8, None),
    Course("SpikewiseInputStarvation", "of an ended run", {"spikewise_input_wait_ratio": "0.5x20", TRAINING: "1x3 0x20"}, 15, None),
    Course(
        *("SpikewiseInputStarvation", "of a run whose remedies are proven"),
        {"spikewise_input_wait_ratio": "0.5x20", TRAINING: "1x3 0x20", PROVING: "0x3 1x20"},
        *(15, None),
    ),
    Course(
        *("SpikewiseCheckpointTooOld", "ten minutes and three epochs"),
        {COMMITTED: "0x20", "spikewise_epoch_duration_seconds": "60x20", TRAINING: "1x20"},
        *(14, LOSES),
    ),
    Course(
        *("SpikewiseCheckpointTooOld", "ten minutes and two epochs"),
        {COMMITTED: "0x20", "spikewise_epoch_duration_seconds": "60x20", TRAINING: "1x20"},
        *(12, None),
    ),
    Course(
        *("SpikewiseCheckpointTooOld", "of an ended run"),
        {COMMITTED: "0x20", "spikewise_epoch_duration_seconds": "60x20", TRAINING: "0x20"},
        *(14, None),
    ),
    Course(
        *("SpikewiseCheckpointTooOld", "of a run whose remedies are proven"),
        {COMMITTED: "0x20", "spikewise_epoch_duration_seconds": "60x20", TRAINING: "1x3 0x20", PROVING: "0x3 1x20"},
        *(14, None),
    ),
    Course("SpikewiseCheckpointTooOld", "none could be saved", {"spikewise_checkpoint_failures_total": "0 1 1 1"}, 3, LOSES),
    Course(
        *("SpikewiseCheckpointTooOld", "one could not be saved"),
        {"spikewise_checkpoint_failures_total": "0 0 1 1", COMMITTED: "0x3", TRAINING: "1x3"},
        *(3, None),
    ),
    Course(
        *("SpikewiseRestarts", "of the workers", {"spikewise_restarts_total": "0 0 1 2 3"}, 4),
        "Run a-run in ml restarted 3 times within the last hour.",
    ),
    Course(
        *("SpikewiseRestarts", "of the pod"),
        {f'spikewise_restarts_total{{pod="{n}"}}': f"{'_ ' * 3 * n}{n} {n} stale" for n in range(4)},
        *(11, "Run a-run in ml restarted 3 times within the last hour."),
    ),
    Course("SpikewiseRestarts", "twice", {"spikewise_restarts_total": "0 0 1 2 2"}, 4, None),
    Course("SpikewiseRestarts", "seven, weeks ago", {"spikewise_restarts_total": "_ _ 7 7 7"}, 4, None),
    Course(
        *("SpikewiseQuarantinedImages", "one of a hundred"),
        {
            "spikewise_quarantined_images": "10x3",
            'spikewise_dataset_images{split="train"}': "900x3",
            'spikewise_dataset_images{split="validation"}': "90x3",
        },
        *(2, "Run a-run in ml leaves out 1% of its images because they cannot be decoded."),
    ),
    Course(
        *("SpikewiseQuarantinedImages", "one of a thousand"),
        {"spikewise_quarantined_images": "1x3", 'spikewise_dataset_images{split="train"}': "999x3"},
        *(2, None),
    ),
]


def test_every_alert_has_a_run_on_which_it_fires_and_one_on_which_it_does_not() -> None:
    """An alert that never fires protects no run; one that always fires gets switched off."""
    alerts = {rule["alert"] for rule in RULES["groups"][0]["rules"]}
    assert {course.alert for course in COURSES if course.summary} == alerts
    assert {course.alert for course in COURSES if not course.summary} == alerts


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """Prometheus would not load the rules, a run would hang or diverge unnoticed, or alerts would wake people for nothing."""
    (tmp_path / "rules.yaml").write_text(json.dumps(RULES))  # JSON is YAML
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [_test(course) for course in COURSES]}
    (tmp_path / "tests.yaml").write_text(json.dumps(tests))
    for command, file in (("check", "rules.yaml"), ("test", "tests.yaml")):
        ran = subprocess.run(["promtool", command, "rules", tmp_path / file], capture_output=True, text=True, timeout=60)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def _test(course: Course) -> dict[str, Any]:
    fires = []
    if course.summary:
        (rule,) = (rule for rule in RULES["groups"][0]["rules"] if rule["alert"] == course.alert)
        labels = {"namespace": "ml", "run": "a-run", **rule["labels"], **course.labels}
        fires = [{"exp_labels": labels, "exp_annotations": rule["annotations"] | {"summary": course.summary}}]
    return {
        "name": f"{course.alert}: {course.what}",
        "interval": "1m",
        "input_series": [{"series": _of_target(series), "values": values} for series, values in course.series.items()],
        "alert_rule_test": [{"eval_time": f"{course.minute}m", "alertname": course.alert, "exp_alerts": fires}],
    }


def _of_target(series: str) -> str:
    """The series with the labels that its target in a cluster adds."""
    name, _, labels = series.rstrip("}").partition("{")
    pod = "" if "pod=" in labels else 'pod="0",'
    return f'{name}{{namespace="ml",run="a-run",job="ml/spikewise",{pod}{labels}}}'
