"""jobs.kubernetes.alive: when a pod is replaced."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jobs.kubernetes import alive


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 0), (0, 1)])
def test_only_a_hanging_node_is_dead(monkeypatch, status, code):
    """A hanging pod would stay; or a pod that waits for a new head would be killed again and again. None: nothing listens; 0: a
    connection that ends without an answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == alive.PATH
            if status:
                self.send_response(status)
                self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("POD_IP", "127.0.0.1")
        monkeypatch.setattr(alive, "PORT", server.server_port)
        if status is None:
            server.shutdown()
            server.server_close()
        assert alive.main() == code
        server.shutdown()
