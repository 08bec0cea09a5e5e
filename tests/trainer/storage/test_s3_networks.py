"""trainer.storage.s3 as companies have it: TLS with their own authority, proxies, IPv6, odd servers, special buckets.

Servers on loopback stand in for AWS where SeaweedFS does not behave like it. SeaweedFS itself runs behind TLS and IPv6.
"""

import hashlib
import os
import re
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from jobs.demo.s3_server import S3Server, without_proxy
from trainer.config import S3
from trainer.storage import Archived, StoreError, open_store, s3, s3_errors
from trainer.storage.store import PART

OPERATIONS: dict[str, Callable[[Any, Path], Any]] = {
    "list": lambda store, _: list(store.list()),
    "get": lambda store, _: store.get("key"),
    "put": lambda store, _: store.put("key", b"data", if_absent=True),
    "upload": lambda store, file: store.upload("key", file),
    "download": lambda store, file: store.download("key", file.with_name("copy")),
    "delete": lambda store, _: store.delete(["key"]),
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3, "_FIRST_DELAY", 0.01)


Answer = tuple[int, bytes, dict[str, str]]


@contextmanager
def server(answer: Callable[[BaseHTTPRequestHandler, bytes], Answer]) -> Iterator[str]:
    """A server on loopback whose responses `answer` gives, from the request and its body. Yields its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            status, body, headers = answer(self, self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = reply  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def opened(url: str, **more: Any) -> Any:
    return open_store("s3://bucket/runs", S3(**{"endpoint_url": url, "path_style": True, "max_attempts": 1, **more}))


def failure(work: Callable[[], Any]) -> StoreError:
    with pytest.raises(StoreError) as error:
        work()
    assert "\n" not in str(error.value)
    assert "Fix: " in str(error.value)
    return error.value


STARTED = b"<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
ENDED = b"<CompleteMultipartUploadResult><ETag>0</ETag></CompleteMultipartUploadResult>"


def accept(seen: list[tuple[str, dict[str, str], bytes]]) -> Callable[[BaseHTTPRequestHandler, bytes], Answer]:
    """Accepts every upload and notes (method and path, headers, body)."""

    def answer(request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        seen.append((f"{request.command} {request.path}", {k.lower(): v for k, v in request.headers.items()}, body))
        return 200, (STARTED if "uploads" in request.path else ENDED) if request.command == "POST" else b"", {"ETag": '"0"'}

    return answer


def test_every_object_carries_its_checksum(tmp_path):
    """AWS refuses each object and each part without one in a bucket with Object Lock: no run could be stored there."""
    (tmp_path / "large").write_bytes(os.urandom(PART + 1))
    seen: list[tuple[str, dict[str, str], bytes]] = []
    with server(accept(seen)) as url:
        store = opened(url)
        store.put("a", b"x")
        store.put("a", b"x", if_absent=True)
        store.upload("b", tmp_path / "large")
    uploads = [(headers, body) for path, headers, body in seen if path.startswith("PUT")]
    assert len(uploads) == 4
    for headers, body in uploads:
        assert headers["content-md5"] == b64encode(hashlib.md5(body).digest()).decode()


def test_buckets_that_others_pay_for_or_encrypt(tmp_path):
    """Data whose owner does not pay for requests could not be read; or objects would lack the encryption that a policy demands."""
    (tmp_path / "large").write_bytes(bytes(PART + 1))
    seen: list[tuple[str, dict[str, str], bytes]] = []
    with server(accept(seen)) as url:
        store = opened(url, requester_pays=True, kms_key="arn:aws:kms:key/1")
        store.put("a", b"x")
        store.upload("b", tmp_path / "large")
        store.get("a")
    assert {headers.get("x-amz-request-payer") for _, headers, _ in seen} == {"requester"}
    encrypted = [path.split("?")[0] for path, headers, _ in seen if headers.get("x-amz-server-side-encryption") == "aws:kms"]
    assert encrypted == ["PUT /bucket/runs/a", "POST /bucket/runs/b"]
    signed = [headers["authorization"] for _, headers, _ in seen]
    assert all("content-md5" in one for one, (path, _, _) in zip(signed, seen, strict=True) if path.startswith("PUT"))


def test_public_buckets_need_no_credentials(monkeypatch):
    """A public data set could be read only by users who have some AWS account; or a wrong signature would be sent to it."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    seen: list[tuple[str, dict[str, str], bytes]] = []
    with server(accept(seen)) as url:
        assert opened(url, anonymous=["bucket"]).get("key") == b""
        assert "s3.anonymous" in str(failure(lambda: opened(url, anonymous=["other"]).get("key")))
    assert [headers.get("authorization") for _, headers, _ in seen] == [None]


ERROR = "<Error><Code>{}</Code><Message>{}</Message></Error>"
ANSWERS = {
    "an HTML page": (200, b"<!DOCTYPE html><html><body>Welcome</body></html>", {"Content-Type": "text/html"}),
    "an XHTML page": (200, b'<?xml version="1.0"?><html xmlns="x"><body/></html>', {}),
    "a broken HTML page": (200, b"<html><br>\xff\xfe", {}),
    "JSON": (200, b'{"error": "no"}', {}),
    "an HTML error": (403, b"<html>Access to this address is blocked by policy</html>", {}),
    "a JSON error": (400, b'{"message": "bad"}', {}),
    "an empty error": (418, b"", {}),
    "an error without a code": (400, b"<Error><Message>no</Message></Error>", {}),
    "an error without a message": (400, b"<Error><Code>Odd</Code></Error>", {}),
    "an error of many lines": (400, ERROR.format("Odd", "a\nb\x1b[2J").encode(), {}),
    "a redirect": (302, b"", {"Location": "http://127.0.0.1:9/login"}),
    "a redirect to another region": (
        301,
        ERROR.format("PermanentRedirect", "elsewhere").encode(),
        {"x-amz-bucket-region": "eu-west-3"},
    ),
    "a listing without fields": (200, b"<ListBucketResult><Contents><Key>runs/a</Key></Contents></ListBucketResult>", {}),
    "a listing with a strange date": (
        200,
        b"<ListBucketResult><Contents><Key>runs/a</Key><LastModified>tomorrow</LastModified></Contents></ListBucketResult>",
        {},
    ),
    "a listing with a strange size": (
        200,
        b"<ListBucketResult><Contents><Key>runs/a</Key><Size>big</Size></Contents></ListBucketResult>",
        {},
    ),
}


def test_answers_of_any_shape_end_in_one_line(tmp_path):
    """A portal's page would read as an empty bucket, so that a run starts anew; or the user would get a traceback of botocore."""
    (tmp_path / "large").write_bytes(bytes(PART + 1))
    kind = ""
    with server(lambda *_: ANSWERS[kind]) as url:
        store = opened(url)
        for kind, (name, operation) in product(ANSWERS, OPERATIONS.items()):
            if ANSWERS[kind][0] >= 300 or name in ("list", "upload"):
                error = failure(lambda operation=operation: operation(store, tmp_path / "large"))
                assert "s3://bucket/runs" in str(error)
                assert kind != "a redirect to another region" or "Fix: set s3.region = eu-west-3" in str(error)


@pytest.mark.parametrize(
    ("status", "code", "said", "line"),
    [
        (403, "RequestTimeTooSkewed", "", "clock differs .* Fix: set the clock"),
        (400, "InvalidToken", "", "Fix: check AWS_SESSION_TOKEN"),
        (403, "AccessDenied", "not authorized to perform: kms:Decrypt on key/1", "Fix: grant .*kms:Decrypt"),
        (400, "KMS.DisabledException", "", "Fix: enable it"),
        (507, "XMinioStorageFull", "", "disks are full"),
        (403, "AccessDenied", "", "Fix: grant it .* s3.anonymous"),
        (400, "AuthorizationHeaderMalformed", "", "another region"),
        (400, "IllegalLocationConstraintException", "", "Fix: set s3.region to that of the bucket"),
        (403, "ExpiredTokenException", "", "expired .* Fix: renew"),
        (400, "Odd", "a" * 9999, "a{300}[.] Fix"),
    ],
)
def test_errors_name_their_fix(status, code, said, line):
    """A user would have to look up S3's codes."""
    with server(lambda *_: (status, ERROR.format(code, said).encode(), {})) as url:
        error = failure(lambda: opened(url).get("key"))
    assert re.search(line, str(error)), error
    assert not error.transient


def test_one_portal_page_is_asked_again():
    """One page of a load balancer would end a job, or read as an empty listing."""
    answers = [
        (200, b"<html></html>", {}),
        (200, b"<ListBucketResult><Contents><Key>runs/a</Key><Size>1</Size></Contents></ListBucketResult>", {}),
    ]
    with server(lambda *_: answers.pop(0)) as url:
        store = opened(url, max_attempts=2)
        assert [entry.key for entry in store.list()] == ["a"]
        assert store.retries == 1


@pytest.mark.parametrize("call", [lambda store: store.get("key"), lambda store: store.put("key", b"")], ids=["get", "put"])
def test_a_server_says_when_to_come_back(call):
    """An overloaded server would be asked again at once, until all attempts are spent."""
    answers = [(503, ERROR.format("SlowDown", "").encode(), {"Retry-After": "1"}), (200, b"", {})]
    with server(lambda *_: answers.pop(0)) as url:
        began = time.monotonic()
        call(opened(url, max_attempts=2))
    assert time.monotonic() - began >= 1  # without the header, at most 0.5 s


@pytest.mark.parametrize("said", ["", "soon", "-1", "1.5", "Fri, 31 Dec 2027 23:59:59 GMT", "9" * 400])
def test_an_odd_request_to_come_back_is_ignored(said):
    """A header that is not a number would end the job with a traceback, or a huge one would stop it for years."""
    assert s3_errors.retry_after({"ResponseMetadata": {"HTTPHeaders": {"retry-after": said}}}) == 0


def _page(keys: str, more: bytes = b"") -> bytes:
    rows = "".join(f"<Contents><Key>runs/{key}</Key><Size>1</Size></Contents>" for key in keys)
    return b"<ListBucketResult>" + rows.encode() + more + b"</ListBucketResult>"


def test_listings_of_odd_servers():
    """An image that two pages repeat would count twice; those of pages that are never asked for would silently be missing."""
    truncated = b"<IsTruncated>true</IsTruncated>"
    pages = [_page("ab", truncated + b"<NextContinuationToken>1</NextContinuationToken>"), _page("bc")]
    with server(lambda *_: (200, pages.pop(0), {})) as url:
        assert [entry.key for entry in opened(url).list()] == ["a", "b", "c"]
    with server(lambda *_: (200, _page("ab", truncated), {})) as url:
        assert "malformed answer (a truncated listing" in str(failure(lambda: list(opened(url).list())))
    same = _page("ab", truncated + b"<NextContinuationToken>1</NextContinuationToken>")
    with server(lambda *_: (200, same, {})) as url:
        assert "malformed answer (Error during pagination" in str(failure(lambda: list(opened(url).list())))


def test_throttling_passes_whatever_its_status():
    """A busy server or key service would end a job of days."""
    for code in ("SlowDown", "ThrottlingException", "KMS.ThrottlingException"):
        answers = [(400, ERROR.format(code, "").encode(), {}), (200, b"data", {})]
        with server(lambda *_, answers=answers: answers.pop(0)) as url:
            assert opened(url, max_attempts=2).get("key") == b"data"


def test_an_object_that_differs_in_every_read_is_given_up():
    """A driver would read a checkpoint again for ever, and hold the run's name meanwhile."""
    bodies = [str(number).encode() for number in range(99)]
    with server(lambda *_: (200, bodies.pop(), {"ETag": '"' + "0" * 32 + '"'})) as url:
        error = failure(lambda: opened(url, max_attempts=9).get("key"))
    assert error.transient
    assert "3 reads gave other bytes each time" in str(error)


def test_archived_objects_are_recognized():
    """A lifecycle rule that archives one image would end a job; or its reason would be unknown."""
    listed = "".join(
        f"<Contents><Key>runs/{key}</Key><Size>1</Size><StorageClass>{kind}</StorageClass></Contents>"
        for key, kind in (("a", "STANDARD"), ("b", "GLACIER"), ("c", "DEEP_ARCHIVE"), ("d", "GLACIER_IR"))
    )
    state = "<Error><Code>InvalidObjectState</Code><Message>no</Message><StorageClass>GLACIER</StorageClass></Error>"

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> Answer:
        if "list-type" in request.path:
            return 200, f"<ListBucketResult>{listed}</ListBucketResult>".encode(), {}
        return 403, state.encode(), {}

    with server(answer) as url:
        store = opened(url)
        assert [entry.key for entry in store.list() if entry.archived] == ["b", "c"]
        error = failure(lambda: store.get("b"))
    assert isinstance(error, Archived)
    assert "is archived (GLACIER). Fix: restore it" in str(error)


def test_proxies_are_named_without_their_password(monkeypatch):
    """The line would blame the S3 server for what a proxy answered, or print the proxy's password."""
    with server(lambda *_: (403, b"<html>blocked by policy</html>", {})) as proxy:
        address = proxy.replace("://", "://jane:secret@")
        for known, line in ((address, "answered GetObject with 403"), ("http://jane:secret@127.0.0.1:9", "cannot be reached")):
            monkeypatch.setenv("HTTP_PROXY", known)
            text = str(failure(lambda: opened("http://storage.example").get("key")))
            assert line in text
            assert "(through the proxy http://***@127.0.0.1:" in text
            assert "NO_PROXY" in text
            assert "secret" not in text


@pytest.mark.integration
def test_the_local_server_is_reached_around_the_proxy(s3_server: S3Server, monkeypatch):
    """Behind a company's proxy the first thing that a new user runs, the demo, would end with an error."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "internal.example")
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "internal.example,127.0.0.1"
    store = open_store("s3://spikewise/proxied", S3(path_style=True, max_attempts=1))
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_credentials_in_the_endpoint_are_refused(monkeypatch):
    """A secret key in AWS_ENDPOINT_URL would stand in every error line."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://jane:secret@127.0.0.1:9")
    text = str(failure(lambda: open_store("s3://bucket/runs", S3()).get("key")))
    assert text.startswith("AWS_ENDPOINT_URL = http://***@127.0.0.1:9 contains credentials. Fix: ")


@pytest.mark.parametrize(
    "url",
    [
        "s3://jane:hidden@bucket/runs",
        "s3://jane:hid/den/hidden@bucket/runs",
        "s3:jane:hidden@bucket",
        "http://jane:hidden/hidden@127.0.0.1:9/bucket",
        "https://bucket.example/x?X-Amz-Signature=hidden",
        "https://bucket.example/x?aws_secret_access_key=hidden/hidden",
    ],
)
def test_credentials_in_a_url_are_not_repeated(url):
    """A secret key, which may contain slashes, would stand in the log of a user who wrote it into run.storage."""
    text = str(failure(lambda: open_store(url, S3())))
    assert "***" in text
    assert "hid" not in text


class _Pipe(socketserver.BaseRequestHandler):
    """Passes bytes between a client and `upstream`."""

    upstream: tuple[str, int]

    def handle(self) -> None:
        with socket.create_connection(self.upstream) as other:
            back = threading.Thread(target=self._copy, args=(other, self.request), daemon=True)
            back.start()
            self._copy(self.request, other)
            back.join(5)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def in_front(upstream_url: str, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """A port of `host` that leads to the server, with TLS on request."""
    there = urlsplit(upstream_url)
    handler = type("Handler", (_Pipe,), {"upstream": (there.hostname, there.port)})
    kind = type("Server", (_Server,), {"address_family": socket.AF_INET6 if ":" in host else socket.AF_INET})
    with kind((host, 0), handler) as running:
        if tls:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running.server_address[1]
        running.shutdown()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1 with its key."""
    folder = tmp_path_factory.mktemp("tls")
    name = ["-subj", "/CN=storage", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "ca.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", *name, *files],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.integration
class TestRealServer:
    @pytest.fixture
    def credentials(self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
        return s3_server

    def test_a_ca_file(self, credentials, certificate, monkeypatch, tmp_path):
        """A company's own authority could not be used; an untrusted server would be asked again and again, or be believed."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate / "ca.pem", certificate / "key.pem")
        with in_front(credentials.endpoint_url, tls=tls) as port:
            settings = S3(endpoint_url=f"https://127.0.0.1:{port}", path_style=True, max_attempts=5)
            untrusted = open_store("s3://spikewise/tls", settings)
            error = failure(lambda: untrusted.get("a"))
            assert "has a certificate that is not trusted (self-signed certificate). Fix: set AWS_CA_BUNDLE" in str(error)
            assert (untrusted.requests["get"], error.transient) == (1, False)
            monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate / "ca.pem"))
            store = open_store("s3://spikewise/tls", settings)
            store.put("a", b"x")
            (tmp_path / "large").write_bytes(bytes(PART + 1))
            store.upload("b", tmp_path / "large")
            assert (store.get("a"), [entry.key for entry in store.list()]) == (b"x", ["a", "b"])
            monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "missing.pem"))
            assert "AWS_CA_BUNDLE" in str(failure(lambda: open_store("s3://spikewise/tls", settings).get("a")))

    def test_tls_where_the_server_has_none(self, credentials):
        """The user would read OpenSSL's words for it, after five attempts."""
        store = open_store("s3://spikewise/x", S3(endpoint_url=credentials.endpoint_url.replace("http:", "https:"), max_attempts=5))
        error = failure(lambda: store.get("a"))
        assert "does not speak TLS. Fix: write its address with http://" in str(error)
        assert store.requests["get"] == 1

    def test_ipv6(self, credentials, tmp_path):
        """On a cluster with IPv6 only, no bucket could be reached by its address."""
        with in_front(credentials.endpoint_url, host="::1") as port:
            store = open_store("s3://spikewise/ipv6", S3(endpoint_url=f"http://[::1]:{port}", path_style=True, max_attempts=1))
            store.put("a", b"x")
            store.download("a", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == b"x"


def test_an_existing_no_proxy_is_kept(monkeypatch):
    """Other servers of the company would suddenly be asked through the proxy."""
    assert without_proxy("h") == {"NO_PROXY": "h", "no_proxy": "h"}
    monkeypatch.setenv("no_proxy", "a,b")
    assert without_proxy("h")["NO_PROXY"] == "a,b,h"
