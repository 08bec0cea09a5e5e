"""The demo's images in a cluster without a bucket: `python -m jobs.cluster_data --image IMAGE`.

Owns: the object store of k8s/object-store: its credentials, made at random once and kept in the Secret `object-store` alone, its
start, and the way to it through the API server. It stays when runs go, with their checkpoints; `kubectl delete -k k8s/object-store`
ends it.
"""

import argparse
import base64
import os
import secrets
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from jobs.demo import SOURCE, images
from jobs.kubernetes.kubectl import Kubectl, KubernetesError, kustomize
from jobs.kubernetes.manifests import FOLDER
from trainer import UserError

NAME = "object-store"
"""Of the Deployment, the Service and the Secret."""
PORT = 8333


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.cluster_data", description="An object store with images in the cluster.")
    parser.add_argument("--image", required=True, help="what `make image-object-store` built")
    parser.add_argument("--images", type=int, default=2000, help="authentic and forged together (default: 2000)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default: 128)")
    parser.add_argument("--namespace", metavar="NAME", help="default: the context's")
    arguments = parser.parse_args(argv)
    try:
        kubectl = Kubectl(arguments.namespace)
        start(kubectl, arguments.image)
        with forwarded(kubectl) as environment:
            os.environ |= environment
            return images.main(["--images", str(arguments.images), "--size", str(arguments.size), SOURCE])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def start(kubectl: Kubectl, image: str) -> None:
    """Starts the store unless it runs, and waits until it answers. Raises KubernetesError."""
    if not kubectl.exists("secret", NAME):
        values = {
            "AWS_ACCESS_KEY_ID": secrets.token_hex(16),
            "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{NAME}:{PORT}",
        }
        kubectl.apply([{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": NAME}, "stringData": values}])
    objects = list(yaml.safe_load_all(kustomize(FOLDER / NAME)))
    for found in objects:
        if found["kind"] == "Deployment":
            found["spec"]["template"]["spec"]["containers"][0]["image"] = image
    kubectl.apply(objects)
    kubectl.run("rollout", "status", f"deployment/{NAME}", "--timeout=120s", timeout=120)


@contextmanager
def forwarded(kubectl: Kubectl) -> Iterator[dict[str, str]]:
    """The environment that reaches the store from here, as long as this lasts. Raises KubernetesError."""
    data = kubectl.get("secret", NAME)["data"]
    values = {name: base64.b64decode(value).decode() for name, value in data.items()}
    process = kubectl.start("port-forward", f"service/{NAME}", f":{PORT}")
    try:
        assert process.stdout is not None
        said = process.stdout.readline()  # Forwarding from 127.0.0.1:40001 -> 8333
        if not said.startswith("Forwarding from 127.0.0.1:"):
            raise KubernetesError(f"the object store cannot be reached through port-forward of context {kubectl.context}")
        port = said.split(":")[1].split(" ")[0]
        # It says a line for each connection, and would stand still once nobody had read them for long.
        threading.Thread(target=deque, args=(process.stdout, 0), daemon=True, name="port-forward").start()
        yield values | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
