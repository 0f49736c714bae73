"""What a scoring came to, and whether it has been done before, as its documents tell.

Imports neither Zarr nor Dask: a job that finds its work done answers at once.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobs.scoring.gates import Verdict, missed
from jobs.scoring.metrics import check_quality
from storage import documents
from storage.errors import BadDataError
from storage.location import Location
from storage.runs import SCORES, Run
from storage.schema import FORMAT, METADATA_NAME, READ_VERSIONS, ROOT_ATTRIBUTES
from storage.scorings import METRICS, ScoresRecord, is_complete, open_record, scoring_home

if TYPE_CHECKING:
    from storage.predictions import Scores


@dataclass(frozen=True)
class ScoreResult:
    """What a scoring came to."""

    record: ScoresRecord
    metrics: dict[str, Any]
    """As in metrics.json; `quality` is None where there are no labels."""
    already_done: bool
    """True where the same model had scored the same rows before."""
    warnings: tuple[str, ...] = ()
    output: Location | None = None
    """The plain file that was asked for."""
    file: str | None = None
    """The inbox's file that the rows came from."""
    verdicts: tuple[Verdict, ...] = ()
    """What became of the gates, where the rows have labels."""

    @property
    def scores(self) -> "Scores":
        """The predictions, to be read chunk by chunk."""
        from storage.predictions import Scores

        return Scores(**vars(self.record))

    @property
    def accuracy(self) -> float | None:
        """The share of rows that are right; None where there are no labels."""
        quality = self.metrics["quality"]
        return None if quality is None else float(quality["accuracy"])

    @property
    def missed(self) -> str | None:
        """What to say of gates that were missed."""
        return missed(self.verdicts)


def home_of(run: Run, model_digest: str, dataset_digest: str, split: str) -> Location:
    """The one place of a scoring in a run."""
    return run.location.child(f"{SCORES}/{scoring_home(model_digest, dataset_digest, split)}")


def find_scored(
    run: Run, model_digest: str, dataset_digest: str, split: str
) -> tuple[ScoresRecord, dict[str, Any]] | None:
    """A complete scoring and its metrics; None where it has yet to be done or finished.

    Raises `BadDataError` where it is complete but damaged.
    """
    home = home_of(run, model_digest, dataset_digest, split)
    if not is_complete(home):
        return None
    return checked_record(home)


def checked_record(home: Location) -> tuple[ScoresRecord, dict[str, Any]]:
    """A complete scoring's documents; `BadDataError` where they are not those of one."""
    record = open_record(home)
    metrics = record.metrics()
    if metrics.get("quality") is not None:
        check_quality(metrics["quality"], record.schema.classes, f"{home}/{METRICS}")
    return record, {"quality": None} | metrics


def peek_dataset_digest(location: Location) -> str | None:
    """The digest of a sound, complete dataset; None where opening it has something to say."""
    try:
        location = location.current(METADATA_NAME)
        document = documents.parse(documents.read(location, METADATA_NAME), str(location))
        documents.check_group_seal(document, ROOT_ATTRIBUTES, str(location))
        attributes = document["attributes"]
        if attributes["format"] != FORMAT or attributes["format_version"] not in READ_VERSIONS:
            return None
        if attributes["complete"] is not True:
            return None
        for key, expected in documents.recorded_digests(attributes).items():
            documents.check_metadata(documents.read(location, key), expected, key, remedy="")
        return str(attributes["digest"])
    except (FileNotFoundError, BadDataError, KeyError, TypeError, ValueError, AttributeError):
        return None
