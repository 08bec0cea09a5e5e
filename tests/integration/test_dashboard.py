"""The dashboard's queries against a real Prometheus that scraped a real run."""

import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from benchmarks.support.job import Job
from tests.k8s.test_monitoring import DASHBOARD_QUERIES, metrics
from tests.support import jobs
from tests.support.prometheus import prometheus, query, until
from tests.trainer.test_metrics import PARTS, STANDING, a_diagnosis
from trainer.metrics import METRICS, STATES, Exporter

pytestmark = [pytest.mark.integration, pytest.mark.prometheus]

RARE = {"Standing causes A", "Spikes by cause A", "Last spike A", "Rise A", "Explained A", "Spikes", "Restarts"}
"""Queries without an answer in a run of one minute. A second exporter, filled by hand, answers them."""


def test_every_query_of_the_dashboard_has_an_answer(s3_server: Any, tmp_path: Path) -> None:  # noqa: ARG001
    """A panel would stay empty forever, and look as if nothing had happened; or the end of the curve would be missing, because the
    job is gone before it is scraped."""
    storage = "s3://spikewise/dashboard"
    jobs.put_images(storage)
    began = time.time()
    job = Job(jobs.write_config(tmp_path, storage, workers=2), "seen", "metrics.linger=60.0")
    target = job.await_line(r"metrics at http://([0-9.:]+)/metrics")[1]
    rare = Exporter()
    rare.describe_run(run="rare", model="cnn", precision="float32", epochs=9, workers=1)
    rare_target = f"127.0.0.1:{rare.serve('127.0.0.1', 0)}"
    try:
        with prometheus(tmp_path, target, rare_target) as api:
            rare.update_spikes([])
            until(lambda: query(api, "spikewise_validation_spikes_total"))
            rare.begin(1, steps=0, images=0)
            rare.update_spikes([a_diagnosis("few_examples", 3), a_diagnosis("unexplained", 4)])
            rare.update_parts(PARTS, [STANDING])
            until(lambda: query(api, "spikewise_validation_spike_timestamp_seconds"))
            job.succeed()
            runs = {name: "rare" if name in RARE else "seen" for name in DASHBOARD_QUERIES}
            answers = {name: ask(api, text, runs[name], began) for name, (text, _) in DASHBOARD_QUERIES.items()}
            ours = f'instance="{target}"'
            (loss,) = until(lambda: query(api, f'last_over_time(spikewise_loss{{split="validation",{ours}}}[10m])')).values()
            (epoch,) = query(api, f"last_over_time(spikewise_epoch{{{ours}}}[10m])").values()
    finally:
        rare.close()
        if job.process.poll() is None:
            job.kill()
    last = jobs.history(storage, "seen")[-1]
    assert (loss, epoch) == (pytest.approx(last.validation_loss), 4)  # the job waited until its last values were scraped
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://{target}/metrics", timeout=5)
    of_the_run = {name for name, (text, _) in DASHBOARD_QUERIES.items() if metrics(text) <= METRICS.keys()}
    assert {name for name, series in answers.items() if series} == of_the_run
    assert {series["metric"]["rank"] for series in answers["Waiting for input A"]} == {"0", "1"}
    assert {series["metric"]["cause"] for series in answers["Spikes by cause A"]} == {"few_examples", "unexplained"}
    seen = {STATES[int(value)] for series in answers["State A"] for _, value in series["values"]}
    assert seen >= {"training", "completed"}
    best = [float(value) / 1000 for series in answers["Best epoch"] for _, value in series["values"]]
    assert len(set(best)) == 1  # only the last best epoch is marked
    assert began < best[0] < time.time()


def ask(api: str, text: str, run: str, began: float) -> list[dict[str, Any]]:
    """The series that Grafana would get: a range query with its variables filled in."""
    end = time.time()
    finest = {":5s]": ":1s]"}  # this Prometheus scrapes every second
    for variable, value in {"$run": run, "$__rate_interval": "10s", "$__range": f"{end - began:.0f}s", **finest}.items():
        text = text.replace(variable, value)
    parameters = {"query": text, "start": began, "end": end, "step": 1}
    with urllib.request.urlopen(f"{api}/api/v1/query_range?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
        return json.load(answer)["data"]["result"]
