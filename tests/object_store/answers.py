"""An HTTP server on loopback that gives every request the same answer."""

import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from storage.location import Closing

PAGE = b"<!DOCTYPE html><html><body>Please log in.</body></html>"
"""What a captive portal gives."""
OF_OBJECTS = (("ETag", '"a"'), ("Last-Modified", "Fri, 27 Nov 2026 10:00:00 GMT"))
"""Headers of an object, which a page may have as well."""


@dataclass(frozen=True)
class Answer:
    """A status, a body and its type."""

    status: int
    body: bytes = b""
    kind: str = "application/xml"
    headers: tuple[tuple[str, str], ...] = ()


def refusal(status: int, code: str, more: str = "") -> Answer:
    """Return an answer as S3 refuses a request."""
    return Answer(status, f"<Error><Code>{code}</Code>{more}</Error>".encode())


class Answering(Closing):
    """Answers every request with `answer`, which may be changed."""

    def __init__(self, answer: Answer) -> None:
        """Serve until closed."""
        self.answer = answer
        self.requests = 0
        handler = type("Handler", (_Handler,), {"answering": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def options(self) -> dict[str, str]:
        """Options of a location that is reached here, and given up soon."""
        return {
            "endpoint_url": self.address,
            "access_key_id": "tests",
            "secret_access_key": "tests",
            "retry_seconds": "0.2",
        }

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    answering: Answering
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answering.requests += 1
        answer = self.answering.answer
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""
