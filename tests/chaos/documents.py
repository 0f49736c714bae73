"""Forged documents: arbitrary values anywhere in the commands' artefacts, with valid seals.

A forgery is drawn as a list of edits that can be applied to any document. Seals, digests and sizes
are then recomputed, so that the contents themselves are tested.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from storage import documents, trees
from storage.checkpoints import DIRECTORY, MANIFEST, STATE
from storage.errors import BadDataError
from storage.runs import METRICS, RECORD
from storage.schema import METADATA_NAME, SplitRecord, dataset_digest
from tests.chaos.subject import Subject
from tests.storage.idx_files import COMPRESS

Json = Any
Edits = list[tuple[int, str, Json]]
"""The number of a place in a document, the kind of edit, and its value."""

OUTSIDE = "outside"
"""A directory beside the copy of the subject in which nothing may be opened."""

STRINGS = (
    *("", "..", "/etc/passwd", "a\0b", "\ud800", "\x1b[2J", "é" * 300, "validation", "1"),
    *(f"{'../' * levels}{OUTSIDE}/secret" for levels in (1, 2, 4)),
    *("784-relu-9999999-softmax-10", "784-relu-9999999-relu-9999999-softmax-10"),
)
NUMBERS = (0, -1, 1, 2, 7, 255, 2**31, 2**48 - 1, 2**63 - 1, 2**63, 10**400, 1e308, 1e-320, -0.0)


def _nested(depth: int) -> Json:
    value: Json = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(STRINGS)
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
) | st.sampled_from([100, 400, 900]).map(_nested)
acts = st.sampled_from(["replace", "replace", "remove", "add", "repeat"])
edits = st.lists(st.tuples(st.integers(0, 2**16), acts, values), min_size=1, max_size=3)


@dataclass(frozen=True)
class Target:
    """A document to forge, and the commands that read it."""

    draw: st.SearchStrategy[Any]
    """Draws the argument of `forge`."""
    forge: Callable[[Subject, Any], None]
    artefact: str
    """Chooses the commands: `source`, `dataset`, `attributes`, `run`, `scores` or `config`."""


def apply(document: Json, changes: Edits) -> Json:
    """Return a copy of a document with changes at any depth."""
    root = [json.loads(json.dumps(document))]
    for number, act, value in changes:
        candidates = list(_places(root))
        holder, key = candidates[number % len(candidates)]
        if act == "remove" and holder is not root:
            del holder[key]
        elif act == "add" and isinstance(holder[key], dict):
            holder[key][str(value)[:40]] = value
        elif act == "add" and isinstance(holder[key], list):
            holder[key].append(value)
        elif act == "repeat" and isinstance(holder[key], list):
            holder[key] += holder[key][-1:]
        else:
            holder[key] = value
    return root[0]


def _places(node: Json) -> "list[tuple[Any, Any]]":
    """Return every place below a node, as its container and its key or index."""
    keys = node.keys() if isinstance(node, dict) else range(len(node))
    below = []
    for key in list(keys):
        below.append((node, key))
        if isinstance(node[key], dict | list):
            below += _places(node[key])
    return below


def _read(path: Path) -> Json:
    return json.loads(path.read_bytes())


def _bytes(document: Json, *, sealed_too: bool = True, line: bool = False) -> bytes:
    """Return a document as text, sealed if possible."""
    with suppress(ValueError, RecursionError, AttributeError, TypeError):
        if sealed_too:
            document = documents.seal(document)
    try:
        return (json.dumps(document, indent=None if line else 2) + "\n").encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def _write_group(path: Path, document: Json) -> None:
    """Write a Zarr group's document, sealed in its attributes if possible."""
    with suppress(ValueError, RecursionError, AttributeError, TypeError, KeyError):
        document = trees.seal_group(document)
    path.write_bytes(_bytes(document, sealed_too=False))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def forge_dataset_root(subject: Subject, changes: Edits) -> None:
    """Forge the dataset's attributes, with their digest and seal."""
    path = subject.dataset / METADATA_NAME
    document = _read(path)
    attributes = document["attributes"] = apply(document["attributes"], changes)
    with suppress(KeyError, TypeError, ValueError, AttributeError, RecursionError, BadDataError):
        attributes["digest"] = dataset_digest(
            tuple(str(name) for name in attributes["class_names"]),
            tuple(int(size) for size in attributes["image_shape"]),
            tuple(str(name) for name in attributes["transforms"]),
            {
                str(name): SplitRecord.from_json(entry)
                for name, entry in attributes["splits"].items()
            },
        )
    _write_group(path, document)


def forge_dataset_arrays(subject: Subject, changes: Edits) -> None:
    """Forge the metadata of a group or array of the dataset, with its digest in the root."""
    paths = sorted(subject.dataset.glob(f"*/**/{METADATA_NAME}"))
    path = paths[changes[0][0] % len(paths)]
    path.write_bytes(_bytes(apply(_read(path), changes), sealed_too=False))
    root = _read(subject.dataset / METADATA_NAME)
    key = path.relative_to(subject.dataset).as_posix()
    for digests in (trees.METADATA_DIGESTS, trees.OWN_METADATA_DIGESTS):
        root["attributes"][digests][key] = _sha256(path)
    _write_group(subject.dataset / METADATA_NAME, root)


def forge_record(subject: Subject, changes: Edits) -> None:
    """Forge run.json."""
    path = subject.run / RECORD
    path.write_bytes(_bytes(apply(_read(path), changes)))


def _newest(subject: Subject) -> Path:
    return max((subject.run / DIRECTORY).glob("[0-9]*"))


def forge_manifest(subject: Subject, changes: Edits, *, progress: bool = False) -> None:
    """Forge a checkpoint's manifest, or its progress only, with the same metrics.jsonl."""
    path = _newest(subject) / MANIFEST
    document = _read(path)
    if progress:
        document["progress"] = apply(document["progress"], changes)
    else:
        document = apply(document, changes)
    path.write_bytes(_bytes(document))
    with suppress(KeyError, TypeError, AttributeError):
        lines = [_bytes(line, line=True) for line in document["progress"]["metrics"]]
        (subject.run / METRICS).write_bytes(b"".join(lines))


def forge_metrics(subject: Subject, changes: Edits) -> None:
    """Forge the lines of metrics.jsonl, each sealed, but not the checkpoint's copy of them."""
    path = subject.run / METRICS
    lines = apply([json.loads(line) for line in path.read_bytes().splitlines()], changes)
    whole = lines if isinstance(lines, list) else [lines]
    path.write_bytes(b"".join(_bytes(line, line=True) for line in whole))


def forge_tensors(subject: Subject, changes: Edits) -> None:
    """Forge the header of a checkpoint's tensors, with its size and digest in the manifest."""
    path = _newest(subject) / STATE
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(apply(json.loads(data[8 : 8 + size]), changes)).encode()
    claimed = changes[0][0] if changes[0][0] % 5 == 0 else len(header)
    path.write_bytes(struct.pack("<Q", claimed) + header + data[8 + size :])
    manifest = _read(path.with_name(MANIFEST))
    manifest |= {"state_bytes": path.stat().st_size, "state_sha256": _sha256(path)}
    path.with_name(MANIFEST).write_bytes(_bytes(manifest))


def forge_scoring(subject: Subject, changes: Edits) -> None:
    """Forge the attributes of complete scores."""
    path = subject.scoring / METADATA_NAME
    document = _read(path)
    document["attributes"] = apply(document["attributes"], changes)
    _write_group(path, document)


def forge_quality(subject: Subject, changes: Edits) -> None:
    """Forge the metrics of complete scores, with their digest in the attributes."""
    path = subject.scoring / "metrics.json"
    path.write_bytes(_bytes(apply(_read(path), changes)))
    document = _read(subject.scoring / METADATA_NAME)
    document["attributes"]["metrics_sha256"] = _sha256(path)
    _write_group(subject.scoring / METADATA_NAME, document)


SPARSE_BYTES = 2**40
"""Apparent size of a sparse file, which takes no disk space."""

TEXTS = (
    *(b"", b"null", b"[]", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 10_000, b"\xff\xfe{}"),
    *(b'{"a": 1e999}', b'{"a": NaN}', b'{"attributes": "\\ud800"}'),
    b'{"attributes": {"format": "mnist-stream dataset", "format_version": 1, "complete": true}}',
    b'{"attributes": {"format": "mnist-stream scores", "format_version": 1, "complete": true}}',
    b'{"format": "mnist-stream run", "format_version": 1}',
)
FILES = ("text", "sparse", "pipe", "directory")
LINKS = ("moved", "secret", "loop", "nowhere")
places = st.tuples(st.integers(0, 2**16), st.sampled_from(FILES + LINKS), st.sampled_from(TEXTS))


def replace_place(artefact: str, subject: Subject, drawn: Any) -> None:
    """Replace a file by another type of file, or a file or directory by a symlink.

    The link `moved` leads to the original outside, `secret` to another file there.
    """
    number, replacement, text = drawn
    paths = sorted((subject.home / artefact).rglob("*"))
    paths = [path for path in paths if path.is_file() or replacement in LINKS]
    path = paths[number % len(paths)]
    outside = subject.home.parent / OUTSIDE
    path.rename(outside / "moved")
    if replacement == "text":
        path.write_bytes(text)
    elif replacement == "sparse":
        path.touch()
        os.truncate(path, SPARSE_BYTES)
    elif replacement == "pipe":
        os.mkfifo(path)
    elif replacement == "directory":
        path.mkdir()
    else:
        path.symlink_to(path if replacement == "loop" else outside / replacement)


idx_heads = st.tuples(
    st.sampled_from([0, 0, 0, 0, 1, 0x80]),
    st.sampled_from([8, 8, 8, 9, 11, 12, 13, 14, 10, 0, 255]),
    st.integers(0, 255) | st.integers(1, 4),
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 100), max_size=6),
    st.binary(max_size=40) | st.sampled_from([b"\0" * 3000, b"\1" * 90, b"\x1f\x8b\x08"]),
    st.sampled_from(sorted(COMPRESS)),
    st.integers(0, 3),
    st.integers(0, 40),
)


def forge_idx(subject: Subject, drawn: Any) -> None:
    """Forge an IDX file of the source: any header, content and compression, perhaps truncated."""
    first, code, dimensions, sizes, content, form, number, cut = drawn
    paths = sorted(subject.source.iterdir())
    path = paths[number]
    data = struct.pack(f">BBBB{len(sizes)}I", 0, first, code, dimensions, *sizes) + content
    packed = COMPRESS[form](data)
    path.unlink()
    kept = packed[: len(packed) - cut] if cut % 4 == 0 else packed
    path.with_name(path.name + form).write_bytes(kept)


TOML = (
    *("0", "-1", "1e308", "nan", "inf", "-inf", "1" * 400, "1" * 5000, "0x" + "f" * 400, "true"),
    *("0x" + "f" * 5000, "[0x" + "f" * 5000 + "]", "1979-05-27", '"' + "a" * 100_000 + '"'),
    *('"784-relu-9999999-softmax-10"', '"784-relu-9999999-relu-9999999-softmax-10"', "{a = 1}"),
    *("[" * 900 + "]" * 900, "[" * 90_000 + "]" * 90_000, '"\\ud800"'),
    *('{like = "none", shift = 2}', '{like = [1], "" = 2}', '{until = "x", batch-size = 9}'),
)
toml_values = (
    st.sampled_from(TOML)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.text(max_size=10).map(lambda text: json.dumps(text, ensure_ascii=False))
)
toml_lines = st.tuples(
    st.integers(0, 99), st.sampled_from(["", "a" * 50_000, "[", ".x", "-"]), toml_values
)
toml_documents = st.lists(toml_lines, min_size=1, max_size=3)


def forge_config(subject: Subject, drawn: Any) -> None:
    """Write a TOML configuration with known and unknown settings of any value."""
    names = [*subject.config.to_json(), "recipe", "distort"]
    lines = [f"{names[number % len(names)]}{end} = {value}\n" for number, end, value in drawn]
    if not any(line.startswith("batch_size ") for line in lines):
        lines.append(f"batch_size = {subject.config.batch_size}\n")  # required by the tiny dataset
    (subject.home / "config.toml").write_text("".join(lines), errors="surrogatepass")


TARGETS = {
    "dataset-root": Target(edits, forge_dataset_root, "attributes"),
    "dataset-arrays": Target(edits, forge_dataset_arrays, "dataset"),
    "dataset-places": Target(places, partial(replace_place, "dataset"), "dataset"),
    "record": Target(edits, forge_record, "run"),
    "manifest": Target(edits, forge_manifest, "run"),
    "progress": Target(edits, partial(forge_manifest, progress=True), "run"),
    "metrics": Target(edits, forge_metrics, "run"),
    "tensors": Target(edits, forge_tensors, "run"),
    "run-places": Target(places, partial(replace_place, "run"), "run"),
    "scoring": Target(edits, forge_scoring, "scores"),
    "quality": Target(edits, forge_quality, "scores"),
    "scores-places": Target(places, partial(replace_place, "run/scores"), "scores"),
    "idx": Target(idx_heads, forge_idx, "source"),
    "config": Target(toml_documents, forge_config, "config"),
}
