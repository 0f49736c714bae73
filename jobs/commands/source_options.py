"""The options of `ingest` that say how a source is read, parsed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.errors import UsageError, translate_os_errors

if TYPE_CHECKING:
    from pipeline.sources.formats import SourceOptions

SPLITS = ("train", "validation", "test")
MOST_BYTES = 2**20
"""The largest file of class names."""


def source_options(asked: dict[str, Any]) -> "SourceOptions":
    """Return the options of a source; raise `UsageError` for one that is malformed."""
    from pipeline.sources.formats import SourceOptions

    resize = _sizes("--resize", asked["resize"], "28x28", dimensions=(2,))
    return SourceOptions(
        seed=asked["seed"],
        arrays=dict(map(_arrays, asked["arrays"])),
        label=asked["label"],
        shape=_sizes("--shape", asked["shape"], "28x28", dimensions=(1, 2, 3)),
        resize=None if resize is None else (resize[0], resize[1]),
        channels=asked["channels"],
        holdout=asked["holdout"],
        shuffle=asked["shuffle"],
    )


def _sizes(
    option: str, text: str | None, example: str, dimensions: tuple[int, ...]
) -> tuple[int, ...] | None:
    if text is None:
        return None
    sizes = text.lower().split("x")
    if len(sizes) not in dimensions or not all(
        size.isascii() and size.isdigit() and 0 < int(size) < 2**16 for size in sizes
    ):
        raise UsageError(f"{option} is {text!r}; expected sizes in pixels such as {example}.")
    return tuple(map(int, sizes))


def _arrays(text: str) -> tuple[str, tuple[str, ...]]:
    split, _, names = text.partition("=")
    arrays = tuple(names.split(","))
    if split not in SPLITS or len(arrays) > 2 or not all(arrays):
        raise UsageError(
            f"--arrays is {text!r}; expected SPLIT=IMAGES,LABELS or SPLIT=IMAGES, with a split "
            f"that is {', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
        )
    return split, arrays


def read_class_names(file: str | None) -> tuple[str, ...] | None:
    """Return the lines of a file of class names; raise `UsageError` if it is not such a file."""
    if file is None:
        return None
    from storage.schema import CLASS_LIMIT  # imports NumPy

    path = Path(file)
    if not path.is_file():
        raise UsageError(f"--class-names is {file}, which is not a file; check its name.")
    with translate_os_errors("read", path), path.open("rb") as opened:
        data = opened.read(MOST_BYTES + 1)
    try:
        names = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        names = []
    while names and not names[-1]:
        names.pop()
    printable = all(name and name.isprintable() for name in names)
    if not names or not printable or len(data) > MOST_BYTES or len(names) > CLASS_LIMIT:
        raise UsageError(
            f"--class-names {file} is not a list of names; expected UTF-8 text with one name a "
            "line, without empty lines, in the order of the labels."
        )
    return tuple(names)
