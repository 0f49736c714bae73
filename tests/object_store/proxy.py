"""A proxy before the S3 server that answers some requests with trouble instead."""

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
    """A status, a body, its type and more headers, given in place of the server's answer."""

    status: int
    body: bytes = b""
    kind: str = "application/xml"
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, code: str, more: str = "") -> Answer:
    """Return an answer as S3 refuses a request."""
    return Answer(status, f"<Error><Code>{code}</Code>{more}</Error>".encode())


Plan = Callable[[str, str], str | Answer | None]
"""The trouble for a request of this method and path: one of those below, an answer, or None."""

PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"
"""What a captive portal gives."""
OF_OBJECTS = (("ETag", '"a"'), ("Last-Modified", "Fri, 27 Nov 2026 10:00:00 GMT"))
"""Headers of an object, which a page may have as well."""
STATUS = {
    "500": refusal(500, "InternalError"),
    "503": refusal(503, "SlowDown"),
    "400": refusal(400, "RequestTimeout"),
    "429": refusal(429, "TooManyRequests"),
}
"""Answers of a store in trouble."""
CUT = "cut"
"""The answer's head and half of its body, then the connection breaks off."""
DROP = "drop"
"""The connection breaks off before the request gets to the server."""
LOST = "lost"
"""The server does what it is asked, and its answer is lost."""
SLOW = "slow"
"""No answer for as long as the proxy lives."""
TROUBLES = ("500", "503", "400", "429", CUT, DROP, LOST, SLOW)


class Proxy(Closing):
    """Passes requests on to a store, or makes trouble by its plan."""

    def __init__(self, behind: Store) -> None:
        """In front of `behind`; without trouble until `plan` is set."""
        self.plan: Plan = lambda method, path: None
        self.requests: list[tuple[str, str]] = []
        """Method and path of each that came, in order."""
        self.withheld: set[str] = set()
        """Names of headers, in small letters, that the server does not get to see."""
        self.closing = threading.Event()
        upstream = urlsplit(behind.endpoint).netloc
        handler = type("Handler", (_Handler,), {"proxy": self, "upstream": upstream})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.store = Store(f"http://127.0.0.1:{self._server.server_port}", behind.bucket)

    def first(self, trouble: str, times: int, method: str = "", part: str = "") -> None:
        """Let the first requests with this method, and this part in their path, meet trouble."""
        left = [times]

        def plan(found: str, path: str) -> str | None:
            if method not in ("", found) or part not in path or not left[0]:
                return None
            left[0] -= 1
            return trouble

        self.plan = plan

    def close(self) -> None:
        """Stop; whoever waits for a slow answer gets none."""
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
            self._give(trouble)
        elif trouble == SLOW:
            self.proxy.closing.wait()
            self._break_off()
        elif trouble == DROP:
            self._break_off()
        else:
            self._pass_on(body, trouble)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's

    def _pass_on(self, body: bytes, trouble: str | None) -> None:
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
            return self._break_off()
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        if trouble == CUT:
            self.wfile.write(content[: len(content) // 2])
            return self._break_off()
        return self._write(content)

    def _give(self, answer: Answer) -> None:
        self.send_response_only(answer.status)
        self.send_header("Content-Type", answer.kind)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self._write(answer.body)

    def _write(self, content: bytes) -> None:
        with suppress(ConnectionError):
            self.wfile.write(content)

    def _break_off(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Nothing is printed."""
