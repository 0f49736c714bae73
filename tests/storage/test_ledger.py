"""The ledger: exactly one line for each scoring, despite any interruption."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage import documents
from storage.documents import sealed_bytes
from storage.errors import BadDataError, ConflictError, UnreachableError
from storage.ledger import LEDGER_COUNT, LOCK, Entry, Ledger, waiting_lock
from storage.local import LocalLocation
from storage.places import open_location
from storage.verify import verify_run
from tests.storage.artefacts import begin_run, make_scores, scores_schema


def entry(**facts: Any) -> Entry:
    """Return a line."""
    plain = {"event": "scored", "time": "2026-01-01T00:00:00+00:00", "exit": 0}
    return plain | {"model_digest": "ab" * 32, "result": "scores/test-1"} | facts


def record(run: Path, line: Entry) -> bool:
    """Record a line unless there is one with the same result."""
    return Ledger(open_location(run)).record(line, bool, f'"{line["result"]}"')


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return the place of a ledger that does not exist yet."""
    return Ledger(open_location(tmp_path))


def file_of(ledger: Ledger) -> Path:
    return ledger.location.path / "ledger.jsonl"


def test_lines_in_order(ledger: Ledger, tmp_path: Path) -> None:
    """Lines are read back in the order of recording."""
    assert [] == ledger.entries()
    lines = [entry(result=f"scores/test-{number}") for number in range(3)]
    assert [True] * 3 == [record(tmp_path, line) for line in lines]
    assert lines == ledger.entries()
    assert lines[1:2] == ledger.entries('"scores/test-1"')


def test_once(ledger: Ledger, tmp_path: Path) -> None:
    """A known line is not recorded again."""
    assert [True, False] == [record(tmp_path, entry()) for _ in range(2)]
    assert 1 == len(ledger.entries())


def test_a_line_recorded_by_another_job(ledger: Ledger, tmp_path: Path) -> None:
    """A line that another job records before this one has the lock is not recorded again."""
    looks: list[int] = []

    def known(lines: list[Entry]) -> bool:
        looks.append(len(lines))
        if len(looks) == 1:
            record(tmp_path, entry())
            return False
        return bool(lines)

    assert not ledger.record(entry(), known, '"scores/test-1"')
    assert [0, 1] == looks
    assert 1 == len(ledger.entries())


def test_once_of_many_processes(ledger: Ledger, tmp_path: Path) -> None:
    """Several jobs with the same scorings record each exactly once."""
    lines = [entry(result=f"scores/test-{number % 5}") for number in range(40)]
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        recorded = pool.starmap(record, [(tmp_path, line) for line in lines], chunksize=1)
    assert 5 == sum(recorded)
    assert 5 == len({line["result"] for line in ledger.entries()})


@pytest.mark.parametrize("length", [1, 20, -1])
def test_torn_line(length: int, ledger: Ledger, tmp_path: Path) -> None:
    """An incomplete last line is ignored, and removed when the next line is recorded."""
    record(tmp_path, entry(result="scores/test-0"))
    whole = file_of(ledger).read_bytes()
    record(tmp_path, entry(result="scores/test-1"))
    rest = file_of(ledger).read_bytes()[len(whole) :]
    file_of(ledger).write_bytes(whole + rest[:length])
    assert ["scores/test-0"] == [line["result"] for line in ledger.entries()]
    assert record(tmp_path, entry(result="scores/test-1"))
    assert whole + rest == file_of(ledger).read_bytes()


@pytest.mark.parametrize("torn", [False, True])
def test_lines_are_not_read_again(
    torn: bool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that records many lines reads each at most twice, those of other jobs too."""
    read: list[int] = []
    get = LocalLocation.get

    def counted(location: LocalLocation, key: str, *part: int) -> bytes:
        data = get(location, key, *part)
        read.append(len(data))
        return data

    monkeypatch.setattr(LocalLocation, "get", counted)
    lines = [entry(result=f"scores/test-{number}") for number in range(50)]
    for number, (mine, other) in enumerate(zip(lines[::2], lines[1::2], strict=True)):
        assert ledger.record(mine, bool, f'"{mine["result"]}"')
        ledger.location.append("ledger.jsonl", sealed_bytes(other, indent=None))
        if torn and number == 10:
            with open(file_of(ledger), "ab") as file:
                file.write(b'{"event": "sco')
    assert lines == ledger.entries()
    assert sum(read) < 4 * file_of(ledger).stat().st_size


@pytest.mark.parametrize("lines", [0, 1, 2, 3, 9])
def test_another_ledger_in_its_place(lines: int, ledger: Ledger, tmp_path: Path) -> None:
    """If the ledger was replaced by a new one of any length, the new one is read."""
    for number in range(2):
        record(tmp_path, entry(result=f"scores/old-{number}"))
    assert 2 == len(ledger.entries())
    file_of(ledger).unlink()
    for number in range(lines):
        record(tmp_path, entry(result=f"scores/another-{number}"))
    expected = [f"scores/another-{number}" for number in range(lines)]
    assert expected == [line["result"] for line in ledger.entries()]


def test_damage(ledger: Ledger, tmp_path: Path) -> None:
    """A flipped bit is an error that names the line and the remedy."""
    for number in range(2):
        record(tmp_path, entry(result=f"scores/test-{number}"))
    data = file_of(ledger).read_bytes()
    file_of(ledger).write_bytes(data.replace(b"test-1", b"test-7"))
    with pytest.raises(BadDataError, match=r"ledger\.jsonl line 2 is damaged.* move the ledger"):
        ledger.entries()


def test_something_else_at_the_end(ledger: Ledger, tmp_path: Path) -> None:
    """Bytes that are not the beginning of a line are damage, not an incomplete line."""
    record(tmp_path, entry())
    with open(file_of(ledger), "ab") as file:
        file.write(b"garbage")
    with pytest.raises(BadDataError, match="ends with something other than a line"):
        ledger.entries()


def test_failures(ledger: Ledger) -> None:
    """A failure is recorded once for each content and model, until it is deleted."""
    bad = entry(content="c1", error="why")
    for one in (bad, bad, entry(content="c2", error="why")):
        ledger.put_failure(one)
    assert ["c1", "c2"] == sorted(failure["content"] for failure in ledger.failures())
    ledger.delete_failure(bad)
    assert ["c2"] == [failure["content"] for failure in ledger.failures()]


def test_waiting_gives_up(ledger: Ledger) -> None:
    """After the timeout the lock's holder is named."""
    lock = ledger.location.child(LOCK)
    with (
        waiting_lock(lock, "It"),
        pytest.raises(ConflictError, match="It is being written by process"),
        waiting_lock(lock, "It", None, 0.05),
    ):
        pass


def test_waiting_gets_its_turn(ledger: Ledger) -> None:
    """A lock that is released before the timeout is taken."""
    lock = ledger.location.child(LOCK)
    first = waiting_lock(lock, "It")
    first.__enter__()
    looks = 0

    def free(conflict: ConflictError) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            first.__exit__(None, None, None)

    with waiting_lock(lock, "It", None, 60, free):
        pass
    assert 3 == looks


@pytest.fixture
def recorded(ledger: Ledger, tmp_path: Path) -> Ledger:
    """Return a ledger of three lines, two of them of existing scores."""
    begin_run(open_location(tmp_path))
    for split in ("test", "train"):
        home = make_scores(open_location(tmp_path), scores_schema(split=split)).location.name
        record(tmp_path, entry(result=f"scores/{home}"))
    record(tmp_path, entry(event="failed", result="some-file"))
    assert [] == errors_in(tmp_path)
    return ledger


def errors_in(run: Path) -> list[str]:
    """Return the errors of a verification."""
    return [str(error) for _, error in verify_run(open_location(run)) if error]


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [],
        lambda lines: lines[:1],
        lambda lines: lines[:2],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0], *lines],
        lambda lines: [*lines[:2], lines[2][:9]],
    ],
    ids=["emptied", "cut-2", "cut-1", "first", "middle", "order", "twice", "first-twice", "torn"],
)
def test_lost_lines_are_reported(
    change: Callable[[list[bytes]], list[bytes]], recorded: Ledger, tmp_path: Path
) -> None:
    """Verification detects lines that are missing, reordered or repeated."""
    lines = file_of(recorded).read_bytes().splitlines(keepends=True)
    file_of(recorded).write_bytes(b"".join(change(lines)))
    assert any("ledger.jsonl" in message for message in errors_in(tmp_path))


def test_nothing_is_added_to_a_ledger_that_lost_lines(recorded: Ledger, tmp_path: Path) -> None:
    """Nothing is added to a damaged ledger; after it is moved away, a new one is started."""
    file_of(recorded).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(BadDataError, match=r"has 0 lines; expected 3.* move the ledger away"):
            record(tmp_path, entry(result="scores/test-9"))
    file_of(recorded).unlink()
    assert ["ledger.jsonl is missing. Restore"] == [
        message.split("/")[-1][:32] for message in errors_in(tmp_path)
    ]
    lines = [
        entry(result=f"scores/{scores_schema(split=split).home}") for split in ("test", "train")
    ]
    assert [True, True] == [record(tmp_path, line) for line in lines]
    assert [] == errors_in(tmp_path)


def test_a_death_before_the_count(recorded: Ledger, tmp_path: Path) -> None:
    """A line that was written just before a crash is sound, and counted with the next one."""
    before = recorded.location.get(LEDGER_COUNT)
    record(tmp_path, entry(event="found", result="x"))
    recorded.location.put(LEDGER_COUNT, before)
    assert [] == errors_in(tmp_path)
    record(tmp_path, entry(event="found", result="y"))
    assert 5 == documents.read_sealed(recorded.location, LEDGER_COUNT)["lines"]


@pytest.mark.parametrize("lines", [1, 4])
def test_a_death_before_the_count_of_a_known_line(
    lines: int, ledger: Ledger, tmp_path: Path
) -> None:
    """The next job that knows the line updates the count, so that its loss is detected."""
    for number in range(lines):
        before = ledger.location.get(LEDGER_COUNT) if number else None
        record(tmp_path, entry(result=f"scores/test-{number}"))
    if before is None:
        ledger.location.delete(LEDGER_COUNT)
    else:
        ledger.location.put(LEDGER_COUNT, before)
    assert not record(tmp_path, entry(result="scores/test-0"))
    assert lines == documents.read_sealed(ledger.location, LEDGER_COUNT)["lines"]
    file_of(ledger).write_bytes(b"")
    with pytest.raises(BadDataError, match="has 0 lines"):
        record(tmp_path, entry(result="scores/test-0"))


def test_a_ledger_of_an_earlier_release(recorded: Ledger, tmp_path: Path) -> None:
    """A ledger without a count is read, mentioned, and counted with its next line."""
    recorded.location.delete(LEDGER_COUNT)
    assert 3 == len(Ledger(open_location(tmp_path)).entries())
    mentioned: list[str] = []
    errors = [error for _, error in verify_run(open_location(tmp_path), mentioned.append) if error]
    assert [] == errors
    assert [True] == ["ledger.json is missing" in text for text in mentioned]
    record(tmp_path, entry(event="found", result="y"))
    assert 4 == documents.read_sealed(recorded.location, LEDGER_COUNT)["lines"]


def test_scores_and_lines_must_match(recorded: Ledger, tmp_path: Path) -> None:
    """Scores without a line, and a line without scores, are each named."""
    train = scores_schema(split="train").home
    recorded.location.child(train).delete_tree()
    make_scores(open_location(tmp_path), scores_schema(model_digest="f" * 64))
    extra, missing = errors_in(tmp_path)
    assert "has no line for the scores test-" in extra
    assert f"/scores/{train}, which is missing" in missing


def test_a_ledger_that_is_a_pipe(ledger: Ledger, tmp_path: Path) -> None:
    """A ledger that is a pipe is refused without blocking."""
    begin_run(open_location(tmp_path))
    (tmp_path / "scores").mkdir()
    os.mkfifo(file_of(ledger))
    with pytest.raises(BadDataError, match=r"ledger\.jsonl is not a regular file"):
        record(tmp_path, entry())
    with pytest.raises(UnreachableError, match="not a regular file"):
        ledger.location.append("ledger.jsonl", b"{}\n")
    assert 1 == len(errors_in(tmp_path))
