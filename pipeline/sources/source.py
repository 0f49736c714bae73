"""Where rows come from: a directory of IDX files, a download, or generated digits."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.sources.downloads import CATALOGUES, Catalogue, download
from pipeline.sources.idx_directory import find_idx_files
from pipeline.sources.idx_split import IdxSplit
from pipeline.sources.splits import SplitSource
from pipeline.sources.synthetic import open_synthetic
from storage.errors import BadDataError, UsageError, did_you_mean
from storage.events import Progress, no_progress


@dataclass(frozen=True)
class Source:
    """A named set of one to three splits."""

    name: str
    """What to call the dataset made from it."""
    splits: tuple[SplitSource, ...]
    """In the order `train`, `validation`, `test`; of one image shape and element type."""
    description: str
    """Where it came from, for people."""

    def fingerprint(self, progress: Progress = no_progress) -> dict[str, Any]:
        """Return each split's fingerprint: the same wherever the same content lies."""
        return {split.name: split.fingerprint(progress) for split in self.splits}


def open_source(
    spec: str,
    *,
    seed: int = 0,
    cache: Path | None = None,
    catalogues: Mapping[str, Catalogue] = CATALOGUES,
) -> Source:
    """Open `spec`: a directory, a set's name, or `synthetic[:TRAIN[,TEST]]`.

    A set's name is a key of `catalogues`; it is downloaded into `cache` (by default the user's)
    unless it lies there already. The environment's MNIST_DIR takes the place of the download of
    `mnist`. `seed` is for generated digits. Known names come before directories: write `./mnist`
    for a directory called so.

    Raises `UsageError` for anything else, `BadDataError` where the files' names or headers do not
    fit together, `UnreachableError` where a download or a file cannot be had.
    """
    if spec.partition(":")[0] == "synthetic":
        description = f"digits drawn by mnist-stream with seed {seed}"
        return Source("synthetic", open_synthetic(spec, seed), description)
    if spec == "mnist" and (named := os.environ.get("MNIST_DIR")):
        directory = Path(named)
        if not directory.is_dir():
            raise UsageError(
                f"MNIST_DIR names {directory}, which is not a directory; expected the one that "
                "holds the MNIST files. Correct it, or unset it to download them."
            )
        return open_directory(directory, spec, f"IDX files in {directory}, named by MNIST_DIR")
    if spec in catalogues:
        directory = download(catalogues[spec], cache)
        description = f"{spec} from its public mirrors, kept in {directory}"
        return open_directory(directory, spec, description)
    path = Path(spec)
    if spec and path.is_dir():
        return open_directory(path)
    raise _unknown_source_error(spec, [*catalogues, "synthetic"])


def open_directory(
    directory: Path, name: str | None = None, description: str | None = None
) -> Source:
    """Open the IDX set in `directory`, called by default by its files' prefix or the directory.

    Opens each file for its header only. Raises as `open_source` does.
    """
    prefix, files = find_idx_files(directory)
    splits = tuple(IdxSplit(split, **paths) for split, paths in files.items())
    if len({(split.image_shape, split.dtype) for split in splits}) > 1:
        found = ", ".join(f"{s.name} has {s.image_shape} of {s.dtype}" for s in splits)
        raise BadDataError(
            f"The splits' images differ: {found}; expected the same shape and element type. "
            "Take the files of all splits from the same set."
        )
    return Source(
        name=name or prefix or os.path.basename(os.path.realpath(directory)) or "dataset",
        splits=splits,
        description=description or f"IDX files in {directory}",
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
