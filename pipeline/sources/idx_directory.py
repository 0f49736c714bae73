"""The IDX set that a directory holds: which files are read, and what is said of the others."""

import logging
import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from pipeline.sources.idx_names import (
    SPLITS,
    IdxName,
    choose_one,
    is_company,
    nearest_role,
    read_name,
)
from storage.errors import BadDataError, PipelineError, translate_os_errors
from storage.idx import read_header

MOST_LOOKED_INTO = 200
"""Directories below one without IDX files that are searched for them."""
SHOWN_NAMES = 5
"""More files than this are counted, not named."""

Role = tuple[str, str]
"""Split and kind."""
SplitFiles = dict[str, Path]
"""The files of a split by kind: `images`, and `labels` where there are any."""

logger = logging.getLogger(__name__)


def find_idx_files(directory: Path) -> tuple[str, dict[str, SplitFiles]]:
    """Return the prefix and the files, by split, of the IDX set in a directory, by their names.

    IDX files that are not used are named in a warning. Raises `BadDataError` where there is no
    set, where files of several sets lie side by side, labels without their images, or a file that
    nearly has the name of a missing one; `UnreachableError` where the directory cannot be listed.
    """
    with translate_os_errors("list", directory):
        paths = sorted(path for path in directory.iterdir() if not path.is_dir())
    visible = [path.name for path in paths if not path.name.startswith(".")]  # no `._` of macOS
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
        rivals.setdefault((str(name.split), name.kind), []).append(name)
    chosen = {}
    for (split, kind), names in rivals.items():
        one = choose_one(names)
        if one is None:
            raise _ambiguous_error(directory, f"several {split} {kind[:-1]} files", names)
        if not (directory / one.name).exists():
            raise BadDataError(
                f"{directory / one.name} is a link to a file that is not there. Fetch it "
                "(`git annex get` where git-annex keeps it), or remove the link."
            )
        chosen[split, kind] = one
    return chosen


def _check_others(directory: Path, others: list[IdxName], chosen: dict[Role, IdxName]) -> None:
    """Warn of what is IDX and not used; refuse what nearly has the name of a missing file."""
    near, usual, unused = [], [], []
    for other in others:
        dimensions, reason = _peek(directory / other.name)
        role = None
        if dimensions is not None or not is_company(other.name):
            role = nearest_role(other.name, dimensions)
        if role is not None and role not in chosen:
            near.append(f"{other.name} ({' '.join(role)}{reason})")
            usual.append(f"{'-'.join(role)}-{'idx1' if role[1] == 'labels' else 'idx3'}-ubyte")
        elif role is not None or dimensions is not None:
            unused.append(other.name)
    if near:
        raise BadDataError(
            f"{directory} has files that nearly have the name of an IDX file, and would be left "
            f"out: {_shown(near)}. Finish or unpack each and name it as {usual[0]} is, or move it "
            "to another directory."
        )
    if unused:
        logger.warning(
            "%s has unused files that are IDX by content or name: %s. Used: %s. A name must say "
            "the split and the kind, as train-images-idx3-ubyte does.",
            directory,
            _shown(unused),
            ", ".join(name.name for name in chosen.values()) or "none",
        )


def _peek(path: Path) -> tuple[int | None, str]:
    """Return an IDX file's dimensions; None for another, and why it is none."""
    try:
        header, _ = read_header(path)
    except PipelineError as error:
        return None, str(error).removeprefix(str(path)).rstrip(".")
    return len(header.shape), ""


def _by_split(directory: Path, chosen: dict[Role, IdxName]) -> dict[str, SplitFiles]:
    found: dict[str, SplitFiles] = {}
    for split in SPLITS:
        files = {kind: directory / name.name for (of, kind), name in chosen.items() if of == split}
        if files and "images" not in files:
            raise BadDataError(
                f"{files['labels']}: these {split} labels have no images beside them; expected a "
                f"file such as {split}-images-idx3-ubyte. Add it, or move the labels away."
            )
        if files:
            found[split] = files
    return found


def _none_error(directory: Path) -> BadDataError:
    """Name the directories below that hold a set, such as torchvision's MNIST/raw."""
    below = [
        path
        for path, _, names in islice(os.walk(directory), MOST_LOOKED_INTO)
        if any(read_name(name).split for name in names)
    ]
    if below:
        return BadDataError(
            f"{directory} has no IDX files itself; there are some in {_shown(sorted(below))}. "
            "Give the directory of one set."
        )
    return BadDataError(
        f"{directory}: found no IDX file by its name; expected train-images-idx3-ubyte and "
        "train-labels-idx1-ubyte, or t10k-, test- or val- in place of train-, raw or as .gz or "
        ".xz, perhaps with a prefix such as emnist-letters-. Name another directory, or "
        "rename the files."
    )


def _shown(names: list[str]) -> str:
    more = len(names) - SHOWN_NAMES
    return ", ".join([*names[:SHOWN_NAMES], *([f"and {more:,} more"] if more > 0 else [])])


def _ambiguous_error(directory: Path, what: str, names: Iterable[IdxName]) -> BadDataError:
    listed = ", ".join(name.name for name in names)
    return BadDataError(
        f"{directory}: found {what} ({listed}); expected one images and one labels file per "
        "split. Move each set into a directory of its own."
    )
