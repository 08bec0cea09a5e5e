"""jobs.kubernetes.manifests: the run's values in its objects. What the YAML itself must hold is in tests/k8s/test_manifests.py."""

from pathlib import Path

import pytest

from jobs.kubernetes import manifests
from jobs.kubernetes.kubectl import KubernetesError
from trainer import config


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
