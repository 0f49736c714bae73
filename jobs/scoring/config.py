"""The configuration of a scoring job, checked before any work."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import PurePosixPath

from jobs.choices import DEFAULT_MODELS, DEFAULT_SETTLE
from jobs.scoring.gates import Gates
from jobs.training.choose_model import Runs
from storage.errors import UsageError, did_you_mean
from storage.location import Location, TakeOver
from storage.places import Place, open_location

OUTPUTS = (".csv", ".npz", ".parquet")
REVIEWS = (".csv", ".html")
HOME, SPLIT_NAME, FILE_NAME = "{home}", "{split}", "{file}"
"""Placeholders in the name of an output, for the scoring's own name, its split and its file."""
LONGEST_FILE = 80
"""Characters of an inbox's file name that `{file}` keeps, from its end."""
UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
"""Characters that `{file}` replaces."""
PLACEHOLDER = re.compile(r"\{.*?\}")


@dataclass(frozen=True)
class ScoreConfig:
    """The options of a scoring job."""

    run: Runs | None = None
    """The run with the model, or several whose models are averaged; `RUN@CHECKPOINT` chooses the
    checkpoint of one of them. By default `runs/mnist`, if no `model` is given either."""
    dataset: Place | None = None
    """The dataset to score; by default the one that the run was trained on."""
    splits: tuple[str, ...] = ("test",)
    """The splits to score."""
    inbox: Place | None = None
    """A directory or prefix with IDX files and datasets to score instead, each content once."""
    include: tuple[str, ...] = ()
    """Globs; if given, only images and datasets of the inbox that match one are scored."""
    exclude: tuple[str, ...] = ()
    """Globs of files and directories of the inbox to skip."""
    settle: float = DEFAULT_SETTLE
    """Files of the inbox modified within the last `settle` seconds are skipped."""
    checkpoint: str | int | None = None
    """`best`, `latest`, an epoch or a model's digest; several with commas are averaged, as are all
    snapshots with `average`. By default `model`'s, or the best of each run."""
    average_shifts: int | None = None
    """Average over images and their shifts by up to this number of pixels; by default `model`'s,
    or that of the run's evaluations."""
    model: str | None = None
    """A promoted name, instead of a run and a checkpoint."""
    models: Place = DEFAULT_MODELS
    """The directory or prefix with the promoted names."""
    out: Place | None = None
    """A .csv, .npz or .parquet file to write; may contain `{home}`, `{split}` and `{file}`."""
    all_probabilities: bool = False
    """Whether `out` contains the probabilities of all classes."""
    columns: tuple[str, ...] = ()
    """Names of the columns of `out`, in order; by default the usual ones. See `outputs`."""
    review: Place | None = None
    """A .csv or .html file of the least certain rows to write, with placeholders like `out`."""
    below: float | None = None
    """Rows with a largest probability below this are in `review`; by default `DEFAULT_BELOW`."""
    threads: int = 0
    """CPU cores to compute on; 0 for all."""
    wait: float = 0.0
    """Seconds to wait for another job that is doing the same work."""
    gates: Gates = field(default_factory=Gates)
    """Lower limits on the accuracy."""
    retries: int = 0
    """Number of retries after a connection failure."""
    retry_wait: float = 60.0
    """Seconds between two attempts."""
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Options for places that are URLs of an object store."""
    take_over: TakeOver | None = None
    """Permission to take over the locks of dead writers in an object store."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for invalid or contradictory options."""
        for option, value in (
            ("--wait", self.wait),
            ("--settle", self.settle),
            ("--retries", self.retries),
            ("--retry-wait", self.retry_wait),
        ):
            if not 0 <= value < math.inf:
                raise UsageError(f"{option} is {value}; expected 0 or more.")
        for option, what, chosen in (
            ("--run", "run", self.run),
            ("--checkpoint", "checkpoint", self.checkpoint),
            ("--average-shifts", "shifts", self.average_shifts),
        ):
            if self.model is not None and chosen is not None:
                raise UsageError(f"--model determines the {what}; leave out {option}.")
        for option, given, needed, place in (
            ("--include", self.include, "--inbox", self.inbox),
            ("--exclude", self.exclude, "--inbox", self.inbox),
            ("--probabilities", self.all_probabilities, "--out", self.out),
            ("--columns", self.columns, "--out", self.out),
            ("--below", self.below is not None, "--review", self.review),
        ):
            if given and place is None:
                raise UsageError(f"{option} requires {needed}; pass {needed}, or leave it out.")
        if not self.splits:
            raise UsageError("No split is given; pass --split, such as --split test.")
        for option, globs in (("--include", self.include), ("--exclude", self.exclude)):
            if not all(glob.strip("/") for glob in globs):
                raise UsageError(f"{option} is empty; expected a glob, such as '*-images-*'.")
        self._check_out()
        self._check_review()

    def _check_out(self) -> None:
        if self.out is not None:
            self._check_columns(str(self.out))
            _check_ending("--out", str(self.out), OUTPUTS)
            self._check_placeholders("--out", str(self.out))

    def _check_review(self) -> None:
        if self.review is None:
            return
        if self.below is not None and not 0 < self.below <= 1:
            raise UsageError(
                f"--below is {self.below}; expected a probability above 0, up to 1, such as 0.99."
            )
        review = str(self.review)
        _check_ending("--review", review, REVIEWS)
        self._check_placeholders("--review", review)

    def _check_placeholders(self, option: str, name: str) -> None:
        """Raise `UsageError` unless the name of an output differs for each scoring."""
        known = (HOME, SPLIT_NAME, FILE_NAME)
        rest = reduce(lambda text, placeholder: text.replace(placeholder, ""), known, name)
        if unknown := PLACEHOLDER.search(rest):
            hint = did_you_mean(unknown[0], known)
            raise UsageError(
                f"{option} contains {unknown[0]}; expected only {HOME}, {SPLIT_NAME} and "
                f"{FILE_NAME}.{hint}"
            )
        if self.inbox is None and FILE_NAME in name:
            raise UsageError(
                f"{option} contains {FILE_NAME}, which is the name of an inbox's file; without "
                f"--inbox use {SPLIT_NAME}."
            )
        if self.inbox is not None and HOME not in name:
            raise UsageError(
                f"{option} is {name!r}; with --inbox it must contain {HOME}, which differs for "
                f"each file, such as night/{HOME}{PurePosixPath(name).suffix}."
            )
        if len(set(self.splits)) > 1 and HOME not in name and SPLIT_NAME not in name:
            raise UsageError(
                f"{option} is {name!r}; with several splits it must contain {SPLIT_NAME} or {HOME}."
            )

    def _check_columns(self, out: str) -> None:
        if self.columns and self.all_probabilities:
            raise UsageError(
                "--probabilities cannot be combined with --columns; add p_CLASS to --columns for "
                "each class instead."
            )
        if self.columns and out.endswith(".npz"):
            raise UsageError(
                f"--columns does not apply to {out!r}; expected a .csv or .parquet file."
            )
        if not all(self.columns) or len(set(self.columns)) < len(self.columns):
            raise UsageError(
                f"--columns is {','.join(self.columns)!r}; expected different names with commas, "
                "such as ImageId,Label."
            )

    def open(self, place: Place) -> Location:
        """Return the location of a path or URL."""
        return open_location(place, self.storage_options)

    def output(self, home: str, split: str, file: str | None = None) -> Location | None:
        """Return the file that `out` means for one scoring; None without `out`.

        `file` is the inbox's file that was scored.
        """
        return self._named(self.out, home, split, file)

    def review_file(self, home: str, split: str, file: str | None = None) -> Location | None:
        """Return the file that `review` means for one scoring, likewise."""
        return self._named(self.review, home, split, file)

    def _named(
        self, place: Place | None, home: str, split: str, file: str | None
    ) -> Location | None:
        if place is None or isinstance(place, Location):
            return place
        values = {HOME: home, SPLIT_NAME: split, FILE_NAME: _file_name(file or split)}
        return self.open(PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), str(place)))


def _check_ending(option: str, name: str, endings: tuple[str, ...]) -> None:
    if not name.endswith(endings):
        expected = f"{', '.join(endings[:-1])} or {endings[-1]}"
        hint = did_you_mean(PurePosixPath(name).suffix, endings)
        raise UsageError(f"{option} is {name!r}; expected a name that ends in {expected}.{hint}")


def _file_name(name: str) -> str:
    """Return an inbox's file name in characters that every file system and store accepts.

    Different files may have the same result; with the scoring's own name it is unique.
    """
    return UNSAFE.sub("-", name)[-LONGEST_FILE:].strip(".-") or "file"
