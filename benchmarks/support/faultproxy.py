"""A proxy on loopback that forwards requests to a real S3 server and injects the faults of a network or an overloaded server.

S3 signatures stay valid, because the proxy forwards the Host header unchanged.

    with FaultProxy(endpoint_url) as proxy:
        proxy.inject("status", times=2, status=503)     # the next two requests fail
        ... use proxy.url as the endpoint ...
        proxy.seen                                      # [("GET", "/bucket/key"), ...], failed requests included
"""

import http.client
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self
from urllib.parse import urlsplit

Kind = Literal["status", "hang", "cut", "stall", "lose", "late", "drip"]


@dataclass(slots=True)
class Fault:
    kind: Kind
    times: int
    status: int
    after: int
    matches: Callable[[str, str], bool]


class FaultProxy:
    """A running proxy. `url` is its endpoint; `seen` holds the (method, path) of every request so far."""

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.seen: list[tuple[str, str]] = []
        self.stopped = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def inject(
        self,
        kind: Kind,
        times: int = 1,
        *,
        status: int = 503,
        after: int = 10,
        matches: Callable[[str, str], bool] = lambda method, path: True,  # noqa: ARG005
    ) -> None:
        """Makes the next `times` requests whose (method, path) match fail. Faults apply in the order in which they were injected.

        status: responds with this HTTP status without forwarding. hang: neither forwards nor responds. cut: closes the connection
        after `after` bytes of the body. stall: stops there and keeps the connection open. lose: forwards, but drops the response.
        late: the same, but forwards only after `after` seconds. drip: sends a byte of the body every 0.1 s.
        """
        with self._lock:
            self._faults.append(Fault(kind, times, status, after, matches))

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Records a request and returns the fault to apply to it, if any."""
        with self._lock:
            self.seen.append((method, path))
            for fault in self._faults:
                if fault.times and fault.matches(method, path):
                    fault.times -= 1
                    return fault
        return None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        with suppress(ConnectionError):  # the client may have stopped waiting
            self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.proxy.next_fault(self.command, self.path)
        kind = fault.kind if fault else None
        if kind == "hang":
            self._hang()
        elif fault and kind == "status":
            self._answer(fault.status, [], b"<Error><Code>Injected</Code><Message>by the test</Message></Error>")
        else:
            if fault and kind == "late":
                self.proxy.stopped.wait(fault.after)
            status, headers, content = self._pass_on(body)
            if kind in ("lose", "late"):
                self.close_connection = True
            else:
                self._answer(status, headers, content, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815

    def _pass_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=30)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None = None) -> None:
        self.send_response_only(status)
        length = str(len(body))
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # a response to HEAD states the length of a body it does not carry
            elif name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if fault and fault.kind == "drip":
            for byte in body:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                self.proxy.stopped.wait(0.1)
        else:
            self.wfile.write(body[: fault.after] if fault else body)
        if fault:
            if fault.kind == "stall":
                self._hang()
            self.close_connection = True

    def _hang(self) -> None:
        self.proxy.stopped.wait()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass
