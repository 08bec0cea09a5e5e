"""Starts an S3 server with the demo's images in a cluster without a bucket: `python -m jobs.cluster_data --image IMAGE`.

Owns the S3 server of k8s/s3-server: its random credentials, which exist only in the Secret `s3-server`, its start, and the
connection to it through the API server. Ending a run does not remove the server; `kubectl delete -k k8s/s3-server` removes it and
its data.
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

from jobs.command_line import add_namespace, report_error
from jobs.demo import SOURCE, images
from jobs.demo.s3_server import without_proxy
from jobs.kubernetes.kubectl import Kubectl, KubernetesError, kustomize
from jobs.kubernetes.manifests import FOLDER
from trainer import UserError

NAME = "s3-server"
"""Name of the Deployment, the Service and the Secret, and of the folder in k8s/."""
PORT = 8333


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jobs.cluster_data", description="Starts an S3 server with images in the cluster."
    )
    parser.add_argument("--image", required=True, help="the image that `make image-s3-server` built")
    parser.add_argument("--images", type=int, default=2000, help="number of images, half of them forged (default: 2000)")
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels (default: 128)")
    add_namespace(parser)
    arguments = parser.parse_args(argv)
    try:
        kubectl = Kubectl(arguments.namespace)
        start(kubectl, arguments.image)
        with forwarded(kubectl) as environment:
            os.environ |= environment
            return images.main(["--images", str(arguments.images), "--size", str(arguments.size), SOURCE])
    except UserError as error:
        report_error(error)
        return 2


def start(kubectl: Kubectl, image: str) -> None:
    """Starts the server unless it is running, and waits until it answers. Raises KubernetesError."""
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
    """Forwards a local port to the server while the context lasts. Yields the environment variables of an S3 client for it.

    Raises KubernetesError.
    """
    data = kubectl.get("secret", NAME)["data"]
    values = {name: base64.b64decode(value).decode() for name, value in data.items()}
    process = kubectl.start("port-forward", f"service/{NAME}", f":{PORT}")
    try:
        assert process.stdout is not None
        line = process.stdout.readline()  # Forwarding from 127.0.0.1:40001 -> 8333
        if not line.startswith("Forwarding from 127.0.0.1:"):
            raise KubernetesError(
                f"kubectl port-forward cannot reach the S3 server in context {kubectl.context}. Fix: check that its pod runs "
                f"(kubectl get pods -l app.kubernetes.io/name=spikewise-{NAME}) and that you may create pods/portforward."
            )
        port = line.split(":")[1].split(" ")[0]
        # kubectl prints a line for each connection, and would block once the pipe is full.
        threading.Thread(target=deque, args=(process.stdout, 0), daemon=True, name="port-forward").start()
        yield values | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"} | without_proxy("127.0.0.1")
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
