"""Locations in a store: ranges, retries, and the messages of errors."""

import builtins
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from storage.dataset import open_dataset
from storage.errors import ConflictError, UnreachableError, UsageError
from storage.location import Location
from storage.places import open_location
from tests.object_store.proxy import CUT, DROP, LOST, SLOW, TROUBLES, Proxy
from tests.object_store.server import Store
from tests.storage.artefacts import assert_holds_its_rows, dataset_schema, make_dataset

DIGITS = b"0123456789"


@pytest.fixture
def place(store: Store) -> Location:
    return store.new_place()


def through(proxy: Proxy, place: Location, **options: str) -> Location:
    """Return the location behind the proxy, with a timeout of a second."""
    return proxy.store.location(str(place).split("/", 3)[3], timeout="1s", **options)


def test_the_start_of_an_object_as_a_file(place: Location) -> None:
    """Only the requested bytes are copied, and a copy can be stopped."""
    place.put("digits", DIGITS)
    for count, expected in ((3, DIGITS[:3]), (99, DIGITS), (None, DIGITS)):
        with place.as_file("digits", count) as path:
            assert expected == path.read_bytes()

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), place.as_file("digits", check=stop):
        pytest.fail("it was copied")


def test_status(place: Location) -> None:
    """Size and time are the store's, and each write changes the version."""
    before = time.time()
    place.put("a", b"one")
    first = place.status("a")
    assert 3 == first.size
    assert before - 1 <= first.modified <= time.time() + 1  # the store has whole seconds
    place.put("a", b"two")
    assert first.version != place.status("a").version
    with pytest.raises(FileNotFoundError):
        place.status("b")


def test_a_large_object_goes_in_parts(place: Location) -> None:
    """Objects larger than a part of a multipart upload are read back."""
    data = np.random.default_rng(0).bytes(12 * 2**20)
    place.put("put", data)
    with place.open_for_writing("written") as write:
        for start in range(0, len(data), 2**20):
            write(data[start : start + 2**20])
    assert data == place.get("put")
    assert data == place.get("written")
    assert data[-5:] == place.get("put", -5)


@pytest.mark.slow
def test_more_objects_than_a_page(store: Store, place: Location) -> None:
    """Listing and removing handle more than 1,000 objects, with odd names too."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: place.put(f"a/{number:04d}", b"x"), range(1005)))
    assert 1005 == len(place.names("a"))
    assert 1005 == sum(place.sizes().values())
    store.put_raw(f"{str(place).split('/', 3)[3]}/a//b")
    assert 1005 == len(place.objects())
    place.delete_tree()
    assert [] == place.objects()


@pytest.mark.parametrize("chunks_per_shard", [1, 2])
def test_a_dataset_is_read_as_it_was_written(place: Location, chunks_per_shard: int) -> None:
    """Chunks are read by this project and by Zarr, with and without shards."""
    schema = dataset_schema(chunks_per_shard=chunks_per_shard)
    make_dataset(place.child("set"), schema)
    opened = open_dataset(place.child("set"))
    assert_holds_its_rows(opened, schema)
    split = opened.split("train")
    rows = np.concatenate([split.read_chunk(number).inputs for number in range(3)])
    assert np.array_equal(rows, np.asarray(split.inputs[:]))


def test_a_location_can_be_pickled(store: Store) -> None:
    """A location can be pickled with its options; its repr shows no secret."""
    place = store.location("x", secret_access_key="swordfish")
    assert place == pickle.loads(pickle.dumps(place))
    assert "swordfish" not in f"{place} {place!r}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble",
    [pytest.param(name, marks=pytest.mark.slow) if name == "slow" else name for name in TROUBLES],
)
def test_transient_failures_are_retried(proxy: Proxy, place: Location, trouble: str) -> None:
    """Every kind of request is retried."""
    proxied = through(proxy, place)
    for number, (method, part, act) in enumerate(
        [
            ("PUT", "digits", lambda: proxied.put("digits", DIGITS)),
            ("GET", "digits", lambda: proxied.get("digits", 2, 5)),
            ("HEAD", "digits", lambda: proxied.size("digits")),
            ("PUT", "new", lambda: proxied.put("new", b"1", new=True)),
            ("PUT", "new", lambda: proxied.append("new", b"2")),
            ("GET", "list-type", proxied.objects),
            ("POST", "delete", lambda: proxied.delete("new")),
        ]
    ):
        proxy.first(trouble, 1, method, part)
        before = len(proxy.requests)
        result = act()
        again = (method, "GET") if method == "HEAD" else (method,)  # HEAD has no body with a reason
        tries = [seen for seen in proxy.requests[before:] if seen[0] in again and part in seen[1]]
        body = method in ("GET", "POST")  # a response without a body cannot be cut off
        assert len(tries) > 1 or (trouble == CUT and not body), number
        assert result == [None, b"234", 10, None, None, ["digits", "new"], None][number]
    assert {"digits": 10} == place.sizes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("500", "500 Internal Server Error, InternalError"),
        ("503", "503 Service Unavailable, SlowDown"),
        (CUT, "was interrupted"),
        (DROP, "was interrupted"),
        (LOST, "was interrupted"),
        (SLOW, "no complete response in time"),
    ],
)
def test_lasting_failures(proxy: Proxy, place: Location, trouble: str, reason: str) -> None:
    """After `retry_seconds` the error has exit code 6, the object's URL and the reason."""
    place.put("digits", DIGITS)
    proxy.plan = lambda method, path: trouble
    proxied = through(proxy, place, retry_seconds="0.2")
    with pytest.raises(UnreachableError, match=f"Cannot read {place}/digits: .*{reason}") as caught:
        proxied.get("digits")
    assert 6 == caught.value.exit_code
    assert {("GET", f"/{str(place)[5:]}/digits")} == set(proxy.requests)


def test_a_store_that_ignores_ranges(proxy: Proxy, place: Location) -> None:
    """The response of a store that ignores ranges is not used."""
    place.put("digits", DIGITS)
    proxy.withheld = {"range"}
    with pytest.raises(UnreachableError, match=r"not respond like an S3 store .*it ignores ranges"):
        through(proxy, place).get("digits", 2, 5)


def test_a_missing_store(place: Location) -> None:
    """A refused connection is retried, then reported."""
    key = str(place).split("/", 3)[3]
    gone = open_location(
        f"s3://bucket/{key}",
        {"endpoint_url": "http://127.0.0.1:1", "retry_seconds": "0.2"}
        | {"access_key_id": "a", "secret_access_key": "b"},
    )
    with pytest.raises(UnreachableError, match="the connection is refused, retried for"):
        gone.put("key", b"")


def test_concurrent_writers_of_a_new_object(place: Location) -> None:
    """One of several concurrent writers of a new object wins; the others get a conflict."""
    together = threading.Barrier(8)

    def put(number: int) -> bool:
        together.wait()
        try:
            place.put("key", b"%d" % number, new=True)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(put, range(8)))
    assert [b"%d" % won.index(True)] == [place.get("key")]
    assert 1 == sum(won)


def test_an_append_after_another_s_is_refused(
    place: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that was appended after the read is not overwritten."""
    place.put("lines", b"one\n")
    tagged = type(place.client).get_tagged

    def append_first(client: Any, key: str) -> Any:
        content = tagged(client, key)
        monkeypatch.undo()
        place.put("lines", b"one\nother\n")
        return content

    monkeypatch.setattr(type(place.client), "get_tagged", append_first)
    with pytest.raises(ConflictError, match="was changed by another writer"):
        place.append("lines", b"two\n")
    assert b"one\nother\n" == place.get("lines")


@pytest.mark.parametrize(
    "url", ["s3://", "s3://bucket", "s3://bucket/", "s3:///a", "s3://bucket/a//b", "s3://b/../a"]
)
def test_invalid_urls(url: str) -> None:
    """The URL must have a bucket and a prefix without empty parts."""
    with pytest.raises(UsageError, match="is not a valid S3 URL"):
        open_location(url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": "red"}, "--storage-option colour is not known"),
        ({"timeout": "soon"}, "cannot be used: .*soon"),
        ({"retry_seconds": "-1"}, "retry_seconds is '-1'"),
        ({"retry_seconds": "long"}, "retry_seconds is 'long'"),
    ],
)
def test_unknown_options(options: dict[str, str], message: str) -> None:
    """Invalid options are refused without a request."""
    with pytest.raises(UsageError, match=message):
        open_location("s3://bucket/place", options)


def test_environment_variables(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS_ENDPOINT_URL and the credentials' variables suffice; options take precedence."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    place = open_location(store.url("from-environment"))
    place.put("key", b"x")
    assert ["key"] == store.location("from-environment").names()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert b"x" == open_location(str(place), {"endpoint_url": store.endpoint}).get("key")


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An s3:// URL without obstore is a usage error."""
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "obstore":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return real(name, *arguments)

    for name in ("storage.s3", "storage.s3_client", "storage.s3_lock"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"extra 's3' .*pip install '\.\[s3\]'"):
        open_location("s3://bucket/place")
