"""Compression at ingest: Zarr reads the chosen one, and nothing else depends on it."""

from pathlib import Path
from typing import Any

import pytest
import zarr

from jobs.commands.cli import cli
from pipeline.ingest import ingest
from storage.errors import ConflictError, UsageError
from storage.schema import COMPRESSIONS
from storage.verify import verify_dataset

SOURCE = "synthetic:60,20"
CODECS = {None: ("blosc", "lz4"), "lz4": ("blosc", "lz4"), "lz4hc": ("blosc", "lz4hc")}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "set"


@pytest.mark.slow
@pytest.mark.parametrize("compression", [None, *COMPRESSIONS])
def test_the_rows_are_stored_as_chosen(out: Path, tmp_path: Path, compression: str | None) -> None:
    """The default is LZ4; Zarr's metadata agree, the dataset is sound, the digest is the same."""
    dataset = ingest(SOURCE, out, compression=compression, rows_per_chunk=16).dataset
    assert (compression or "lz4") == dataset.compression
    for split in dataset.splits.values():
        for name in ("inputs", "targets"):
            array = zarr.open_array(str(out / split.name / name), mode="r")
            codec = array.compressors[0].to_dict()
            configuration = codec["configuration"]
            expected = CODECS.get(compression, ("zstd", None))
            assert expected == (codec["name"], configuration.get("cname"))
            assert "crc32c" == array.compressors[1].to_dict()["name"]
    assert [] == [error for _, error in verify_dataset(dataset.location) if error]
    other = ingest(SOURCE, tmp_path / "other", rows_per_chunk=16).dataset
    assert other.digest == dataset.digest


@pytest.mark.parametrize("existing", COMPRESSIONS)
def test_an_existing_dataset(out: Path, existing: str) -> None:
    """An existing dataset fits no requested compression or its own; another one conflicts."""
    ingest(SOURCE, out, compression=existing)
    for requested in (None, existing):
        assert ingest(SOURCE, out, compression=requested).already_done
    other = next(name for name in COMPRESSIONS if name != existing)
    with pytest.raises(ConflictError, match=rf"\], {existing}; .*\], {other}\. Pass --overwrite"):
        ingest(SOURCE, out, compression=other)
    replaced = ingest(SOURCE, out, compression=other, overwrite=True)
    assert (False, other) == (replaced.already_done, replaced.dataset.compression)


def test_the_command_knows_all_of_them() -> None:
    """The command's choices, which are listed apart so that help is fast, are complete."""
    option = next(o for o in cli.commands["ingest"].params if o.name == "compression")
    assert list(COMPRESSIONS) == list(option.type.to_info_dict()["choices"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "gzip"}, "'gzip'; expected one of lz4, lz4hc, zstd"),
        ({"compression": "zst"}, "Did you mean 'zstd'?"),
        ({"rows_per_chunk": 0}, "The number of rows per chunk is 0; expected at least 1."),
    ],
)
def test_options_out_of_range(out: Path, options: dict[str, Any], message: str) -> None:
    """A bad option is a usage error before anything is created."""
    with pytest.raises(UsageError, match=message):
        ingest(SOURCE, out, **options)
    assert not out.exists()
