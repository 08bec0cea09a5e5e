"""trainer.storage.s3 against SeaweedFS, directly and through a proxy that injects faults."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, IncompleteReadError, NoCredentialsError

from benchmarks.support import faultproxy
from benchmarks.support.faultproxy import FaultProxy, Kind
from jobs.demo.s3_server import S3Server
from trainer.config import S3
from trainer.storage import Exists, NotFound, Store, StoreError, open_store, s3
from trainer.storage.s3 import S3Store
from trainer.storage.store import PART

DATA = b"0123456789" * 10


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def shaky(proxy: FaultProxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A store behind the proxy with one object. It retries quickly."""
    monkeypatch.setattr(s3, "_FIRST_DELAY", 0.02)
    store = S3Store(bucket, S3(max_attempts=3, endpoint_url=proxy.url))
    store.put("key", DATA)
    return store


@pytest.fixture
def impatient(shaky: S3Store, proxy: FaultProxy) -> S3Store:
    """The same with a short read timeout."""
    return S3Store(shaky.url, S3(max_attempts=3, read_timeout=0.5, endpoint_url=proxy.url))


def message(error: pytest.ExceptionInfo[StoreError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_which_failures_are_transient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short outage would end a job on a cluster for good, or a misspelled bucket would be retried again and again."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    store = S3Store("s3://bucket", S3(endpoint_url="http://127.0.0.1:9", region="us-east-1"))

    def answer(status: int, code: str) -> ClientError:
        return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")

    passing = [
        answer(503, "SlowDown"),
        EndpointConnectionError(endpoint_url="http://127.0.0.1:9"),
        IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ]
    lasting = [answer(403, "AccessDenied"), answer(404, "NoSuchBucket"), answer(403, "SignatureDoesNotMatch"), NoCredentialsError()]
    assert [store._explain(error, "where").transient for error in passing] == [True] * 3
    assert [store._explain(error, "where").transient for error in lasting] == [False] * 4


def test_credentials_from_the_usual_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a profile or single sign-on would read that there are no credentials, and the bucket would not be checked."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    assert not s3.has_credentials()
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = id\naws_secret_access_key = key\n")
    assert s3.has_credentials()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match=r"The AWS credentials cannot be read: .*nobody.* Fix: check AWS_PROFILE") as error:
        s3.has_credentials()
    message(error)


@pytest.mark.integration
class TestS3:
    def test_listing_of_several_pages_is_sorted(self, bucket: str) -> None:
        """Only the first 1000 images of a bucket would be used, or the manifest would depend on the server."""
        store = open_store(bucket, S3())
        keys = sorted(f"{'a' if number % 2 else 'a-b/c'}/{number:04d}" for number in range(1010))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), keys))
        assert [entry.key for entry in store.list()] == keys
        assert store.requests["list"] == 2

    @pytest.mark.usefixtures("s3_server")
    def test_no_such_bucket(self, tmp_path: Path) -> None:
        """A misspelled bucket would look like an empty one, or like storage without a pack."""
        (tmp_path / "file").write_bytes(b"data")
        store = open_store("s3://no-such-bucket/prefix", S3())
        for operation in OPERATIONS.values():
            with pytest.raises(StoreError, match=r"s3://no-such-bucket/prefix/.*no such bucket \(.*\)\. Fix: create it") as error:
                operation(store, tmp_path / "file")
            assert not isinstance(error.value, NotFound)
            message(error)

    @pytest.mark.parametrize(
        ("variable", "advice"),
        [
            ("AWS_ACCESS_KEY_ID", r"the server does not know this access key \(.*\)\. Fix: check AWS_ACCESS_KEY_ID"),
            ("AWS_SECRET_ACCESS_KEY", r"the secret key is wrong \(.*\)\. Fix: check AWS_SECRET_ACCESS_KEY"),
        ],
    )
    def test_wrong_credentials(
        self, bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, advice: str, tmp_path: Path
    ) -> None:
        """The user would suspect the network or the bucket instead of the key."""
        (tmp_path / "file").write_bytes(b"data")
        monkeypatch.setenv(variable, "wrong")
        store = open_store(bucket, S3())
        for operation in OPERATIONS.values():
            with pytest.raises(StoreError, match=advice) as error:
                operation(store, tmp_path / "file")
            message(error)

    def test_reading_needs_no_permission_to_write(self, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Data could not be shared read-only, or the user would not learn which permission is missing."""
        open_store(bucket, S3()).put("key", b"data")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader_access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader_secret_key)
        store = open_store(bucket, S3())
        assert [store.get(entry.key) for entry in store.list()] == [b"data"]
        with pytest.raises(StoreError, match=r"lack the permission \(AccessDenied for PutObject\)\. Fix: grant") as error:
            store.put("key", b"")
        message(error)

    def test_no_credentials(self, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job without its secret would end in a traceback."""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(StoreError, match=r"no AWS credentials found\. Fix: set AWS_ACCESS_KEY_ID") as error:
            list(open_store(bucket, S3()).list())
        message(error)

    def test_unreachable(self, bucket: str) -> None:
        """A wrong address would end in a traceback, or be retried forever."""
        store = open_store(bucket, S3(endpoint_url="http://127.0.0.1:9", max_attempts=2))
        with pytest.raises(StoreError, match=r"http://127.0.0.1:9 cannot be reached \(2 attempts; .*s3\.endpoint_url") as error:
            store.get("key")
        message(error)
        assert (store.requests["get"], store.retries, store.errors) == (2, 1, 1)

    def test_malformed_endpoint(self, bucket: str) -> None:
        """A server's address without http:// would end in a traceback."""
        with pytest.raises(StoreError, match=r"Invalid endpoint: localhost:8333\. Fix: write s3\.endpoint_url") as error:
            open_store(bucket, S3(endpoint_url="localhost:8333")).get("key")
        message(error)


OPERATIONS: dict[str, Callable[[Store, Path], Any]] = {
    "list": lambda store, _: list(store.list()),
    "get": lambda store, _: store.get("key"),
    "put": lambda store, _: store.put("other", b"data", if_absent=True),
    "upload": lambda store, file: store.upload("other", file),
    "download": lambda store, file: store.download("key", file.with_name("copy")),
}


@pytest.mark.integration
class TestFaults:
    def test_a_burst_of_503_is_survived(self, shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
        """A short overload of the server would end hours of training."""
        (tmp_path / "file").write_bytes(b"data")
        for operation in OPERATIONS.values():
            proxy.inject("status", times=2, status=503)
            operation(shaky, tmp_path / "file")
        assert (shaky.retries, shaky.errors) == (2 * len(OPERATIONS), 0)

    @pytest.mark.parametrize("kind", ["hang", "cut", "stall", "lose"])
    def test_reads_survive_a_broken_response(self, impatient: S3Store, proxy: FaultProxy, kind: Kind, tmp_path: Path) -> None:
        """A dropped connection would end the training, or half an image would count as whole."""
        for read, expected in [
            (lambda: [entry.key for entry in impatient.list()], ["key"]),
            (lambda: impatient.get("key"), DATA),
            (lambda: impatient.download("key", tmp_path / "copy"), None),
        ]:
            proxy.seen.clear()
            proxy.inject(kind)
            assert read() == expected
            assert len(proxy.seen) > 1
        assert (tmp_path / "copy").read_bytes() == DATA

    @pytest.mark.parametrize("kind", ["hang", "lose"])
    def test_writes_survive_a_lost_response(self, impatient: S3Store, proxy: FaultProxy, kind: Kind) -> None:
        """A checkpoint would fail although the server recovers a second later."""
        proxy.inject(kind)
        impatient.put("new", b"data")
        assert impatient.get("new") == b"data"

    def test_a_conditional_put_with_a_lost_response_has_won(self, shaky: S3Store, proxy: FaultProxy) -> None:
        """A run would lose against itself and never commit its last checkpoint."""
        proxy.inject("lose")
        shaky.put("lease", b"mine", if_absent=True)
        assert shaky.get("lease") == b"mine"

    def test_a_conditional_put_that_lost_on_its_second_attempt_has_lost(self, shaky: S3Store, proxy: FaultProxy) -> None:
        """With an unreliable server two live jobs could own the same run."""
        shaky.put("lease", b"theirs")
        proxy.inject("lose")
        with pytest.raises(Exists):
            shaky.put("lease", b"mine", if_absent=True)
        assert shaky.get("lease") == b"theirs"

    def test_a_permanent_500_fails_with_one_line(self, shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
        """A job would hang on a broken server, or end in a traceback."""
        (tmp_path / "file").write_bytes(b"data")
        proxy.inject("status", times=1000, status=500)
        for operation in OPERATIONS.values():
            proxy.seen.clear()
            with pytest.raises(StoreError, match=r"with 500 \w* \(3 attempts\)\. Fix: wait .* or raise s3\.max_attempts") as error:
                operation(shaky, tmp_path / "file")
            assert proxy.url in message(error)
            assert len(proxy.seen) in (3, 6)
        assert not (tmp_path / "copy").exists()

    @pytest.mark.parametrize(
        ("kind", "advice"),
        [("cut", r"cut its response short \(3 attempts; "), ("stall", r"sent no data for 0\.5 s \(3 att")],
    )
    def test_a_body_that_always_breaks_off_fails(
        self, impatient: S3Store, proxy: FaultProxy, kind: Kind, advice: str, tmp_path: Path
    ) -> None:
        """A job would retry forever, or keep half an object."""
        proxy.inject(kind, times=1000)
        for operation in (OPERATIONS["get"], OPERATIONS["download"]):
            with pytest.raises(StoreError, match=advice) as error:
                operation(impatient, tmp_path / "file")
            message(error)
        assert list(tmp_path.iterdir()) == []

    def test_a_response_that_drips_is_given_up(self, impatient: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
        """A broken proxy that sends a byte a second would hold up the job for days, since no read ever times out."""
        proxy.inject("drip", times=2)
        assert impatient.get("key") == DATA
        proxy.inject("drip", times=1000)
        proxy.seen.clear()
        for operation in (OPERATIONS["get"], OPERATIONS["download"]):
            with pytest.raises(StoreError, match=r"sent no data for 0\.5 s \(3 attempts\)") as error:
                operation(impatient, tmp_path / "file")
            message(error)
        assert len(proxy.seen) == 6
        assert list(tmp_path.iterdir()) == []

    def test_retries_do_not_multiply(self, shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
        """An overloaded server would get 25 requests where the message says 5, and the job would wait five times as long."""
        for kind in ("cut", "status"):
            for _ in range(3):
                proxy.inject(kind, times=1)
                proxy.inject("status", times=1)
            proxy.seen.clear()
            with pytest.raises(StoreError, match=r"3 attempts"):
                shaky.download("key", tmp_path / "copy")
            assert len(proxy.seen) == 3
            proxy._faults.clear()

    @pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"<a><b/></a>", b"<ListBucketResult><IsTrunc"])
    def test_a_listing_that_is_none(self, shaky: S3Store, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
        """An empty answer of a proxy would count as an empty bucket: a run would begin again, or a data set have no images."""
        sound, left = faultproxy._Handler._answer, [2]

        def answer(handler: Any, status: int, headers: Any, content: bytes, fault: Any = None) -> None:
            wrong = left[0] > 0 and "list-type" in handler.path
            left[0] -= wrong
            sound(handler, 200 if wrong else status, [] if wrong else headers, body if wrong else content, fault)

        monkeypatch.setattr(faultproxy._Handler, "_answer", answer)
        assert [entry.key for entry in shaky.list()] == ["key"]
        left[0] = 3
        with pytest.raises(StoreError, match=r"answered ListObjectsV2 with .* \(3 attempts\)\. .*Fix: ") as error:
            list(shaky.list())
        message(error)

    def test_a_flipped_bit_is_read_again(self, shaky: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A wrong class name or number would be believed. A server whose ETags are no digests must not be read twice forever."""
        sound, wrong = faultproxy._Handler._answer, [b"X" + DATA[1:]]

        def answer(handler: Any, status: int, headers: Any, content: bytes, fault: Any = None) -> None:
            sound(handler, status, headers, wrong.pop() if wrong and handler.command == "GET" else content, fault)

        monkeypatch.setattr(faultproxy._Handler, "_answer", answer)
        assert shaky.get("key") == DATA
        wrong += [b"Y" + DATA[1:]] * 2
        assert shaky.get("key") == b"Y" + DATA[1:]
        before = shaky.requests["get"]
        wrong.append(b"Z" + DATA[1:])
        assert shaky.get("key") == b"Z" + DATA[1:]
        assert shaky.requests["get"] == before + 1

    def test_a_flipped_bit_in_a_download_is_read_again(
        self, shaky: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A network would start from damaged weights. A server whose ETags are no digests must not be read twice forever."""
        sound, wrong = faultproxy._Handler._answer, [b"X" + DATA[1:]]

        def answer(handler: Any, status: int, headers: Any, content: bytes, fault: Any = None) -> None:
            sound(handler, status, headers, wrong.pop() if wrong and handler.command == "GET" else content, fault)

        monkeypatch.setattr(faultproxy._Handler, "_answer", answer)
        shaky.download("key", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == DATA
        wrong += [b"Y" + DATA[1:]] * 2
        shaky.download("key", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == b"Y" + DATA[1:]
        before = shaky.requests["get"]
        shaky.download("key", tmp_path / "copy")
        assert shaky.requests["get"] == before + 1

    def test_an_object_that_changes_during_the_download(self, shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
        """A file with parts of two versions would count as one of them."""
        shaky.put("large", bytes(PART + 1))

        def overwrite(*_: str) -> bool:
            if len(proxy.seen) == 2:  # the first part was read, the second is requested
                open_store(shaky.url, S3()).put("large", b"1" * (PART + 1))
            return False

        proxy.seen.clear()
        proxy.inject("hang", matches=overwrite)
        with pytest.raises(StoreError, match=r"changed during the download\. Fix: try again"):
            shaky.download("large", tmp_path / "copy")
        assert list(tmp_path.iterdir()) == []

    def test_a_failed_upload_leaves_nothing(self, shaky: S3Store, proxy: FaultProxy, tmp_path: Path) -> None:
        """Parts of failed uploads would be stored, and paid for, without being visible."""
        (tmp_path / "large").write_bytes(bytes(PART + 1))
        proxy.inject("status", times=1000, status=500, matches=lambda _, path: "partNumber=2" in path)
        with pytest.raises(StoreError, match="UploadPart with 500"):
            shaky.upload("large", tmp_path / "large")
        assert ("DELETE", 1) in [(method, path.count("uploadId")) for method, path in proxy.seen]
        assert not shaky.client.list_multipart_uploads(Bucket=shaky.bucket, Prefix=shaky.prefix).get("Uploads")
        assert [entry.key for entry in shaky.list()] == ["key"]
