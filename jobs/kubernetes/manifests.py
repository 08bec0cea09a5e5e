"""Builds the Kubernetes objects of a run: renders an overlay of k8s/overlays and fills in the run's values.

Owns which values are filled in: names, image, number of workers, configuration, metrics port, and the Secret with the credentials.
Everything else is in the YAML files. Pure functions, except that `render` runs kustomize.
"""

import secrets as random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
import yaml

from jobs.kubernetes.kubectl import KubernetesError, KubernetesObject, kustomize
from trainer import config
from trainer.model.module import Module

FOLDER = Path(__file__).parents[2] / "k8s"
SHAPES = {"job": "Job", "rayjob": "RayJob"}
"""Shape -> kind of its main object."""
LABEL = "spikewise/run"
"""Label on every object and pod of a run; its value is the run's name."""
RUN_PLACEHOLDER = "run-name"
IMAGE_PLACEHOLDER = "spikewise"
METRICS_PORT = "metrics"
CONTAINER = "spikewise"
"""Name of the container that runs Ray; an overlay of the user's own may add others."""
LONGEST_RAYJOB = 47
"""Most characters in the name of a RayJob; KubeRay appends to it."""


def object_name(run: str) -> str:
    """Name of the run's objects. The prefix is needed because a Service's name must begin with a letter, unlike a run's."""
    return f"run-{run}"


def overlays() -> list[str]:
    return sorted(path.name for path in (FOLDER / "overlays").iterdir() if path.is_dir())


def render(overlay: str, shape: str) -> list[KubernetesObject]:
    """`overlay`: a name in k8s/overlays, or the path of a kustomization of that shape. Raises KubernetesError."""
    folder = Path(overlay) if "/" in overlay else FOLDER / "overlays" / overlay / shape
    if not (folder / "kustomization.yaml").is_file():
        raise KubernetesError(
            f"--overlay {overlay}: {folder}/kustomization.yaml does not exist. Fix: use {', '.join(overlays())}, or the path of "
            "your own overlay (with a slash)."
        )
    objects = list(yaml.safe_load_all(kustomize(folder)))
    if not any(found["kind"] == SHAPES[shape] for found in objects):
        raise KubernetesError(
            f"--overlay {overlay} contains no {SHAPES[shape]}. Fix: choose another --shape, or add k8s/{shape} to its components."
        )
    return objects


def fit(
    objects: list[KubernetesObject],
    settings: config.Settings,
    run: str,
    image: str,
    secret: str | None,
    module: Module | None = None,
) -> list[KubernetesObject]:
    """The rendered objects with the values of this run; the Job or RayJob comes last, because its pods need the others.

    `secret`: name of the Secret with the credentials; None keeps the overlay's. `module`: that of the user's own network. Raises
    KubernetesError if the run's name is too long, or if the overlay does not show which of its Secrets `secret` replaces.
    """
    fitted: list[KubernetesObject] = _rename(objects, run)
    fitted.sort(key=lambda found: found["kind"] in SHAPES.values())
    main = owner(fitted)
    if main["kind"] == "RayJob" and len(main["metadata"]["name"]) > LONGEST_RAYJOB:
        most = LONGEST_RAYJOB - len(object_name(""))
        raise KubernetesError(
            f"run.name = {run} is too long for --shape rayjob: {len(run)} characters, at most {most} are allowed. Fix: shorten it."
        )
    _resize(main, settings.launch)
    for found in fitted:
        if found["kind"] == "ConfigMap":
            found["data"]["config.toml"] = to_toml(settings)
    if module:
        _add_module(fitted, module, object_name(run))
    for container in containers(main):
        if container["image"] == IMAGE_PLACEHOLDER:
            container["image"] = image
        for port in container.get("ports", ()):
            if port.get("name") == METRICS_PORT:
                port["containerPort"] = settings.metrics.port
        if secret and container["name"] == CONTAINER:
            _use_secret(container, secret)
    return fitted


def token(run: str) -> KubernetesObject:
    """A Secret with a new random token. Ray's ports answer only those who know it (k8s/job gives it to the run's pods)."""
    labels = {"app.kubernetes.io/name": "spikewise", LABEL: run}
    values = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": random.token_hex(32)}
    metadata = {"name": object_name(run), "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}


def owner(objects: list[KubernetesObject]) -> KubernetesObject:
    """The Job or RayJob, which owns the other objects."""
    return objects[-1]


def owned(objects: list[KubernetesObject], uid: str) -> list[KubernetesObject]:
    """All objects but the owner, with an owner reference to it (`uid` is its UID), so that Kubernetes deletes them with it."""
    main = owner(objects)
    reference = {"apiVersion": main["apiVersion"], "kind": main["kind"], "name": main["metadata"]["name"], "uid": uid}
    return [{**found, "metadata": {**found["metadata"], "ownerReferences": [reference]}} for found in objects[:-1]]


def containers(main: KubernetesObject) -> list[dict[str, Any]]:
    """The containers of all pod templates of a Job or RayJob."""
    return [container for template in pod_templates(main["spec"]) for container in template["spec"]["containers"]]


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """All pod templates anywhere in an object's spec."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", ()):
            yield value
        else:
            for inner in value.values():
                yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def secrets(main: KubernetesObject) -> dict[str, bool]:
    """Secrets from which the pods take all environment variables: name -> whether the Secret is optional everywhere."""
    found: dict[str, bool] = {}
    for source in (source for container in containers(main) for source in _secret_sources(container)):
        reference = source["secretRef"]
        found[reference["name"]] = found.get(reference["name"], True) and reference.get("optional", False)
    return found


def _secret_sources(container: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of `envFrom` that name a Secret; others name a ConfigMap."""
    return [source for source in container.get("envFrom", ()) if "secretRef" in source]


def _use_secret(container: dict[str, Any], secret: str) -> None:
    """Takes the credentials from `secret`. Raises KubernetesError unless the container takes variables from exactly one Secret."""
    sources = _secret_sources(container)
    if len(sources) != 1:
        names = ", ".join(source["secretRef"]["name"] for source in sources) or "none"
        raise KubernetesError(
            f"--secret {secret} replaces the overlay's Secret with the credentials, but its container takes variables from "
            f"{len(sources)} Secrets ({names}). Fix: drop --secret, and name {secret} under envFrom in the overlay."
        )
    sources[0]["secretRef"] = {"name": secret}


def gpus(main: KubernetesObject) -> int:
    """GPUs of one worker's pod."""
    return max(int(container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for container in containers(main))


def queue(main: KubernetesObject) -> str | None:
    """Kueue's LocalQueue in which the run waits, if any."""
    return main["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")


def to_yaml(objects: list[KubernetesObject]) -> str:
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000)


def to_toml(settings: config.Settings) -> str:
    """The resolved configuration; `config.load` reads the same settings back."""
    sections = {
        section: {key: value for key, value in values.items() if value is not None}  # TOML has no null
        for section, values in settings.as_dict().items()
    }
    return f"# Resolved by jobs.submit: the value of every key that has one.\n{tomli_w.dumps(sections)}"


def _rename(value: Any, run: str) -> Any:
    if isinstance(value, str):
        return value.replace(RUN_PLACEHOLDER, object_name(run))
    if isinstance(value, list):
        return [_rename(inner, run) for inner in value]
    if isinstance(value, dict):
        return {key: run if key == LABEL else _rename(inner, run) for key, inner in value.items()}
    return value


def _resize(main: KubernetesObject, launch: config.Launch) -> None:
    """Sets the number of workers and, in a RayJob, the size of Ray's object store."""
    spec, workers = main["spec"], launch.workers
    if main["kind"] == "Job":
        spec["completions"] = spec["parallelism"] = workers
        return
    cluster = spec["rayClusterSpec"]
    cluster["workerGroupSpecs"][0] |= {"replicas": workers, "minReplicas": workers, "maxReplicas": workers}
    # In a Job, jobs.kubernetes.entrypoint passes this to `ray start`; in a RayJob KubeRay starts Ray.
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        group["rayStartParams"]["object-store-memory"] = str(launch.object_store_bytes)


def _add_module(objects: list[KubernetesObject], module: Module, name: str) -> None:
    """Puts the files into the ConfigMap `name`, so that in the pods they lie beside the configuration, as `module.find` expects.

    Folders need a mapping, because a key of a ConfigMap has no slash. The files' names have no dot but that of .py, so that two
    never get the same key.
    """
    (data,) = [found["data"] for found in objects if found["kind"] == "ConfigMap" and found["metadata"]["name"] == name]
    keys = {path: path.replace("/", ".") for path in module.files}
    paths = {key: key for key in data} | {key: path for path, key in keys.items()}
    data |= {keys[path]: text for path, text in module.files.items()}
    for template in pod_templates(owner(objects)["spec"]):
        for volume in template["spec"].get("volumes", ()):
            if volume.get("configMap", {}).get("name") == name:
                volume["configMap"]["items"] = [{"key": key, "path": path} for key, path in paths.items()]


class _Dumper(yaml.SafeDumper):
    """Writes strings of several lines as block literals."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)
