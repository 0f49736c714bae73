"""The ledger of a run: a sealed line for each scoring and each failure.

`scores/ledger.jsonl` is append-only and has its own lock. `scores/ledger.json` records the number
and the digest of its lines, so that lost lines are detected. `scores/failed/` has a document for
each inbox file that is bad now; the ledger keeps the history.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from storage import documents
from storage.errors import BadDataError, ConflictError
from storage.location import Location, Lock, TakeOver
from storage.runs import SCORES

LEDGER = "ledger.jsonl"
LEDGER_COUNT = "ledger.json"
"""The number of lines and their digest."""
FAILED = "failed"
LOCK = ".ledger.lock"
LOCK_SECONDS = 10.0
"""Timeout for the ledger's lock; writing a line takes milliseconds."""

POLL_SECONDS = 0.02
"""Interval between attempts to take a lock."""

SCORED = "scored"
"""Scores were published; they have exactly one such line, even after a crash."""
FOUND = "found"
"""Rows that had been scored before arrived under another name or in another format."""
JUDGED = "judged"
"""Existing scores were compared with gates again, with a different verdict."""
FAILED_EVENT = "failed"
"""A file of an inbox could not be scored."""

COUNT_FIELDS = {"lines": int, "sha256": str}
FIELDS = {"event": str, "time": str, "exit": int, "model_digest": str}
"""Fields of every line."""
REMEDY = "Or move the ledger away: `pipeline score` starts a new one from the existing scores."

Entry = dict[str, Any]


class LedgerError(BadDataError):
    """The ledger itself is damaged, so nothing can be recorded."""


class Ledger:
    """The ledger of a run, which need not exist yet."""

    def __init__(self, run: Location, take_over: TakeOver | None = None) -> None:
        self._take_over = take_over
        self.location = run.child(SCORES)
        self._size = 0
        self._known = [b""]
        self._has_checked_count = False
        self._is_count_behind = False

    def __repr__(self) -> str:
        return f"<Ledger {self}>"

    def __str__(self) -> str:
        return f"{self.location}/{LEDGER}"

    def entries(self, containing: str = "") -> list[Entry]:
        """Return the checked lines that contain a text, oldest first.

        An incomplete last line, which a crash leaves, is ignored. Raises `LedgerError` for any
        other damaged line, and if lines are missing.
        """
        if not self._has_checked_count:
            self.check_count()
        *lines, torn = self._lines()
        needle = containing.encode()
        entries = [
            self._checked(line, number) for number, line in enumerate(lines, 1) if needle in line
        ]
        if torn and not torn.startswith(b"{"):
            raise LedgerError(f"{self} ends with something other than a line. {REMEDY}")
        return entries

    def check_count(self, *, torn_is_lost: bool = False) -> None:
        """Raise `LedgerError` if recorded lines are missing.

        A missing ledger is not an error: the next line starts a new one. An early release kept no
        count.
        """
        count: dict[str, Any] = {"lines": 0, "sha256": _digest([])}
        with _remedied(), suppress(FileNotFoundError):
            count = documents.read_sealed(self.location, LEDGER_COUNT)
            documents.check_fields(count, COUNT_FIELDS, f"{self.location}/{LEDGER_COUNT}")
        if self._is_absent():
            return
        *lines, torn = self._lines()  # read after the count: the ledger only grows
        lost = count["lines"] - len(lines)
        self._is_count_behind = lost < 0
        if lost == 1 and torn and not torn_is_lost:
            return
        if lost > 0:
            raise LedgerError(
                f"{self} has {len(lines):,} lines; expected {count['lines']:,}. Restore it from a "
                f"copy. {REMEDY}"
            )
        if _digest(lines[: count["lines"]]) != count["sha256"]:
            for number, line in enumerate(lines, 1):
                self._checked(line, number)
            raise LedgerError(
                f"{self} has other lines than its count records. Restore it from a copy. {REMEDY}"
            )
        self._has_checked_count = True

    def check_presence(self) -> None:
        """Raise `LedgerError` if there is a count of lines but no ledger."""
        if self._is_absent() and self.location.holds(LEDGER_COUNT):
            raise LedgerError(
                f"{self} is missing. Restore it from a copy, or run `pipeline score` again, which "
                "starts a new ledger from the existing scores."
            )

    def _is_absent(self) -> bool:
        if self.location.holds(LEDGER):
            return False
        if self.location.exists(LEDGER):
            raise LedgerError(f"{self} is not a regular file. Move it away and run again.")
        return True

    @property
    def is_torn(self) -> bool:
        """Whether the last line is incomplete after a crash; `entries` ignores it."""
        return bool(self._lines()[-1])

    def record(self, entry: Entry, known: Callable[[list[Entry]], bool], containing: str) -> bool:
        """Append a line unless `known` returns true for the lines that contain a text.

        Checks before taking the lock and again under it, so that only one of several jobs records
        the same fact. Returns whether this one did.
        """
        if known(self.entries(containing)) and not self._is_count_behind:
            return False
        lock_file, subject = self.location.child(LOCK), f"The ledger {self}"
        with waiting_lock(lock_file, subject, self._take_over, LOCK_SECONDS) as lock:
            is_known = known(self.entries(containing))
            self.check_count()
            if is_known and not self._is_count_behind:
                return False
            location = self.location.under(lock)
            *lines, torn = self._lines()
            if torn or self._is_count_behind:
                location.sweep()  # a writer that died may have left a partial file
            if torn:
                location.put(LEDGER, _joined(lines))
            if not is_known:
                line = documents.sealed_bytes(entry, indent=None)
                location.append(LEDGER, line, _joined(lines))
                lines = [*lines, line.removesuffix(b"\n")]
            # A crash just before this leaves too low a count; the next job updates it.
            count = {"lines": len(lines), "sha256": _digest(lines)}
            location.put(LEDGER_COUNT, documents.sealed_bytes(count))
            self._is_count_behind = False
        return not is_known

    def failures(self) -> list[Entry]:
        """Return the records of files that are bad now."""
        return [
            documents.read_sealed(self.location, f"{FAILED}/{name}")
            for name in self.location.names(FAILED)
            if name.endswith(".json")
        ]

    def put_failure(self, entry: Entry) -> None:
        self.location.put(_failure_key(entry), documents.sealed_bytes(entry))

    def delete_failure(self, entry: Entry) -> None:
        self.location.delete(_failure_key(entry))

    def _lines(self) -> list[bytes]:
        """Return the complete lines, and the bytes after the last one.

        The ledger only grows, so if its size has changed, only the last known line and the bytes
        after it are read. If that line differs, the whole ledger is read again.
        """
        try:
            size = self.location.size(LEDGER)
        except FileNotFoundError:
            size = 0
        if size == self._size and not self._known[-1]:
            return self._known
        last = b"".join(line + b"\n" for line in self._known[-2:-1])
        start = self._size - len(self._known[-1]) - len(last)
        data = self._data(start) if size >= start + len(last) else b""
        if data.startswith(last):
            self._known[-2:] = data.split(b"\n")
        else:
            start, data = 0, self._data()
            self._known = data.split(b"\n")
        self._size = start + len(data)
        return self._known

    def _data(self, start: int = 0) -> bytes:
        try:
            if start:
                return self.location.get(LEDGER, start)
            return documents.read(self.location, LEDGER)
        except FileNotFoundError:
            return b""

    def _checked(self, line: bytes, number: int) -> Entry:
        place = f"{self} line {number}"
        with _remedied():
            entry = documents.parse_sealed(line, place)
            documents.check_fields(entry, FIELDS, place)
        return entry


@contextmanager
def _remedied() -> Iterator[None]:
    """Turn `BadDataError` into `LedgerError` with a remedy."""
    try:
        yield
    except BadDataError as error:
        raise LedgerError(f"{error} {REMEDY}") from error


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(_joined(lines)).hexdigest()


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _failure_key(entry: Entry) -> str:
    digest = hashlib.sha256(f"{entry['content']}|{entry['model_digest']}".encode()).hexdigest()
    return f"{FAILED}/{digest[:16]}.json"


def pause_between_attempts(_: ConflictError) -> None:
    """Sleep before the next attempt to take a lock."""
    time.sleep(POLL_SECONDS)


@contextmanager
def waiting_lock(
    lock_file: Location,
    subject: str,
    take_over: TakeOver | None = None,
    seconds: float = 0.0,
    pause: Callable[[ConflictError], None] = pause_between_attempts,
) -> Iterator[Lock]:
    """Hold a writer's lock, waiting up to `seconds` for its holder.

    `pause` is called with the conflict between two attempts, and may raise to give up. The last
    attempt raises `ConflictError` that names the holder. With `take_over` it takes a lock in a
    store instead, because a live holder would have released it.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as stack:
        lock: Lock | None = None
        while lock is None:
            is_last = time.monotonic() >= deadline
            try:
                permission = take_over if is_last else None
                lock = stack.enter_context(lock_file.writer_lock(subject, permission))
            except ConflictError as conflict:
                if is_last:
                    raise
                pause(conflict)
        yield lock
