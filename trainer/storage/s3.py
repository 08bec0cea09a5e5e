"""S3 buckets as stores. The only door to boto3.

Owns how S3 is called and retried; s3_errors.py owns which failures may pass, and what the user reads after them.
"""

import base64
import hashlib
import random
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import RetriesExceededError
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import S3DownloadFailedError

from trainer import config
from trainer.formatting import masked, one_line
from trainer.storage import s3_errors
from trainer.storage.store import MAX_THREADS, PART, THREADS, Exists, Object, Store, StoreError

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 20.0  # seconds between attempts


_OPERATIONS = {"GetObject": "get", "HeadObject": "get", "ListObjectsV2": "list", "DeleteObject": "delete"}


class S3Store(Store):
    """`s3://bucket/prefix` on any S3 server. The first operation opens the connection.

    Retries: every request, including each page of a listing and each part of a large object, is attempted up to
    `s3.max_attempts` times while the server is unreachable, does not answer in time or answers with one of s3_errors.TRANSIENT.
    Exponential backoff with jitter separates the attempts. botocore's own retries are off, because their total duration
    depends on its version and can be as short as a second. Neither they nor our retry hook see a response body that ends
    early or stalls: such a read starts again, up to `s3.max_attempts` times.
    """

    def __init__(self, url: str, s3: config.S3) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        self.prefix = prefix and prefix + "/"
        super().__init__(f"s3://{self.bucket}/{prefix}".rstrip("/"))
        self._s3 = s3
        self._client: Any = None
        self._client_lock = threading.Lock()
        self._transfer = TransferConfig(
            multipart_threshold=PART,
            multipart_chunksize=PART,
            max_concurrency=THREADS,
            num_download_attempts=s3.max_attempts,
            preferred_transfer_client="classic",  # the other client would bypass our retries and counters
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.url, self._s3)  # a client cannot be pickled; each process creates its own

    @property
    def client(self) -> Any:
        with self._client_lock:
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> Any:
        try:
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=self._s3.endpoint_url,
                region_name=self._s3.region,
                config=ClientConfig(
                    signature_version=UNSIGNED if self.bucket in self._s3.anonymous else None,
                    connect_timeout=self._s3.connect_timeout,
                    read_timeout=self._s3.read_timeout,
                    max_pool_connections=MAX_THREADS,
                    retries={"mode": "standard", "total_max_attempts": 1},
                    s3={"addressing_style": "path" if self._s3.path_style else "auto"},
                    request_checksum_calculation="when_required",  # many other servers know only MD5: see _add_headers
                    response_checksum_validation="when_required",
                ),
            )
        except ValueError as error:
            raise StoreError(
                f"{error}. Fix: write s3.endpoint_url (or AWS_ENDPOINT_URL) as http://host:port or https://host."
            ) from None
        except OSError as error:
            raise StoreError(f"{self.url}: {one_line(error)}. Fix: correct AWS_CA_BUNDLE.") from None
        except BotoCoreError as error:
            raise StoreError(f"{self.url}: {one_line(error)}") from None
        if masked(client.meta.endpoint_url) != client.meta.endpoint_url:  # of AWS_ENDPOINT_URL; config refuses it elsewhere
            raise StoreError(
                f"AWS_ENDPOINT_URL = {masked(client.meta.endpoint_url)} contains credentials. Fix: remove them, and set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
            )
        client.meta.events.register("before-call.s3", self._add_headers)
        client.meta.events.register("before-send.s3", self._before_send)
        client.meta.events.register("before-parse.s3", s3_errors.check_answer)
        client.meta.events.register("needs-retry.s3", self._needs_retry)
        return client

    def _add_headers(self, model: Any, params: dict[str, Any], **_: Any) -> None:
        """botocore's hook before every request. AWS demands a checksum of each object in a bucket with Object Lock, and every
        S3 server verifies Content-MD5."""
        headers, operation = params["headers"], model.name
        if self._s3.requester_pays:
            headers["x-amz-request-payer"] = "requester"
        if operation in ("PutObject", "UploadPart"):
            headers["Content-MD5"] = _md5(params["body"])
        if self._s3.kms_key and operation in ("PutObject", "CreateMultipartUpload"):
            headers["x-amz-server-side-encryption"] = "aws:kms"
            headers["x-amz-server-side-encryption-aws-kms-key-id"] = self._s3.kms_key

    def _before_send(self, event_name: str, **_: Any) -> None:
        operation = event_name.rpartition(".")[2]
        # The names that every store has. The others are parts of an upload.
        self._count(_OPERATIONS.get(operation, "put"))

    def _needs_retry(
        self, event_name: str, attempts: int, response: Any, caught_exception: Exception | None, **_: Any
    ) -> float | None:
        """botocore's hook after every request. Returns the seconds to wait before a retry, or None for no retry."""
        if response is None:
            transient = s3_errors.is_transient(caught_exception)
        else:
            status, code = response[1]["ResponseMetadata"]["HTTPStatusCode"], response[1].get("Error", {}).get("Code")
            transient = status in s3_errors.TRANSIENT or code in s3_errors.TRANSIENT_CODES
            # Every error response except those to HEAD has a body. Without one, the response was cut off.
            transient |= code == str(status) and ".Head" not in event_name
        return self._delay(attempts) if transient and attempts < self._s3.max_attempts else None

    def _delay(self, attempts: int) -> float:
        """Counts a retry; returns the seconds to wait before it."""
        with self._lock:
            self.retries += 1
        return min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (attempts - 1)) * random.uniform(0.5, 1)

    def list(self, prefix: str = "") -> Iterator[Object]:
        with self._explained(prefix + "*"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            entries = [
                Object(
                    entry["Key"].removeprefix(self.prefix),
                    entry["Size"],
                    entry.get("ETag", "").strip('"'),
                    archived=entry.get("StorageClass") in s3_errors.ARCHIVES,
                )
                for page in pages
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")
            ]
        # AWS sorts by key, SeaweedFS folder by folder, directory buckets not at all.
        yield from sorted(entries, key=lambda entry: entry.key)

    def get(self, key: str) -> bytes:
        attempts = 0
        with self._explained(key):
            while True:
                attempts += 1
                response = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key)
                try:
                    with closing(response["Body"]) as body:
                        return body.read()
                except s3_errors.NETWORK:
                    if attempts == self._s3.max_attempts:
                        raise
                    time.sleep(self._delay(attempts))

    def download(self, key: str, path: Path) -> None:
        with self._explained(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.client.download_file(self.bucket, self.prefix + key, str(path), Config=self._transfer)
            except RetriesExceededError as error:
                raise error.last_exception from None
            except S3DownloadFailedError:  # the parts are of different versions
                raise StoreError(f"{self._where(key)}: the object changed during the download. Fix: try again.") from None

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        wanted = _content_type(content_type) | ({"IfNoneMatch": "*"} if if_absent else {})
        with self._explained(key):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, **wanted)
            except ClientError as error:
                if s3_errors.status(error) != 412:
                    raise
                # An earlier attempt of this request may have written the object, and only its response was lost.
                if not s3_errors.retries(error) or self.get(key) != data:
                    raise Exists(f"{self._where(key)}: already exists") from None

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:
        with self._explained(key), path.open("rb") as file:
            # s3transfer aborts a multipart upload that fails.
            self.client.upload_fileobj(
                file, self.bucket, self.prefix + key, ExtraArgs=_content_type(content_type), Config=self._transfer
            )

    def delete(self, keys: Iterable[str]) -> None:
        # One by one: not every server supports DeleteObjects, and those that do disagree on its checksum.
        with ThreadPoolExecutor(THREADS, thread_name_prefix="store") as pool:
            for _ in pool.map(self._delete, keys):
                pass

    def _delete(self, key: str) -> None:
        with self._explained(key):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def _explain(self, error: Exception, where: str) -> StoreError | None:
        return s3_errors.explain(error, where, self._s3, self.client.meta.endpoint_url) or super()._explain(error, where)


def has_credentials() -> bool:
    """Whether the AWS SDK finds credentials (environment, profile, single sign-on, machine role). Raises StoreError."""
    try:
        return boto3.session.Session().get_credentials() is not None
    except BotoCoreError as error:
        raise StoreError(f"The AWS credentials cannot be read: {one_line(error)}. Fix: check AWS_PROFILE and ~/.aws.") from None


def _md5(body: Any) -> str:
    """Of bytes, or of a file from its current position."""
    digest = hashlib.md5(usedforsecurity=False)
    if isinstance(body, bytes | bytearray):
        digest.update(body)
    else:
        start = body.tell()
        while chunk := body.read(2**20):
            digest.update(chunk)
        body.seek(start)
    return base64.b64encode(digest.digest()).decode()


def _content_type(content_type: str | None) -> dict[str, str]:
    return {"ContentType": content_type} if content_type else {}
