"""The configuration of a scoring job, checked before any work."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from jobs.choices import DEFAULT_MODELS, DEFAULT_SETTLE
from jobs.scoring.gates import Gates
from storage.errors import UsageError, did_you_mean
from storage.location import Location, TakeOver
from storage.places import Place, open_location

OUTPUTS = (".csv", ".npz", ".parquet")
HOME, SPLIT_NAME = "{home}", "{split}"
"""Placeholders in the name of an output, for the scoring's own name and its split."""
PLACEHOLDER = re.compile(r"\{.*?\}")


@dataclass(frozen=True)
class ScoreConfig:
    """The options of a scoring job."""

    run: Place | None = None
    """The run with the model; `runs/mnist` if neither `run` nor `model` is given."""
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
    snapshots with `average`. By default `model`'s, or the best."""
    average_shifts: int | None = None
    """Average over images and their shifts by up to this number of pixels; by default `model`'s,
    or that of the run's evaluations."""
    model: str | None = None
    """A promoted name, instead of a run and a checkpoint."""
    models: Place = DEFAULT_MODELS
    """The directory or prefix with the promoted names."""
    out: Place | None = None
    """A .csv, .npz or .parquet file to write; may contain `{home}` and `{split}`."""
    all_probabilities: bool = False
    """Whether `out` contains the probabilities of all classes."""
    columns: tuple[str, ...] = ()
    """Names of the columns of `out`, in order; by default the usual ones. See `outputs`."""
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
        if self.model is not None and self.run is not None:
            raise UsageError("--model determines the run; leave out --run.")
        if self.model is not None and self.checkpoint is not None:
            raise UsageError("--model determines the checkpoint; leave out --checkpoint.")
        if self.model is not None and self.average_shifts is not None:
            raise UsageError("--model determines the shifts; leave out --average-shifts.")
        if not self.splits:
            raise UsageError("No split is given; pass --split, such as --split test.")
        for option, globs in (("--include", self.include), ("--exclude", self.exclude)):
            if globs and self.inbox is None:
                raise UsageError(f"{option} requires --inbox; pass --inbox, or leave it out.")
            if not all(glob.strip("/") for glob in globs):
                raise UsageError(f"{option} is empty; expected a glob, such as '*-images-*'.")
        self._check_out()

    def _check_out(self) -> None:
        if self.out is None:
            if self.all_probabilities:
                raise UsageError("--probabilities requires --out; pass --out, or leave it out.")
            if self.columns:
                raise UsageError("--columns requires --out; pass --out, or leave it out.")
            return
        out = str(self.out)
        self._check_columns(out)
        if not out.endswith(OUTPUTS):
            hint = did_you_mean(PurePosixPath(out).suffix, OUTPUTS)
            raise UsageError(
                f"--out is {out!r}; expected a name that ends in .csv, .npz or .parquet.{hint}"
            )
        if unknown := PLACEHOLDER.search(out.replace(HOME, "").replace(SPLIT_NAME, "")):
            hint = did_you_mean(unknown[0], (HOME, SPLIT_NAME))
            raise UsageError(
                f"--out contains {unknown[0]}; expected only {HOME} and {SPLIT_NAME}.{hint}"
            )
        if self.inbox is not None and HOME not in out:
            raise UsageError(
                f"--out is {out!r}; with --inbox it must contain {HOME}, which differs for "
                f"each file, such as night/{HOME}.csv."
            )
        if len(set(self.splits)) > 1 and HOME not in out and SPLIT_NAME not in out:
            raise UsageError(
                f"--out is {out!r}; with several splits it must contain {SPLIT_NAME} or {HOME}."
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

    def output(self, home: str, split: str) -> Location | None:
        """Return the file that `out` means for one scoring; None without `out`."""
        if self.out is None or isinstance(self.out, Location):
            return self.out
        return self.open(str(self.out).replace(HOME, home).replace(SPLIT_NAME, split))
