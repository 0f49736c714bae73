"""Pictures: exact values, every mode and orientation, and refusals that name the file."""

import io
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.sources.pictures import decode_picture, decode_with_shape
from storage.errors import BadDataError, MissingExtraError

SIZE = (5, 7)
GREY = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
COLOURS = np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)
FORMATS = ["PNG", "BMP", "TIFF", "WEBP", "JPEG"]


def encoded(image: Image.Image | NDArray[Any], file_format: str = "PNG", **options: Any) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if file_format == "WEBP":
        options = {"lossless": True} | options
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def refusal(data: bytes, **options: Any) -> str:
    with pytest.raises(BadDataError) as caught:
        decode_picture(data, "digits/3.png", **options)
    assert str(caught.value).startswith("digits/3.png ")
    return str(caught.value)


@pytest.mark.parametrize("file_format", FORMATS)
def test_grey_is_exact(file_format: str) -> None:
    """Grey bytes are the file's; the lossy format is as near as its quality allows."""
    decoded = decode_picture(encoded(GREY, file_format), "x")
    assert decoded.dtype == np.uint8
    if file_format == "JPEG":
        assert (
            np.abs(decode_picture(encoded(GREY, "JPEG", quality=100), "x") - GREY.astype(int)).max()
            < 4
        )
    else:
        assert np.array_equal(GREY, decoded)
    three = decode_picture(encoded(GREY, file_format), "x", "rgb")
    assert np.array_equal(np.stack([decoded] * 3, axis=-1), three)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colours(file_format: str) -> None:
    """Three channels are kept exactly; grey is their luma, rounded."""
    data = encoded(COLOURS, file_format)
    assert np.array_equal(COLOURS, decode_picture(data, "x", "rgb"))
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert np.abs(luma - decode_picture(data, "x")).max() < 0.51


def test_modes() -> None:
    """Bilevel, palette, 16-bit and CMYK pictures give the greys that a viewer shows."""
    bilevel = Image.fromarray(GREY).point(lambda value: value > 99 and 255).convert("1")
    assert np.array_equal(np.where(GREY > 99, 255, 0), decode_picture(encoded(bilevel), "x"))
    palette = Image.fromarray(GREY // 64)
    palette.putpalette([9, 9, 9, 80, 80, 80, 3, 3, 3, 250, 250, 250])
    expected = np.array([9, 80, 3, 250])[GREY // 64]
    assert np.array_equal(expected, decode_picture(encoded(palette), "x"))
    deep = GREY.astype(np.uint16) * 256 + 255
    for file_format in ("PNG", "TIFF"):
        assert np.array_equal(GREY, decode_picture(encoded(deep, file_format), "x"))
    cmyk = Image.fromarray(COLOURS).convert("CMYK")
    assert np.array_equal(COLOURS, decode_picture(encoded(cmyk, "TIFF"), "x", "rgb"))


def test_transparency() -> None:
    """Transparent pixels are white; a picture that is opaque everywhere is not changed."""
    alpha = np.full(SIZE, 255, np.uint8)
    opaque = np.dstack([GREY, alpha])
    assert np.array_equal(GREY, decode_picture(encoded(Image.fromarray(opaque, "LA")), "x"))
    alpha[0] = 0
    rgba = np.dstack([COLOURS, alpha])
    for data in (encoded(rgba), encoded(rgba, "WEBP", exact=True)):
        decoded = decode_picture(data, "x", "rgb")
        assert (decoded[0] == 255).all()
        assert np.array_equal(COLOURS[1:], decoded[1:])
    keyed = decode_picture(encoded(GREY, transparency=int(GREY[2, 3])), "x")
    assert np.array_equal(np.where(GREY == GREY[2, 3], 255, GREY), keyed)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "TIFF-LZW", "WEBP"])
def test_orientation(file_format: str, orientation: int) -> None:
    """A photo is turned upright once, by the definition of the Exif tag."""
    turned = {
        1: GREY,
        2: GREY[:, ::-1],
        3: GREY[::-1, ::-1],
        4: GREY[::-1],
        5: GREY.T,
        6: np.rot90(GREY, -1),
        7: GREY[::-1, ::-1].T,
        8: np.rot90(GREY),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    name, _, lzw = file_format.partition("-")
    options = {"compression": "tiff_lzw"} if lzw else {}
    data = encoded(GREY, name, exif=exif, **options)
    assert np.array_equal(turned[orientation], decode_picture(data, "x"))


def test_resize() -> None:
    """Resizing averages what it shrinks, and leaves a picture of the right size unchanged."""
    assert np.array_equal(GREY, decode_picture(encoded(GREY), "x", resize=SIZE))
    board = np.kron(np.indices((8, 8)).sum(axis=0) % 2 * 255, np.ones((2, 2))).astype(np.uint8)
    small = decode_picture(encoded(board), "x", resize=(2, 4))
    assert small.shape == (2, 4)
    assert np.abs(small - 127.5).max() < 20


def test_one_size() -> None:
    """A picture of another size is named with both sizes; resizing accepts it."""
    with pytest.raises(BadDataError, match=r"b\.png has 7 x 5 pixels .* has 5 x 7\. Pass --resize"):
        decode_with_shape(encoded(GREY.T), "b.png", SIZE)
    for shape in (SIZE, (*SIZE, 3)):
        assert shape == decode_with_shape(encoded(GREY.T), "b.png", shape, SIZE).shape


@pytest.mark.parametrize("file_format", FORMATS)
def test_truncated(file_format: str) -> None:
    """A picture that was cut off anywhere is refused."""
    data = encoded(COLOURS, file_format)
    for length in (len(data) // 2, len(data) - 4):
        assert "Copy or save it again" in refusal(data[:length])


def test_flipped_bits() -> None:
    """Every flipped bit of a PNG is detected by its checksums."""
    data = encoded(GREY)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refusal(bytes(damaged))


def frames(file_format: str) -> bytes:
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    return encoded(first, file_format, save_all=True, append_images=[second])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a PNG, JPEG, BMP, TIFF or WebP picture"),
        (b"7, 2, 1", "is not a PNG"),
        (encoded(GREY, "GIF"), "is not a PNG"),
        (encoded(COLOURS, "EPS"), "is not a PNG"),
        (encoded(GREY.astype(np.float32), "TIFF"), "has pixels of 32 bits"),
        (encoded(Image.fromarray(COLOURS).convert("LAB"), "TIFF"), "is damaged: conversion"),
        (frames("TIFF"), "has several pages"),
        (frames("PNG"), "is an animation"),
        (frames("WEBP"), "is an animation"),
    ],
)
def test_refused(data: bytes, message: str) -> None:
    """Other formats, other types of pixels, and several frames are refused."""
    assert message in refusal(data)


def test_photo_of_several_frames() -> None:
    """A camera's MPO file gives its photo, not the preview."""
    assert decode_picture(frames("MPO"), "x").shape == SIZE


def claimed(width: int, height: int, bits: int = 1) -> bytes:
    """Return a valid PNG of a few kilobytes with a very large black picture."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content).to_bytes(4)
        return len(content).to_bytes(4) + name + content + checksum

    def rows() -> Iterator[bytes]:
        compressor = zlib.compressobj(9)
        for _ in range(height):
            yield compressor.compress(bytes(1 + -(-width * bits // 8)))
        yield compressor.flush()

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, 0, 0, 0, 0])
    data = chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(rows())) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.slow
@pytest.mark.parametrize("side", [9_000, 10_000, 30_000])
def test_bomb(side: int) -> None:
    """A small file of too many pixels is refused before they are decoded.

    9,000 x 9,000 pixels are accepted by Pillow, 10,000 x 10,000 only with a warning.
    """
    assert "67,108,864" in refusal(claimed(side, side))


@pytest.mark.slow
def test_bombs_in_little_memory() -> None:
    """Refusing bombs takes a few megabytes in a fresh process."""
    code = """
        import io, resource, sys
        from PIL import Image
        from pipeline.sources.pictures import decode_picture
        from storage.errors import BadDataError
        from tests.pipeline.sources.test_pictures import claimed, encoded
        bombs = [claimed(9_000, 9_000), claimed(40_000, 40_000)]
        decode_picture(encoded(Image.new("L", (9, 9))), "x")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for bomb in bombs:
            try:
                decode_picture(bomb, "x")
            except BadDataError:
                continue
            sys.exit("not refused")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 8_000


def test_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is named with the extra that installs it."""
    data = encoded(GREY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"Pillow.*'images'"):
        decode_picture(data, "x")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Pillow warns about metadata that is odd, but readable
@pytest.mark.parametrize("file_format", FORMATS)
def test_damaged_files(file_format: str) -> None:
    """Damage leads to a picture or to an error for users, whatever Pillow raises."""
    random = np.random.default_rng(17)
    data = encoded(np.kron(COLOURS, np.ones((3, 3, 1), np.uint8)), file_format)
    refused = 0
    for _ in range(800):
        damaged = bytearray(data)
        for _ in range(random.integers(1, 4)):
            position = random.integers(len(damaged) if random.random() < 0.5 else 64)
            damaged[position] = random.integers(256)
        if random.random() < 0.2:
            del damaged[random.integers(len(damaged)) :]
        try:
            decoded = decode_picture(bytes(damaged), "x")
        except BadDataError:
            refused += 1
        else:
            assert decoded.dtype == np.uint8
            assert decoded.ndim == 2
    assert refused > 100
