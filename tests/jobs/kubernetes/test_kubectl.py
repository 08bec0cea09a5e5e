"""jobs.kubernetes.kubectl: errors of kubectl and of the cluster, each in one line."""

import os
from pathlib import Path

import pytest
import yaml

from jobs.kubernetes.kubectl import ForbiddenError, Kubectl, KubernetesError, kustomize


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubectl:
    """kubectl with a context whose cluster is switched off."""
    path = tmp_path / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "off",
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "contexts": [{"name": "off", "context": {"cluster": "c", "user": "u", "namespace": "training"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(path))
    return Kubectl()


def test_namespace(kubectl):
    """A run would be created in another namespace than the one that the user or the context names."""
    assert kubectl.namespace == "training"
    assert Kubectl("other").namespace == "other"


def test_no_kubeconfig(monkeypatch):
    """A user without a kubeconfig would see kubectl's attempt to reach localhost."""
    monkeypatch.setenv("KUBECONFIG", os.devnull)
    with pytest.raises(KubernetesError, match=r"The kubeconfig names no cluster \(.*\)\. Fix: set KUBECONFIG"):
        Kubectl()


def test_a_cluster_that_does_not_answer(kubectl):
    """A cluster that is switched off would look like a mistake in the manifests."""
    with pytest.raises(KubernetesError) as error:
        kubectl.get("pods")
    assert str(error.value).startswith("The cluster of context off (https://127.0.0.1:1) does not answer (")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("stderr", "line"),
    [
        ('Error from server (NotFound): namespaces "training" not found', "has no namespace training. Fix: run `kubectl create"),
        (
            'error: resource mapping not found: no matches for kind "RayJob" in version "ray.io/v1"\nensure CRDs are installed',
            "KubeRay is not installed on this cluster. Fix: install it, or use --shape job",
        ),
        ('error: the server doesn\'t have a resource type "localqueue"', "Kueue is not installed on this cluster. Fix: "),
        ("error: You must be logged in to the server (Unauthorized)", "rejects the kubeconfig's credentials"),
        ('error: no matches for kind "Wood" in version "v1"', "does not know objects of kind Wood. Fix: install what defines them"),
        ("error: timed out waiting for the condition on pods/p", "timed out waiting for the condition on pods/p. Fix: "),
        ("Error from server (BadRequest): invalid", "The cluster of context off (https://127.0.0.1:1): invalid. Fix: correct what"),
    ],
)
def test_errors_of_the_cluster(kubectl, stderr, line):
    """A user would have to guess what is missing on the cluster from kubectl's own words."""
    error = str(kubectl._explain(stderr))
    assert line in error
    assert error.count(". Fix: ") == 1
    assert len(error.splitlines()) == 1


def test_the_namespace_is_checked(kubectl, monkeypatch):
    """A missing namespace would be reported as a missing Secret, and the user would create it somewhere else."""
    answers: list[str | Exception] = ["namespace/training\n", "", ForbiddenError("may not get namespaces")]

    def run(*arguments: str) -> str:
        assert arguments[:3] == ("get", "namespace", "training")
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(kubectl, "run", run)
    kubectl.check_namespace()
    with pytest.raises(KubernetesError, match=r"has no namespace training\. Fix: run `kubectl create namespace training`"):
        kubectl.check_namespace()
    kubectl.check_namespace()


def test_missing_permissions(kubectl):
    """A user would not learn which permission to ask for; or `submit` would stop where it can do without one."""
    stderr = 'Error from server (Forbidden): secrets "s" is forbidden: User "jane" cannot get resource "secrets" in API group ""'
    error = kubectl._explain(stderr)
    assert isinstance(error, ForbiddenError)
    assert str(error).startswith('User "jane" may not get secrets in namespace training. Fix: ')


def test_a_kustomization_that_cannot_be_rendered(tmp_path):
    """A mistake in a user's own overlay would be a traceback."""
    (tmp_path / "kustomization.yaml").write_text("resources: [missing.yaml]")
    with pytest.raises(KubernetesError, match=rf"cannot render {tmp_path}: .*missing.yaml"):
        kustomize(tmp_path)
