"""What a scoring job is asked for: typed, checked before anything is done."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.choices import DEFAULT_MODELS, DEFAULT_SETTLE
from jobs.scoring.gates import Gates
from storage.errors import UsageError
from storage.location import Location, TakeOver
from storage.places import Place, open_location

OUTPUTS = (".csv", ".npz", ".parquet")
HOME, SPLIT_NAME = "{home}", "{split}"
"""What stands for the scoring's own name and for its split in the name of an output."""
PLACEHOLDER = re.compile(r"\{.*?\}")


@dataclass(frozen=True)
class ScoreConfig:
    """One scoring job."""

    run: Place | None = None
    """The run whose model scores; `DEFAULT_RUN` where neither it nor `model` is given."""
    dataset: Place | None = None
    """Whose splits are scored; the one that the run was trained on where it is None."""
    splits: tuple[str, ...] = ("test",)
    inbox: Place | None = None
    """A directory or prefix whose IDX files and datasets are scored instead, once, by content."""
    include: tuple[str, ...] = ()
    """Globs; if any are given, only images and datasets of the inbox that match one are scored."""
    exclude: tuple[str, ...] = ()
    """Globs of files and directories of the inbox to skip."""
    settle: float = DEFAULT_SETTLE
    """Seconds that a file in the inbox must have kept its size and time."""
    checkpoint: str | None = None
    """A checkpoint of the run: see `choose_checkpoint`. None takes `model` or the default."""
    model: str | None = None
    """A promoted name, in place of run and checkpoint."""
    models: Place = DEFAULT_MODELS
    """Where the promoted names lie."""
    out: Place | None = None
    """A .csv, .npz or .parquet file; may hold `{home}` and `{split}`."""
    all_probabilities: bool = False
    """Whether the file has every class's probability."""
    threads: int = 0
    wait: float = 0.0
    """Seconds to wait for another job that has the same work in hand."""
    gates: Gates = field(default_factory=Gates)
    retries: int = 0
    """Number of retries after a connection failure."""
    retry_wait: float = 60.0
    """Seconds between two tries."""
    storage_options: Mapping[str, str] = field(default_factory=dict)
    """How to reach the places that are URLs of a store."""
    take_over: TakeOver | None = None
    """Leave to take the locks of dead writers in a store."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for what cannot be meant."""
        for option, value in (
            ("--wait", self.wait),
            ("--settle", self.settle),
            ("--retries", self.retries),
            ("--retry-wait", self.retry_wait),
        ):
            if not 0 <= value < math.inf:
                raise UsageError(f"{option} is {value}; expected 0 or more.")
        if self.model is not None and self.run is not None:
            raise UsageError("--model names the run itself; leave out --run.")
        if self.model is not None and self.checkpoint is not None:
            raise UsageError("--model names the checkpoint itself; leave out --checkpoint.")
        if not self.splits:
            raise UsageError("No split is given; pass --split, such as --split test.")
        for option, globs in (("--include", self.include), ("--exclude", self.exclude)):
            if globs and self.inbox is None:
                raise UsageError(f"{option} selects from an inbox; pass --inbox, or leave it out.")
            if not all(glob.strip("/") for glob in globs):
                raise UsageError(f"{option} is empty; expected a glob, such as '*-images-*'.")
        self._check_out()

    def _check_out(self) -> None:
        if self.out is None:
            return
        out = str(self.out)
        if not out.endswith(OUTPUTS):
            raise UsageError(
                f"--out is {out!r}; expected a name that ends in .csv, .npz or .parquet."
            )
        if strange := PLACEHOLDER.search(out.replace(HOME, "").replace(SPLIT_NAME, "")):
            raise UsageError(f"--out has {strange[0]}; known are {HOME} and {SPLIT_NAME}.")
        if self.inbox is not None and HOME not in out:
            raise UsageError(
                f"--out is {out!r}; with --inbox it must hold {HOME}, which is another for "
                f"each file, such as night/{HOME}.csv."
            )
        if len(set(self.splits)) > 1 and HOME not in out and SPLIT_NAME not in out:
            raise UsageError(
                f"--out is {out!r}; with several splits it must hold {SPLIT_NAME} or {HOME}."
            )

    def open(self, place: Place) -> Location:
        """Return the location of one of the places."""
        return open_location(place, self.storage_options)

    def output(self, home: str, split: str) -> Location | None:
        """Return the file for one scoring, if one was asked for."""
        if self.out is None or isinstance(self.out, Location):
            return self.out
        return self.open(str(self.out).replace(HOME, home).replace(SPLIT_NAME, split))
