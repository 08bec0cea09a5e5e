"""S3 buckets, and the way to open a store. The only door to boto3.

Owns: how S3 is spoken to, how often a request is tried, and what a user is told when that was not enough. What a store promises
and the folder store are trainer.storage.store's; both are used through this module.
"""

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
from botocore.config import Config as ClientConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from s3transfer.exceptions import S3DownloadFailedError

from trainer import config
from trainer.formatting import one_line
from trainer.storage import Exists, NotFound, Object, Store, StoreError
from trainer.storage.store import MAX_THREADS, PART, THREADS

_NETWORK = (HTTPClientError, BotoConnectionError, IncompleteReadError)
_TRANSIENT = frozenset({429, 500, 502, 503, 504, 509})  # HTTP states after which another try may succeed
_TRANSIENT_CODES = frozenset({"RequestTimeout", "BadDigest", "OperationAborted", "ConditionalRequestConflict"})
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 20.0  # seconds between tries
_ADVICE = {
    "NoSuchBucket": "no such bucket: create it, or correct the bucket's name",
    "InvalidAccessKeyId": "the server does not know this access key: check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "these credentials do not permit it: grant them the right, or use others",
    "ExpiredToken": "the credentials have expired: renew them",
    "NotImplemented": "the server lacks this: use one with conditional writes (If-None-Match) and multipart uploads",
}


class S3Store(Store):
    """`s3://bucket/prefix` on any S3 server. Nothing is sent before the first operation.

    Retries: every request, each page and part included, is tried at most `s3.max_attempts` times while the server cannot be
    reached, does not answer in time or answers with one of _TRANSIENT, with exponential backoff and jitter between tries.
    botocore's own retries are off: how long they last changes with its version, down to a second in all. Neither they nor ours
    see a body that ends early or stalls: such a read is begun anew, at most `s3.max_attempts` times.
    """

    def __init__(self, url: str, s3: config.S3) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        self.prefix = prefix and prefix + "/"
        super().__init__(f"s3://{self.bucket}/{prefix}".rstrip("/"))
        self._s3 = s3
        self._made: Any = None
        self._making = threading.Lock()
        self._transfer = TransferConfig(
            multipart_threshold=PART,
            multipart_chunksize=PART,
            max_concurrency=THREADS,
            num_download_attempts=s3.max_attempts,
            preferred_transfer_client="classic",  # the other one would bypass retries and counters
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.url, self._s3)  # a client cannot be pickled: each process makes its own

    @property
    def client(self) -> Any:
        with self._making:
            if self._made is None:
                self._made = self._make_client()
            return self._made

    def _make_client(self) -> Any:
        try:
            client = boto3.session.Session().client(
                "s3",
                endpoint_url=self._s3.endpoint_url,
                region_name=self._s3.region,
                config=ClientConfig(
                    connect_timeout=self._s3.connect_timeout,
                    read_timeout=self._s3.read_timeout,
                    max_pool_connections=MAX_THREADS,
                    retries={"mode": "standard", "total_max_attempts": 1},
                    s3={"addressing_style": "path" if self._s3.path_style else "auto"},
                    request_checksum_calculation="when_required",  # others are unknown to many servers that are not AWS
                    response_checksum_validation="when_required",
                ),
            )
        except ValueError as error:
            raise StoreError(f"{error}: write s3.endpoint_url (or AWS_ENDPOINT_URL) as http://host:port or https://host") from None
        except BotoCoreError as error:
            raise StoreError(f"{self.url}: {one_line(error)}") from None
        client.meta.events.register("before-send.s3", self._before_send)
        client.meta.events.register("needs-retry.s3", self._needs_retry)
        return client

    def _before_send(self, event_name: str, **_: Any) -> None:
        self._count(event_name.rpartition(".")[2])

    def _needs_retry(
        self, event_name: str, attempts: int, response: Any, caught_exception: Exception | None, **_: Any
    ) -> float | None:
        """Called by botocore after every request; returns the seconds to wait before the next try, or None."""
        if response is None:
            transient = isinstance(caught_exception, _NETWORK)
        else:
            status, code = response[0].status_code, response[1].get("Error", {}).get("Code")
            transient = status in _TRANSIENT or code in _TRANSIENT_CODES
            # An answer without a readable body, which only one to HEAD lacks by right: what went wrong was cut off.
            transient |= code == str(status) and ".Head" not in event_name
        return self._delay(attempts) if transient and attempts < self._s3.max_attempts else None

    def _delay(self, attempts: int) -> float:
        with self._lock:
            self.retries += 1
        return min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** (attempts - 1)) * random.uniform(0.5, 1)

    def list(self, prefix: str = "") -> Iterator[Object]:
        with self._explained(prefix + "*"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            entries = [
                Object(
                    key=entry["Key"].removeprefix(self.prefix),
                    size=entry["Size"],
                    etag=entry["ETag"].strip('"'),
                    modified=entry["LastModified"].timestamp(),
                )
                for page in pages
                for entry in page.get("Contents", ())
                if not entry["Key"].endswith("/")
            ]
        # AWS sorts by key, but SeaweedFS folder by folder and directory buckets not at all.
        yield from sorted(entries, key=lambda entry: entry.key)

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        first = start or 0
        if stop is not None and stop <= first:
            return b""
        wanted = {} if start is None and stop is None else {"Range": f"bytes={first}-{'' if stop is None else stop - 1}"}
        attempts = 0
        with self._explained(key):
            while True:
                attempts += 1
                try:
                    response = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **wanted)
                except ClientError as error:
                    if _status(error) == 416:  # nothing at or after `start`
                        return b""
                    raise
                try:
                    with closing(response["Body"]) as body:
                        return body.read()
                except _NETWORK:
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
            except S3DownloadFailedError:  # parts of different versions
                raise StoreError(f"{self._where(key)}: changed while it was being read: try again") from None

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str | None = None) -> None:
        wanted = _content_type(content_type) | ({"IfNoneMatch": "*"} if if_absent else {})
        with self._explained(key):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.prefix + key, Body=data, **wanted)
            except ClientError as error:
                if _status(error) != 412:
                    raise
                # An earlier try of this very request may have written the object, and only its answer was lost.
                if not _retries(error) or self.get(key) != data:
                    raise Exists(f"{self._where(key)}: exists already") from None

    def upload(self, key: str, path: Path, *, content_type: str | None = None) -> None:
        with self._explained(key), path.open("rb") as file:
            # s3transfer aborts a multipart upload that fails.
            self.client.upload_fileobj(
                file, self.bucket, self.prefix + key, ExtraArgs=_content_type(content_type), Config=self._transfer
            )

    def delete(self, keys: Iterable[str]) -> None:
        # One by one: not every server can delete many at once, and those that can disagree on the checksum it takes.
        with ThreadPoolExecutor(THREADS, thread_name_prefix="objectstore") as pool:
            for _ in pool.map(self._delete, keys):
                pass

    def _delete(self, key: str) -> None:
        with self._explained(key):
            self.client.delete_object(Bucket=self.bucket, Key=self.prefix + key)

    def _explain(self, error: Exception, where: str) -> StoreError | None:
        if isinstance(error, ClientError):
            return self._explain_answer(error, where)
        if isinstance(error, NoCredentialsError):
            return StoreError(
                f"{where}: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use another way of the AWS SDK"
            )
        endpoint, tried = self.client.meta.endpoint_url, f"tried {self._s3.max_attempts} times"
        if isinstance(error, ReadTimeoutError):
            return StoreError(
                f"{where}: {endpoint} sent nothing for {self._s3.read_timeout:g} s, {tried}: "
                "see whether it is overloaded, or raise s3.read_timeout or s3.max_attempts",
                transient=True,
            )
        if isinstance(error, BotoConnectionError):
            return StoreError(
                f"{where}: {endpoint} cannot be reached, {tried}: is the server running, and s3.endpoint_url (or AWS_ENDPOINT_URL) "
                f"right? Servers other than AWS often want s3.path_style = true. ({one_line(error)})",
                transient=True,
            )
        if isinstance(error, _NETWORK):
            return StoreError(
                f"{where}: {endpoint} broke off its answer, {tried}: see its log and the network between, "
                f"or raise s3.max_attempts. ({one_line(error)})",
                transient=True,
            )
        if isinstance(error, BotoCoreError):
            return StoreError(f"{where}: {one_line(error)}")
        return super()._explain(error, where)

    def _explain_answer(self, error: ClientError, where: str) -> StoreError:
        status, code = _status(error), error.response["Error"].get("Code", "")
        bare = code == str(status)  # the answer had no body that could be read
        said = str(status) if bare else f"{status} {code}"
        answered = f"{where}: {self.client.meta.endpoint_url} answered {error.operation_name} with {said}"
        if code == "NoSuchKey":
            return NotFound(f"{where}: no such object")
        if code in _ADVICE:
            return StoreError(f"{where}: {_ADVICE[code]} ({code} for {error.operation_name})")
        if status in _TRANSIENT:
            return StoreError(
                f"{answered}, tried {_retries(error) + 1} times: wait until the server has recovered, "
                f"or raise s3.max_attempts (now {self._s3.max_attempts})",
                transient=True,
            )
        if bare and not error.operation_name.startswith("Head"):
            return StoreError(f"{answered} and no word why, unlike an S3 server: check s3.endpoint_url (or AWS_ENDPOINT_URL)")
        return StoreError(f"{answered}: {' '.join(error.response['Error'].get('Message', '').split())}")


def has_credentials() -> bool:
    """Whether the usual chain (environment, profile, single sign-on, the machine's role) has any. Raises StoreError."""
    try:
        return boto3.session.Session().get_credentials() is not None
    except BotoCoreError as error:
        raise StoreError(f"AWS credentials: {one_line(error)}") from None


def _content_type(content_type: str | None) -> dict[str, str]:
    return {"ContentType": content_type} if content_type else {}


def _status(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _retries(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
