"""S3 buckets as stores. The only door to boto3.

Owns how S3 is called and retried; s3_errors.py owns which failures may pass, and what the user reads after them.
"""

import base64
import hashlib
import io
import itertools
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

import boto3
from boto3.s3.transfer import TransferConfig
from botocore import UNSIGNED
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ReadTimeoutError
from botocore.response import URLLib3ProtocolError, URLLib3ReadTimeoutError

from trainer import config
from trainer.formatting import masked, one_line
from trainer.storage import s3_errors
from trainer.storage.files import write_file
from trainer.storage.store import MAX_THREADS, PART, THREADS, Exists, Object, Store, StoreError

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 20.0  # seconds between attempts
_SLOWEST = 16_000
"""Bytes a second. An object must arrive at this rate on average, plus s3.read_timeout: a response that drips never times out."""
_CHUNK = 2**18
_CHANGES = ("Put", "Upload", "Create", "Complete", "Delete")
"""How the names of operations begin that change an object. AbortMultipartUpload, with which a failed upload cleans up, is none."""
_READS = 3
"""Reads of an object whose content disagrees with its ETag each time."""
_OPERATIONS = {
    **dict.fromkeys(("GetObject", "HeadObject"), "get"),
    **dict.fromkeys(("ListObjectsV2", "ListMultipartUploads"), "list"),
    **dict.fromkeys(("DeleteObject", "AbortMultipartUpload"), "delete"),
}
"""S3's name -> the name that every store has. The others are parts of an upload."""


class S3Store(Store):
    """`s3://bucket/prefix` on any S3 server. The first operation opens the connection.

    Retries: every request, including each page of a listing and each part of a large object, is attempted up to
    `s3.max_attempts` times while the server is unreachable, does not answer in time or answers with one of s3_errors.TRANSIENT.
    Exponential backoff with jitter separates the attempts. botocore's own retries are off, because their total duration
    depends on its version and can be as short as a second. Neither they nor our retry hook see a response body that ends
    early, stalls or drips: for GetObject, `_fetch` counts the attempts in place of the hook.
    """

    PAUSES: ClassVar[tuple[float, ...]] = (0.1, 0.5)

    def __init__(self, url: str, s3: config.S3) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        self.prefix = prefix and prefix + "/"
        super().__init__(f"s3://{self.bucket}/{prefix}".rstrip("/"))
        self._s3 = s3
        self._client: Any = None
        self._client_lock = threading.Lock()
        self._etags_are_digests = True
        self._transfer = TransferConfig(
            multipart_threshold=PART,
            multipart_chunksize=PART,
            max_concurrency=THREADS,
            preferred_transfer_client="classic",  # the other client would bypass our retries and counters
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.url, self._s3)  # a client cannot be pickled; each process creates its own

    def impatient(self, seconds: float) -> Self:
        other = self._variant()
        shorter = {name: min(getattr(self._s3, name), seconds) for name in ("connect_timeout", "read_timeout")}
        other._s3 = self._s3.model_copy(update={**shorter, "max_attempts": min(self._s3.max_attempts, 2)})
        return other

    def _variant(self) -> Self:
        other = super()._variant()
        other._client, other._client_lock = None, threading.Lock()  # a client's hooks belong to one store
        return other

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
        if operation.startswith(_CHANGES):
            self._check_guard()
        self._count(_OPERATIONS.get(operation, "put"))

    def _needs_retry(
        self, event_name: str, attempts: int, response: Any, caught_exception: Exception | None, **_: Any
    ) -> float | None:
        """botocore's hook after every request. Returns the seconds to wait before a retry, or None for no retry."""
        operation = event_name.rpartition(".")[2]
        if operation == "GetObject" or attempts >= self._s3.max_attempts:
            return None
        if response is None:
            transient = s3_errors.is_transient(caught_exception)
        else:
            code = response[1].get("Error", {}).get("Code")
            transient = s3_errors.may_pass(response[1]["ResponseMetadata"]["HTTPStatusCode"], code, operation)
        return self._delay(attempts, response[1] if response else {}) if transient else None

    def _delay(self, attempts: int, answer: Mapping[str, Any]) -> float:
        """Counts a retry; returns the seconds to wait before it: longer if the failed request's `answer` asks for that."""
        with self._counts.lock:
            self._counts.retries += 1
        delay = _FIRST_DELAY * 2 ** (attempts - 1) * random.uniform(0.5, 1)
        return min(_LONGEST_DELAY, max(delay, s3_errors.retry_after(answer)))

    def list(self, prefix: str = "") -> Iterator[Object]:
        with self._explained(prefix + "*"):
            pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            entries = {
                entry["Key"]: Object(
                    entry["Key"].removeprefix(self.prefix),
                    entry["Size"],
                    entry.get("ETag", "").strip('"'),
                    archived=entry.get("StorageClass") in s3_errors.ARCHIVES,
                )
                for page in pages
                for entry in s3_errors.whole(page).get("Contents", ())
                if not entry["Key"].endswith("/") and entry["Key"].startswith(self.prefix + prefix)
            }
        # AWS sorts by key, SeaweedFS folder by folder, directory buckets not at all. Some servers repeat a key on the next page.
        yield from sorted(entries.values(), key=lambda entry: entry.key)

    def get(self, key: str) -> bytes:
        with self._explained(key):
            content, as_stored = self._get(key)
            # A digest that differs is a flipped bit, or no digest of the content (some encryption): the same bytes twice are right.
            reads = 1
            while not as_stored and self._etags_are_digests:
                if reads == _READS:
                    raise self._unlike(key, reads)
                again, as_stored = self._get(key)
                self._etags_are_digests = again != content
                content, reads = again, reads + 1
        return content

    def _get(self, key: str) -> tuple[bytes, bool]:
        """An object, and whether it agrees with its ETag, if that looks like an MD5 digest."""
        content = io.BytesIO()
        response = self._fetch(key, content)
        content.truncate()
        etag = response.get("ETag", "").strip('"')
        digest = hashlib.md5(content.getvalue(), usedforsecurity=False).hexdigest()
        return content.getvalue(), etag == digest or not re.fullmatch("[0-9a-f]{32}", etag)

    def download(self, key: str, path: Path) -> None:
        with self._explained(key):
            write_file(path, lambda file: self._download_surely(key, file))

    def _download_surely(self, key: str, file: BinaryIO) -> None:
        """Writes an object to an empty file; a second time, if it does not agree with an ETag that looks like an MD5 digest."""
        before = ""
        for _ in range(_READS):
            etag = self._download(key, file)
            if not self._etags_are_digests or not re.fullmatch("[0-9a-f]{32}", etag):
                return
            file.flush()
            with open(file.name, "rb") as written:
                digest = hashlib.file_digest(written, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            if digest in (etag, before):  # the same bytes twice are right, whatever the ETag is a digest of
                self._etags_are_digests = digest == etag
                return
            before = digest
            file.seek(0)
            file.truncate()
        raise self._unlike(key, _READS)

    def _unlike(self, key: str, reads: int) -> StoreError:
        return StoreError(
            f"{self._where(key)}: {reads} reads gave other bytes each time, none of which agree with the ETag. Fix: check the "
            "network, proxies and the server's disks.",
            transient=True,
        )

    def _download(self, key: str, file: BinaryIO) -> str:
        """Writes an object to an empty file, part by part in parallel. Returns its ETag."""
        try:
            first = self._fetch(key, file, Range=f"bytes=0-{PART - 1}")
        except ClientError as error:
            if s3_errors.status(error) != 416:
                raise
            return str(self._fetch(key, file).get("ETag", "")).strip('"')  # an empty object has no range
        same = {"IfMatch": first["ETag"]} if first.get("ETag") else {}
        size = int(first.get("ContentRange", "0").rpartition("/")[2])

        def fetch(start: int) -> None:
            with open(file.name, "r+b") as part:
                part.seek(start)
                wanted = min(PART, size - start)
                found = self._fetch(key, part, Range=f"bytes={start}-{start + wanted - 1}", **same)
                if found["ContentLength"] != wanted:
                    raise IncompleteReadError(actual_bytes=found["ContentLength"], expected_bytes=wanted)

        file.flush()
        try:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="store") as pool:
                for _ in pool.map(fetch, range(PART, size, PART)):
                    pass
        except ClientError as error:
            if s3_errors.status(error) != 412:
                raise
            raise StoreError(
                f"{self._where(key)}: the object changed during the download. Fix: try again.", transient=True
            ) from None
        return str(first.get("ETag", "")).strip('"')

    def _fetch(self, key: str, file: BinaryIO, **wanted: str) -> dict[str, Any]:
        """Writes the body of one GetObject to `file` from its position on. Returns the response. An attempt is a whole response,
        headers and body."""
        begin = file.tell()
        for attempts in itertools.count(1):
            file.seek(begin)
            try:
                response: dict[str, Any] = self.client.get_object(Bucket=self.bucket, Key=self.prefix + key, **wanted)
                with closing(response["Body"]) as body:
                    self._receive(body, response["ContentLength"], file)
                return response
            except (ClientError, *s3_errors.NETWORK) as error:
                if isinstance(error, ClientError):
                    error.response["ResponseMetadata"]["RetryAttempts"] = attempts - 1
                if attempts == self._s3.max_attempts or not s3_errors.is_transient(error):
                    raise
                time.sleep(self._delay(attempts, error.response if isinstance(error, ClientError) else {}))
        raise AssertionError

    def _receive(self, body: Any, length: int, file: BinaryIO) -> None:
        stream, received, began = body._raw_stream, 0, time.monotonic()
        bound = self._s3.read_timeout + length / _SLOWEST
        try:
            while chunk := stream.read1(_CHUNK):  # returns what has arrived; StreamingBody.read waits for all that was asked for
                file.write(chunk)
                received += len(chunk)
                if time.monotonic() - began > bound:
                    raise ReadTimeoutError(endpoint_url=self.client.meta.endpoint_url)
        except URLLib3ReadTimeoutError as error:
            raise ReadTimeoutError(endpoint_url=self.client.meta.endpoint_url, error=error) from None
        except URLLib3ProtocolError:
            raise IncompleteReadError(actual_bytes=received, expected_bytes=length) from None
        if received != length:
            raise IncompleteReadError(actual_bytes=received, expected_bytes=length)

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

    def sweep(self, prefix: str, older: float) -> int:
        swept, last = 0, datetime.now(UTC) - timedelta(seconds=older)
        with self._explained(prefix + "*"):
            pages = self.client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self.prefix + prefix)
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                if upload["Key"].startswith(self.prefix + prefix) and upload["Initiated"] <= last:
                    self._check_guard()  # it may be an upload of the owner
                    self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])
                    swept += 1
        return swept

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
