"""Error responses of S3 stores and invalid requests: each has a clear message."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from storage.errors import BadDataError, PipelineError, UnreachableError, UsageError
from storage.location import Location
from storage.places import open_location
from tests.object_store.proxy import OF_OBJECTS, PAGE, Answer, Proxy, refusal
from tests.object_store.server import Store

BAD_URLS = (
    "",
    "localhost:9000",
    " http://localhost:9000",
    "http://localhost:9000 ",
    "http://local host:9000",
    "http://",
    "http://:9000",
    "http://localhost:99999",
    "http://localhost:port",
    "http://[::1",
    "http://[v1.a]",
    "http://999.1.1.1",
    "http://xn--a",
    "http://caf\u00e9",
    "http://localhost:9000?a=b",
    "http://localhost:9000#",
    "ftp://localhost",
    "not a URL",
)


def answered(proxy: Proxy, answer: Answer, **options: str) -> Location:
    """Return a location whose store sends this response to every request."""
    proxy.plan = lambda method, path: answer
    return proxy.store.location("place", **{"retry_seconds": "0.2", **options})


def acts(place: Location) -> dict[str, Callable[[], Any]]:
    """Return every kind of request."""
    return {
        "get": lambda: place.get("key"),
        "range": lambda: place.get("key", 2, 5),
        "end": lambda: place.get("key", -3),
        "size": lambda: place.size("key"),
        "holds": lambda: place.holds("key"),
        "put": lambda: place.put("key", b"x"),
        "put if new": lambda: place.put("key", b"x", new=True),
        "append": lambda: place.append("key", b"x"),
        "delete": lambda: place.delete("key"),
        "names": place.names,
        "objects": place.objects,
        "exists": place.exists,
        "is_free": place.is_free,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (refusal(400, "ExpiredToken"), "these credentials (400 Bad Request, ExpiredToken). Check"),
        (
            refusal(403, "AccessDenied", "<Message>No.</Message>"),
            "these credentials (403 Forbidden, AccessDenied: No). Check AWS_ACCESS_KEY_ID",
        ),
        (refusal(404, "NoSuchBucket"), "there is no bucket 'bucket-"),
        (refusal(301, "PermanentRedirect"), "in another region. Set AWS_REGION"),
        (
            refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
            "in another region. Set AWS_REGION or --storage-option region to eu-west-1",
        ),
        (refusal(507, "XMinioStorageFull"), "XMinioStorageFull). Check its space and quota"),
        (Answer(404), "does not respond like an S3 store (404 Not Found)"),
        (Answer(404, PAGE, "text/html"), "404 Not Found with a web page"),
        (Answer(403, PAGE, "text/html"), "403 Forbidden with a web page"),
        (Answer(200, PAGE, "text/html"), "Check the endpoint, and whether a proxy"),
        (
            Answer(200, PAGE, "text/html", OF_OBJECTS),
            "Check the endpoint, and whether a proxy",
        ),
        (Answer(416), "like an S3 store (416 Range Not Satisfiable)"),
        (Answer(302, PAGE, "text/html"), "in another region"),
    ],
    ids=lambda value: value.split(".")[0] if isinstance(value, str) else "",
)
def test_refusals(proxy: Proxy, answer: Answer, words: str) -> None:
    """Every request fails at once with exit 6; a web page is neither data nor a listing."""
    place = answered(proxy, answer, retry_seconds="600")
    for name, act in acts(place).items():
        with pytest.raises(UnreachableError) as caught:
            act()
        assert words in str(caught.value), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "answer",
    [refusal(400, "RequestTimeout"), refusal(409, "OperationAborted"), refusal(503, "SlowDown")],
    ids=["RequestTimeout", "OperationAborted", "SlowDown"],
)
def test_transient_errors_are_retried(
    proxy: Proxy, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request is retried; the last error names the store's address."""
    seconds = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: next(seconds), sleep=lambda pause: None)
    monkeypatch.setattr("storage.s3_client.time", clock)
    place = answered(proxy, answer, retry_seconds="2")
    for name, act in acts(place).items():
        before = len(proxy.requests)
        with pytest.raises(UnreachableError, match="retried for") as caught:
            act()
        assert proxy.store.endpoint in str(caught.value)
        assert len(proxy.requests) - before > 1, name


def test_a_response_that_is_not_a_listing(proxy: Proxy) -> None:
    """A response that is not a listing is reported; without a retry, the message mentions none."""
    answer = Answer(200, b"{}", "application/json", OF_OBJECTS)
    place = answered(proxy, answer, retry_seconds="0")
    with pytest.raises(UnreachableError, match=r"does not list objects as S3") as caught:
        place.objects()
    assert "retried" not in str(caught.value)


@pytest.mark.parametrize("url", BAD_URLS)
def test_invalid_endpoints(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invalid option or variable is refused by name, without a request."""
    with pytest.raises(
        UsageError, match=r"--storage-option endpoint_url .*is not a valid endpoint"
    ):
        open_location("s3://bucket/place", {"endpoint_url": url})
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS"):
        with monkeypatch.context() as patched:
            patched.setenv(name, url)
            with pytest.raises(UsageError, match=f"{name} .*is not a valid endpoint"):
                open_location("s3://bucket/place")


def test_a_password_in_an_endpoint_is_not_shown() -> None:
    """A bad endpoint that may contain a password is refused without being shown."""
    with pytest.raises(UsageError, match="without a user name") as caught:
        open_location("s3://bucket/place", {"endpoint": "http://me:swordfish@localhost"})
    assert "swordfish" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ACCESS_KEY_ID", "key\n"),
        ("AWS_SECRET_ACCESS_KEY", " swordfish"),
        ("AWS_SESSION_TOKEN", "a\nb"),
        ("AWS_REGION", "eu west"),
    ],
)
def test_invalid_variables(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line break in a key is reported with the variable's name, not its value."""
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name) as caught:
        open_location("s3://bucket/place")
    assert "swordfish" not in str(caught.value)
    with pytest.raises(UsageError, match=name[4:].lower()):
        open_location("s3://bucket/place", {name.lower(): value})


@pytest.mark.parametrize("bucket", ["my bucket", "caf\u00e9", "a%b", "..", "a:b"])
def test_invalid_bucket_names(bucket: str) -> None:
    """A region becomes part of a host name, so it is checked."""
    with pytest.raises(UsageError, match="names the bucket"):
        open_location(f"s3://{bucket}/place")


@pytest.mark.parametrize("key", ["a//b", "x/../../y", "./a", "..", "a\x01b", "\u2028", "/first"])
def test_keys_that_are_not_paths(store: Store, key: str) -> None:
    """An object with an invalid key is refused by name; the others are listed."""
    place = store.new_place()
    store.put_raw(f"{str(place).split('/', 3)[3]}/{key}", b"odd")
    assert not place.is_free()
    for name in ("a+b c", "deep/er", "z"):
        place.put(name, b"sound")
    refused: dict[str, PipelineError | None] = {}
    assert ["a+b c", "deep/er", "z"] == place.objects(refused.__setitem__)
    assert [key] == list(refused)
    assert isinstance(refused[key], BadDataError)
    assert str(refused[key]).isprintable()
    assert {"a+b c": 5, "deep/er": 5, "z": 5} == place.sizes()
    assert {"a+b c", "deep", "z"} <= set(place.names())
    place.delete_tree()
    assert [] == place.objects()


def test_folders_are_not_objects(store: Store) -> None:
    """Empty objects that represent folders are not listed; other empty ones are."""
    place = store.new_place()
    prefix = str(place).split("/", 3)[3]
    store.put_raw(f"{prefix}/")
    store.put_raw(f"{prefix}/folder/")
    assert place.is_free()
    assert [] == place.objects()
    place.put("empty", b"")
    assert ["empty"] == place.objects()


def test_the_copy_of_an_object_has_a_short_name(store: Store) -> None:
    """The copy keeps the object's suffix, shortened to the disk's limit."""
    place, key = store.new_place(), "\u00e9" * 200 + ".idx3-ubyte.gz"
    place.put(key, b"x")
    with place.as_file(key) as path:
        assert (b"x", "object.idx3-ubyte.gz") == (path.read_bytes(), path.name)


FULL = """
import resource, signal, sys
from storage.places import open_location
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
place = open_location(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    if sys.argv[2] == "read":
        with place.as_file("large"): pass
    else:
        with place.open_for_writing("new") as write:
            for _ in range(10): write(bytes(400))
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("what", ["read", "write"])
def test_no_space_for_temporary_files(store: Store, tmp_path: Path, what: str) -> None:
    """The message names the directory, and no file is left in it."""
    place = store.new_place()
    place.put("large", bytes(2000))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = os.environ | store.environment | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-c", FULL, str(place), what]
    out = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert f"UnreachableError Cannot write a temporary file to {temporary}: " in out
    assert [] == list(temporary.iterdir())
