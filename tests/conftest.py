"""What tests of several modules share: a real S3 server, started once for all of them."""

import os
import secrets
from collections.abc import Iterator

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as a job sets it (trainer/cluster.py), before TensorFlow is imported

import pytest

from jobs.object_store import ObjectStore, local_object_store


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A SeaweedFS server with the bucket `spikewise`; the environment points to it, here and in processes started from here."""
    with local_object_store(tmp_path_factory.mktemp("object-store")) as server, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield server


@pytest.fixture
def bucket(object_store: ObjectStore) -> str:  # noqa: ARG001
    """URL of an empty place in the bucket, the test's own."""
    return f"s3://spikewise/{secrets.token_hex(8)}"
