"""The IDX set that a directory holds: which files are read, and what is said of the others."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.sources.idx_names import (
    COMPRESSIONS,
    SPLITS,
    UNFINISHED,
    IdxName,
    choose_one,
    is_company,
    propose_name,
    read_name,
)
from storage.errors import BadDataError, PipelineError, UnreachableError
from storage.idx import TYPE_NAMES, read_header

MOST_LOOKED_INTO = 200
"""Directories below one without IDX files that are searched for them."""
SHOWN_NAMES = 5
"""More files than this are counted, not named."""


Role = tuple[str, str]
"""Split and kind."""
Chosen = dict[Role, tuple[IdxName, Path]]
"""The files that are read."""


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
    """What stands before the split in its names, such as `emnist-letters`; often empty."""
    splits: dict[str, SplitFiles]
    """By split, in the order of `SPLITS`; at least one of them."""


def find_idx_files(directory: Path, warn: Callable[[str], None]) -> NamedSet:
    """Return the IDX set in `directory`, by names; `warn` of IDX files that are not used.

    Only files that the set does not use are opened, for their first bytes. Raises `BadDataError`
    where there is no set, where files of several sets lie side by side, labels without their
    images, or a file that nearly has the name of one that is missing; `UnreachableError` where
    the directory cannot be listed.
    """
    paths = _visible_files(directory)
    names = {path: read_name(path.name) for path in paths}
    expected = {path: name for path, name in names.items() if name.is_expected}
    _check_one_set(directory, expected.values())
    chosen = dict(_chosen(directory, expected))
    bases = {name.base for name, _ in chosen.values()}  # a file's compressed forms have the same
    others = [path for path in paths if names[path].base not in bases]
    _check_the_others(directory, others, chosen, warn)
    _check_links(directory, chosen)
    if not chosen:
        raise _none_error(directory)
    splits = {
        split: _split_files(split, chosen)
        for split in SPLITS
        if any(role[0] == split for role in chosen)
    }
    return NamedSet(next(iter(expected.values())).prefix, splits)


def _visible_files(directory: Path) -> list[Path]:
    try:
        return sorted(
            path
            for path in directory.iterdir()
            if not path.name.startswith(".") and path.is_file()  # `._name` is macOS's shadow
        )
    except OSError as error:
        raise UnreachableError(
            f"{directory}: the directory cannot be listed ({error.strerror}). "
            "Check its permissions and the disk or mount it is on, then try again."
        ) from error


def _check_one_set(directory: Path, expected: Iterable[IdxName]) -> None:
    names = list(expected)
    if len({name.prefix for name in names}) > 1:
        raise _ambiguous_error(directory, "files of several sets", names)


def _chosen(
    directory: Path, expected: dict[Path, IdxName]
) -> Iterator[tuple[Role, tuple[IdxName, Path]]]:
    by_name = {name.name: path for path, name in expected.items()}
    rivals: dict[Role, list[IdxName]] = {}
    for name in expected.values():
        rivals.setdefault((str(name.split), name.kind), []).append(name)
    for (split, kind), names in rivals.items():
        chosen = choose_one(names)
        if chosen is None:
            raise _ambiguous_error(directory, f"several {split} {kind[:-1]} files", names)
        yield (split, kind), (chosen, by_name[chosen.name])


def _check_the_others(
    directory: Path, paths: list[Path], chosen: Chosen, warn: Callable[[str], None]
) -> None:
    """Warn of what is IDX and not used; refuse what nearly has the name of a missing file."""
    near: list[str] = []
    unused: list[str] = []
    for path in paths:
        header, compression, reason = _peek(path)
        proposed = None
        if header is not None or not is_company(path.name):
            proposed = propose_name(path.name, header, compression)
        if proposed is None or read_name(path.name).is_expected:
            if header is not None or proposed is not None:
                unused.append(path.name)
            continue
        name = read_name(proposed)
        if (str(name.split), name.kind) in chosen:
            unused.append(path.name)
        elif UNFINISHED.fullmatch(path.name):
            near.append(f"{path.name} is an unfinished download of {proposed}: finish it")
        elif reason:
            near.append(f"{path.name} cannot be used as {proposed}: {reason}")
        else:
            near.append(f"rename {path.name} to {proposed}")
    if near:
        raise BadDataError(
            f"{directory} has files that nearly have the name of an IDX file, and would be left "
            f"out: {'; '.join(_shown(near))}. Or move them to another directory."
        )
    if unused:
        used = ", ".join(name.name for name, _ in chosen.values())
        odd = [name for name in unused if not read_name(name).is_expected]
        hint = (
            " A name must say the split and the kind, as train-images-idx3-ubyte does."
            if odd
            else ""
        )
        warn(
            f"{directory} has unused files that are IDX by content or name: "
            f"{', '.join(_shown(unused))}. Used: {used or 'none'}.{hint}"
        )


def _check_links(directory: Path, chosen: Chosen) -> None:
    """Refuse a broken link with the name of a file that is missing."""
    for path in sorted(directory.iterdir()):
        name = read_name(path.name)
        if name.is_expected and (str(name.split), name.kind) not in chosen and not path.exists():
            raise BadDataError(
                f"{path} is a link to a file that is not there. Fetch it (`git annex get` where "
                "git-annex keeps it), or remove the link."
            )


def _peek(path: Path) -> tuple[tuple[int, str] | None, str, str]:
    """Return the dimensions and element type of an IDX file, and its compression.

    None for a file that is not IDX, the compression by its name, and the reason.
    """
    try:
        header, compression = read_header(path)
    except PipelineError as error:
        by_name = next((end for end in COMPRESSIONS[1:] if end in path.name.lower()), "")
        return None, by_name, str(error).removeprefix(f"{path}: ").rstrip(".")
    return (len(header.shape), TYPE_NAMES[header.dtype.name]), compression, ""


def _split_files(split: str, chosen: Chosen) -> SplitFiles:
    images, labels = (chosen.get((split, kind)) for kind in ("images", "labels"))
    if images is None:
        assert labels is not None
        raise BadDataError(
            f"{labels[1]}: these {split} labels have no images beside them; expected a file such "
            f"as {split}-images-idx3-ubyte. Add the images, or move the labels away."
        )
    return SplitFiles(images[1], None if labels is None else labels[1])


def _none_error(directory: Path) -> BadDataError:
    below = _directories_with_idx(directory)
    if below:
        return BadDataError(
            f"{directory} has no IDX files itself; there are some in "
            f"{', '.join(_shown([str(path) for path in below]))}. "
            + (
                "Give that directory instead."
                if len(below) == 1
                else "Give one of these directories, or put the files of a set into one."
            )
        )
    return BadDataError(
        f"{directory}: found no IDX file by its name; expected train-images-idx3-ubyte and "
        "train-labels-idx1-ubyte, or t10k-, test- or val- in place of train-, raw or as .gz or "
        ".xz, perhaps with a prefix such as emnist-letters-. Name another directory, or "
        "rename the files."
    )


def _directories_with_idx(directory: Path) -> list[Path]:
    """Return the nearest directories below that hold a set, such as torchvision's MNIST/raw."""
    level = [directory]
    looked_into = 0
    while level and looked_into < MOST_LOOKED_INTO:
        below = [
            Path(entry.path)
            for parent in level
            for entry in _entries(parent)
            if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
        ][:MOST_LOOKED_INTO]
        looked_into += len(below)
        found = [path for path in below if _has_expected_name(path)]
        if found:
            return sorted(found)
        level = below
    return []


def _has_expected_name(directory: Path) -> bool:
    return any(read_name(entry.name).is_expected for entry in _entries(directory))


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError:
        return []


def _shown(names: list[str]) -> list[str]:
    more = len(names) - SHOWN_NAMES
    return names if more <= 0 else [*names[:SHOWN_NAMES], f"and {more:,} more"]


def _ambiguous_error(directory: Path, what: str, names: Iterable[IdxName]) -> BadDataError:
    listed = ", ".join(name.name for name in names)
    return BadDataError(
        f"{directory}: found {what} ({listed}); expected one images and one labels file per "
        "split. Move each set into a directory of its own."
    )
