"""Downloads from servers on loopback: complete, damaged, cut off, refused, unreachable."""

import hashlib
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from pipeline.sources.downloads import Catalogue, download
from pipeline.sources.source import open_source
from storage.errors import UnreachableError
from tests.storage.idx_files import write_idx

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


@dataclass
class Mirror:
    """A server's files, its way to fail, and its requests."""

    files: dict[str, bytes]
    url: str = ""
    cut_off: bool = False
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(mirror: Mirror) -> Iterator[Mirror]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            mirror.requests.append(name)
            if name not in mirror.files:
                self.send_error(404)
                return
            body = mirror.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if mirror.cut_off else body)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror.url = f"http://127.0.0.1:{server.server_address[1]}/set/"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield mirror
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's proxy, cache and MNIST_DIR out of these tests."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("MNIST_DIR", raising=False)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A small set of six training rows, as a mirror serves it."""
    directory = tmp_path / "published"
    directory.mkdir()
    write_idx(directory / IMAGES, np.arange(24, dtype=np.uint8).reshape(6, 2, 2))
    write_idx(directory / LABELS, np.arange(6, dtype=np.uint8))
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def catalogue(files: dict[str, bytes], *mirrors: str, name: str = "mnist") -> Catalogue:
    checksums = tuple((name, hashlib.md5(files[name]).hexdigest()) for name in (IMAGES, LABELS))
    return Catalogue(name, checksums, mirrors)


def unreachable_url() -> str:
    """Return a URL on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/set/"


def cached(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_download(
    tmp_path: Path, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A set is downloaded, opened under its name, logged file by file, and then cached."""
    caplog.set_level(logging.INFO, "pipeline")
    cache = tmp_path / "cache"
    for _ in range(2):
        with serve(Mirror(files)) as mirror:
            known = {"mnist": catalogue(files, mirror.url)}
            source = open_source("mnist", cache=cache, catalogues=known)
        assert ("mnist", [6]) == (source.name, [split.rows for split in source.splits])
        assert [f"downloading {mirror.url}{name}" for name in mirror.requests] == caplog.messages
        assert files == cached(cache)
        caplog.clear()
    assert [] == mirror.requests


def test_damaged_cache(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Only a cached file with a wrong checksum is downloaded again."""
    with serve(Mirror(files)) as mirror:
        directory = download(catalogue(files, mirror.url), tmp_path / "cache")
        (directory / LABELS).write_bytes(b"damaged")
        download(catalogue(files, mirror.url), tmp_path / "cache")
    assert [IMAGES, LABELS, LABELS] == mirror.requests
    assert files == cached(tmp_path / "cache")


@pytest.mark.parametrize(
    ("bad", "cut_off", "answer"),
    [
        ({IMAGES: b"another file"}, False, "sent a file with the wrong checksum"),
        ({}, False, "answered 404"),
        (None, True, "sent an incomplete file"),
    ],
)
def test_bad_mirror(
    tmp_path: Path,
    files: dict[str, bytes],
    bad: dict[str, bytes] | None,
    cut_off: bool,
    answer: str,
) -> None:
    """A failing mirror is named with the reason, and leaves nothing in the cache."""
    with (
        serve(Mirror(files if bad is None else bad, cut_off=cut_off)) as mirror,
        pytest.raises(UnreachableError) as caught,
    ):
        download(catalogue(files, mirror.url), tmp_path / "cache")
    host = mirror.url.split("/")[2]
    assert f"{host} {answer}" in str(caught.value)
    assert IMAGES in str(caught.value)
    assert {} == cached(tmp_path / "cache")


def test_out_of_reach(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Unreachable and silent mirrors end with exit code 6 and alternatives without a network."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        mirrors = (unreachable_url(), url)
        impatient = Catalogue("mnist", catalogue(files).files, mirrors, timeout_seconds=0.1)
        with pytest.raises(UnreachableError) as caught:
            download(impatient, tmp_path)
    message = str(caught.value)
    assert "could not be reached; " in message
    assert "did not answer in time" in message
    for way in ("`pipeline ingest DIRECTORY`", "`pipeline ingest synthetic`", "MNIST_DIR"):
        assert way in message


def test_mirrors_that_hold_half_each(tmp_path: Path, files: dict[str, bytes]) -> None:
    """Files may come from different mirrors: a mirror that failed is asked for the next file."""
    with (
        serve(Mirror({LABELS: files[LABELS]})) as first,
        serve(Mirror({IMAGES: files[IMAGES]})) as second,
    ):
        download(catalogue(files, first.url, second.url), tmp_path / "cache")
    assert files == cached(tmp_path / "cache")


def test_cache_that_cannot_be_written(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A cache that cannot be created is named, and the mirrors are not blamed."""
    (tmp_path / "file").touch()
    with (
        serve(Mirror(files)) as mirror,
        pytest.raises(UnreachableError, match="Cannot write the download"),
    ):
        download(catalogue(files, mirror.url), tmp_path / "file")
