"""Death between any two writes to a store: readers find old, new, or an error that says so."""

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
from storage.dataset_writer import dataset_lock, recover, stage_dataset
from storage.errors import BadDataError, UnreachableError
from storage.objects import Location
from storage.runs import open_run, run_lock
from storage.s3_client import S3Client
from storage.verify import verify_location
from tests.object_store.proxy import Proxy
from tests.object_store.server import Store
from tests.storage.artefacts import (
    FINGERPRINT,
    SOURCES,
    assert_holds_its_rows,
    contents,
    dataset_schema,
    make_dataset,
    make_run,
    part_numbers,
    part_of,
    save_epoch,
    tensors_of,
)

WRITES = ("put", "put_if", "copy", "delete")
"""The requests that change what a store holds."""


class Died(BaseException):
    """The process is dead; no handler of errors may make anything of it."""


@contextmanager
def dying_after(writes: int) -> Iterator[list[str]]:
    """Let so many writes through, then none; gives the names of those that were asked for."""
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


def ignored(told: str) -> None:
    """For a taking over whose words do not matter."""


def write(target: Location, rows: int) -> None:
    """Ingest as the pipeline does, whoever was there before."""
    schema = dataset_schema(rows=rows)
    with (
        dataset_lock(target, ignored) as locked,
        stage_dataset(locked, schema, overwrite=True) as writer,
    ):
        splits = {name: writer.split(name) for name in schema.splits}
        records = {
            name: [
                record
                for number in part_numbers(split)
                for record in split.write_part(number, part_of(name, split, number))
            ]
            for name, split in splits.items()
        }
        writer.publish(records, SOURCES, FINGERPRINT)


def writes_of(act: Callable[[], None]) -> list[str]:
    with dying_after(10**9) as asked:
        act()
    return asked


def moments(writes: list[str]) -> list[int]:
    """How many writes to let through: half of the staging's, and then as each act of publishing."""
    first, copies = writes.index("copy"), writes.count("copy")
    before = [first // 2, first - 3, first - 2, first - 1]
    return [*before, first + copies // 2, *range(first + copies, len(writes))]


def test_a_dataset_is_replaced_whatever_dies(store: Store) -> None:
    """Old, new or an error at each moment; the next writer ends with one of them, and no rests."""
    place = store.new_place()
    total = writes_of(lambda: write(place.child("count"), 3))
    old = make_dataset(place.child("old"), dataset_schema(rows=2))
    found = set()
    for writes in moments(total):
        target = place.child(f"{writes}/set")
        for key, data in contents(old.location).items():
            target.put(key, data)
        with dying_after(writes), suppress(Died):
            write(target, 3)
        try:
            seen = open_dataset(target)
            rows = seen.split("train").schema.rows
            assert_holds_its_rows(seen, dataset_schema(rows=rows))
            found.add("old" if seen.digest == old.digest else "new")
        except BadDataError as error:
            assert "was being replaced" in str(error)
            found.add("neither")
        with dataset_lock(target, ignored) as locked:
            recover(locked)
        after = open_dataset(target)
        assert_holds_its_rows(after, dataset_schema(rows=after.split("train").schema.rows))
        if writes == total.index("copy") // 2:
            write(target, 4)  # which sweeps what the dead one had staged
        assert [".set.lock", "set"] == place.names(str(writes))
        assert [] == [error for _, error in verify_location(target) if error]
    assert {"old", "neither", "new"} == found


def test_a_store_that_is_lost_while_copying(store: Store, proxy: Proxy) -> None:
    """What was staged is kept, for the next writer to go on copying with."""
    target = store.new_place().child("set")
    make_dataset(target, dataset_schema(rows=2))
    there = proxy.store.location(str(target).split("/", 3)[3], retry_seconds="0.1")
    proxy.plan = lambda method, path: "503" if method == "PUT" and "/set/train" in path else None
    with pytest.raises(UnreachableError, match="503"):
        write(there, 3)
    with pytest.raises(BadDataError, match="was being replaced"):
        open_dataset(target)
    with dataset_lock(target) as locked:
        recover(locked)
    assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))


def test_a_first_dataset_is_there_whole_or_not(store: Store) -> None:
    """Where there was none, a reader finds none, all, or that it is coming."""
    place = store.new_place()
    total = writes_of(lambda: write(place.child("count"), 3))
    for writes in moments(total)[::2]:
        target = place.child(f"{writes}/set")
        with dying_after(writes), suppress(Died):
            write(target, 3)
        try:
            assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))
        except BadDataError as error:
            assert "There is no dataset" in str(error) or "was being replaced" in str(error)
        write(target, 3)
        assert_holds_its_rows(open_dataset(target), dataset_schema(rows=3))


def test_a_checkpoint_is_there_whole_or_not(store: Store) -> None:
    """Saving over one, saving a new one and pruning: what is listed is sound, always."""
    place = store.new_place()
    template = tensors_of(1)

    def go_on(place: Location) -> None:
        with run_lock(place, ignored) as locked:
            run = open_run(locked)
            sweep_checkpoints(run)
            save_epoch(run, 3)
            prune_checkpoints(run, save_epoch(run, 4), 2, set())

    make_run(place.child("count"))
    total = writes_of(lambda: go_on(place.child("count")))
    for writes in range(len(total) + 1):
        there = place.child(str(writes))
        run = make_run(there)
        with dying_after(writes), suppress(Died):
            go_on(there)
        for name in list_checkpoints(run):
            load_checkpoint(run, name, template)
        newest = list(load_newest(run, template))
        assert isinstance(newest[0], Checkpoint), newest
        assert newest[0].name.epoch in (2, 3, 4)
        assert [] == [
            error for what, error in verify_location(there) if error and "met" not in what
        ]
        go_on(there)
        assert ["000003-000000", "000004-000000"] == list(map(str, list_checkpoints(run)))
        assert 4 == len(there.child("checkpoints").objects())


def test_what_cannot_be_gone_on_with_is_told(store: Store) -> None:
    """A marker whose staged rows somebody has removed is named, with what to do."""
    target = store.new_place().child("set")
    make_dataset(target)
    target.sibling("", ".replaced").put("", b"elsewhere")
    with (
        pytest.raises(BadDataError, match=r"\.set\.replaced says that .* is to be put"),
        dataset_lock(target) as locked,
    ):
        recover(locked)
