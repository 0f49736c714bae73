"""Commands that continue after another process took over, in a store and on a disk."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.places import open_location
from tests.commands.conftest import SMALL, Call
from tests.commands.process import (
    assert_refused,
    document,
    run_pipeline,
    start_pipeline,
    wait_for_line,
)
from tests.object_store.proxy import Proxy
from tests.object_store.server import Store

pytestmark = pytest.mark.slow

TRAIN = ("train", *SMALL, "--schedule", "constant", "--resume", "--epochs")


def when_written(proxy: Proxy, end: str, act: Callable[[], None]) -> None:
    """Call `act` before the first write to a key that ends with `end` is forwarded."""
    waiting = [act]

    def plan(method: str, path: str) -> None:
        if method == "PUT" and path.endswith(end) and waiting:
            waiting.pop()()

    proxy.plan = plan


@pytest.mark.parametrize(
    ("what", "end"),
    [
        (("ingest", "synthetic:90,30", "--overwrite", "--out", "{home}/set"), "/set/zarr.json"),
        (
            (*TRAIN, 3, "--dataset", "{home}/set", "--run", "{home}/run"),
            "/000002-000000/manifest.json",
        ),
        (("score", "--dataset", "{home}/set", "--run", "{home}/run"), "/zarr.json"),
    ],
    ids=["ingest", "train", "score"],
)
def test_a_former_holder_continues(
    store: Store,
    proxy: Proxy,
    home: str,
    call: Call,
    here: Path,
    what: tuple[object, ...],
    end: str,
) -> None:
    """A last write that arrives after the new holder has finished does not change its work."""
    arguments = [str(word).format(home=home) for word in what]
    verify = ("verify", f"{home}/{'set' if what[0] == 'ingest' else 'run'}", "--json")
    verified: list[object] = []

    def other() -> None:
        changed = [word.replace("90,30", "120,40") for word in arguments]
        ended = run_pipeline(*changed, "--take-over", "--json", cwd=here, env=store.environment)
        assert 0 == ended.code, ended.err
        verified.append(document(run_pipeline(*verify, cwd=here, env=store.environment)))

    when_written(proxy, end, other)
    ended = call(*arguments, "--storage-option", f"endpoint_url={proxy.store.endpoint}")
    if what[0] == "score":
        assert 0 == ended.code, ended.err
        assert "Another job completed the same scoring" in ended.out + ended.err
    else:
        assert 4 == ended.code, ended.err
        assert "was taken over by another process, which has finished" in ended.err
    assert verified == [document(call(*verify))]
    assert [] == document(call(*verify))["wrong"]


@pytest.mark.parametrize("replaced", [False, True], ids=["moved", "replaced"])
def test_a_run_that_was_moved(dataset: Path, here: Path, call: Call, replaced: bool) -> None:
    """After a run is moved, its job does not touch the old place, even if a new run is there."""
    train = ("train", *SMALL, "--run", "run")
    with start_pipeline(*train, "--epochs", 100_000, cwd=here) as process:
        wait_for_line(process, " +1/")
        (here / "run").rename(here / "elsewhere")
        if replaced:
            document(call(*train, "--epochs", 1, "--json"))
        _, errors = process.communicate()
    assert 4 == process.returncode, errors
    assert "was moved or removed while it was being written" in errors
    assert replaced == (here / "run").exists()
    assert [] == document(call("verify", "elsewhere", "--json"))["wrong"]
    if replaced:
        assert [] == document(call("verify", "run", "--json"))["wrong"]


def test_no_lock_remains_beside_a_dataset(here: Path, call: Call) -> None:
    """No lock file remains after an ingest, or after one that was refused."""
    ingest = ("ingest", "--out", "data/set")
    document(call(*ingest, "synthetic:30,10", "--json"))
    assert ["set"] == open_location(here / "data").names()
    assert_refused(call(*ingest, "synthetic:20,10"), 4, "--overwrite")
    assert ["set"] == open_location(here / "data").names()
