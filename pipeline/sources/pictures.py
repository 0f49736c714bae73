"""Decode pictures (PNG, JPEG, BMP, TIFF, WebP) to bytes: one value per pixel, or three.

- Grey is ITU-R 601-2 luma, 0.299 R + 0.587 G + 0.114 B; grey pixels keep their value exactly.
- Transparent pixels are laid over white. A palette's colours are used, not its indices.
- Of 16 bits per channel, the upper 8 are kept. Colour profiles are ignored.
- The orientation in a photo's metadata is applied.
"""

import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import BadDataError, MissingExtraError, PipelineError
from storage.schema import ROW_LIMIT

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
"""The formats that Pillow may open. Some of its others start programs (EPS) or read other files."""
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
"""Endings of these formats' file names, in lower case."""
MOST_PIXELS = ROW_LIMIT
"""The largest picture that is decoded: as bytes of grey, it is the longest row of a dataset."""
MOST_STORED_BYTES = 4 * MOST_PIXELS + 2**20
"""The largest file that is read: a picture of four uncompressed channels, and its metadata."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112
"""The Exif tag for the transform that turns a photo upright."""


def is_picture_name(name: str) -> bool:
    """Return whether a file's name has the ending of a picture."""
    return name.lower().endswith(ENDINGS)


def decode_picture(
    data: bytes, place: str, channels: str | None = None, resize: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return a picture `(height, width)`, or `(height, width, 3)` if `channels` is `rgb`.

    Parameters
    ----------
    data
        The content of the file.
    place
        The file, and a row if it has several, for messages.
    channels
        `grey` or `rgb`; None for grey.
    resize
        The height and width to resize to, by bicubic interpolation that averages when it shrinks.
        Proportions are not kept. A picture that has this size already is not changed.

    Raises
    ------
    BadDataError
        If the picture is damaged, too large, in another format or has several frames.
    MissingExtraError
        If Pillow is not installed.
    """
    image_module = _import_pillow()
    try:
        return _decode(image_module, data, place, channels, resize)
    except (PipelineError, MemoryError):
        raise
    except Exception as error:  # Pillow's errors for damaged files have many types
        raise _damaged_error(place, str(error) or type(error).__name__) from error


def decode_with_shape(
    data: bytes, place: str, shape: tuple[int, ...], resize: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Return a picture of this shape; three sizes mean `rgb`.

    Raises as `decode_picture` does, and `BadDataError` for a picture of another size.
    """
    image = decode_picture(data, place, "rgb" if len(shape) == 3 else "grey", resize)
    if image.shape != shape:
        size, expected = (f"{height} x {width}" for height, width in (image.shape[:2], shape[:2]))
        raise BadDataError(
            f"{place} has {size} pixels (height x width), but the first picture has {expected}. "
            f"Pass --resize HxW to give all the same size, such as --resize {shape[0]}x{shape[1]}, "
            "or remove it."
        )
    return image


def _import_pillow() -> Any:
    """Return the module `PIL.Image` once the plugins of `FORMATS` are registered."""
    try:
        from PIL import (
            BmpImagePlugin,
            Image,
            JpegImagePlugin,
            PngImagePlugin,
            TiffImagePlugin,
            WebPImagePlugin,
        )
    except ImportError:
        raise MissingExtraError("Reading pictures", "Pillow", "images") from None
    assert all((BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin))
    return Image


def _decode(
    image_module: Any,
    data: bytes,
    place: str,
    channels: str | None,
    resize: tuple[int, int] | None,
) -> NDArray[np.uint8]:
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data, place)
    with _open(image_module, data, place) as image:
        _check_picture(image, place)
        image.load()
        upright = _upright(image_module, image)
        converted = _converted(image_module, upright, "RGB" if channels == "rgb" else "L", place)
        if resize is not None:
            # Cubic weights are polynomials, which every machine computes alike.
            converted = converted.resize(resize[::-1], image_module.Resampling.BICUBIC)
        return np.array(converted)


def _open(image_module: Any, data: bytes, place: str) -> "Image.Image":
    """Read a picture's header.

    Unlike `PIL.Image.open`, this does not print a warning about a size that is refused anyway.
    """
    for name in FORMATS:
        factory, accepts = image_module.OPEN[name]
        if accepts(data[:16]) is True:  # a text says that this build of Pillow cannot read it
            image: Image.Image = factory(io.BytesIO(data), "")  # not a path: Pillow would map it
            return image
    raise BadDataError(
        f"{place} is not a PNG, JPEG, BMP, TIFF or WebP picture. Convert it to one of these, or "
        "remove it."
    )


def _check_picture(image: "Image.Image", place: str) -> None:
    """Raise `BadDataError` for a picture that is too large or has several frames."""
    if image.width * image.height > MOST_PIXELS:
        raise BadDataError(
            f"{place} has {image.height:,} x {image.width:,} pixels; expected at most "
            f"{MOST_PIXELS:,} in all. Make the picture smaller, or remove it."
        )
    # The other frames of a camera's MPO file, a kind of JPEG, are previews.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise BadDataError(
            f"{place} is an animation or has several pages; expected one picture per file. Save "
            "each page as a file of its own."
        )


def _upright(image_module: Any, image: "Image.Image") -> "Image.Image":
    transpose = image_module.Transpose
    method = {
        2: transpose.FLIP_LEFT_RIGHT,
        3: transpose.ROTATE_180,
        4: transpose.FLIP_TOP_BOTTOM,
        5: transpose.TRANSPOSE,
        6: transpose.ROTATE_270,
        7: transpose.TRANSVERSE,
        8: transpose.ROTATE_90,
    }.get(image.getexif().get(_ORIENTATION, 1))
    return image if method is None else image.transpose(method)


def _converted(image_module: Any, image: "Image.Image", mode: str, place: str) -> "Image.Image":
    if image.mode.startswith("I;16"):
        upper = (np.asarray(image) >> 8).astype(np.uint8)
        image = image_module.fromarray(upper)
    elif image.mode in {"I", "F"}:
        raise BadDataError(
            f"{place} has pixels of 32 bits; expected 8 or 16 bits per channel. Convert it, or "
            "store the values as a NumPy array."
        )
    elif image.has_transparency_data:
        colours = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, "white")
        image = image_module.alpha_composite(white, colours)
    return image.convert(mode)


def _check_png(data: bytes, place: str) -> None:
    """Raise `BadDataError` unless all chunks are complete and have the right checksum.

    Pillow does not verify the checksums of pixels.
    """
    view, start, chunk_type = memoryview(data), len(_PNG_SIGNATURE), b""
    while chunk_type != b"IEND":
        length = int.from_bytes(view[start : start + 4])
        chunk_type, end = bytes(view[start + 4 : start + 8]), start + 8 + length
        if end + 4 > len(data):
            raise _damaged_error(place, f"it ends after {len(data):,} bytes, in a PNG chunk")
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise _damaged_error(place, f"the checksum of the PNG chunk at byte {start} is wrong")
        start = end + 4


def _damaged_error(place: str, reason: str) -> BadDataError:
    return BadDataError(
        f"{place} is damaged: {reason[:200].rstrip('.')}. Copy or save it again, or remove it."
    )
