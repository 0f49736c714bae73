"""Images in a page: stored rows and weights as small PNG files in data URIs."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.nn.parameters import Floats
from storage.dataset import Dataset

Pixels = NDArray[np.uint8]
"""Grey levels `(height, width)`, or colours `(height, width, 3)`."""

MOST_PIXELS = 64
"""Larger images are thinned out until neither side is longer."""
UNITS_EACH, UNIT_COLUMNS = 32, 8
"""Units in an image of weights, and in each of its lines."""
COLOURS = 3
LEVELS = 16
"""Shades of each of the two colours of weights."""
NEGATIVE, POSITIVE = (0, 90, 160), (200, 80, 0)
"""The colours of weights, which people with colour blindness can tell apart."""


def pixels_of(row: NDArray[Any], dataset: Dataset) -> Pixels:
    """Return a stored row, bias first, as pixels; grey images get dark ink on white."""
    shape = dataset.image_shape
    is_coloured = len(shape) == 3 and shape[2] == COLOURS
    lines = shape[0] if len(shape) > 1 else 1
    image = row[1:].reshape(shape if is_coloured else (lines, -1))
    image = thinned(image).astype(np.float64)
    scaling = dataset.preparation.scaling
    low, high = (scaling.low, scaling.high) if scaling else (image.min(), image.max())
    level = np.clip((image - low) / max(high - low, 1e-30), 0.0, 1.0)
    pixels: Pixels = np.rint(255 * (level if is_coloured else 1 - level)).astype(np.uint8)
    return pixels


def thinned(image: NDArray[Any]) -> NDArray[Any]:
    """Return every n-th pixel of an image, so that neither side exceeds `MOST_PIXELS`."""
    step = -(-max(image.shape[:2]) // MOST_PIXELS)
    return image[::step, ::step]


def data_uri(pixels: Pixels, palette: Sequence[int] = ()) -> str:
    """Return pixels as a PNG file in a data URI; with a `palette` they are its indices."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("L")
        image.putpalette(bytes(palette))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sprite(tiles: Sequence[Pixels], columns: int, background: int = 255) -> Pixels:
    """Return tiles of one size in rows of `columns`, with lines of one pixel between them."""
    height, width = tiles[0].shape[:2]
    lines = -(-len(tiles) // columns)
    shape = (lines * (height + 1) - 1, min(columns, len(tiles)) * (width + 1) - 1)
    whole = np.full(shape + tiles[0].shape[2:], background, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + 1), (number % columns) * (width + 1)
        whole[top : top + height, left : left + width] = tile
    return whole


def weights_images(weights: Floats, image_shape: Sequence[int], most: int) -> list[tuple[int, str]]:
    """Return the columns of `(inputs, units)` with the largest norms, `UNITS_EACH` in an image.

    Each image comes with its number of units. White is 0, and the darkest shade is a unit's
    largest weight by absolute value.
    """
    norms = np.linalg.norm(weights, axis=0)
    units = np.sort(np.argsort(-norms, kind="stable")[:most])
    tiles = [_weight_levels(weights[:, unit], tuple(image_shape)) for unit in units]
    shades = [
        round(255 + (colour - 255) * step / LEVELS)
        for side, steps in ((NEGATIVE, range(LEVELS, 0, -1)), (POSITIVE, range(LEVELS + 1)))
        for step in steps
        for colour in side
    ]
    parts = [tiles[first : first + UNITS_EACH] for first in range(0, len(tiles), UNITS_EACH)]
    return [
        (len(part), data_uri(sprite(part, UNIT_COLUMNS, background=LEVELS), shades))
        for part in parts
    ]


def _weight_levels(weights: Floats, shape: tuple[int, ...]) -> Pixels:
    """Return a unit's weights as indices of the palette; of colours, the mean of the channels."""
    image = weights.reshape(
        shape[0] if len(shape) > 1 else 1, shape[1] if len(shape) > 1 else -1, -1
    )
    image = thinned(image.mean(axis=2))
    largest = max(float(np.abs(image).max()), 1e-30)
    levels: Pixels = np.rint(LEVELS * (1 + image / largest)).astype(np.uint8)
    return levels
