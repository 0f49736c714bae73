"""The ledger of a run's scorings: a sealed line for each, and what could not be scored.

`scores/ledger.jsonl` is only ever added to, under a lock of its own. `scores/ledger.json` records
how many lines it had after the last one, and their digest, so that lost lines are noticed.
`scores/failed/` holds a document for each thing in an inbox that is bad now; the ledger keeps their
history.
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
"""How many lines the ledger has, and their digest."""
FAILED = "failed"
LOCK = ".ledger.lock"
LOCK_SECONDS = 10.0
"""How long to wait for another's line: one is written in milliseconds."""

POLL_SECONDS = 0.02
"""Between two looks at a lock."""

SCORED = "scored"
"""A scoring was published; each has exactly one such line, even after a crash."""
FOUND = "found"
"""Rows that had been scored before turned up under another name or in another form."""
JUDGED = "judged"
"""A scoring of before was held against gates again, and the verdict is another."""
FAILED_EVENT = "failed"
"""Something in an inbox could not be scored."""

COUNT_FIELDS = {"lines": int, "sha256": str}
FIELDS = {"event": str, "time": str, "exit": int, "model_digest": str}
"""What every line has."""
REMEDY = "Or move the ledger away: `pipeline score` begins another, with what it finds scored."

Entry = dict[str, Any]


class LedgerError(BadDataError):
    """The ledger is damaged: no fault of what is to be recorded in it."""


class Ledger:
    """The ledger of one run."""

    def __init__(self, run: Location, take_over: TakeOver | None = None) -> None:
        """Nothing is read yet; there need not be a ledger.

        `take_over` is leave to take the lock that a dead writer left in a store.
        """
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
        """Return the lines, oldest first, whose text contains a text; each of them is checked.

        A last line that a death has cut off is left out. Raises `LedgerError` for any other
        line that is damaged, and where lines are missing.
        """
        if not self._has_checked_count:
            self.check_count()
        *lines, torn = self._lines()
        wanted = containing.encode()
        entries = [
            self._checked(line, number) for number, line in enumerate(lines, 1) if wanted in line
        ]
        if torn and not torn.startswith(b"{"):
            raise LedgerError(f"{self} ends in something that is not a line. {REMEDY}")
        return entries

    def check_count(self, *, torn_is_lost: bool = False) -> None:
        """Raise `LedgerError` where lines have been lost since they were recorded.

        A ledger that was moved away as a whole has lost none: the next line begins another. An
        early release kept no count.
        """
        count: dict[str, Any] = {"lines": 0, "sha256": _digest([])}
        with _remedied(), suppress(FileNotFoundError):
            count = documents.read_sealed(self.location, LEDGER_COUNT)
            documents.check_fields(count, COUNT_FIELDS, f"{self.location}/{LEDGER_COUNT}")
        if self._is_absent():
            return
        *lines, torn = self._lines()  # after the count: they only grow
        lost = count["lines"] - len(lines)
        self._is_count_behind = lost < 0
        if lost == 1 and torn and not torn_is_lost:
            return
        if lost > 0:
            raise LedgerError(
                f"{self} has {len(lines):,} lines; it had {count['lines']:,}. Restore it from a "
                f"copy. {REMEDY}"
            )
        if _digest(lines[: count["lines"]]) != count["sha256"]:
            for number, line in enumerate(lines, 1):
                self._checked(line, number)
            raise LedgerError(
                f"{self} has other lines than were recorded. Restore it from a copy. {REMEDY}"
            )
        self._has_checked_count = True

    def check_presence(self) -> None:
        """Raise `LedgerError` where there is no ledger though lines have been recorded."""
        if self._is_absent() and self.location.holds(LEDGER_COUNT):
            raise LedgerError(
                f"{self} is missing. Restore it from a copy, or run `pipeline score` again: it "
                "begins another ledger with the scores that it finds."
            )

    def _is_absent(self) -> bool:
        """Return whether there is no ledger; raise `LedgerError` for anything but a file."""
        if self.location.holds(LEDGER):
            return False
        if self.location.exists(LEDGER):
            raise LedgerError(f"{self} is not a regular file. Move it away and run again.")
        return True

    @property
    def is_torn(self) -> bool:
        """Whether a death has cut off the last line, which `entries` leaves out."""
        return bool(self._lines()[-1])

    def record(self, entry: Entry, known: Callable[[list[Entry]], bool], containing: str) -> bool:
        """Add a line unless it is `known` by the lines that contain a text.

        Looks before it locks and again under the lock, so that of several jobs that know of one
        thing just one records it. Returns whether this one did.
        """
        if known(self.entries(containing)) and not self._is_count_behind:
            return False
        lock_file, what = self.location.child(LOCK), f"The ledger {self}"
        with waiting_lock(lock_file, what, self._take_over, LOCK_SECONDS) as lock:
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
            # A death just before this leaves the count behind; the next job completes it.
            count = {"lines": len(lines), "sha256": _digest(lines)}
            location.put(LEDGER_COUNT, documents.sealed_bytes(count))
            self._is_count_behind = False
        return not is_known

    def failures(self) -> list[Entry]:
        """Return what is bad now, by content and model."""
        return [
            documents.read_sealed(self.location, f"{FAILED}/{name}")
            for name in self.location.names(FAILED)
            if name.endswith(".json")
        ]

    def put_failure(self, entry: Entry) -> None:
        """Record that something is bad, by its content and the model."""
        self.location.put(_failure_key(entry), documents.sealed_bytes(entry))

    def delete_failure(self, entry: Entry) -> None:
        """Forget what is mended, or gone."""
        self.location.delete(_failure_key(entry))

    def _lines(self) -> list[bytes]:
        """Return the lines as they are, and what follows the last whole one.

        The ledger only grows, but for a torn end: where its size has changed, what follows the last
        line known is read, and that line once more. Where it is another one now, so is the ledger.
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
    """Turn damage into a `LedgerError` that says what to do."""
    try:
        yield
    except BadDataError as error:
        raise LedgerError(f"{error} {REMEDY}") from error


def _digest(lines: list[bytes]) -> str:
    return hashlib.sha256(_joined(lines)).hexdigest()


def _joined(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _failure_key(entry: Entry) -> str:
    both = hashlib.sha256(f"{entry['content']}|{entry['model_digest']}".encode()).hexdigest()
    return f"{FAILED}/{both[:16]}.json"


def pause_between_looks(_: ConflictError) -> None:
    """Let a moment pass before the next look at a lock."""
    time.sleep(POLL_SECONDS)


@contextmanager
def waiting_lock(
    lock_file: Location,
    what: str,
    take_over: TakeOver | None = None,
    seconds: float = 0.0,
    pause: Callable[[ConflictError], None] = pause_between_looks,
) -> Iterator[Lock]:
    """Hold a writer's lock that another may hold for some seconds yet.

    `pause` is called between two looks with the conflict, and may raise to give up. Raises
    `ConflictError` that names the holder after so long; with leave to `take_over`, a lock in a
    store is taken then: its holder is dead, or it would have given it back.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as held:
        lock: Lock | None = None
        while lock is None:
            is_last = time.monotonic() >= deadline
            try:
                leave = take_over if is_last else None
                lock = held.enter_context(lock_file.writer_lock(what, leave))
            except ConflictError as conflict:
                if is_last:
                    raise
                pause(conflict)
        yield lock
