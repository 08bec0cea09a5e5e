"""A run's Kubernetes objects: the overlay of k8s/overlays as it is rendered, with the run's own values in place.

Owns: which values those are: names, image, number of workers, configuration, metrics port, and the Secret with the credentials.
Everything else is said in YAML. Pure, but for the call of kustomize.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jobs.kubernetes.kubectl import KubernetesError, KubernetesObject, kustomize
from trainer import config

FOLDER = Path(__file__).parents[2] / "k8s"
SHAPES = {"job": "Job", "rayjob": "RayJob"}
LABEL = "spikewise/run"
"""On every object and pod of a run; its value is the run's name."""
STANDS_FOR_RUN = "run-name"
STANDS_FOR_IMAGE = "spikewise"
LONGEST_RAYJOB = 47
"""Characters in the name of a RayJob, which KubeRay makes longer."""


def object_name(run: str) -> str:
    """Of the run's objects: a Service's name has to begin with a letter, which a run's need not."""
    return f"run-{run}"


def overlays() -> list[str]:
    return sorted(path.name for path in (FOLDER / "overlays").iterdir() if path.is_dir())


def render(overlay: str, shape: str) -> list[KubernetesObject]:
    """`overlay`: a name below k8s/overlays, or the path of a kustomization of that shape. Raises KubernetesError."""
    folder = Path(overlay) if "/" in overlay else FOLDER / "overlays" / overlay / shape
    if not (folder / "kustomization.yaml").is_file():
        raise KubernetesError(
            f"OVERLAY={overlay}: there is no {folder}/kustomization.yaml: choose {', '.join(overlays())} or the path of your own"
        )
    objects = list(yaml.safe_load_all(kustomize(folder)))
    if not any(found["kind"] == SHAPES[shape] for found in objects):
        raise KubernetesError(
            f"OVERLAY={overlay} makes no {SHAPES[shape]}: choose another SHAPE, or add k8s/{shape} to its components"
        )
    return objects


def fit(
    objects: list[KubernetesObject], settings: config.Settings, run: str, image: str, secret: str | None
) -> list[KubernetesObject]:
    """The objects of this run; the Job or RayJob is last, because its pods need the others. Raises KubernetesError."""
    fitted: list[KubernetesObject] = _rename(objects, run)
    fitted.sort(key=lambda found: found["kind"] in SHAPES.values())
    main = owner(fitted)
    if main["kind"] == "RayJob" and len(main["metadata"]["name"]) > LONGEST_RAYJOB:
        most = LONGEST_RAYJOB - len(object_name(""))
        raise KubernetesError(f"run.name = {run}: with SHAPE=rayjob a name has at most {most} characters, this one has {len(run)}")
    _size(main, settings.launch)
    for found in fitted:
        if found["kind"] == "ConfigMap":
            found["data"]["config.toml"] = write_toml(settings)
    for container in containers(main):
        if container["image"] == STANDS_FOR_IMAGE:
            container["image"] = image
        for port in container.get("ports", ()):
            if port["name"] == "metrics":
                port["containerPort"] = settings.metrics.port
        for source in container.get("envFrom", ()) if secret else ():
            source["secretRef"] = {"name": secret}
    return fitted


def owner(objects: list[KubernetesObject]) -> KubernetesObject:
    """The Job or RayJob, which owns the others."""
    return objects[-1]


def owned(objects: list[KubernetesObject], uid: str) -> list[KubernetesObject]:
    """All but the owner, owned by it: they go when it goes, whoever deletes it."""
    main = owner(objects)
    reference = {"apiVersion": main["apiVersion"], "kind": main["kind"], "name": main["metadata"]["name"], "uid": uid}
    return [{**found, "metadata": {**found["metadata"], "ownerReferences": [reference]}} for found in objects[:-1]]


def containers(main: KubernetesObject) -> list[dict[str, Any]]:
    """Of all pods of a Job or RayJob."""
    return [container for template in pod_templates(main["spec"]) for container in template["spec"]["containers"]]


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """All pods' templates within an object's spec."""
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
    """Secrets that the pods take their environment from, and whether they can do without."""
    sources = [source["secretRef"] for container in containers(main) for source in container.get("envFrom", ())]
    return {source["name"]: source.get("optional", False) for source in sources}


def gpus(main: KubernetesObject) -> int:
    """GPUs of one worker's pod."""
    return max(int(container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0)) for container in containers(main))


def queue(main: KubernetesObject) -> str | None:
    """Kueue's LocalQueue that the run waits in."""
    return main["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")


def to_yaml(objects: list[KubernetesObject]) -> str:
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=1000)


def write_toml(settings: config.Settings) -> str:
    """The resolved configuration; `config.load` reads the same one back."""
    lines = ["# Resolved by jobs.submit: every key has its value."]
    for section, values in settings.as_dict().items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # everywhere else JSON's values are TOML's


def _rename(value: Any, run: str) -> Any:
    if isinstance(value, str):
        return value.replace(STANDS_FOR_RUN, object_name(run))
    if isinstance(value, list):
        return [_rename(inner, run) for inner in value]
    if isinstance(value, dict):
        return {key: run if key == LABEL else _rename(inner, run) for key, inner in value.items()}
    return value


def _size(main: KubernetesObject, launch: config.Launch) -> None:
    spec, workers = main["spec"], launch.workers
    if main["kind"] == "Job":
        spec["completions"] = spec["parallelism"] = workers
        return
    cluster = spec["rayClusterSpec"]
    cluster["workerGroupSpecs"][0] |= {"replicas": workers, "minReplicas": workers, "maxReplicas": workers}
    for group in (
        cluster["headGroupSpec"],
        *cluster["workerGroupSpecs"],
    ):  # jobs.kubernetes.entrypoint says it where KubeRay does not start Ray
        group["rayStartParams"]["object-store-memory"] = str(launch.object_store_bytes)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


_Dumper.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)
)
