"""moto's S3 server, in its own process."""

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from urllib.parse import quote

from storage.location import Location
from storage.places import open_location

SERVE = """
import logging, sys, threading
from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
app = create_backend_app("s3")
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""
"""moto's S3 alone: its server of all services lists its own files for every request."""
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_REGION": "us-east-1",
}
"""A client's options beyond the endpoint."""
_SCOPE = "AWS4-HMAC-SHA256 Credential=tests/20240101/us-east-1/s3/aws4_request, Signature=none"


@dataclass(frozen=True)
class Store:
    """A bucket of a running server."""

    endpoint: str
    bucket: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that configure the store for a command."""
        return ENVIRONMENT | {"AWS_ENDPOINT_URL": self.endpoint}

    @property
    def options(self) -> dict[str, str]:
        """The same settings as options of a location, with few retries."""
        return {
            "endpoint_url": self.endpoint,
            "access_key_id": "tests",
            "secret_access_key": "tests",
            "region": "us-east-1",
            "retry_seconds": "20",
        }

    def url(self, key: str) -> str:
        """Return a URL in the bucket."""
        return f"s3://{self.bucket}/{key}"

    def location(self, key: str, **options: str) -> Location:
        """Return a location in the bucket."""
        return open_location(self.url(key), self.options | options)

    def put_raw(self, key: str, data: bytes = b"") -> None:
        """Put an object under any key, valid for a location or not."""
        _send(f"{self.endpoint}/{self.bucket}/{quote(key)}", data)

    def new_place(self) -> Location:
        """Return a location with an unused prefix."""
        return self.location(uuid.uuid4().hex[:8])

    def new_bucket(self) -> "Store":
        """Return an empty bucket of the same server."""
        store = replace(self, bucket=f"bucket-{uuid.uuid4().hex[:8]}")
        create_bucket(store)
        return store


@contextmanager
def running_store() -> Iterator[Store]:
    """Run a server with an empty bucket."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env=os.environ | ENVIRONMENT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            assert port, "the server did not start"
            store = Store(f"http://127.0.0.1:{port}", "bucket")
            create_bucket(store)
            yield store
        finally:
            process.kill()


def create_bucket(store: Store) -> None:
    """Create the bucket unless it exists."""
    _send(f"{store.endpoint}/{store.bucket}", b"")


def _send(url: str, data: bytes) -> None:
    headers = {"Authorization": _SCOPE, "Content-Type": "binary/octet-stream"}
    request = urllib.request.Request(url, data=data, method="PUT", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        assert 200 == answer.status
