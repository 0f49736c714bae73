"""Where images and labels come from: a directory of IDX files, a download, generated digits.

A `Source` has one to three splits; each split gives its rows in order as `Part`s, which can be
pickled and loaded on any thread or worker.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sources.downloads import CATALOGUES, Catalogue, download
from pipeline.sources.idx_directory import find_idx_files
from pipeline.sources.splits import IdxSplit, Part, SourceFile, SplitSource, SyntheticSplit
from storage.errors import BadDataError, UsageError, did_you_mean

__all__ = ["Part", "Source", "SourceFile", "SplitSource", "open_directory", "open_source"]

DEFAULT_SYNTHETIC_ROWS = (60_000, 10_000)
ROW_DIGITS = 19
"""Characters of the longest number of rows; Python itself refuses thousands of digits."""
"""Rows of the train and test splits of `synthetic`, as many as MNIST has."""

_SYNTHETIC = re.compile(r"synthetic(?::(?P<train>[^,]*)(?:,(?P<test>[^,]*))?)?")


@dataclass(frozen=True)
class Source:
    """A named set of one to three splits."""

    name: str
    """What to call the dataset made from it."""
    splits: tuple[SplitSource, ...]
    """In the order `train`, `validation`, `test`; of one image shape and element type."""
    description: str
    """Where it came from, for people."""

    def fingerprint(self) -> dict[str, Any]:
        """What tells this source's content from another's, as a JSON object.

        For files their stored size and SHA-256, read in one pass without decompressing; for
        generated digits what they are drawn from. Where the files lie makes no difference.
        """
        return {split.name: split.fingerprint() for split in self.splits}


def open_source(
    spec: str,
    *,
    seed: int = 0,
    cache: Path | None = None,
    offline: bool = False,
    catalogues: Mapping[str, Catalogue] = CATALOGUES,
    announce: Callable[[str], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> Source:
    """Open `spec`: a directory, a set's name, or `synthetic[:TRAIN[,TEST]]`.

    A set's name is a key of `catalogues`; it is downloaded into `cache` (by default the user's)
    unless it lies there already, and never if `offline`; `announce` is called for each download,
    `warn` of IDX files that are not used. `check` is called while files are read, and may raise.
    The environment's MNIST_DIR takes the place of the download of `mnist`. `seed` is for generated
    digits. Known names come before directories: write `./mnist` for a directory called so.

    Raises `UsageError` for anything else, `BadDataError` where the files' names or headers do not
    fit together, `UnreachableError` where a download or a file cannot be had.
    """
    if spec.partition(":")[0] == "synthetic":
        return _open_synthetic(spec, seed)
    if spec == "mnist" and (named := os.environ.get("MNIST_DIR")):
        directory = _mnist_directory(named)
        description = f"IDX files in {directory}, named by MNIST_DIR"
        return open_directory(directory, spec, description, warn=warn, check=check)
    if spec in catalogues:
        directory = download(catalogues[spec], cache=cache, offline=offline, announce=announce)
        description = f"{spec} from its public mirrors, kept in {directory}"
        return open_directory(directory, spec, description, warn=warn, check=check)
    path = Path(spec)
    if spec and path.is_dir():
        return open_directory(path, warn=warn, check=check)
    raise _unknown_source_error(spec, [*catalogues, "synthetic"])


def open_directory(
    directory: Path,
    name: str | None = None,
    description: str | None = None,
    *,
    warn: Callable[[str], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> Source:
    """The IDX set in `directory`; its name is by default its files' prefix or the directory's.

    Opens each file for its header only. Raises as `open_source` does.
    """
    found = find_idx_files(directory, warn)
    splits = tuple(
        IdxSplit(split, files.images, files.labels, check) for split, files in found.splits.items()
    )
    _check_splits_agree(splits)
    return Source(
        name=name or found.prefix or os.path.basename(os.path.realpath(directory)) or "dataset",
        splits=splits,
        description=description or f"IDX files in {directory}",
    )


def _check_splits_agree(splits: tuple[IdxSplit, ...]) -> None:
    kinds = {(split.image_shape, split.dtype) for split in splits}
    if len(kinds) > 1:
        found = ", ".join(f"{s.name} has {s.image_shape} of {s.dtype}" for s in splits)
        raise BadDataError(
            f"The splits' images differ: {found}; expected the same shape and element type. "
            "Take the files of both splits from the same set."
        )


def _mnist_directory(named: str) -> Path:
    directory = Path(named)
    if not directory.is_dir():
        raise UsageError(
            f"MNIST_DIR names {directory}, which is not a directory; expected the one that holds "
            "the MNIST files. Correct it, or unset it to download them."
        )
    return directory


def _open_synthetic(spec: str, seed: int) -> Source:
    match = _SYNTHETIC.fullmatch(spec)
    if match is None:
        raise _synthetic_error(spec)
    train, test = DEFAULT_SYNTHETIC_ROWS
    if match["train"] is not None:
        train = _parse_rows(spec, match["train"])
        test = max(1, train // 6)
    if match["test"] is not None:
        test = _parse_rows(spec, match["test"])
    if train < 1:
        raise _synthetic_error(spec)
    splits = tuple(
        SyntheticSplit(name, rows, seed)
        for name, rows in (("train", train), ("test", test))
        if rows
    )
    return Source("synthetic", splits, f"digits drawn by mnist-stream with seed {seed}")


def _parse_rows(spec: str, text: str) -> int:
    if len(text) > ROW_DIGITS or not re.fullmatch(r"[0-9]+(?:_[0-9]+)*", text):
        raise _synthetic_error(spec)
    return int(text)


def _synthetic_error(spec: str) -> UsageError:
    return UsageError(
        f"SOURCE {spec[:80]!r} cannot be used: expected synthetic, synthetic:TRAIN or "
        "synthetic:TRAIN,TEST with whole numbers, TRAIN 1 or more, such as synthetic:6000,1000."
    )


def _unknown_source_error(spec: str, known: list[str]) -> UsageError:
    if spec and Path(spec).exists():
        return UsageError(
            f"SOURCE {spec!r} is a file; expected the directory that holds the IDX files. "
            f"Give {str(Path(spec).parent)!r}, if its files belong together."
        )
    hint = did_you_mean(spec.partition(":")[0].strip(), known)
    return UsageError(
        f"SOURCE {spec!r} is neither a directory nor a known name.{hint} Give a directory with "
        f"IDX files, or one of {', '.join(known)}, or synthetic:TRAIN,TEST."
    )
