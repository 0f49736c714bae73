"""The writer's lock in a store: one has it, a dead one's is taken knowingly, the loser stops."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

from storage.checkpoints import list_checkpoints, prune_checkpoints
from storage.dataset import open_dataset
from storage.dataset_writer import dataset_lock, stage_dataset
from storage.errors import ConflictError, UsageError
from storage.location import Location
from storage.runs import open_run, run_lock
from storage.scores import is_complete
from storage.scores_writer import score_into
from tests.object_store.proxy import LOST, Proxy
from tests.object_store.server import Store
from tests.storage.artefacts import (
    begin_run,
    contents,
    dataset_schema,
    make_dataset,
    make_run,
    metrics_line,
    save_epoch,
    scores_schema,
    write_parts,
    write_scores,
)

HERE = f"process {os.getpid()} on {socket.gethostname()} since "


@pytest.fixture
def place(store: Store) -> Location:
    return store.new_place()


def ignored(told: str) -> None:
    """For a taking over whose words do not matter."""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "--dataset", "s3://bucket/set"], "(pipeline train). Wait for it"),
        (["--dataset", ""], "(pipeline). Wait for it"),
        ([], "(pipeline). Wait for it"),
    ],
)
def test_what_the_holder_runs(
    place: Location, monkeypatch: pytest.MonkeyPatch, words: list[str], told: str
) -> None:
    """Its command is named whole, and none of its options."""
    monkeypatch.setattr("sys.argv", ["/usr/bin/pipeline", *words])
    lock = place.child(".lock")
    with lock.writer_lock("The run"), pytest.raises(ConflictError) as caught:
        lock.writer_lock("The run").__enter__()
    assert told in str(caught.value)


def test_one_of_many_gets_the_lock(place: Location) -> None:
    """Of writers who ask at once, one has it; so of those who take over at once, in the end."""
    together = threading.Barrier(6)

    def ask(take_over: bool) -> bool:
        lock = place.child(".lock").writer_lock("The run", ignored if take_over else None)
        together.wait()
        with ExitStack() as held:
            try:
                found = held.enter_context(lock)
            except ConflictError:
                found = None
            together.wait()  # nobody gives it back before all have asked
            try:
                return found is not None and found.check() is None
            except ConflictError:
                return False
            finally:
                together.wait()

    for take_over in (False, True):
        with ThreadPoolExecutor(6) as pool:
            assert 1 == sum(pool.map(ask, [take_over] * 6))
        place.put(".lock", b"abandoned")


def test_a_store_without_conditional_writes_is_refused(proxy: Proxy, place: Location) -> None:
    """Where everybody would win, nobody does."""
    proxy.withheld = {"if-none-match", "if-match"}
    there = proxy.store.location(str(place).split("/", 3)[3])
    with (
        pytest.raises(UsageError, match="takes no heed of conditional writes"),
        there.child(".lock").writer_lock("The run"),
    ):
        pytest.fail("a lock that locks nobody out")


def test_a_taking_over_says_whose_it_was(place: Location) -> None:
    """The former holder is named; of a lock that was free nothing is said."""
    told: list[str] = []
    with place.child(".lock").writer_lock("The run", told.append):
        assert [] == told
        with place.child(".lock").writer_lock("The run", told.append):
            assert [True] == [f"The run was being written by {HERE}" in text for text in told]


def test_a_lost_answer_does_not_lock_its_asker_out(proxy: Proxy, place: Location) -> None:
    """The lock that was written, but whose answer was lost, is known for one's own."""
    there = proxy.store.location(str(place).split("/", 3)[3])
    proxy.first(LOST, 1, "PUT", ".lock")
    with there.child(".lock").writer_lock("The run") as lock:
        lock.check()


def test_who_lost_the_lock_gives_nothing_back(place: Location) -> None:
    """The end of the former holder's block leaves the lock with the new holder."""
    first, second = ExitStack(), ExitStack()
    first.enter_context(place.child(".lock").writer_lock("The run"))
    lock = second.enter_context(place.child(".lock").writer_lock("The run", ignored))
    first.close()
    lock.check()
    second.close()


def test_a_trainer_that_lost_its_run_publishes_nothing(place: Location) -> None:
    """Neither metrics nor checkpoints, nor does it prune; the run is the new holder's."""
    make_run(place)
    with (
        pytest.raises(ConflictError, match=r"was taken over by .*publishes nothing more"),
        run_lock(place) as locked,
    ):
        former = open_run(locked)
        with run_lock(place, ignored):
            before = contents(place)
            for act in (
                lambda: former.append_metrics(metrics_line(4)),
                lambda: former.rewrite_metrics([]),
                lambda: save_epoch(former, 4),
                lambda: save_epoch(former, 3),
                lambda: prune_checkpoints(former, list_checkpoints(former)[-1], 1, set()),
            ):
                with pytest.raises(ConflictError, match="was taken over by"):
                    act()
            assert before == contents(place)
            save_epoch(former, 5)


def test_an_ingest_that_lost_its_place_publishes_nothing(place: Location) -> None:
    """What the other published stays; that the former's rows are gone is told as the conflict."""
    target, schema = place.child("set"), dataset_schema(rows=7)
    with (
        pytest.raises(ConflictError, match="was taken over by"),
        dataset_lock(target) as locked,
        stage_dataset(locked, schema) as former,
    ):
        records = write_parts(former)
        with dataset_lock(target, ignored):
            with pytest.raises(ConflictError, match="was taken over by"):
                former.publish(records, [], {})
            assert not target.exists()
        made = make_dataset(target)
        former.publish(records, [], {})  # what it staged is gone
    assert made.digest == open_dataset(target).digest


def test_a_scoring_that_lost_its_place_does_not_complete(place: Location) -> None:
    """Its chunks may be used by the other, for they are whole; it publishes nothing."""
    schema = scores_schema(rows=9)
    home = place.child(f"scores/{schema.home}")
    with (
        pytest.raises(ConflictError, match="was taken over by"),
        score_into(home, schema) as former,
    ):
        write_scores(former, [0, 1])
        with score_into(home, schema, ignored) as writer:
            assert [2, 3, 4] == writer.missing
            write_scores(writer, [2])
            with pytest.raises(ConflictError, match="was taken over by"):
                former.publish({})
            assert not is_complete(home)
        assert np.array_equal(writer.read_chunk(0)[0], former.read_chunk(0)[0])
        former.publish({})


def test_two_runs_cannot_begin_at_one_prefix(place: Location) -> None:
    """A record that came meanwhile is not written over."""
    run = begin_run(place)
    with pytest.raises(ConflictError, match=r"is a run already|exists already"):
        begin_run(place)
    with pytest.raises(ConflictError, match=r"run\.json exists already"):
        place.put("run.json", b"{}", new=True)
    assert run == open_run(place)
