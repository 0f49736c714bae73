"""Sources: speed and memory of ingest for each format, beside other readers of the same files."""

import gzip
import importlib.util
import io
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import csv, parquet

from pipeline.sources.source import open_source
from storage.dataset import open_dataset
from storage.places import open_location
from tests.benchmarks.contest import Verdict
from tests.benchmarks.contestants import PROJECT
from tests.benchmarks.data import SOURCE, Workplace
from tests.benchmarks.scale import LAUNCHER
from tests.storage.idx_files import write_idx

ROWS = 60_000
LONG = 10
"""The long form has this many times as many rows as well."""
MEMORY = 2.0
"""The most memory that ingest may take, as a multiple of the peer's, which grows with the rows."""
TEST_ROWS = 100
"""Rows of the pickle's other splits, which it must have."""

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A format, and another program that reads its files into memory."""

    name: str
    write: Callable[[Path, Bytes, Bytes], Path]
    """Write images and labels below a directory; return what to ingest."""
    peer: str
    """The other program, for messages."""
    script: str
    """Its code in Python; `path` is what was written."""
    target: float
    """The most time that ingest may take, as a multiple of the peer's."""
    most_rows: int = sys.maxsize
    """Rows of the largest file in this format that ingest reads."""


def _write_idx(place: Path, images: Bytes, labels: Bytes) -> Path:
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        write_idx(raw := place / f"train-{name}-ubyte", values)
        _gzip(raw)
    return place


def _write_npz(place: Path, images: Bytes, labels: Bytes) -> Path:
    np.savez_compressed(place / "digits.npz", x_train=images, y_train=labels)
    return place / "digits.npz"


def _write_csv(place: Path, images: Bytes, labels: Bytes) -> Path:
    columns = [labels, *images.reshape(len(images), -1).T]
    names = ["label", *(f"pixel{number}" for number in range(len(columns) - 1))]
    csv.write_csv(pa.table(columns, names), place / "train.csv")
    return place / "train.csv"


def _write_csv_gz(place: Path, images: Bytes, labels: Bytes) -> Path:
    return _gzip(_write_csv(place, images, labels))


def _write_pickle(place: Path, images: Bytes, labels: Bytes) -> Path:
    mirrored = images[:TEST_ROWS, ::-1], images[:TEST_ROWS, :, ::-1]  # so that no image is in two
    pairs = [
        (some.reshape(len(some), -1) / np.float32(255), labels[: len(some)].astype(np.int64))
        for some in (images, *mirrored)
    ]
    with gzip.open(place / "digits.pkl.gz", "wb", compresslevel=6) as file:
        pickle.dump(tuple(pairs), file, protocol=2)
    return place / "digits.pkl.gz"


def _write_pictures(place: Path, images: Bytes, labels: Bytes) -> Path:
    for label in np.unique(labels):
        (place / "train" / str(label)).mkdir(parents=True)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(place / "train" / str(label) / f"{row:07}.png")
    return place


def _write_parquet(place: Path, images: Bytes, labels: Bytes) -> Path:
    pictures = []
    for image in images:
        Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
        pictures.append(buffer.getvalue())
    paths = pa.nulls(len(pictures), pa.string())
    column = pa.StructArray.from_arrays([pa.array(pictures), paths], ["bytes", "path"])
    table = pa.table({"image": column, "label": labels.astype(np.int64)})
    parquet.write_table(table, place / "train-00000-of-00001.parquet", row_group_size=1000)
    return place / "train-00000-of-00001.parquet"


def _gzip(path: Path) -> Path:
    """Replace a file by its compressed form."""
    packed = path.with_name(f"{path.name}.gz")
    with path.open("rb") as raw, gzip.open(packed, "wb", compresslevel=6) as file:
        shutil.copyfileobj(raw, file)
    path.unlink()
    return packed


READ_IDX = """
    import gzip, numpy as np
    for name in ("images-idx3", "labels-idx1"):
        np.frombuffer(gzip.open(f"{path}/train-{name}-ubyte.gz").read(), np.uint8)
"""
READ_NPZ = """
    import numpy as np
    arrays = np.load(path)
    arrays["x_train"], arrays["y_train"]
"""
READ_CSV = """
    import pandas
    pandas.read_csv(path).to_numpy()
"""
READ_PICKLE = """
    import gzip, pickle
    pickle.load(gzip.open(path), encoding="latin1")
"""
READ_PICTURES = """
    import pathlib, numpy as np
    from PIL import Image
    files = sorted(pathlib.Path(path).rglob("*.png"))
    np.stack([np.asarray(Image.open(file)) for file in files])
"""
READ_PARQUET = """
    import io, numpy as np, pandas
    from PIL import Image
    table = pandas.read_parquet(path)
    np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in table["image"]])
"""
READ_BY_DATASETS = """
    import os, numpy as np, datasets
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("int64"))
    rows = datasets.load_dataset(
        "parquet", data_files=path, split="train", features=features, cache_dir=os.environ["CACHE"]
    )
    np.concatenate([np.stack(batch["image"]) for batch in rows.with_format("numpy").iter(1000)])
"""

CASES = (
    Case("IDX (.gz)", _write_idx, "gzip and NumPy", READ_IDX, 3),
    Case("npz", _write_npz, "numpy.load", READ_NPZ, 3),
    Case("CSV", _write_csv, "pandas.read_csv", READ_CSV, 2),
    Case("CSV (.gz)", _write_csv_gz, "pandas.read_csv", READ_CSV, 2),
    Case("pkl.gz", _write_pickle, "pickle.load", READ_PICKLE, 3, most_rows=300_000),
    Case("PNG folder", _write_pictures, "Pillow", READ_PICTURES, 3),
    Case("Parquet", _write_parquet, "pandas and Pillow", READ_PARQUET, 3),
    Case("Parquet", _write_parquet, "datasets", READ_BY_DATASETS, 3),
)


def bench_sources(
    workplace: Workplace, rounds: int, *, rows: int = ROWS, long: bool = False
) -> Iterator[Verdict]:
    """Compare the time and peak memory of each format with those of its peer, in whole processes.

    The long form has ten times as many rows as well, and compares the memory of both sizes.
    """
    peaks: dict[str, list[float]] = {}
    for count in (rows, LONG * rows) if long else (rows,):
        images, labels = _images(count)
        contents: dict[str, bytes] = {}
        for case in CASES:
            if count > case.most_rows or not _can_run(case):
                continue
            place = workplace.directory / f"sources-{count}"
            place.mkdir()
            path, out = case.write(place, images, labels), place / "data"
            ours, peer = _contest(path, out, case, rounds if count == rows else 1)
            digests = open_dataset(open_location(out)).split("train").chunk_digests
            contents[case.name] = digests.tobytes()
            shutil.rmtree(place)
            peaks.setdefault(case.name, []).append(ours.peak_bytes)
            note = f"{ours.text(count)}; {case.peer} {peer.text(count)}"
            title = f"{case.name}, {count:,} rows: "
            ratio = ours.seconds / peer.seconds
            yield Verdict(f"{title}time / {case.peer}", ratio, case.target, note=note)
            ratio = ours.peak_bytes / peer.peak_bytes
            yield Verdict(f"{title}memory / {case.peer}", ratio, MEMORY, note=note)
        differ = [name for name in contents if contents[name] != contents[CASES[0].name]]
        note = ", ".join(differ)
        yield Verdict("formats whose rows differ from those of IDX", len(differ), 0, note=note)
    for name, (small, *large) in peaks.items():
        if large:
            yield Verdict(f"{name}: memory with {LONG} times the rows", large[0] / small, 1.1)


def _can_run(case: Case) -> bool:
    if case.peer == "datasets" and importlib.util.find_spec("datasets") is None:
        print("sources: skipped the library datasets, which is not installed", file=sys.stderr)
        return False
    return True


def _images(count: int) -> tuple[Bytes, Bytes]:
    """Return training images and labels, shifted by a column in each repetition."""
    split = open_source(SOURCE).splits[0]
    part = next(iter(split.parts(split.rows)))
    images, labels = part.load(part.start, part.stop)
    assert labels is not None
    times = -(-count // len(images))
    shifted = np.concatenate([np.roll(images, number, axis=2) for number in range(times)])
    return shifted[:count], np.tile(labels, times)[:count].astype(np.uint8)


@dataclass(frozen=True)
class Usage:
    """The time and the peak memory of a process."""

    seconds: float
    peak_bytes: float

    def text(self, rows: int) -> str:
        """Return both for people."""
        return f"{rows / self.seconds:,.0f} rows/s, {self.peak_bytes / 1e6:,.0f} MB"


def _contest(path: Path, out: Path, case: Case, rounds: int) -> tuple[Usage, Usage]:
    """Return the median seconds and the largest peak of ingest and of the peer, in turn."""
    script = f"import sys\npath = sys.argv[1]\n{textwrap.dedent(case.script)}"
    ingest = ["-m", "jobs.commands.cli", "ingest", str(path), "--out", str(out), "--overwrite"]
    usages: tuple[list[Usage], list[Usage]] = ([], [])
    for _ in range(rounds):
        usages[0].append(_launched(*ingest, cache=out.parent))
        usages[1].append(_launched("-c", script, str(path), cache=out.parent))
    ours, peer = (
        Usage(
            statistics.median(usage.seconds for usage in some),
            max(usage.peak_bytes for usage in some),
        )
        for some in usages
    )
    return ours, peer


def _launched(*arguments: str, cache: Path) -> Usage:
    """Run Python in a process of its own; raise `RuntimeError` if it fails."""
    launched = subprocess.run(
        [sys.executable, "-S", "-c", LAUNCHER, sys.executable, *arguments],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT), "CACHE": str(cache / "cache")},
    )
    code, seconds, peak_bytes, _ = json.loads(launched.stdout)
    if code:
        raise RuntimeError(f"{' '.join(arguments)[:500]} ended with {code}")
    return Usage(seconds, peak_bytes)
