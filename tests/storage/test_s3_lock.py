"""The writer's lock in a store: one holder, explicit takeover, and former holders that stop."""

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from storage.checkpoints import list_checkpoints, prune_checkpoints
from storage.errors import ConflictError, UsageError
from storage.location import Location
from storage.runs import open_run, run_lock
from tests.object_store.proxy import LOST, Proxy
from tests.object_store.server import Store
from tests.storage.artefacts import (
    begin_run,
    contents,
    make_run,
    metrics_line,
    save_epoch,
)

HERE = f"process {os.getpid()} on {socket.gethostname()} since "


@pytest.fixture
def place(store: Store) -> Location:
    return store.new_place()


def ignored(message: str) -> None:
    """Take over a lock without a message."""


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["train", "--dataset", "s3://bucket/set"], "(pipeline train). Wait for it"),
        (["--dataset", ""], "(pipeline). Wait for it"),
        ([], "(pipeline). Wait for it"),
    ],
)
def test_the_command_of_the_holder(
    place: Location, monkeypatch: pytest.MonkeyPatch, words: list[str], command: str
) -> None:
    """The message names the holder's command without its options."""
    monkeypatch.setattr("sys.argv", ["/usr/bin/pipeline", *words])
    lock = place.child(".lock")
    with lock.writer_lock("The run"), pytest.raises(ConflictError) as caught:
        lock.writer_lock("The run").__enter__()
    assert command in str(caught.value)


def test_concurrent_writers_of_one_place(place: Location) -> None:
    """One of several concurrent writers gets the lock; so does one that takes it over."""
    together = threading.Barrier(6)

    def ask(take_over: bool) -> bool:
        lock = place.child(".lock").writer_lock("The run", ignored if take_over else None)
        together.wait()
        with ExitStack() as stack:
            try:
                taken = stack.enter_context(lock)
            except ConflictError:
                taken = None
            together.wait()  # none releases it before all have asked
            try:
                return taken is not None and taken.check() is None
            except ConflictError:
                return False
            finally:
                together.wait()

    for take_over in (False, True):
        with ThreadPoolExecutor(6) as pool:
            assert 1 == sum(pool.map(ask, [take_over] * 6))
        place.put(".lock", b"abandoned")


def test_a_store_without_conditional_writes_is_refused(proxy: Proxy, place: Location) -> None:
    """A store that would grant the lock to every writer is refused."""
    proxy.withheld = {"if-none-match", "if-match"}
    proxied = proxy.store.location(str(place).split("/", 3)[3])
    with (
        pytest.raises(UsageError, match="ignores conditional writes"),
        proxied.child(".lock").writer_lock("The run"),
    ):
        pytest.fail("the lock excluded no writer")


def test_a_takeover_names_the_former_holder(place: Location) -> None:
    """A takeover names the former holder; taking a free lock is silent."""
    messages: list[str] = []
    with place.child(".lock").writer_lock("The run", messages.append):
        assert [] == messages
        with place.child(".lock").writer_lock("The run", messages.append):
            assert [True] == [f"The run was being written by {HERE}" in text for text in messages]


def test_a_lost_response_to_a_lock_request(proxy: Proxy, place: Location) -> None:
    """A lock that was written, but whose response was lost, is recognised."""
    proxied = proxy.store.location(str(place).split("/", 3)[3])
    proxy.first(LOST, 1, "PUT", ".lock")
    with proxied.child(".lock").writer_lock("The run") as lock:
        lock.check()


def test_a_former_holder_does_not_release_the_lock(place: Location) -> None:
    """The former holder does not release the new holder's lock."""
    first, second = ExitStack(), ExitStack()
    first.enter_context(place.child(".lock").writer_lock("The run"))
    lock = second.enter_context(place.child(".lock").writer_lock("The run", ignored))
    first.close()
    lock.check()
    second.close()


def test_a_trainer_that_lost_its_run_publishes_nothing(place: Location) -> None:
    """A former holder writes neither metrics nor checkpoints, and does not prune."""
    make_run(place)
    with (
        pytest.raises(ConflictError, match=r"was taken over by .*stopped writing there"),
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


def test_two_runs_cannot_begin_at_one_prefix(place: Location) -> None:
    """A run.json that another writer created first is not overwritten."""
    run = begin_run(place)
    with pytest.raises(ConflictError, match=r"is a run already|exists already"):
        begin_run(place)
    with pytest.raises(ConflictError, match=r"run\.json exists already"):
        place.put("run.json", b"{}", new=True)
    assert run == open_run(place)
