"""Model names: the checkpoint that each name refers to, and its former ones."""

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
AVERAGES_VERSION = 2
"""The version of a name that an average holds or held: earlier releases would drop its shifts."""
RUNS_VERSION = 3
"""The version of a name that an average over several runs holds or held."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RECORDED = {"name": str, "holders": list, "events": list}


@dataclass(frozen=True)
class HeldRun:
    """The run of one of a model's checkpoints."""

    run: str
    """A path relative to the directory of the names, or a URL."""
    run_id: str


@dataclass(frozen=True)
class Holder:
    """A model that has, or had, a name: a checkpoint, or several that are averaged."""

    run: str
    """Its run, the first of several: a path relative to the directory of the names, or a URL."""
    run_id: str
    checkpoint: str
    """Its name in the run, such as `000010-000000`; several with commas for their average."""
    model_digest: str
    since: str
    """When it got the name, UTC in ISO 8601."""
    accuracy: float | None
    """Accuracy at the promotion; None if there were no gates."""
    judged_by: str | None
    """The split and the dataset's digest: `test of 7100e1...`."""
    average_shifts: int = 0
    """The largest shift in pixels of the images that are averaged; 0 for none."""
    runs: tuple[HeldRun, ...] = ()
    """The run of each checkpoint, if they are of several runs."""

    @property
    def run_ids(self) -> list[str]:
        """The identity of each run, once."""
        ids = {held.run: held.run_id for held in self.runs} or {self.run: self.run_id}
        return list(ids.values())

    @property
    def is_average(self) -> bool:
        """Whether the model averages several checkpoints or shifts."""
        return "," in self.checkpoint or self.average_shifts > 0

    @classmethod
    def from_json(cls, document: Any, place: str) -> Self:
        """Return the inverse of `to_json`; raise `BadDataError` that names `place`."""
        types = dict.fromkeys(("run", "run_id", "checkpoint", "model_digest", "since"), str)
        documents.check_fields(document, types, place)
        document = {"average_shifts": 0} | document  # earlier releases had no shifts
        documents.check_fields(document, {"average_shifts": int}, place)
        optional = {"accuracy": float, "judged_by": str}
        given = {name: type_ for name, type_ in optional.items() if document.get(name) is not None}
        documents.check_fields(document, given, place)
        fields = {field: document.get(field) for field in cls.__dataclass_fields__}
        return cls(**fields | {"runs": _held_runs(document, place)})

    def to_json(self) -> dict[str, Any]:
        """Return the model as an object; earlier releases know no `runs`."""
        document = asdict(self)
        runs = document.pop("runs")
        return document | ({"runs": list(runs)} if runs else {})


@dataclass(frozen=True)
class ModelName:
    """A name with its history."""

    place: Location
    """The directory of the names."""
    name: str
    holders: tuple[Holder, ...] = field(default=(), repr=False)
    """The current one last; an undo returns to the one before."""
    events: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """Every promotion, refusal and undo, oldest first."""

    @property
    def holder(self) -> Holder | None:
        return self.holders[-1] if self.holders else None

    def run_place(self, holder: Holder) -> str:
        """Return the path or URL of a holder's run, the first of several."""
        return referenced(holder.run, self.place)

    def run_places(self, holder: Holder) -> list[tuple[str, str]]:
        """Return the path or URL of each run of a holder, and its checkpoints with commas."""
        if not holder.runs:
            return [(self.run_place(holder), holder.checkpoint)]
        places = [referenced(held.run, self.place) for held in holder.runs]
        return list(zip(places, holder.checkpoint.split(","), strict=True))

    def save(self) -> None:
        """Write the name's document atomically; the caller holds its lock."""
        version = FORMAT_VERSION
        if any(holder.is_average for holder in self.holders):
            version = AVERAGES_VERSION
        if any(holder.runs for holder in self.holders):
            version = RUNS_VERSION
        document = {
            "format": FORMAT,
            "format_version": version,
            "name": self.name,
            "holders": [holder.to_json() for holder in self.holders],
            "events": list(self.events),
        }
        self.place.put(_key(self.name), documents.sealed_bytes(document))

    def with_event(self, event: dict[str, Any]) -> Self:
        return replace(self, events=(*self.events, event))


def _held_runs(document: dict[str, Any], place: str) -> tuple[HeldRun, ...]:
    """Return the runs of a recorded holder; raise `BadDataError` unless each checkpoint has one."""
    documents.check_fields({"runs": []} | document, {"runs": list}, place)
    held = document.get("runs", [])
    for entry in held:
        documents.check_fields(entry, {"run": str, "run_id": str}, place)
    if held and len(held) != document["checkpoint"].count(",") + 1:
        raise BadDataError(f"{place} has {len(held)} runs for checkpoint {document['checkpoint']}.")
    return tuple(HeldRun(entry["run"], entry["run_id"]) for entry in held)


def check_model_name(name: str) -> str:
    """Return the name; raise `UsageError` if it is not a valid one."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name[:100]!r} is not a valid model name; expected up to 64 letters, digits, '.', "
            "'-' and '_', such as champion."
        )
    return name


def name_lock(
    place: Location, name: str, take_over: TakeOver | None = None
) -> AbstractContextManager[Lock]:
    """Hold the lock of a name; raise `ConflictError` that names its holder."""
    return place.child(f".{name}.lock").writer_lock(f"The model name {name} in {place}", take_over)


def open_name(place: Location, name: str) -> ModelName:
    """Return a name with its history, empty for a new one; raise `BadDataError` if damaged."""
    check_model_name(name)
    file = f"{place}/{_key(name)}"
    try:
        document = documents.read_sealed(place, _key(name))
    except FileNotFoundError:
        return ModelName(place, name)
    documents.check_format(document, FORMAT, (FORMAT_VERSION, AVERAGES_VERSION, RUNS_VERSION), file)
    documents.check_fields(document, RECORDED, file)
    if document["name"] != name:
        raise BadDataError(
            f"{file} contains the name {document['name']!r}: the file was renamed. Rename it back."
        )
    holders = tuple(Holder.from_json(holder, file) for holder in document["holders"])
    return ModelName(place, name, holders, tuple(document["events"]))


def held_name(place: Location, name: str) -> tuple[ModelName, Holder]:
    """Return a name and its model. Raises `UsageError` if no model has it."""
    model = open_name(place, name)
    if model.holder is None:
        known = [other for other in names(place) if _has_holder(place, other)]
        raise UsageError(
            f"No model is called {name!r} in {place}, which has {', '.join(known) or 'none'}."
            f"{did_you_mean(name, known)} To name one: `pipeline promote RUN --as {name}`."
        )
    return model, model.holder


def _has_holder(place: Location, name: str) -> bool:
    try:
        return open_name(place, name).holder is not None
    except (BadDataError, UsageError):  # a damaged name is not offered
        return False


def names(place: Location) -> list[str]:
    """Return all names, with and without a holder, sorted."""
    return [
        name.removesuffix(".json")
        for name in place.names()
        if name.endswith(".json") and not name.startswith(".")
    ]


def _key(name: str) -> str:
    return f"{name}.json"
