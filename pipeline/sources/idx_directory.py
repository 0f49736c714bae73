"""The format IDX: the set of files in a directory, found by their names."""

import logging
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from pipeline.sources.formats import Format, Source, directory_name
from pipeline.sources.idx_names import (
    IdxName,
    accompanies_data,
    choose_one,
    nearest_role,
    read_name,
)
from pipeline.sources.idx_split import IdxSplit
from pipeline.sources.splits import check_same_images, in_order
from storage.errors import BadDataError, PipelineError, listed, translate_os_errors
from storage.idx import read_header

MOST_LOOKED_INTO = 200
"""Subdirectories to search for IDX files that are missing in a directory itself."""

Role = tuple[str, str]
"""A split, and `images` or `labels`."""
SplitFiles = dict[str, Path]
"""The files of a split: `images`, and `labels` if it has any."""

logger = logging.getLogger(__name__)


def open_directory(directory: Path) -> Source:
    """Open the IDX set in a directory; its default name is the files' prefix or the directory's.

    Reads the headers only. Raises the errors of `find_idx_files`, and `BadDataError` if the splits
    do not match.
    """
    prefix, files = find_idx_files(directory)
    splits = tuple(IdxSplit(split, **paths) for split, paths in files.items())
    check_same_images(splits)
    return Source(prefix or directory_name(directory), splits, f"IDX files in {directory}")


def has_idx_files(directory: Path) -> bool:
    """Return whether a directory has files that are named as those of IDX sets."""
    with translate_os_errors("list", directory):
        return any(read_name(name).split for name in os.listdir(directory))


def find_idx_files(directory: Path) -> tuple[str, dict[str, SplitFiles]]:
    """Return the prefix and, by split, the files of the IDX set in a directory.

    A warning names IDX files that are not used. Raises `BadDataError` if there is no set, more than
    one, labels without images, or a misnamed file in place of a missing one, and `UnreachableError`
    if the directory cannot be listed.
    """
    with translate_os_errors("list", directory):
        paths = sorted(path for path in directory.iterdir() if not path.is_dir())
    visible = [path.name for path in paths if not path.name.startswith(".")]  # macOS has `._` files
    names = [read_name(name) for name in visible]
    expected = [name for name in names if name.split]
    if len({name.prefix for name in expected}) > 1:
        raise _ambiguous_error(directory, "files of several sets", expected)
    chosen = _choose(directory, expected)
    bases = {name.base for name in chosen.values()}  # a file's compressed forms have the same
    _check_others(directory, [name for name in names if name.base not in bases], chosen)
    if not chosen:
        raise _none_error(directory)
    return expected[0].prefix, _by_split(directory, chosen)


def _choose(directory: Path, expected: list[IdxName]) -> dict[Role, IdxName]:
    rivals: dict[Role, list[IdxName]] = {}
    for name in expected:
        rivals.setdefault((str(name.split), name.content), []).append(name)
    chosen = {}
    for (split, content), names in rivals.items():
        one = choose_one(names)
        if one is None:
            raise _ambiguous_error(directory, f"several {split} {content[:-1]} files", names)
        if not (directory / one.name).exists():
            raise BadDataError(
                f"{directory / one.name} is a link to a missing file. Fetch the file (with "
                "`git annex get` if git-annex manages it), or remove the link."
            )
        chosen[split, content] = one
    return chosen


def _check_others(directory: Path, others: list[IdxName], chosen: dict[Role, IdxName]) -> None:
    """Warn about unused IDX files; raise `BadDataError` for a misnamed one that is missing."""
    near, usual, unused = [], [], []
    for other in others:
        dimensions, reason = _peek(directory / other.name)
        role = None
        if dimensions is not None or not accompanies_data(other.name):
            role = nearest_role(other.name, dimensions)
        if role is not None and role not in chosen:
            near.append(f"{other.name} ({' '.join(role)}{reason})")
            usual.append(f"{'-'.join(role)}-{'idx1' if role[1] == 'labels' else 'idx3'}-ubyte")
        elif role is not None or dimensions is not None:
            unused.append(other.name)
    if near:
        raise BadDataError(
            f"{directory} has files whose names almost match the convention for IDX files: "
            f"{listed(near)}. Rename each like {usual[0]} once it is complete and unpacked, or "
            "move it to another directory."
        )
    if unused:
        logger.warning(
            "%s has IDX files that are not used: %s. Used: %s. A name must have the split and "
            "images or labels, like train-images-idx3-ubyte. Images without labels are scored with "
            "`pipeline score --inbox DIRECTORY`.",
            directory,
            listed(unused),
            ", ".join(name.name for name in chosen.values()) or "none",
        )


def _peek(path: Path) -> tuple[int | None, str]:
    """Return an IDX file's number of dimensions; for another file None and the reason."""
    try:
        header, _ = read_header(path)
    except PipelineError as error:
        return None, str(error).removeprefix(str(path)).rstrip(".")
    return len(header.shape), ""


def _by_split(directory: Path, chosen: dict[Role, IdxName]) -> dict[str, SplitFiles]:
    by_split: dict[str, SplitFiles] = {}
    for (split, content), name in chosen.items():
        by_split.setdefault(split, {})[content] = directory / name.name
    for split, files in by_split.items():
        if "images" not in files:
            raise BadDataError(
                f"{files['labels']} has labels, but there is no file of images for the {split} "
                f"split, such as {split}-images-idx3-ubyte. Add it, or move the labels elsewhere."
            )
    return in_order(by_split)


def _none_error(directory: Path) -> BadDataError:
    """Return the error for a directory without IDX files, naming subdirectories with some."""
    below = [
        path
        for path, _, names in islice(os.walk(directory), MOST_LOOKED_INTO)
        if any(read_name(name).split for name in names)
    ]
    if below:
        return BadDataError(
            f"{directory} has no IDX files itself, but there are some in {listed(sorted(below))}. "
            "Give the directory of one set."
        )
    return BadDataError(
        f"{directory} has no IDX files; expected names such as train-images-idx3-ubyte and "
        "train-labels-idx1-ubyte, with t10k-, test- or val- for other splits, raw, .gz or .xz, "
        "optionally with a prefix such as emnist-letters-. Give another directory, or rename the "
        "files."
    )


def _ambiguous_error(directory: Path, what: str, names: Iterable[IdxName]) -> BadDataError:
    return BadDataError(
        f"{directory} has {what} ({', '.join(name.name for name in names)}); expected one file of "
        "images and one of labels per split. Move each set to its own directory."
    )


FORMAT = Format(
    name="a directory of IDX files",
    recognises=lambda path, start: path.is_dir(),
    open=lambda path, options, progress: open_directory(path),
)
