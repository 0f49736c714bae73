"""The interface of formats: how files are recognised and opened as a source, with which options.

To add a format, write a module of this folder that defines a `Format`, and list it in
`source.FORMATS`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pipeline.sources.splits import SplitSource
from storage.errors import UsageError
from storage.events import Progress, no_progress
from storage.preparation import ValueRange

START_BYTES = 512
"""Bytes at the start of a file by which formats recognise it."""


@dataclass(frozen=True)
class Source:
    """A named set of one to three splits."""

    name: str
    """Name for the dataset made from it."""
    splits: tuple[SplitSource, ...]
    """In the order `train`, `validation`, `test`; all with one image shape and element type."""
    description: str
    """The origin, for people."""
    class_names: tuple[str, ...] | None = None
    """The name of each label, from 0; None for the labels themselves."""
    scaling: ValueRange | None = None
    """The range to map to [0, 1] by default. None: 0 to 255 for bytes, and the training split's
    range for other types."""

    def fingerprint(self, progress: Progress = no_progress) -> dict[str, Any]:
        """Return each split's fingerprint, which identifies its content."""
        return {split.name: split.fingerprint(progress) for split in self.splits}


@dataclass(frozen=True)
class SourceOptions:
    """Options for reading a source. Each format accepts some of them; see `Format.options`."""

    seed: int = 0
    """Random seed of generated digits, and of `shuffle` and `holdout`."""
    arrays: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By split, the name of the array of images and, if there are labels, that of labels."""
    label: str | None = None
    """Name of the column with the labels."""
    shape: tuple[int, ...] | None = None
    """Shape of an image that is stored as a row of values; None for a square of one channel."""
    resize: tuple[int, int] | None = None
    """Height and width to which pictures are resized; None to require equal sizes."""
    channels: str | None = None
    """`grey` or `rgb`: the channels of pictures; None for grey."""
    holdout: int | None = None
    """Number of pictures, drawn at random, that form a test split."""
    shuffle: bool = False
    """Whether to store pictures in random order instead of that of their names."""


@dataclass(frozen=True)
class Format:
    """A format of files or directories."""

    name: str
    """The noun for messages, such as `a NumPy archive`."""
    recognises: Callable[[Path, bytes], bool]
    """Whether a path has this format. The second argument is the first `START_BYTES` of a file
    as stored; it is empty for a directory."""
    open: Callable[[Path, SourceOptions, Progress], Source]
    """Open a path of this format. Raises `BadDataError` for damaged or unsuitable content,
    `UsageError` for an option that does not fit it."""
    options: frozenset[str] = frozenset()
    """Names of the fields of `SourceOptions` that the format uses."""


def directory_name(directory: Path) -> str:
    """Return the name of a directory, for the dataset made from it."""
    return os.path.basename(os.path.realpath(directory)) or "dataset"


def check_options(options: SourceOptions, used: frozenset[str], subject: str) -> None:
    """Raise `UsageError` for an option that was given and is not among those `used`."""
    default = SourceOptions()
    for option in fields(options):
        given = getattr(options, option.name) != getattr(default, option.name)
        if given and option.name not in used and option.name != "seed":
            raise UsageError(f"--{option.name} does not apply to {subject}; leave it out.")
