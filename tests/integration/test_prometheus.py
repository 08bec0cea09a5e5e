"""The metrics endpoint, scraped by a real Prometheus."""

import json
import math
import urllib.request
from pathlib import Path

import pytest

from tests.support.epochs import report
from tests.support.prometheus import DEADLINE, prometheus, query, until
from trainer.metrics import METRICS, Exporter

pytestmark = [pytest.mark.integration, pytest.mark.prometheus]


def test_prometheus_has_the_final_values_when_the_job_ends(tmp_path: Path) -> None:
    """The job ends once the wait reports a scrape; values that Prometheus lacks then would be lost forever."""
    exporter = Exporter()
    exporter.describe_run(run="a-run", model="cnn", precision="float32", epochs=3, workers=2)
    port = exporter.serve("127.0.0.1", 0)
    try:
        with prometheus(tmp_path, f"127.0.0.1:{port}") as api:
            until(lambda: query(api, 'spikewise_state{state="starting"} == 1'))
            exporter.update(report(3, math.nan, train_loss=0.5), best=None, images=960, input_waits=[0.1, 0.25])
            exporter.enter("completed")
            assert exporter.wait_for_scrape(DEADLINE)
            exporter.close()

            # The last scraped values: the endpoint is closed, so its series are stale by now.
            until(lambda: query(api, 'last_over_time(spikewise_state{state="completed"}[5m]) == 1'))
            assert query(api, "last_over_time(spikewise_steps_total[5m])") == {(): 30}
            losses = query(api, "last_over_time(spikewise_loss[5m])")
            assert losses[(("split", "train"),)] == 0.5
            assert math.isnan(losses[(("split", "validation"),)])
            assert query(api, "last_over_time(spikewise_worker_input_wait_ratio[5m])") == {
                (("rank", "0"),): 0.1,
                (("rank", "1"),): 0.25,
            }
            joined = (
                "last_over_time(spikewise_epoch[5m]) * on (instance, job) group_left (run) last_over_time(spikewise_run_info[5m])"
            )
            assert query(api, joined) == {(("run", "a-run"),): 3}
            with urllib.request.urlopen(f"{api}/api/v1/metadata", timeout=10) as answer:
                metadata = json.load(answer)["data"]
            for name in metadata.keys() & METRICS.keys():
                assert (metadata[name][0]["type"], metadata[name][0]["help"]) == (METRICS[name].type, METRICS[name].help)
            assert "spikewise_loss" in metadata
    finally:
        exporter.close()
