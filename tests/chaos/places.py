"""Places where something else lies than what the commands made: a pipe, a link, other text."""

import os
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.chaos.subject import Subject

OUTSIDE = "outside"
"""A directory beside the subject's copy, in which nothing may be opened."""

SPARSE_BYTES = 2**40
"""A file that says to be this long and takes no space."""

TEXTS = (
    b"",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"1" * 10_000,
    b'{"a": 1e999}',
    b'{"a": NaN}',
    b"\xff\xfe{}",
    b'{"attributes": "\\ud800"}',
    b'{"attributes": {"format": "mnist-stream dataset", "format_version": 1, "complete": true}}',
    b'{"attributes": {"format": "mnist-stream scores", "format_version": 1, "complete": true}}',
    b'{"format": "mnist-stream run", "format_version": 1}',
)
KINDS = ("text", "sparse", "pipe", "directory", "empty", "link", "linked", "loop", "nowhere")
places = st.tuples(st.integers(0, 2**16), st.sampled_from(KINDS), st.sampled_from(TEXTS))


def replace_place(subject: Subject, drawn: Any, names: tuple[str, ...]) -> None:
    """A file, or for links a directory too, replaced by something else altogether.

    A `link` leads to what lay there, moved outside; a `linked` one to another file outside.
    """
    number, kind, text = drawn
    paths = sorted(
        path
        for name in names
        for path in (subject.home / name).rglob("*")
        if path.is_file() or kind in ("link", "linked", "loop", "nowhere")
    )
    path = paths[number % len(paths)]
    outside = subject.home.parent / OUTSIDE
    path.rename(outside / "moved")
    if kind == "text":
        path.write_bytes(text)
    elif kind == "sparse":
        path.touch()
        os.truncate(path, SPARSE_BYTES)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    else:
        leads_to = {"link": outside / "moved", "linked": outside / "secret", "loop": path}
        path.symlink_to(leads_to.get(kind, outside / "nothing"))


def replaced(*names: str) -> Callable[[Subject, Any], None]:
    """What forges a place below the directories of these names."""
    return lambda subject, drawn: replace_place(subject, drawn, names)
