"""Which files of a directory are the images and labels of which split, told by their names.

Understood are the names of MNIST and of the sets that follow it: `train-images-idx3-ubyte`,
`t10k-labels.idx1-ubyte`, `emnist-letters-test-images-idx3-ubyte.gz`, `qmnist-test-labels-idx2-int`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.errors import BadDataError, UnreachableError

COMPRESSIONS = ("", ".gz", ".xz")
"""The endings of one file in its forms, the one preferred first: raw needs no decompression."""

_NAME = re.compile(
    r"(?:(?P<prefix>.+)[-_.])?"
    r"(?P<split>train|test|t10k)[^-_.]*"
    r"[-_.](?P<kind>image|label)s?"
    r"[-_.]idx\d*"
    r"(?:[-_.](?:ubyte|uint8|byte|int8|short|int16|int|int32|float|float32|double|float64))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split."""

    images: Path
    labels: Path | None
    """None for an unlabelled split."""


@dataclass(frozen=True)
class NamedSet:
    """The one IDX set that a directory holds."""

    prefix: str
    """What stands before `train` or `test` in its names, such as `emnist-letters`; often empty."""
    splits: dict[str, SplitFiles]
    """By split, `train` before `test`; at least one of them."""


@dataclass(frozen=True)
class _Role:
    split: str
    kind: str


@dataclass(frozen=True)
class _Candidate:
    path: Path
    base: str  # the name without .gz or .xz
    prefix: str
    role: _Role


def find_idx_files(directory: Path) -> NamedSet:
    """The IDX set in `directory`, told by names alone; no file is opened.

    Raises `BadDataError` where there is none, where files of several sets lie side by side, or
    labels without their images; `UnreachableError` where the directory cannot be listed.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise UnreachableError(
            f"{directory}: the directory cannot be listed ({error.strerror}). "
            "Check its permissions and the disk or mount it is on, then try again."
        ) from error
    candidates = [found for path in paths if (found := _parse(path))]
    if not candidates:
        raise BadDataError(
            f"{directory}: found no IDX file by its name; expected train-images-idx3-ubyte and "
            "train-labels-idx1-ubyte, or t10k- (or test-) in place of train-, raw or as .gz or "
            ".xz, perhaps with a prefix such as emnist-letters-. Name another directory, or "
            "rename the files."
        )
    _check_one_set(directory, candidates)
    chosen = _one_per_role(directory, candidates)
    splits = {
        split: _split_files(split, chosen)
        for split in ("train", "test")
        if any(role.split == split for role in chosen)
    }
    return NamedSet(candidates[0].prefix, splits)


def _parse(path: Path) -> _Candidate | None:
    base = path.name
    if path.suffix.lower() in COMPRESSIONS[1:]:
        base = base[: -len(path.suffix)]
    match = _NAME.fullmatch(base)
    if match is None or base.startswith("."):  # `._name` is macOS's shadow of a file
        return None
    split = "train" if match["split"].lower() == "train" else "test"
    return _Candidate(path, base, match["prefix"] or "", _Role(split, match["kind"].lower()))


def _check_one_set(directory: Path, candidates: list[_Candidate]) -> None:
    prefixes = {candidate.prefix for candidate in candidates}
    if len(prefixes) > 1:
        raise _ambiguous_error(directory, "files of several sets", candidates)


def _one_per_role(directory: Path, candidates: list[_Candidate]) -> dict[_Role, Path]:
    by_role: dict[_Role, list[_Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_role[candidate.role].append(candidate)
    for role, rivals in by_role.items():
        if len({rival.base for rival in rivals}) > 1:
            raise _ambiguous_error(directory, f"several {role.split} {role.kind} files", rivals)
    return {
        role: min(rivals, key=lambda rival: COMPRESSIONS.index(rival.path.suffix.lower())).path
        if len(rivals) > 1
        else rivals[0].path
        for role, rivals in by_role.items()
    }


def _split_files(split: str, chosen: dict[_Role, Path]) -> SplitFiles:
    images, labels = (chosen.get(_Role(split, kind)) for kind in ("image", "label"))
    if images is None:
        raise BadDataError(
            f"{labels}: these {split} labels have no images beside them; expected a file such as "
            f"{split}-images-idx3-ubyte. Add the images, or move the labels away."
        )
    return SplitFiles(images, labels)


def _ambiguous_error(directory: Path, found: str, candidates: Iterable[_Candidate]) -> BadDataError:
    names = ", ".join(candidate.path.name for candidate in candidates)
    return BadDataError(
        f"{directory}: found {found} ({names}); expected one images and one labels file per "
        "split. Move each set into a directory of its own."
    )
