"""Parquet files of one small set, as the Hugging Face Hub and others write them."""

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import parquet as pq

from pipeline.sources.formats import Source, SourceOptions
from pipeline.sources.source import open_source
from tests.pipeline.sources import small_sets
from tests.pipeline.sources.small_sets import images, read

ROWS = 30
NAMES = [str(digit) for digit in range(10)]


def labels(rows: int = ROWS, dtype: type = np.int64) -> NDArray[Any]:
    return (np.arange(rows) % 10).astype(dtype)


def encoded(values: NDArray[np.uint8], form: str = "PNG") -> list[bytes]:
    pictures = []
    for value in values:
        buffer = io.BytesIO()
        Image.fromarray(value).save(buffer, form)
        pictures.append(buffer.getvalue())
    return pictures


def struct(pictures: Sequence[bytes | None]) -> pa.StructArray:
    """Return a column as the library datasets writes it."""
    paths = pa.array([f"{number}.png" for number in range(len(pictures))])
    return pa.StructArray.from_arrays([pa.array(pictures, pa.binary()), paths], ["bytes", "path"])


def hub_table(rows: int = ROWS, names: list[str] | None = None, **columns: Any) -> pa.Table:
    """Return a table as on the Hub; `columns` replace `image` or `label`, or add others."""
    label = {"_type": "ClassLabel", "names": NAMES if names is None else names}
    info = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
    table = {"image": struct(encoded(images(rows))), "label": pa.array(labels(rows))} | columns
    return pa.table(table).replace_schema_metadata({"huggingface": json.dumps(info)})


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return path


def opened(path: Path, **options: Any) -> Source:
    return open_source(str(path), SourceOptions(**options))


def rows_of(path: Path, **options: Any) -> tuple[NDArray[Any], NDArray[Any] | None]:
    return read(opened(path, **options).splits[0])


refusal = partial(small_sets.refusal, reading=True)


COLUMNS: dict[str, Any] = {
    "binary": pa.array(encoded(images(ROWS)), pa.binary()),
    "large_binary": pa.array(encoded(images(ROWS)), pa.large_binary()),
    "nested": pa.array(images(ROWS).tolist(), pa.list_(pa.list_(pa.uint8()))),
    "fixed": pa.array(images(ROWS).tolist(), pa.list_(pa.list_(pa.uint8(), 3), 4)),
    "wide": pa.array(images(ROWS).tolist(), pa.large_list(pa.list_(pa.int64()))),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(images(ROWS)),
}
