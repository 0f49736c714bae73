"""Death between any two writes to a store: readers find old, new, or an error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import pytest

from storage.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    sweep_checkpoints,
)
from storage.dataset import open_dataset
from storage.dataset_writer import dataset_lock, stage_dataset
from storage.errors import BadDataError, UnreachableError
from storage.location import REMOVED_BYTES, Location
from storage.runs import open_run, run_lock
from storage.s3_client import S3Client
from storage.verify import verify_location
from tests.object_store.proxy import Proxy
from tests.object_store.server import Store
from tests.storage.artefacts import (
    assert_holds_its_rows,
    dataset_schema,
    make_dataset,
    make_run,
    save_epoch,
    tensors_of,
    write_dataset,
)

pytestmark = pytest.mark.slow

WRITES = ("put", "put_if", "delete")
"""The requests that change a store's objects."""


class Died(BaseException):
    """The process died: not an Exception, so that no handler catches it."""


@contextmanager
def dying_after(writes: int) -> Iterator[list[str]]:
    """Raise `Died` after this many writes; yield the names of all attempted writes."""
    asked: list[str] = []

    def mortal(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any) -> Any:
            asked.append(name)
            if len(asked) > writes:
                raise Died
            return real(*arguments)

        return write

    with mock.patch.multiple(
        S3Client, **{name: mortal(name, getattr(S3Client, name)) for name in WRITES}
    ):
        yield asked


def ignored(message: str) -> None:
    """Take over a lock without a message."""


def write(target: Location, rows: int) -> None:
    """Ingest as the pipeline does, taking over the lock."""
    with (
        dataset_lock(target, ignored) as locked,
        stage_dataset(locked, dataset_schema(rows=rows), overwrite=True) as writer,
    ):
        write_dataset(writer)


def writes_of(act: Callable[[], None]) -> list[str]:
    with dying_after(10**9) as asked:
        act()
    return asked


def moments(writes: list[str]) -> list[int]:
    """Return the numbers of writes to allow: half of the version's, and each one of publishing."""
    publishing = len(writes) - 1 - writes[::-1].index("put")
    return [publishing // 2, *range(publishing, len(writes))]


def test_a_dataset_is_replaced_whatever_dies(store: Store) -> None:
    """A reader finds the old or the new dataset; the next writer keeps it."""
    place = store.new_place()
    make_dataset(place.child("count"), dataset_schema(rows=2))
    total = writes_of(lambda: write(place.child("count"), 3))
    outcomes = set()
    for writes in moments(total):
        target = place.child(f"{writes}/set")
        old = make_dataset(target, dataset_schema(rows=2))
        with dying_after(writes), suppress(Died):
            write(target, 3)
        seen = open_dataset(target)
        rows = seen.split("train").schema.rows
        assert_holds_its_rows(seen, dataset_schema(rows=rows))
        outcomes.add("old" if seen.digest == old.digest else "new")
        with dataset_lock(target, ignored):
            pass
        after = open_dataset(target)
        assert seen.digest == after.digest
        assert [".set.lock", "set"] == place.names(str(writes))
        assert ["zarr.json", after.tree.name] == sorted(target.names(), key=len)
        assert [] == [error for _, error in verify_location(target) if error]
    assert {"old", "new"} == outcomes


def test_a_store_that_is_lost_while_publishing(store: Store, proxy: Proxy) -> None:
    """The old dataset stays, as does the staged one: a lost request may have published it."""
    target = store.new_place().child("set")
    old = make_dataset(target, dataset_schema(rows=2))
    proxied = proxy.store.location(str(target).split("/", 3)[3], retry_seconds="0.1")
    proxy.plan = lambda method, path: (
        "503" if method == "PUT" and path.endswith("/set/zarr.json") else None
    )
    with pytest.raises(UnreachableError, match="503"):
        write(proxied, 3)
    assert old.digest == open_dataset(target).digest
    assert 3 == len(target.names())
    write(target, 3)
    assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))
    assert 2 == len(target.names())


def test_a_first_dataset_appears_at_once(store: Store) -> None:
    """Without a former tree, a reader finds none, a complete one, or an error."""
    place = store.new_place()
    total = writes_of(lambda: write(place.child("count"), 3))
    for writes in moments(total):
        target = place.child(f"{writes}/set")
        with dying_after(writes), suppress(Died):
            write(target, 3)
        try:
            assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))
        except BadDataError as error:
            assert "There is no dataset" in str(error)
        write(target, 3)
        assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))


def test_a_checkpoint_appears_at_once(store: Store) -> None:
    """While checkpoints are saved, replaced and pruned, all that are listed are sound."""
    place = store.new_place()
    template = tensors_of(1)

    def resume(place: Location) -> None:
        with run_lock(place, ignored) as locked:
            run = open_run(locked)
            sweep_checkpoints(run)
            save_epoch(run, 3)
            prune_checkpoints(run, save_epoch(run, 4), 2, set())

    make_run(place.child("count"))
    total = writes_of(lambda: resume(place.child("count")))
    for writes in range(len(total) + 1):
        copy = place.child(str(writes))
        run = make_run(copy)
        with dying_after(writes), suppress(Died):
            resume(copy)
        for name in list_checkpoints(run):
            load_checkpoint(run, name, template)
        newest = list(load_newest(run, template))
        assert isinstance(newest[0], Checkpoint), newest
        assert newest[0].name.epoch in (2, 3, 4)
        assert [] == [error for what, error in verify_location(copy) if error and "met" not in what]
        resume(copy)
        assert ["000003-000000", "000004-000000"] == list(map(str, list_checkpoints(run)))
        left = copy.child("checkpoints").sizes()
        assert 6 == len([size for size in left.values() if size != REMOVED_BYTES]), left
