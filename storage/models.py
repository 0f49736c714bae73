"""Names for models: which checkpoint of which run each is pinned to, and who had it before."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from storage import documents
from storage.errors import BadDataError, UsageError
from storage.location import Location, Lock, TakeOver, writer_lock
from storage.places import referenced

FORMAT = "mnist-stream model name"
FORMAT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RECORDED = {"name": str, "holders": list, "events": list}


@dataclass(frozen=True)
class Holder:
    """A checkpoint that has, or had, a name."""

    run: str
    """Where its run lies: relative to the place of the names, or a URL."""
    run_id: str
    checkpoint: str
    """Its name in the run, `000010-000000`."""
    model_digest: str
    since: str
    """When it was given the name, UTC in ISO 8601."""
    accuracy: float | None
    """On the split that the promotion was judged by; None where it was not judged."""
    judged_by: str | None
    """The digest of the dataset, and the split: `test of 7100e1...`."""

    @classmethod
    def from_json(cls, document: Any, place: str) -> Self:
        """The inverse of `asdict`; `BadDataError` names `place` for anything else."""
        kinds = ("run", "run_id", "checkpoint", "model_digest", "since")
        documents.check_fields(document, dict.fromkeys(kinds, str), place)
        for field, kind in (("accuracy", float), ("judged_by", str)):
            if document.get(field) is not None:
                documents.check_fields(document, {field: kind}, place)
        return cls(**{field: document.get(field) for field in cls.__dataclass_fields__})


@dataclass(frozen=True)
class ModelName:
    """A name with its history."""

    place: Location
    """Where the names lie."""
    name: str
    holders: tuple[Holder, ...] = ()
    """The present one last, before it those that an undo goes back to."""
    events: tuple[dict[str, Any], ...] = ()
    """Every promotion, refusal and undo, oldest first."""

    @property
    def holder(self) -> Holder | None:
        """Who has the name now; None where nobody does, or does any more."""
        return self.holders[-1] if self.holders else None

    def run_place(self, holder: Holder) -> str:
        """Where a holder's run lies, as it can be opened from here."""
        return referenced(holder.run, self.place)

    def save(self) -> None:
        """Write the name as it is now, in one step. The caller holds its lock."""
        document = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "holders": [asdict(holder) for holder in self.holders],
            "events": list(self.events),
        }
        self.place.put(_key(self.name), documents.sealed_bytes(document))

    def with_event(self, event: dict[str, Any], change: Callable[[Self], Self]) -> Self:
        """The name after a change, with the event that tells of it."""
        return replace(change(self), events=(*self.events, event))


def check_model_name(name: str) -> str:
    """The name, where it can be one; else `UsageError`."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} cannot name a model; expected letters, digits, '.', '-' and '_', at "
            "most 64, such as champion."
        )
    return name


def name_lock(
    place: Location, name: str, take_over: TakeOver | None = None
) -> AbstractContextManager[Lock]:
    """The right to change a name; `ConflictError` names the holder where another has it."""
    return writer_lock(place.child(f".{name}.lock"), f"The model name {name} in {place}", take_over)


def open_name(place: Location, name: str) -> ModelName:
    """A name with its history, which is empty where there is no such name yet.

    Raises `BadDataError` where its document is damaged.
    """
    check_model_name(name)
    where = f"{place}/{_key(name)}"
    try:
        document = documents.read_sealed(place, _key(name))
    except FileNotFoundError:
        return ModelName(place, name)
    if (document.get("format"), document.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise BadDataError(f"{where} does not say '{FORMAT}', version {FORMAT_VERSION}.")
    documents.check_fields(document, RECORDED, where)
    if document["name"] != name:
        raise BadDataError(f"{where} is of the name {document['name']!r}: it was renamed.")
    holders = tuple(Holder.from_json(holder, where) for holder in document["holders"])
    return ModelName(place, name, holders, tuple(document["events"]))


def held_name(place: Location, name: str) -> tuple[ModelName, Holder]:
    """A name and who has it. Raises `UsageError` where nobody does."""
    found = open_name(place, name)
    if found.holder is None:
        known = ", ".join(other for other in names(place) if _is_held(place, other)) or "none"
        raise UsageError(
            f"No model is called {name!r} in {place} (there: {known}). Give one the name with "
            f"`pipeline promote RUN --as {name}`."
        )
    return found, found.holder


def _is_held(place: Location, name: str) -> bool:
    """Whether somebody has a name; a damaged document, or what is none, is not offered."""
    try:
        return open_name(place, name).holder is not None
    except (BadDataError, UsageError):
        return False


def names(place: Location) -> list[str]:
    """The names that there are, held or not, sorted."""
    return [
        name.removesuffix(".json")
        for name in place.names()
        if name.endswith(".json") and not name.startswith(".")
    ]


def _key(name: str) -> str:
    return f"{name}.json"
