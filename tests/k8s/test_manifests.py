"""The files in k8s/: every overlay renders in both shapes, is valid, passes Pod Security "restricted", and agrees with the code."""

import importlib.util
import json
import os
import re
import shutil
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from jobs import cluster_data
from jobs.kubernetes import alive, entrypoint, manifests
from jobs.kubernetes.kubectl import KubernetesObject, kustomize
from trainer import config
from trainer.model.module import Module

VERSION = "1.33"
CASES = [(overlay, shape) for overlay in manifests.overlays() for shape in manifests.SHAPES]
SETTINGS = config.load("jobs/configs/demo.toml", ["run.name=first", "launch.workers=4"])
MODULE = Module("nets.resnet", {"nets/__init__.py": "", "nets/resnet.py": "def build(): ...\n"})
SCHEMAS = {"RayJob": "ray.io_rayjobs.yaml", "LocalQueue": "localqueue_v1beta2.json"}


render = cache(manifests.render)
"""Kustomize once per overlay and shape: `fit` copies what it changes."""


@pytest.fixture(params=CASES, ids="-".join)
def objects(request: pytest.FixtureRequest) -> list[KubernetesObject]:
    overlay, shape = request.param
    return manifests.fit(render(overlay, shape), SETTINGS, "first", "registry.example/spikewise:1", None, MODULE)


@cache
def _schema(kind: str) -> dict[str, Any]:
    """The schema of a custom resource, as its project publishes it."""
    definition = yaml.load(Path(os.environ["SPIKEWISE_CRDS"], SCHEMAS[kind]).read_text(), yaml.CSafeLoader)
    if "spec" in definition:
        (version,) = [each for each in definition["spec"]["versions"] if each["storage"]]
        definition = version["schema"]["openAPIV3Schema"]
    return _closed(definition)


@cache
def _validator(kind: str) -> jsonschema.protocols.Validator:
    """Checks the `spec` of a custom resource."""
    schema = _schema(kind)["properties"]["spec"]
    return jsonschema.validators.validator_for(schema)(schema)


def _closed(schema: Any) -> Any:
    """The schema, with unknown fields forbidden: an API server silently drops them."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    schema = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not schema.get("additionalProperties"):
        schema["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    return schema


def _pods(main: KubernetesObject) -> list[dict[str, Any]]:
    return [template["spec"] for template in manifests.pod_templates(main["spec"])]


def test_valid(objects):
    """The API server would reject the run, or silently drop a misspelt field."""
    for found in objects:
        if found["kind"] not in SCHEMAS:
            kubernetes_validate.validate(found, VERSION, strict=True)
    for template in (pod_template for found in objects if found["kind"] == "RayJob" for pod_template in _pods(found)):
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template}, VERSION, strict=True
        )


@pytest.mark.crds
def test_valid_for_kuberay(objects):
    """The API server would reject the RayJob, or silently drop a misspelt field."""
    for found in objects:
        if found["kind"] in SCHEMAS:
            _validator(found["kind"]).validate(found["spec"])


@pytest.mark.crds
def test_valid_for_kueue():
    """The API server would reject the queue, or runs would wait in another one."""
    queue = yaml.safe_load(Path("k8s/overlays/kueue/local-queue.yaml").read_text())
    _validator("LocalQueue").validate(queue["spec"])
    assert queue["metadata"]["name"] == manifests.queue(_main("kueue", "job"))


def test_s3_server_valid():
    """`python -m jobs.cluster_data` would fail on every cluster."""
    for found in yaml.safe_load_all(kustomize(manifests.FOLDER / cluster_data.NAME)):
        kubernetes_validate.validate(found, VERSION, strict=True)
        assert found["metadata"]["name"] == cluster_data.NAME


def test_rights_of_submitters(objects):
    """A user with the documented permissions could not submit or cancel a run."""
    role = yaml.safe_load(Path("k8s/submitter-role.yaml").read_text())
    kubernetes_validate.validate(role, VERSION, strict=True)
    kinds, *_ = role["rules"]
    for found in objects:
        resource = "networkpolicies" if found["kind"] == "NetworkPolicy" else found["kind"].lower() + "s"
        assert found["apiVersion"].rpartition("/")[0] in kinds["apiGroups"]
        assert resource in kinds["resources"]
    assert {"get", "list", "watch", "create", "patch", "delete"} == set(kinds["verbs"])
    verbs = {verb for rule in role["rules"] if "secrets" in rule["resources"] for verb in rule["verbs"]}
    assert verbs == {"create", "patch", "delete"}  # of the token; no one needs to read Secrets
    forwards = {verb for rule in role["rules"] if "pods/portforward" in rule["resources"] for verb in rule["verbs"]}
    assert forwards == {"get", "create"}  # the driver's log tells the user to do it


CONDITION_KEYS = {"s3:ListBucket": {"s3:prefix", "s3:delimiter", "s3:max-keys"}}
"""Action -> keys of its own that a condition may ask for; our other actions have none that limits them. AWS, Service Authorization
Reference, "Actions defined by Amazon S3"."""


def test_the_policys_conditions_can_hold():
    """AWS denies an action under a condition whose key the action lacks: what killed jobs left would stay in the bucket and cost
    money."""
    statements = json.loads(Path("k8s/s3-policy.json").read_text())["Statement"]
    for statement in statements:
        asked = {key for operator in statement.get("Condition", {}).values() for key in operator}
        for action in statement["Action"]:
            assert asked <= CONDITION_KEYS.get(action, set()), action
    actions = {action for statement in statements for action in statement["Action"]}
    assert actions >= {"s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload"}  # of Store.sweep


def test_patch_for_the_operators_namespace():
    """The patch in docs/operations.md would open the head to other pods instead of restricting it."""
    policy = next(each for each in render("local", "rayjob") if each["kind"] == "NetworkPolicy")
    _, path = Path("docs/operations.md").read_text().split("path: /spec/ingress/")
    number, *rest = path.split()[0].split("/")
    assert rest == ["from", "0", "namespaceSelector", "matchLabels"]
    assert policy["spec"]["ingress"][int(number)]["from"][0]["namespaceSelector"] == {}


def _documented(folder: Path) -> None:
    """Writes the files of docs/cluster.md's own overlay, beside a copy of k8s/, to which they lead."""
    shutil.copytree("k8s", folder / "k8s")
    blocks = re.findall(r"```yaml\n# (cluster/[\w./-]+).*\n((?:.*\n)*?)```", Path("docs/cluster.md").read_text(encoding="utf-8"))
    for name, text in blocks:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize("shape", manifests.SHAPES)
def test_the_documented_overlay(shape, tmp_path):
    """A user who copies it would get pods without the company's certificate or without a GPU, or an error of kustomize."""
    _documented(tmp_path)
    overlay = tmp_path / "cluster/production"
    written = (overlay / "kustomization.yaml").read_text()
    shaped = written.replace("../../k8s/job", f"../../k8s/{shape}")
    (overlay / "kustomization.yaml").write_text(shaped)
    main = manifests.owner(manifests.fit(manifests.render(str(overlay), shape), SETTINGS, "first", "image", None))
    assert manifests.gpus(main) == 1
    assert manifests.queue(main) == "spikewise"
    assert "company-ca" not in json.dumps(main)
    (overlay / "kustomization.yaml").write_text(shaped.replace(f"  - ../../k8s/{shape}", f"  - ca\n  - ../../k8s/{shape}"))
    objects = manifests.fit(manifests.render(str(overlay), shape), SETTINGS, "first", "image", None)
    account = next(each for each in objects if each["kind"] == "ServiceAccount")
    assert account["metadata"]["annotations"]
    for spec in _pods(objects[-1]):
        (container,) = spec["containers"]
        if container["name"] == "submitter":
            continue
        (volume,) = [volume["name"] for volume in spec["volumes"] if volume.get("configMap", {}).get("name") == "company-ca"]
        (folder,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == volume]
        assert {"name": "AWS_CA_BUNDLE", "value": f"{folder}/ca.crt"} in container["env"]


def test_s3_server_has_the_demo_images():
    """The run in docs/cluster.md would find no images."""
    assert SETTINGS.data.source == cluster_data.SOURCE


def test_restricted(objects):
    """A namespace that enforces Pod Security "restricted" would reject every pod of the run."""
    for spec in [*_pods(objects[-1]), *_pods(_deployment())]:
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert all({"configMap", "emptyDir"} & set(volume) for volume in spec["volumes"])
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"].keys() == {"requests", "limits"}


def _deployment() -> KubernetesObject:
    return next(
        each for each in yaml.safe_load_all(kustomize(manifests.FOLDER / cluster_data.NAME)) if each["kind"] == "Deployment"
    )


def test_all_placeholders_are_replaced(objects):
    """Two runs would share an object, or a pod would need an image that does not exist."""
    text = json.dumps(objects)
    assert manifests.RUN_PLACEHOLDER not in text
    assert {container["image"] for container in manifests.containers(objects[-1])} == {"registry.example/spikewise:1"}
    for found in objects:
        assert found["metadata"]["name"] == "run-first"
        assert found["metadata"]["labels"][manifests.LABEL] == "first"


def test_every_pod_is_labelled(objects):
    """The metrics, the network policy, `make status` or `make cancel` would not find the run's pods."""
    labels = {manifests.LABEL: "first", "app.kubernetes.io/name": "spikewise"}
    templates = list(manifests.pod_templates(objects[-1]["spec"]))
    assert len(templates) == {"Job": 1, "RayJob": 3}[objects[-1]["kind"]]
    for template in templates:
        assert labels.items() <= template["metadata"]["labels"].items()


def test_workers(objects):
    """The driver would wait for pods that are never created."""
    spec = objects[-1]["spec"]
    if objects[-1]["kind"] == "Job":
        assert (spec["completions"], spec["parallelism"]) == (4, 4)
    else:
        (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
        assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (4, 4, 4)
        assert spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for each in (group, spec["rayClusterSpec"]["headGroupSpec"]):  # without it Ray uses more than /dev/shm holds
            assert each["rayStartParams"]["object-store-memory"] == str(SETTINGS.launch.object_store_bytes)


def test_pods_agree_with_the_program(objects):
    """A pod would start without its configuration, ports or scratch space."""
    for spec in _pods(objects[-1]):
        (container,) = spec["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in spec["volumes"]}
        if container["name"] == "submitter":
            continue
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports.items() >= {"metrics": SETTINGS.metrics.port, "gcs-server": entrypoint.PORT}.items()
        assert mounts["config"] == str(Path(entrypoint.CONFIG).parent)
        environment = {variable["name"] for variable in container["env"]}
        assert (
            set(re.findall(r'_environment\("(\w+)"\)', Path(entrypoint.__file__).read_text())) - {"JOB_COMPLETION_INDEX"}
            <= environment
        )
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        shared = volumes["shared-memory"]["emptyDir"]
        assert shared["medium"] == "Memory"
        assert int(shared["sizeLimit"].removesuffix("Gi")) * 2**30 >= SETTINGS.launch.object_store_bytes
        assert mounts["shared-memory"] == "/dev/shm"
        assert container["workingDir"] == mounts["scratch"] == "/tmp"


def test_time_to_save(objects):
    """A pod would be killed before the checkpoint is saved."""
    for spec in _pods(objects[-1]):
        for variable in spec["containers"][0]["env"]:
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S":
                assert float(variable["value"]) + 10 <= spec["terminationGracePeriodSeconds"]


def test_ray_knows_its_settings(objects):
    """With a new version of Ray, nodes would not drain, or workers would notice half a minute late."""
    package = Path(importlib.util.find_spec("ray").origin).parent
    constants = "".join((package / file).read_text() for file in ("_private/ray_constants.py", "train/v2/_internal/constants.py"))
    program = (package / "_raylet.so").read_bytes()
    for container in manifests.containers(objects[-1]):
        for variable in container["env"]:
            name = variable["name"]
            assert not name.startswith("RAY_") or f'"{name}"' in constants or name.encode() in program


def test_ray_asks_for_the_token():
    """Anyone who reaches Ray's ports, for example without a plugin that enforces policies, could run code in the pods."""
    for overlay in manifests.overlays():
        (container,) = manifests.containers(_main(overlay, "job"))
        values = {each["name"]: each.get("valueFrom", {}).get("secretKeyRef") for each in container["env"]}
        given = manifests.token("first")
        assert given["metadata"]["name"] == "run-first"
        for name in given["stringData"]:  # optional: manifests that are applied without `make submit` have no Secret
            assert values[name] == {"name": "run-first", "key": name, "optional": True}
        assert _main(overlay, "rayjob")["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    kubernetes_validate.validate(given, VERSION, strict=True)


def test_a_node_that_hangs_is_replaced():
    """A pod whose Ray node hangs would stay for two days; or a worker that waits for a new head would be killed."""
    (container,) = manifests.containers(_main("local", "job"))
    probe = container["livenessProbe"]
    assert probe["exec"]["command"] == ["python", "-m", alive.__name__]
    assert probe["timeoutSeconds"] > 5  # the program's own limit
    ready = container["readinessProbe"]["httpGet"]
    assert (ready["port"], ready["path"]) == (alive.PORT, alive.PATH)


def test_the_driver_knows_its_pod(objects):
    """The log would give addresses that are useless outside the pod."""
    for container in manifests.containers(objects[-1]):
        names = {each["name"] for each in container["env"]}
        assert container["name"] == "submitter" or {"POD_NAME", "POD_NAMESPACE"} <= names


def test_base_images_are_pinned():
    """The same source would give another image tomorrow, or a changed tag would bring somebody else's program into the cluster."""
    texts = [Path("docker/Dockerfile").read_text(), Path("docker/compose.yaml").read_text()]
    images = [name for text in texts for name in re.findall(r"^(?:FROM|ARG BASE=|\s+image:) ?(\S+)", text, re.MULTILINE)]
    stages = set(re.findall(r"^FROM .* AS (\S+)", texts[0], re.MULTILINE)) | {"$BASE"}
    outside = [name for name in images if name not in stages]
    assert len(outside) == 3
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", name) for name in outside), outside


def test_gpu_requests_equal_limits():
    """A pod with a GPU would be evicted first, and other pods would take its cores."""
    for shape in manifests.SHAPES:
        main = _main("gpu", shape)
        assert manifests.gpus(main) == 1
        for container in manifests.containers(main):
            if container["name"] != "submitter":
                assert container["resources"]["requests"] == container["resources"]["limits"]


def test_rayjob_head_takes_no_gpu():
    """The head would occupy a GPU and not use it."""
    main = _main("gpu", "rayjob")
    head = main["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert "nvidia.com/gpu" not in head["resources"]["limits"]


def test_rayjob_head_is_found():
    """KubeRay would wait forever for a port named dashboard, and never start the driver."""
    head = _main("local", "rayjob")["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports == {"metrics": 9400, "gcs-server": 6379, "dashboard": 8265}


def test_kueue():
    """Kueue would ignore the run, or pods would start before Kueue admits them."""
    for shape in manifests.SHAPES:
        main = _main("kueue", shape)
        assert manifests.queue(main) == "spikewise"
        assert main["spec"]["suspend"] is True


def _main(overlay: str, shape: str) -> KubernetesObject:
    return manifests.owner(manifests.fit(render(overlay, shape), SETTINGS, "first", "image", None))


def test_head_is_found():
    """Workers would wait for a head whose DNS name does not exist."""
    found = {each["kind"]: each for each in manifests.fit(render("local", "job"), SETTINGS, "first", "image", None)}
    service = found["Service"]
    assert found["Job"]["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"] == found["Job"]["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= found["Job"]["spec"]["template"]["metadata"]["labels"].items()
    assert found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == {manifests.LABEL: "first"}


def test_versions_agree():
    """The image would have another version of Ray than KubeRay, or other packages than the tests; or it could not submit."""
    ray = _main("local", "rayjob")["spec"]["rayClusterSpec"]["rayVersion"]
    groups = tomllib.loads(Path("pyproject.toml").read_text())["dependency-groups"]
    assert any(dependency.endswith(f"=={ray}") for dependency in groups["job"] if dependency.startswith("ray["))
    tested = _pins("requirements-dev.lock")
    cluster = {re.match(r"[\w-]+", dependency)[0] for dependency in groups["cluster"]}
    ours = _pins("requirements.lock") | {name: tested[name] for name in cluster}
    assert tested.items() >= ours.items()
    cpu, gpu = _pins("docker/requirements-cpu.lock"), _pins("docker/requirements-gpu.lock")
    assert cpu | {"tensorflow": ours["tensorflow"]} == ours | {"tensorflow-cpu": ours["tensorflow"]}
    assert {name: version for name, version in gpu.items() if not name.startswith("nvidia-")} == ours


def _pins(path: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", Path(path).read_text(), re.MULTILINE))


def test_policy_covers_what_is_called():
    """A run with only the documented permissions would be denied access in the middle of training."""
    statements = json.loads(Path("k8s/s3-policy.json").read_text())["Statement"]
    allowed = {action for statement in statements for action in statement["Action"]}
    calls = re.findall(r'client\.(\w+)\(|get_paginator\("(\w+)"\)', Path("trainer/storage/s3.py").read_text())
    needed = {
        "get_object": "s3:GetObject",
        "download_file": "s3:GetObject",
        "put_object": "s3:PutObject",
        "upload_fileobj": "s3:PutObject",
        "delete_object": "s3:DeleteObject",
        "delete_objects": "s3:DeleteObject",
        "list_objects_v2": "s3:ListBucket",
        "get_paginator": "s3:ListBucket",
        "list_multipart_uploads": "s3:ListBucketMultipartUploads",
        "abort_multipart_upload": "s3:AbortMultipartUpload",
    }
    assert {needed[name] for call in calls for name in call if name} <= allowed
