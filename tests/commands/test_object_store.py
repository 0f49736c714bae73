"""The commands on s3:// places: the same bits as on disk, even after kills and failed requests."""

import json
from itertools import count, cycle
from pathlib import Path

import pytest

from tests.commands.conftest import SMALL, Call
from tests.commands.process import (
    Ended,
    assert_refused,
    document,
    kill_at_line,
    run_pipeline,
    start_pipeline,
)
from tests.object_store.proxy import CUT, DROP, LOST, Proxy
from tests.object_store.server import Store

INGEST = ("ingest", "synthetic:300,60", "--rows-per-chunk", 64)
CYCLES = ("--schedule", "cosine", "--restarts", 2, "--keep", 1)
TRAIN = ("train", *SMALL, *CYCLES, "--epochs", 6, "--checkpoint-every", 2, "--holdout", 50)


@pytest.fixture
def dataset_url(store: Store, environment: dict[str, str], call: Call) -> str:
    """A dataset in the store."""
    url = f"{store.new_place()}/set"
    document(call(*INGEST, "--out", url, "--json"))
    return url


@pytest.fixture
def expected(call: Call) -> dict[str, object]:
    """The undisturbed result of the same training in local directories."""
    document(call(*INGEST, "--out", "set", "--json"))
    return document(call(*TRAIN, "--dataset", "set", "--run", "run", "--json"))


def digests(trained: dict[str, object]) -> tuple[object, ...]:
    """Return the digests of a run's parameters and order."""
    return trained["parameters_digest"], trained["order_digest"]


@pytest.mark.slow
def test_processes_share_nothing_but_the_store(
    store: Store,
    expected: dict[str, object],
    call: Call,
    here: Path,
) -> None:
    """Commands that share only the store produce the digests of a local disk."""
    place, numbers = str(store.new_place()), count()
    places = ("--dataset", f"{place}/set", "--run", f"{place}/runs/one")

    def elsewhere(*arguments: object) -> Ended:
        directory = here / f"machine-{next(numbers)}"
        directory.mkdir()
        ended = run_pipeline(*arguments, cwd=directory, env=store.environment)
        assert [] == list(directory.iterdir())
        return ended

    made = document(elsewhere(*INGEST, "--out", f"{place}/set", "--json"))
    trained = document(elsewhere(*TRAIN, *places, "--json"))
    scored = document(elsewhere("score", *places, "--out", f"{place}/rows.csv", "--json"))
    assert document(call("inspect", "set", "--json"))["digest"] == made["digest"]
    assert digests(expected) == digests(trained)
    local = document(
        call("score", "--dataset", "set", "--run", "run", "--out", "rows.csv", "--json")
    )
    assert local["scores_digest"] == scored["scores_digest"]
    assert f"{place}/rows.csv" == scored["output"]
    parent, name = store.location(f"{place.split('/', 3)[3]}/rows.csv").split()
    assert (here / "rows.csv").read_bytes() == parent.get(name)

    report = document(elsewhere("inspect", f"{place}/runs/one", "--json"))
    assert f"{place}/runs/one" == report["location"]
    assert 6 == len(report["epochs"])
    for what in ("set", "runs/one"):
        assert [] == document(elsewhere("verify", f"{place}/{what}", "--json"))["wrong"]
    again = document(elsewhere(*INGEST, "--out", f"{place}/set", "--json"))
    assert (True, made["digest"]) == (again["already_done"], again["digest"])
    assert document(elsewhere("score", *places, "--json"))["already_done"]


@pytest.mark.slow
def test_a_killed_training_is_taken_over(
    store: Store,
    expected: dict[str, object],
    environment: dict[str, str],
    dataset_url: str,
    call: Call,
    here: Path,
) -> None:
    """After SIGKILL the next job needs --take-over, and ends with the same bits and snapshots."""
    run = f"{store.new_place()}/run"
    arguments = (*TRAIN, "--dataset", dataset_url, "--run", run, "--resume")
    process = kill_at_line(" +2/", *arguments, cwd=here, env=environment)
    refused = call(*arguments)
    assert_refused(refused, 4, f"process {process} on ", "--take-over")
    ended = call(*arguments, "--take-over")
    assert 0 == ended.code, ended.err
    assert f"{run} was being written by process {process} on " in ended.err
    assert ", from checkpoint " in ended.out
    trained = document(call(*arguments, "--json"))
    assert digests(expected) == digests(trained)
    assert [] == document(call("verify", run, "--json"))["wrong"]
    checkpoints = document(call("inspect", run, "--json"))["checkpoints"]
    names = [checkpoint["name"] for checkpoint in checkpoints if checkpoint["snapshot"]]
    assert ["000002-000000", "000004-000000", "000006-000000"] == names


@pytest.mark.slow
def test_one_of_two_trainers_wins(
    store: Store,
    expected: dict[str, object],
    environment: dict[str, str],
    dataset_url: str,
    call: Call,
    here: Path,
) -> None:
    """If two jobs start training in one place at once, one ends with exit code 4."""
    run = f"{store.new_place()}/run"
    arguments = (*TRAIN, "--dataset", dataset_url, "--run", run)
    with (
        start_pipeline(*arguments, cwd=here, env=environment) as one,
        start_pipeline(*arguments, cwd=here, env=environment) as other,
    ):
        errors = one.communicate()[1] + other.communicate()[1]
    assert [0, 4] == sorted([one.returncode, other.returncode]), errors
    assert any(why in errors for why in ("being written by process", "exists", "is a run already"))
    trained = document(call(*arguments, "--resume", "--json"))
    assert digests(expected) == digests(trained)


@pytest.mark.slow
def test_failing_requests(
    proxy: Proxy,
    store: Store,
    expected: dict[str, object],
    environment: dict[str, str],
    call: Call,
) -> None:
    """All three commands succeed although every seventeenth request fails."""
    failures, numbers = cycle(["500", CUT, "503", LOST, DROP]), count(1)
    proxy.plan = lambda method, path: None if next(numbers) % 17 else next(failures)
    place = f"{store.new_place()}"
    option = ("--storage-option", f"endpoint_url={proxy.store.endpoint}", "--json")
    places = ("--dataset", f"{place}/set", "--run", f"{place}/run")
    document(call(*INGEST, "--out", f"{place}/set", *option))
    trained = document(call(*TRAIN, *places, *option))
    assert digests(expected) == digests(trained)
    scored = document(call("score", *places, *option))
    local = document(call("score", "--dataset", "set", "--run", "run", "--json"))
    assert local["scores_digest"] == scored["scores_digest"]
    assert 30 < next(numbers) // 17


@pytest.mark.slow
def test_a_store_that_stops_responding(
    proxy: Proxy,
    store: Store,
    expected: dict[str, object],
    environment: dict[str, str],
    dataset_url: str,
    call: Call,
) -> None:
    """Training ends with exit code 6 and names the place; resumed, it ends with the same bits."""
    run = f"{store.new_place()}/run"
    lost: list[str] = []

    def plan(method: str, path: str) -> str | None:
        if "000002-000000" in path:
            lost.append(path)
        return "503" if lost else None

    proxy.plan = plan
    arguments = (*TRAIN, "--dataset", dataset_url, "--run", run, "--resume")
    options = (f"endpoint_url={proxy.store.endpoint}", "retry_seconds=0.3")
    flags = [part for option in options for part in ("--storage-option", option)]
    ended = call(*arguments, *flags, "--quiet")
    assert_refused(ended, 6, f"{run}/checkpoints", "503", "retried for")
    again = call(*arguments, "--take-over", "--json")
    assert 0 == again.code, again.err
    trained = json.loads(again.out)
    assert digests(expected) == digests(trained)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("inspect", "s3://bucket/nothing"), 3, "s3://bucket/nothing does not exist"),
        (("train", "--dataset", "s3://bucket/nothing"), 3, "There is no dataset at s3://bucket/n"),
        (("score", "--run", "s3://bucket/nothing"), 3, "There is no run at s3://bucket/nothing"),
        (("inspect", "s3://no-bucket/set"), 6, "there is no bucket 'no-bucket'"),
        (("ingest", "synthetic:9,9", "--out", "s3://bucket/"), 2, "is not a valid S3 URL"),
        (("inspect", "data", "--storage-option", "region=x"), 2, "applies to places in a store"),
        (("inspect", "s3://bucket/set", "--storage-option", "a=b"), 2, "--storage-option a is not"),
        (("demo", "s3://bucket/demo"), 2, "the demo needs a local directory"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else None,
)
def test_errors(
    environment: dict[str, str], call: Call, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """The message is one line with the place, and the exit code is the documented one."""
    assert_refused(call(*arguments), code, words)
