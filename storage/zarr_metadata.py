"""The `zarr.json` of groups and arrays, as the Zarr v3 specification has them.

They are the documents that Zarr itself writes. Importing Zarr takes longer than ingesting or
scoring a small set, and neither needs anything else of it.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from storage import documents
from storage.chunks import ChunkedArray, zarr_codec

CRC32C = {"name": "crc32c"}

Document: TypeAlias = dict[str, Any]
"""A `zarr.json`, parsed."""


def group_metadata(
    attributes: dict[str, Any], members: Mapping[str, Document] | None = None
) -> Document:
    """Return the document of a group.

    With `members`, the documents of all groups and arrays below it by their path, it has
    consolidated metadata: xarray opens such a group at once and without a warning.
    """
    document: Document = {"attributes": attributes, "zarr_format": 3}
    if members is not None:
        document["consolidated_metadata"] = _consolidated(
            {
                path: member | {"consolidated_metadata": _consolidated({})}
                if member["node_type"] == "group"
                else member
                for path, member in sorted(members.items())
            }
        )
    return document | {"node_type": "group"}


def metadata_bytes(document: Document) -> bytes:
    """Return the text of a `zarr.json`, which ends where the document does, as Zarr writes it."""
    return documents.document_bytes(document).rstrip()


def metadata_digests(nodes: Mapping[str, Document], data: Mapping[str, bytes]) -> Document:
    """Return the attributes that record each `zarr.json` below a root, both by path.

    `nodes` are without consolidated metadata, `data` as they were written.
    """
    return {
        documents.METADATA_DIGESTS: {
            f"{path}/zarr.json": hashlib.sha256(written).hexdigest()
            for path, written in data.items()
        },
        documents.OWN_METADATA_DIGESTS: {
            f"{path}/zarr.json": documents.metadata_digest(document)
            for path, document in nodes.items()
        },
    }


def _consolidated(members: Mapping[str, Document]) -> Document:
    return {"kind": "inline", "must_understand": False, "metadata": members}


def array_metadata(
    array: ChunkedArray, dimensions: tuple[str, ...], attributes: dict[str, Any] | None = None
) -> Document:
    """Return the document of an array, whose `dimensions` have names.

    Chunks lie in one directory (`c.0.0`), compressed as `array` writes them, with their CRC-32C.
    """
    columns = array.shape[1:]
    chunk_shape = (array.chunk_rows, *columns)
    bytes_codec = _bytes_codec(array.dtype)
    codecs = [bytes_codec, zarr_codec(array.compression, array.dtype), CRC32C]
    if array.chunks_per_shard > 1:
        configuration = {
            "chunk_shape": chunk_shape,
            "codecs": codecs,
            "index_codecs": [_bytes_codec("uint64"), CRC32C],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    object_shape = (array.rows_per_object, *columns)
    return {
        "shape": array.shape,
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": object_shape}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": np.zeros((), array.dtype).item(),
        "codecs": codecs,
        "attributes": attributes or {},
        "dimension_names": dimensions,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def _bytes_codec(dtype: str) -> dict[str, Any]:
    """Elements as bytes; the order matters where there are several."""
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}
