"""Predict pictures made from test digits: enlarged, and changed as photos and scans are.

Each digit is enlarged to 168 pixels a side, on a picture of 200 x 300 pixels. Every kind of change
is measured by itself, and all together. The model is trained with the default settings.
"""

import io
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.training.job import train
from jobs.training.model import Model
from pipeline.prepare_picture import prepare_digit
from pipeline.sources.pictures import decode_picture
from storage.errors import BadDataError
from tests.benchmarks.contest import Verdict
from tests.benchmarks.data import Workplace

ROWS = 1000
WIDTH, HEIGHT, SIDE = 200, 300, 168
CHANGES = ("enlarged", "noise", "gradient", "colour", "rotated", "inverted", "moved", "jpeg", "all")
TARGET = 97.0
"""Per cent of the pictures that get the class of their label."""
LUMA = np.array([0.299, 0.587, 0.114])

Bytes = NDArray[np.uint8]


def bench_pictures(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure how many pictures with each change get the right class; `rounds` is not used."""
    run = workplace.directory / "pictures-run"
    train({}, dataset=workplace.dataset.location, run=run)
    model, (digits, labels) = Model.load(run), chosen_digits(workplace, ROWS)
    for change in CHANGES:
        share, refused = right_share(model, digits, labels, change)
        note = f"{refused} of {len(digits):,} refused"
        yield Verdict(f"pictures, {change}", 100 * share, TARGET, True, "%", note)


def chosen_digits(workplace: Workplace, count: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Return test digits, evenly spread over the split, and their classes."""
    split = workplace.dataset.split("test")
    blocks = [split.read_chunk(number) for number in range(split.schema.chunks)]
    inputs = np.concatenate([block.inputs for block in blocks])
    targets = np.concatenate([block.targets for block in blocks if block.targets is not None])
    rows = np.arange(count) * len(inputs) // count
    return inputs[rows, 1:].reshape(-1, 28, 28), targets[rows].argmax(axis=1)


def right_share(
    model: Model, digits: Bytes, labels: NDArray[np.int64], change: str
) -> tuple[float, int]:
    """Return the share of changed digits with the right class, and how many were refused."""
    generator = np.random.default_rng(1)
    right = refused = 0
    for digit, label in zip(digits, labels, strict=True):
        data = changed(digit, change, generator)
        try:
            image = prepare_digit(decode_picture(data, "picture"), "picture").image
        except BadDataError:
            refused += 1
        else:
            right += int(model.predict(image[None])[0] == label)
    return right / len(digits), refused


def changed(digit: Bytes, change: str, generator: np.random.Generator) -> bytes:
    """Return the file of a picture of a digit, changed in one way or in all."""

    def has(name: str) -> bool:
        return change in (name, "all")

    tile = Image.fromarray(digit).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if has("rotated"):
        tile = tile.rotate(generator.uniform(-10, 10), Image.Resampling.BICUBIC)
    room = np.array([WIDTH - SIDE, HEIGHT - SIDE])
    corner = generator.integers(-12, room + 12) if has("moved") else room // 2
    canvas = Image.new("L", (WIDTH, HEIGHT))
    canvas.paste(tile, tuple(corner.tolist()))
    paper, pen = np.zeros(3), np.full(3, 255.0)
    if change == "inverted":
        paper, pen = pen, paper
    if has("colour"):
        paper, pen = _colours(generator)  # half of the pairs have a light paper
    ink = np.asarray(canvas)[..., None] / 255
    picture = paper * (1 - ink) + pen * ink
    if has("gradient"):
        picture += _gradient(generator)[..., None]
    if has("noise"):
        picture += generator.normal(0, 20, (HEIGHT, WIDTH, 1))
    buffer = io.BytesIO()
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=30) if has("jpeg") else image.save(buffer, "PNG")
    return buffer.getvalue()


def _colours(generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return two colours that differ by at least 100 grey levels."""
    while True:
        paper, pen = generator.uniform(0, 255, (2, 3))
        if abs((pen - paper) @ LUMA) >= 100:
            return paper, pen


def _gradient(generator: np.random.Generator) -> NDArray[np.float64]:
    """Return a plane in a random direction, from -50 to 50 grey levels."""
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : HEIGHT * 1j, -0.5 : 0.5 : WIDTH * 1j]
    plane = np.cos(angle) * x + np.sin(angle) * y
    return 100 * plane / np.ptp(plane)
