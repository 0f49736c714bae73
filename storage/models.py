"""Names for models: which checkpoint of which run each is pinned to, and who had it before."""

import re
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from storage import documents
from storage.errors import BadDataError, UsageError, did_you_mean
from storage.location import Location, Lock, TakeOver
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
        """Return the inverse of `asdict`; `BadDataError` names `place` for anything else."""
        types = dict.fromkeys(("run", "run_id", "checkpoint", "model_digest", "since"), str)
        documents.check_fields(document, types, place)
        optional = {"accuracy": float, "judged_by": str}
        given = {name: type_ for name, type_ in optional.items() if document.get(name) is not None}
        documents.check_fields(document, given, place)
        return cls(**{field: document.get(field) for field in cls.__dataclass_fields__})


@dataclass(frozen=True)
class ModelName:
    """A name with its history."""

    place: Location
    """Where the names lie."""
    name: str
    holders: tuple[Holder, ...] = field(default=(), repr=False)
    """The present one last, before it those that an undo goes back to."""
    events: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """Every promotion, refusal and undo, oldest first."""

    @property
    def holder(self) -> Holder | None:
        """Return the present holder; None where there is none, or not any more."""
        return self.holders[-1] if self.holders else None

    def run_place(self, holder: Holder) -> str:
        """Return where a holder's run lies, as it can be opened from here."""
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

    def with_event(self, event: dict[str, Any]) -> Self:
        """Return the name with one more event."""
        return replace(self, events=(*self.events, event))


def check_model_name(name: str) -> str:
    """Return the name; raise `UsageError` where it cannot be one."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} cannot name a model; expected letters, digits, '.', '-' and '_', at "
            "most 64, such as champion."
        )
    return name


def name_lock(
    place: Location, name: str, take_over: TakeOver | None = None
) -> AbstractContextManager[Lock]:
    """Hold the right to change a name; `ConflictError` names the holder of the lock."""
    return place.child(f".{name}.lock").writer_lock(f"The model name {name} in {place}", take_over)


def open_name(place: Location, name: str) -> ModelName:
    """Return a name with its history, empty for a new one; `BadDataError` for a damaged one."""
    check_model_name(name)
    where = f"{place}/{_key(name)}"
    try:
        document = documents.read_sealed(place, _key(name))
    except FileNotFoundError:
        return ModelName(place, name)
    documents.check_format(document, FORMAT, (FORMAT_VERSION,), where)
    documents.check_fields(document, RECORDED, where)
    if document["name"] != name:
        raise BadDataError(f"{where} is of the name {document['name']!r}: it was renamed.")
    holders = tuple(Holder.from_json(holder, where) for holder in document["holders"])
    return ModelName(place, name, holders, tuple(document["events"]))


def held_name(place: Location, name: str) -> tuple[ModelName, Holder]:
    """Return a name and its model. Raises `UsageError` if no model has it."""
    model = open_name(place, name)
    if model.holder is None:
        known = [other for other in names(place) if _is_held(place, other)]
        raise UsageError(
            f"No model is called {name!r} in {place}, which has {', '.join(known) or 'none'}."
            f"{did_you_mean(name, known)} To name one: `pipeline promote RUN --as {name}`."
        )
    return model, model.holder


def _is_held(place: Location, name: str) -> bool:
    try:
        return open_name(place, name).holder is not None
    except (BadDataError, UsageError):  # a damaged name is not offered
        return False


def names(place: Location) -> list[str]:
    """Return all names, held or not, sorted."""
    return [
        name.removesuffix(".json")
        for name in place.names()
        if name.endswith(".json") and not name.startswith(".")
    ]


def _key(name: str) -> str:
    return f"{name}.json"
