"""The formats of NumPy: an archive of arrays (.npz), a directory of .npy files, and one .npy file.

The names of the arrays say which split and content they have: `x_train` and `y_train` as Keras
writes them, `val_images` and `val_labels` as in MedMNIST, or `images` and `labels` alone.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pipeline.sources.array_split import ArraySplit, source_of_values
from pipeline.sources.formats import Format, Source, SourceOptions, directory_name
from pipeline.sources.npy import NPY_MAGIC, ZIP_MAGIC, Npy, read_npy, read_npz
from pipeline.sources.splits import SPLIT_OF, SPLITS, in_order, split_named
from storage.errors import BadDataError, UsageError, did_you_mean, listed, translate_os_errors
from storage.events import Progress

IMAGE_WORDS = {"x", "image", "images", "img", "imgs", "data", "input", "inputs", "features"}
LABEL_WORDS = {"y", "label", "labels", "target", "targets", "class", "classes"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+[a-z]*\d*")
"""A word of a name: `x_train`, `XTrain` and `trainX` have two."""
_SHOWN_ARRAYS = 8

Roles = dict[str, tuple[str, str | None]]
"""By split, the names of the arrays of images and of labels."""


def open_arrays(path: Path, options: SourceOptions, progress: Progress) -> Source:
    """Open NumPy arrays; see the errors of `Format.open`."""
    arrays = _arrays_at(path)
    if not arrays:
        raise BadDataError(f"{path} has no arrays. Save images and labels with numpy.savez.")
    if options.arrays:
        roles = _asked_roles(path, arrays, options.arrays)
    elif path.is_file() and path.suffix.lower() == ".npy":
        roles = {split_named(path.name) or "train": (next(iter(arrays)), None)}
    else:
        roles = _named_roles(path, arrays)
    splits = [
        _split(path, split, arrays[images], arrays.get(labels or ""), options)
        for split, (images, labels) in in_order(roles).items()
    ]
    name = directory_name(path) if path.is_dir() else path.stem
    return source_of_values(name, splits, f"NumPy arrays in {path}", progress)


def _arrays_at(path: Path) -> dict[str, Npy]:
    """Return all arrays by name."""
    if path.is_dir():
        return {file.stem: read_npy(file) for file in _npy_files(path)}
    with translate_os_errors("read", path), path.open("rb") as file:
        start = file.read(len(NPY_MAGIC))
    if start.startswith(ZIP_MAGIC) or (start != NPY_MAGIC and path.suffix.lower() == ".npz"):
        return read_npz(path)
    return {path.stem: read_npy(path)}


def _npy_files(directory: Path) -> list[Path]:
    with translate_os_errors("list", directory):
        return sorted(
            path
            for path in directory.iterdir()
            if path.suffix.lower() == ".npy" and path.name[0] != "." and path.is_file()
        )


def _split(
    path: Path, split: str, images: Npy, labels: Npy | None, options: SourceOptions
) -> ArraySplit:
    used = [images] if labels is None else [images, labels]
    for array in used:
        array.check()
    files = list(dict.fromkeys(array.path for array in used))
    opened = ArraySplit(split, images, labels, files, path, options.shape)
    opened.choices["arrays"] = [array.member or array.path.name for array in used]
    return opened


def _asked_roles(
    path: Path, arrays: Mapping[str, Npy], asked: Mapping[str, tuple[str, ...]]
) -> Roles:
    for name in (name for names in asked.values() for name in names):
        if name not in arrays:
            raise UsageError(
                f"--arrays names {name!r}, but {path} has {_listed(arrays)}."
                f"{did_you_mean(name, arrays)}"
            )
    return {split: (names[0], names[1] if names[1:] else None) for split, names in asked.items()}


def _named_roles(path: Path, arrays: Mapping[str, Npy]) -> Roles:
    """Return the arrays of each split by their names; without a word for it, by the file's."""
    default = split_named(path.stem) or "train"
    by_role: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"images": [], "labels": []})
    for name in arrays:
        content, words = read_array_name(name)
        split = next((word for word in words if word in SPLITS), default)
        if content is not None:
            by_role[split][content].append(name)
    for split, names in by_role.items():
        if len(names["images"]) != 1 or len(names["labels"]) > 1:
            raise _unclear_error(path, arrays, f"the {split} split's images and labels are unclear")
    if not by_role:
        raise _unclear_error(path, arrays, "their names do not say which are images and labels")
    return {
        split: (names["images"][0], names["labels"][0] if names["labels"] else None)
        for split, names in by_role.items()
    }


def read_array_name(name: str) -> tuple[str | None, list[str]]:
    """Return `images` or `labels`, or None if a name says neither, and its other words.

    Each word for a split is replaced by the split.
    """
    lower = [word.lower() for word in _WORD.findall(name)]
    words = [SPLIT_OF.get(word, word) for word in lower]
    for content, known in (("images", IMAGE_WORDS), ("labels", LABEL_WORDS)):
        if known.intersection(words):
            return content, [word for word in words if word not in known]
    return None, words


def _unclear_error(path: Path, arrays: Mapping[str, Npy], problem: str) -> BadDataError:
    images = next((name for name, array in arrays.items() if len(array.shape) > 1), "IMAGES")
    rows = arrays[images].shape[0] if images in arrays else None
    labels = [name for name, array in arrays.items() if array.shape[:1] == (rows,)]
    example = ",".join([images, *[name for name in labels if name != images][:1]])
    return BadDataError(
        f"{path} has {_listed(arrays)}; {problem}. Expected names such as x_train and y_train, "
        f"x_test and y_test, or val_images and val_labels. Name them: --arrays train={example}"
    )


def _listed(arrays: Mapping[str, Npy]) -> str:
    shapes = [f"{name} {array.shape}" for name, array in arrays.items()]
    return f"the arrays {listed(shapes, _SHOWN_ARRAYS)}"


def _recognises(path: Path, start: bytes) -> bool:
    """Recognise arrays by their first bytes, then by name."""
    if path.is_dir():
        return bool(_npy_files(path))
    if start.startswith(ZIP_MAGIC):
        first = start[30 : 30 + int.from_bytes(start[26:28], "little")]
        return first.endswith(b".npy") or path.suffix.lower() == ".npz"
    is_named = path.is_file() and path.suffix.lower() in (".npy", ".npz")
    return start.startswith(NPY_MAGIC) or is_named


FORMAT = Format(
    name="a file or directory of NumPy arrays",
    recognises=_recognises,
    open=open_arrays,
    options=frozenset({"arrays", "shape"}),
)
