"""k8s/monitoring and docker/: they use metrics, ports and labels that exist, and have the form that their readers expect."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.kubernetes.kubectl import kustomize
from jobs.kubernetes.manifests import LABEL
from k8s.monitoring import dashboard
from tests.trainer.test_metrics import filled
from trainer import config
from trainer.metrics import METRICS, STATES

FOLDER = Path("k8s/monitoring")
OPERATIONS = Path("docs/operations.md").read_text(encoding="utf-8")
MONITOR, RULE = (yaml.safe_load((FOLDER / name).read_text()) for name in ("podmonitor.yaml", "prometheusrule.yaml"))
ALERTS = {rule["alert"]: rule for rule in RULE["spec"]["groups"][0]["rules"]}
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
"""By title: `test_the_dashboard_fits_together` checks that titles are unique."""
TARGET = {"namespace", "pod", "job", "instance", "run"}
"""Labels that a target adds to its series."""

DASHBOARD_QUERIES = {
    f"{panel['title']} {target['refId']}": (target["expr"], target["legendFormat"])
    for panel in PANELS.values()
    for target in panel["targets"]
} | {annotation["name"]: (annotation["expr"], annotation["titleFormat"]) for annotation in DASHBOARD["annotations"]["list"]}
QUERIES = {name: rule["expr"] for name, rule in ALERTS.items()} | {name: query for name, (query, _) in DASHBOARD_QUERIES.items()}


def metrics(query: str) -> set[str]:
    """Names of the metrics that a query reads."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on|group_left)\s*\([^)]*\)", " ", bare)
    names = re.findall(r"[a-zA-Z_]\w*(?!\s*\()\b", bare)
    return set(names) - {"and", "or", "unless", "Inf"}


def groupings(query: str) -> set[str]:
    """Labels by which a query groups or joins."""
    return {
        label for found in re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", query) for label in re.split(r",\s*", found) if label
    }


@pytest.mark.parametrize("name", QUERIES)
def test_queries_use_metrics_that_exist(name: str) -> None:
    """An alert on a misspelt metric would never fire, a panel would stay empty. Only GPU metrics come from another exporter."""
    query = QUERIES[name]
    foreign = metrics(query) - METRICS.keys()
    if foreign:
        assert {other.partition("_")[0] for other in foreign} == {"DCGM"}
        assert metrics(query) == foreign
        return
    labels = {label for metric in metrics(query) for label in METRICS[metric].labels}
    assert groupings(query) <= labels | TARGET
    values: dict[tuple[str, str], set[str]] = {}
    for family in filled().registry.collect():
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault((sample.name, label), set()).add(value)
    for metric, selector in re.findall(r"(\w+)\{([^}]*)\}", query):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', selector):
            assert value == "$run" or set(value.split("|")) <= values[metric, label], (metric, label, value)


@pytest.mark.parametrize("name", DASHBOARD_QUERIES)
def test_legends_name_labels_that_the_query_keeps(name: str) -> None:
    """Curves would be called {{split}}, or all have the same name."""
    query, legend = DASHBOARD_QUERIES[name]
    kept = re.search(r"max by \(([^)]*)\)", query)
    assert kept is not None
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= set(kept[1].split(", "))


def test_the_committed_dashboard_is_the_generated_one() -> None:
    """A change of the code would not reach Grafana, or a change of the JSON would be lost."""
    assert dashboard.build() == DASHBOARD, "python -m k8s.monitoring.dashboard > k8s/monitoring/dashboard.json"


@pytest.mark.parametrize("title", PANELS)
def test_every_panel_says_what_it_shows(title: str) -> None:
    """A number without a unit or an explanation is misread; a fixed data source shows nothing on another Grafana."""
    panel = PANELS[title]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    for source in (panel, *panel["targets"]):
        assert source["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    if panel["type"] == "state-timeline":
        (names,) = panel["fieldConfig"]["defaults"]["mappings"]
        assert [names["options"][str(number)]["text"] for number in range(len(STATES))] == list(STATES)


def test_the_dashboard_fits_together() -> None:
    """Grafana drops panels with the same id and shifts those that overlap; without the variables nothing is shown."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) + 1 == len(panels)  # Loss: a row too
    taken = [
        (x, y)
        for spot in (panel["gridPos"] for panel in panels)
        for x in range(spot["x"], spot["x"] + spot["w"])
        for y in range(spot["y"], spot["y"] + spot["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert [(variable["name"], variable["type"]) for variable in DASHBOARD["templating"]["list"]] == [
        ("datasource", "datasource"),
        ("run", "query"),
    ]
    assert {annotation["name"] for annotation in DASHBOARD["annotations"]["list"]} == {"Spikes", "Restarts", "Best epoch"}
    assert all(annotation["useValueForTime"] and annotation["enable"] for annotation in DASHBOARD["annotations"]["list"])


def test_gpu_panels_show_the_selected_run_alone() -> None:
    """The panel would show the GPUs of a run whose name begins alike, or none of a RayJob."""
    (pattern,) = set(re.findall(r'pod=~"([^"]*)"', PANELS["GPU utilization"]["targets"][0]["expr"]))
    ours = ["run-first-0-abcde", "run-first-11-abcde", "run-first-x1y2z-head-abcde", "run-first-x1y2z-workers-worker-abcde"]
    others = ["run-first-two-0-abcde", "run-first-2-0-abcde", "run-first-two-x1y2z-workers-worker-abcde", "run-my-first-0-abcde"]
    found = [pod for pod in (*ours, *others) if re.fullmatch(pattern.replace("$run", "(first)"), pod)]
    assert found == ours


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_runbook(alert: str) -> None:
    """The person who gets the alert would not know what to do."""
    annotations, labels = ALERTS[alert]["annotations"], ALERTS[alert]["labels"]
    assert annotations["runbook_url"] == f"docs/operations.md#{alert.lower()}"
    assert f"\n### {alert}\n" in OPERATIONS
    assert labels["severity"] in ("warning", "critical")
    assert set(re.findall(r"\$labels\.(\w+)", annotations["summary"])) <= groupings(ALERTS[alert]["expr"])


def kustomized(folder: Path) -> dict[str, dict[str, Any]]:
    return {document["kind"]: document for document in yaml.safe_load_all(kustomize(folder))}


def test_the_sidecar_finds_the_dashboard() -> None:
    """Grafana would not show the dashboard: its sidecar takes config maps with this label, and files that end in .json."""
    rendered = kustomized(FOLDER)
    assert rendered.keys() == {"ConfigMap", "PodMonitor", "PrometheusRule"}
    assert rendered["ConfigMap"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(rendered["ConfigMap"]["data"]["spikewise.json"]) == DASHBOARD
    assert rendered["PrometheusRule"]["spec"] == RULE["spec"]


@pytest.mark.parametrize(("shape", "heads"), [("job", "Job"), ("rayjob", "RayJob")])
def test_the_pods_are_found(shape: str, heads: str) -> None:
    """Prometheus would scrape nothing because the pods lack the label, or the port has another name or number."""
    spec = kustomized(Path("k8s/overlays/local", shape))[heads]["spec"]
    template = spec["template"] if shape == "job" else spec["rayClusterSpec"]["headGroupSpec"]["template"]
    labels = template["metadata"]["labels"]
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    assert MONITOR["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for container in template["spec"]["containers"] for port in container["ports"]}
    assert ports[endpoint["port"]] == config.Metrics().port
    keep, run = endpoint["relabelings"]
    assert run["sourceLabels"] == [meta(LABEL)]
    assert run["targetLabel"] == "run"
    assert LABEL in labels
    # The labels that Kubernetes and KubeRay put on the head pod and on the others.
    index, node = keep["sourceLabels"]
    assert index == meta("batch.kubernetes.io/job-completion-index")
    assert node == meta("ray.io/node-type")
    pods = ("0;", ";head", "1;", "10;", ";worker", ";")
    assert [pod for pod in pods if re.fullmatch(keep["regex"], pod)] == ["0;", ";head"]


def meta(label: str) -> str:
    return "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)


def test_a_scrape_comes_while_the_job_waits_for_one() -> None:
    """Prometheus would lack the last epoch of every run."""
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    seconds = {name: int(endpoint[name].removesuffix("s")) for name in ("interval", "scrapeTimeout")}
    assert sum(seconds.values()) < config.Metrics().linger


@pytest.mark.crds
@pytest.mark.parametrize("name", ["podmonitor", "prometheusrule"])
def test_the_operator_accepts_them(name: str) -> None:
    """Applying them would fail, or a misspelt field would be dropped silently."""
    document = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    schema = json.loads(Path(os.environ["SPIKEWISE_CRDS"], f"{name}_v1.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)


def test_compose_mounts_existing_files() -> None:
    """Docker makes an empty folder of a missing file: Prometheus would not start, Grafana would show nothing."""
    services = yaml.safe_load(Path("docker/compose.yaml").read_text())["services"]
    for service in services.values():
        assert re.fullmatch(r"[\w./]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", service["image"])
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")  # there is no login, so only this machine may connect
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert not source.startswith(".") or Path("docker", source).is_file(), source
    mounted = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    (provider,) = yaml.safe_load(Path("docker/grafana/dashboards.yaml").read_text())["providers"]
    assert f"{provider['options']['path']}/dashboard.json" in mounted
    assert services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] in mounted
    (source,) = yaml.safe_load(Path("docker/grafana/datasource.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


@pytest.mark.prometheus
def test_prometheus_accepts_the_configuration_for_a_laptop() -> None:
    """`docker compose up` would fail, or scrape another port than that of a run."""
    checked = subprocess.run(["promtool", "check", "config", "docker/prometheus.yml"], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    (job,) = yaml.safe_load(Path("docker/prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"host.docker.internal:{config.Metrics().port}"]}]
