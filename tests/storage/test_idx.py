"""The IDX format: values are read exactly, and other files are refused with a reason."""

import gzip
import hashlib
import io
import lzma
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from storage.decoding import START_BYTES, FileDigests
from storage.errors import BadDataError, PipelineError, UnreachableError
from storage.idx import IdxReader, read_header
from tests.storage.idx_files import COMPRESS, idx_bytes, write_idx

ENDINGS = pytest.mark.parametrize("ending", list(COMPRESS))

MNIST_TRAIN_IMAGES_SHA256 = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"


def write(directory: Path, content: bytes, ending: str = "") -> Path:
    path = directory / f"images-idx3-ubyte{ending}"
    path.write_bytes(COMPRESS[ending](content))
    return path


def read_whole(path: Path, rows_at_a_time: int = 1000) -> tuple[NDArray[Any], FileDigests]:
    with IdxReader(path) as reader:
        blocks = [reader.read_rows(rows_at_a_time)]
        while len(blocks[-1]):
            blocks.append(reader.read_rows(rows_at_a_time))
        return np.concatenate(blocks), reader.finish()


def refusal(path: Path, error_type: type[PipelineError] = BadDataError) -> str:
    """Return the error message of reading all of `path`."""
    with pytest.raises(error_type) as caught:
        read_whole(path)
    message = str(caught.value)
    assert str(path) in message
    return message


@settings(deadline=None)
@given(
    values=hnp.arrays(
        dtype=st.sampled_from(["u1", "i1", "i2", ">i2", "i4", "f4", "f8", "<f8"]),
        shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=6),
    ),
    ending=st.sampled_from(list(COMPRESS)),
    rows_at_a_time=st.integers(1, 7),
)
def test_round_trip(values: NDArray[Any], ending: str, rows_at_a_time: int) -> None:
    """Every element type, shape and compression is read exactly, in native byte order."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"values{ending}"
        write_idx(path, values)
        actual, _ = read_whole(path, rows_at_a_time)
    assert values.dtype.newbyteorder("=") == actual.dtype
    assert actual.dtype.isnative
    assert values.shape == actual.shape
    assert values.astype(actual.dtype).tobytes() == actual.tobytes()


def test_bytes_of_the_format(tmp_path: Path) -> None:
    """The values are those of the specification, computed by hand."""
    (tmp_path / "a").write_bytes(bytes.fromhex("00000b02 00000001 00000002 0001fffe"))
    assert [[1, -2]] == read_whole(tmp_path / "a")[0].tolist()


@ENDINGS
def test_digests(tmp_path: Path, ending: str) -> None:
    """The digests are those of the stored and the decoded bytes, over many blocks."""
    data = np.random.default_rng(0).integers(0, 256, 1_200_000, np.uint8).tobytes()
    content = idx_bytes((3000, 400), data)
    path = write(tmp_path, content, ending)
    stored = path.read_bytes()
    expected = FileDigests(
        len(stored),
        hashlib.sha256(stored).hexdigest(),
        len(content),
        hashlib.sha256(content).hexdigest(),
    )
    assert expected == read_whole(path, 700)[1]


def test_caller_may_change_rows(tmp_path: Path) -> None:
    """Changing the returned rows does not change the digests."""
    content = idx_bytes((4, 500_000), bytes(2_000_000))
    with IdxReader(write(tmp_path, content)) as reader:
        for _ in range(4):
            reader.read_rows(1)[:] = 7
        assert hashlib.sha256(content).hexdigest() == reader.finish().decoded_sha256


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_several_members(tmp_path: Path, ending: str) -> None:
    """Several members with zero padding between them are one file."""
    content = idx_bytes((4, 2), bytes(range(8)))
    compress = COMPRESS[ending]
    path = tmp_path / "images"
    path.write_bytes(
        compress(content[:5]) + compress(b"") + bytes(600_000) + compress(content[5:]) + bytes(8)
    )
    rows, digests = read_whole(path)
    assert list(range(8)) == rows.reshape(-1).tolist()
    assert path.stat().st_size == digests.stored_bytes


def test_compression_is_recognised_by_content(tmp_path: Path) -> None:
    """A gzip file without .gz, and a raw file with it, are both read."""
    content = idx_bytes((1, 1), b"\x05")
    (tmp_path / "packed").write_bytes(gzip.compress(content))
    (tmp_path / "raw.gz").write_bytes(content)
    assert [[5]] == read_whole(tmp_path / "packed")[0].tolist()
    assert [[5]] == read_whole(tmp_path / "raw.gz")[0].tolist()


@ENDINGS
def test_stored_file_cut_off_anywhere(tmp_path: Path, ending: str) -> None:
    """A file that is cut off anywhere is refused."""
    data = np.random.default_rng(1).integers(0, 256, 64, np.uint8).tobytes()
    stored = COMPRESS[ending](idx_bytes((16, 2, 2), data))
    path = tmp_path / "cut"
    for length in range(len(stored)):
        path.write_bytes(stored[:length])
        refusal(path)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_flipped_bits(tmp_path: Path, ending: str) -> None:
    """Any flipped bit in a compressed file's data or checksums is detected."""
    data = np.random.default_rng(2).integers(0, 256, 256, np.uint8).tobytes()
    stored = COMPRESS[ending](idx_bytes((64, 2, 2), data))
    path = tmp_path / "flipped"
    unchecked = 10 if ending == ".gz" else 0  # gzip's own header has a time and no checksum
    for place in range(unchecked, len(stored)):
        flipped = bytearray(stored)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        refusal(path)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_junk_after_compressed_data(tmp_path: Path, ending: str) -> None:
    """Other bytes after the compressed data are refused."""
    path = write(tmp_path, idx_bytes((2, 2), bytes(4)), ending)
    path.write_bytes(path.read_bytes() + b"junkjunkjunk")
    assert "data is damaged after 16 decoded bytes" in refusal(path)


def test_raw_claim_beyond_file(tmp_path: Path) -> None:
    """A raw file that claims 2**40 bytes of rows is refused when opened, before any read."""
    path = write(tmp_path, idx_bytes((2**28, 64, 64), bytes(100)))
    with pytest.raises(BadDataError, match="cut off after 0 whole rows"):
        IdxReader(path)


BOUNDED_READ = """
import resource, sys
from storage.errors import BadDataError
from storage.idx import IdxReader
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 64 * 2**20,) * 2)
try:
    with IdxReader(sys.argv[1]) as reader:
        while len(reader.read_rows(2000)):
            pass
        reader.finish()
except BadDataError as error:
    print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("ending", [".gz", ".xz"])
@pytest.mark.parametrize(
    ("shape", "message"),
    [((10, 28, 28), "262,144 or more bytes follow the end"), ((2**32 - 1, 28, 28), "cut off")],
)
def test_bomb(tmp_path: Path, ending: str, shape: tuple[int, ...], message: str) -> None:
    """A small file that decodes to 200 MB is refused within 64 MiB, claimed as rows or not."""
    path = tmp_path / "bomb"
    with gzip.open(path, "wb", 1) if ending == ".gz" else lzma.open(path, "wb", preset=0) as file:
        file.write(idx_bytes(shape))
        for _ in range(50):
            file.write(bytes(4_000_000))
    reading = subprocess.run(
        [sys.executable, "-c", BOUNDED_READ, str(path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert "" == reading.stderr
    assert message in reading.stdout


@pytest.mark.slow
def test_xz_that_asks_for_memory(tmp_path: Path) -> None:
    """An xz file that needs more than 128 MiB of memory is refused."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**29}]
    content = lzma.compress(idx_bytes((1, 1), b"\0"), filters=filters)
    (tmp_path / "a.xz").write_bytes(content)
    assert "xz data is damaged" in refusal(tmp_path / "a.xz")


def tar_bytes() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train-images-idx3-ubyte"))
    return target.getvalue()


def zip_bytes() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("train-images-idx3-ubyte", b"")
    return target.getvalue()


def npy_bytes() -> bytes:
    target = io.BytesIO()
    np.save(target, np.zeros(3))
    return target.getvalue()


HEADER = idx_bytes((2, 2, 2))
LARGE = b"\xff" * 4
SWAPPED = "wrong byte order"


@ENDINGS
@pytest.mark.parametrize(
    ("content", "words"),
    [
        *((HEADER[:length], ("header is cut off", f"found {length} ")) for length in range(16)),
        (idx_bytes((10, 2, 2), bytes(30)), ("cut off after 7 whole rows", "expected 10 rows")),
        (idx_bytes((2, 2), bytes(4 + 3)), ("3 bytes follow the end of its 2 rows",)),
        (idx_bytes((1, 2), bytes(2 + 1)), ("1 byte follows the end of its 1 row;",)),
        (idx_bytes((2, 9), bytes(9)), ("after 1 whole row (", "expected 2 rows")),
        (idx_bytes((1, 2**13, 2**13 + 1)), ("64 MiB",)),
        (b"\0\0\x08\x03" + 3 * LARGE, ("64 MiB",)),
        (b"\0\0\x08\x40" + 64 * LARGE, ("64 MiB",)),
        *((idx_bytes(shape), ("the set is empty",)) for shape in ((0, 28, 28), (5, 0, 28), (0,))),
        (idx_bytes((1, 1), b"\0", code=0x0A), ("0x0a", "0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e")),
        *(
            (bytes((0, 0, 8, count)) + bytes(4 * count), (f"gives {count} dimensions",))
            for count in (0, 65, 255)
        ),
        (b"\0\0\x08\x01" + b"\3\0\0\0" + bytes(3), (SWAPPED, "(3,)")),
        (b"\0\0\x08\x02" + b"\3\0\0\0\x09\0\0\0" + bytes(27), (SWAPPED, "(3, 9)")),
        (b"\x01\x08\0\0" + b"\3\0\0\0" + bytes(3), (SWAPPED,)),
        (b"\x89PNG\r\n\x1a\n", ("not an IDX file but a PNG",)),
        (zip_bytes(), ("not an IDX file but a ZIP",)),
        (npy_bytes(), ("not an IDX file but a NumPy",)),
        (tar_bytes(), ("not an IDX file but a tar",)),
        (b"\n<!DOCTYPE html><title>404</title>", ("HTML", "Download the file itself")),
        (b"<html>", ("HTML",)),
        (b"label,pixel\n", ("a text that starts with 'label,pixel\\n'",)),
        (b"label\x00\x01", ("starts with the bytes 6c 61 62 65",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", ("git lfs pull",)),
        (pickle.dumps([1]), ("a Python pickle",)),
    ],
)
def test_error_messages(
    tmp_path: Path, ending: str, content: bytes, words: tuple[str, ...]
) -> None:
    """Invalid headers and data and files of other formats are refused, raw and compressed."""
    message = refusal(write(tmp_path, content, ending))
    assert all(word in message for word in words), message


@ENDINGS
def test_header_alone(tmp_path: Path, ending: str) -> None:
    """A header is read from a file's first bytes, and a raw file's size is compared with it."""
    whole = write(tmp_path, idx_bytes((99_999, 1), np.random.default_rng(0).bytes(99_999)), ending)
    size = whole.stat().st_size
    start = tmp_path / "start"
    start.write_bytes(whole.read_bytes()[:START_BYTES])
    header, compression = read_header(start, size)
    assert ((99_999, 1), ending) == (header.shape, compression)
    if not ending:
        with pytest.raises(BadDataError, match="1 byte follows"):
            read_header(start, size + 1)


def test_compressed_twice(tmp_path: Path) -> None:
    """A gzip file inside another is refused by name."""
    path = write(tmp_path, gzip.compress(idx_bytes((1, 1), b"\0")), ".gz")
    assert "a gzip file inside another" in refusal(path)


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is bad data, and so is a path below a regular file."""
    (tmp_path / "file").touch()
    assert "no such file" in refusal(tmp_path / "missing")
    assert "no such file" in refusal(tmp_path / "file" / "below")


def test_not_a_regular_file(tmp_path: Path) -> None:
    """A directory or a named pipe is refused without blocking."""
    os.mkfifo(tmp_path / "pipe")
    assert "or not a regular file" in refusal(tmp_path)
    assert "or not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop the superuser")
def test_forbidden_file(tmp_path: Path) -> None:
    """A file without read permission is unreachable, not bad data."""
    path = write(tmp_path, idx_bytes((1, 1), b"\0"))
    path.chmod(0)
    assert "Permission denied" in refusal(path, UnreachableError)


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_failing_disk(tmp_path: Path) -> None:
    """An input/output error is unreachable, not bad data."""
    path = tmp_path / "images"
    path.symlink_to("/proc/self/mem")  # its first page is never mapped: reading it gives EIO
    assert "Input/output error" in refusal(path, UnreachableError)


def test_real_mnist(mnist_dir: Path) -> None:
    """MNIST's training images decode to the published bytes."""
    rows, digests = read_whole(next(mnist_dir.glob("train-images*")), 2000)
    assert (60_000, 28, 28) == rows.shape
    assert MNIST_TRAIN_IMAGES_SHA256 == digests.decoded_sha256


def test_endless_padding(tmp_path: Path) -> None:
    """A sparse file with a TiB of zeros after its compressed data is refused early."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"abc"))
    os.truncate(path, 2**40)
    with pytest.raises(BadDataError, match="more than 16,777,216 bytes"):
        read_header(path)
