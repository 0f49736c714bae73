"""A proxy in front of the S3 server that fails some requests."""

import http.client
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from storage.location import Closing
from tests.object_store.server import Store


@dataclass(frozen=True)
class Answer:
    """A response that replaces the server's: status, body, content type and more headers."""

    status: int
    body: bytes = b""
    content_type: str = "application/xml"
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, code: str, more: str = "") -> Answer:
    """Return an S3 error response."""
    return Answer(status, f"<Error><Code>{code}</Code>{more}</Error>".encode())


Plan = Callable[[str, str], str | Answer | None]
"""Return the failure of a request by method and path: one of those below, an answer, or None."""

PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"
"""The page of a captive portal."""
OF_OBJECTS = (("ETag", '"a"'), ("Last-Modified", "Fri, 27 Nov 2026 10:00:00 GMT"))
"""Headers of an object, which a page may have as well."""
STATUS = {
    "500": refusal(500, "InternalError"),
    "503": refusal(503, "SlowDown"),
    "400": refusal(400, "RequestTimeout"),
    "429": refusal(429, "TooManyRequests"),
}
"""Transient errors of a store."""
CUT = "cut"
"""The connection is closed after half of the response's body."""
DROP = "drop"
"""The connection is closed before the server gets the request."""
LOST = "lost"
"""The server executes the request, and its response is lost."""
SLOW = "slow"
"""No response is sent until the proxy is closed."""
TROUBLES = ("500", "503", "400", "429", CUT, DROP, LOST, SLOW)


class Proxy(Closing):
    """Forwards requests to a store, or fails them as planned."""

    def __init__(self, behind: Store) -> None:
        """Forward every request to `behind` until `plan` is set."""
        self.plan: Plan = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        """Method and path of each request, in order."""
        self.withheld: set[str] = set()
        """Lowercase names of headers that are not forwarded."""
        self.closing = threading.Event()
        upstream = urlsplit(behind.endpoint).netloc
        handler = type("Handler", (_Handler,), {"proxy": self, "upstream": upstream})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.store = Store(f"http://127.0.0.1:{self._server.server_port}", behind.bucket)

    def first(self, trouble: str, times: int, method: str = "", part: str = "") -> None:
        """Fail the first requests with this method and this part in their path."""
        left = [times]

        def plan(verb: str, path: str) -> str | None:
            if method not in ("", verb) or part not in path or not left[0]:
                return None
            left[0] -= 1
            return trouble

        self.plan = plan

    def close(self) -> None:
        """Stop; slow requests get no response."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    upstream: str
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.proxy.requests.append((self.command, self.path))
        planned = self.proxy.plan(self.command, self.path)
        trouble = STATUS.get(planned, planned) if isinstance(planned, str) else planned
        if isinstance(trouble, Answer):
            self._respond(trouble)
        elif trouble == SLOW:
            self.proxy.closing.wait()
            self._drop()
        elif trouble == DROP:
            self._drop()
        else:
            self._forward(body, trouble)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's

    def _forward(self, body: bytes, trouble: str | None) -> None:
        connection = http.client.HTTPConnection(self.upstream)
        try:
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in self.proxy.withheld
            }
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if trouble == LOST:
            return self._drop()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        if trouble == CUT:
            self.wfile.write(content[: len(content) // 2])
            return self._drop()
        return self._write(content)

    def _respond(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        self.send_header("Content-Type", answer.content_type)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(answer.body)

    def _write(self, content: bytes) -> None:
        with suppress(ConnectionError):
            self.wfile.write(content)

    def _drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""
