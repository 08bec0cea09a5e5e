"""jobs.kubernetes.manifests: the run's values in its objects. What the YAML itself must hold is in tests/k8s/test_manifests.py."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.command_line import find_module
from jobs.kubernetes import entrypoint, manifests
from jobs.kubernetes.kubectl import KubernetesError, KubernetesObject
from trainer import config
from trainer.model.module import Module


@pytest.mark.parametrize("file", sorted(Path("jobs/configs").glob("*.toml")), ids=lambda file: file.stem)
def test_configuration_survives(file, tmp_path):
    """The pods would train with other settings than the submitted ones."""
    strange = ['run.name="on"', "data.group_by='^[^\"\\\\/]+(\"|\x7f|ü)/'", "optimizer.learning_rate=1e-7", "s3.max_attempts=7"]
    settings = config.load(file, strange)
    path = tmp_path / "config.toml"
    path.write_text(manifests.to_toml(settings), encoding="utf-8")
    assert config.load(path) == settings


def test_an_overlay_of_the_wrong_shape(tmp_path):
    """A user's own overlay for a Job would be submitted as a RayJob that does not exist."""
    (tmp_path / "service.yaml").write_text(Path("k8s/job/service.yaml").read_text())
    (tmp_path / "kustomization.yaml").write_text("resources: [service.yaml]")
    with pytest.raises(KubernetesError, match=r"contains no RayJob\. Fix: choose another --shape, or add k8s/rayjob"):
        manifests.render(str(tmp_path), "rayjob")


def _mount(volume: dict[str, Any], data: dict[str, str], folder: Path) -> None:
    """Writes a ConfigMap to a folder as the kubelet does: read-only, through links."""
    hidden = folder / "..2026_01_01"
    for item in volume["configMap"].get("items", [{"key": key, "path": key} for key in data]):
        path = hidden / item["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data[item["key"]], encoding="utf-8")
    (folder / "..data").symlink_to(hidden.name)
    for path in hidden.iterdir():
        (folder / path.name).symlink_to(Path("..data", path.name))
    for path in (hidden, *hidden.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


@pytest.mark.parametrize("shape", manifests.SHAPES)
def test_the_users_network_reaches_the_pods(shape, tmp_path):
    """The driver's pod would not find the network that was submitted, or would take it for a changed one."""
    files = {"my_module.py": "import nets.resnet\n", "nets/__init__.py": "", "nets/resnet.py": "import my_module\nbuild = 1\n\f\n"}
    settings = config.load("jobs/configs/demo.toml", ["model.network=nets.resnet:build"])
    module = Module("nets.resnet", files)
    objects = manifests.fit(manifests.render("local", shape), settings, "first", "i", None, module)
    printed = list(yaml.safe_load_all(manifests.to_yaml(objects)))
    (data,) = [each["data"] for each in printed if each["kind"] == "ConfigMap"]
    assert all(re.fullmatch(r"[-._a-zA-Z0-9]+", key) for key in data)
    volumes = [
        volume
        for template in manifests.pod_templates(manifests.owner(printed)["spec"])
        for volume in template["spec"]["volumes"]
        if "configMap" in volume
    ]
    assert len(volumes) == {"job": 1, "rayjob": 2}[shape]  # of the rayjob: the head, where the driver runs, and the workers
    for number, volume in enumerate(volumes):
        folder = tmp_path / str(number)
        _mount(volume, data, folder)
        mounted = folder / Path(entrypoint.CONFIG).name
        found = find_module(config.load(mounted), str(mounted))
        assert found == module
        assert found.digest == module.digest


def test_without_a_network_of_the_users_own_nothing_is_added():
    """Every run would carry a list of files that it does not have."""
    settings = config.load("jobs/configs/demo.toml")
    objects = manifests.fit(manifests.render("local", "job"), settings, "first", "i", None, None)
    assert [each["data"].keys() for each in objects if each["kind"] == "ConfigMap"] == [{"config.toml"}]
    assert "items" not in manifests.to_yaml(objects)


def _overlay(shape: str, sources: list[dict[str, Any]]) -> list[KubernetesObject]:
    """The overlay `local` with these entries of envFrom, a port without a name, and a second container."""
    objects = manifests.render("local", shape)
    main = next(each for each in objects if each["kind"] == manifests.SHAPES[shape])
    for container in manifests.containers(main):
        if container["name"] == manifests.CONTAINER:
            container["envFrom"] = sources
            container["ports"].append({"containerPort": 1234})
    for template in manifests.pod_templates(main["spec"]):
        template["spec"]["containers"].append({"name": "proxy", "image": "p", "envFrom": [{"secretRef": {"name": "of-proxy"}}]})
    return objects


SETTING = {"configMapRef": {"name": "proxy-settings"}}
CREDENTIALS = {"secretRef": {"name": "mine", "optional": True}, "prefix": "AWS_"}


@pytest.mark.parametrize("shape", manifests.SHAPES)
def test_variables_of_an_overlay_of_ones_own(shape):
    """An overlay that takes variables from a ConfigMap, or has a port without a name, would end in a traceback; or `--secret` would
    replace what has nothing to do with the bucket."""
    settings = config.load("jobs/configs/demo.toml", ["metrics.port=9500"])
    kept = manifests.owner(manifests.fit(_overlay(shape, [SETTING, CREDENTIALS]), settings, "first", "i", None))
    assert manifests.secrets(kept) == {"mine": True, "of-proxy": False}
    main = manifests.owner(manifests.fit(_overlay(shape, [SETTING, CREDENTIALS]), settings, "first", "i", "other"))
    assert manifests.secrets(main) == {"other": False, "of-proxy": False}
    ours = [each for each in manifests.containers(main) if each["name"] == manifests.CONTAINER]
    assert ours
    for container in ours:
        assert container["envFrom"] == [SETTING, {"secretRef": {"name": "other"}, "prefix": "AWS_"}]
        assert {each["containerPort"] for each in container["ports"]} >= {9500, 1234}


@pytest.mark.parametrize(
    ("sources", "words"),
    [([SETTING], r"0 Secrets \(none\)"), ([CREDENTIALS, {"secretRef": {"name": "x"}}], r"2 Secrets \(mine, x\)")],
)
def test_a_secret_that_replaces_no_other(sources, words):
    """`--secret` would be ignored, or replace the wrong Secret, and the pods would have no access to the bucket."""
    settings = config.load("jobs/configs/demo.toml")
    with pytest.raises(KubernetesError, match=rf"--secret other replaces .* {words}\. Fix: drop --secret, "):
        manifests.fit(_overlay("job", sources), settings, "first", "i", "other")


def test_a_secret_that_one_container_needs_is_needed():
    """`make submit` would not notice that the Secret is missing, and the pods would wait for it."""
    sources = [{"secretRef": {"name": "s"}}, {"secretRef": {"name": "s", "optional": True}}]
    main = {"spec": {"template": {"spec": {"containers": [{"envFrom": [source]} for source in sources]}}}}
    assert manifests.secrets(main) == {"s": False}
