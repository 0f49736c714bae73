"""Predict pictures made from test digits: enlarged, and changed as photos and scans are.

Each digit is enlarged to 168 pixels a side, on a picture of 200 x 300 pixels. Every kind of change
is measured by itself, and all together. The whole image is also stretched to 200 x 300 and to
300 x 200 pixels, by itself and with all changes. The model is trained with the default settings.
"""

import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.scoring.predict import Prediction, predict_pictures
from jobs.training.job import train
from jobs.training.model import Model
from tests.benchmarks.contest import Verdict
from tests.benchmarks.data import Workplace

ROWS = 1000
WIDTH, HEIGHT, SIDE = 200, 300, 168
CHANGES = ("noise", "gradient", "colour", "rotated", "inverted", "moved", "jpeg", "all")
STRETCHED = {"tall": (WIDTH, HEIGHT), "wide": (HEIGHT, WIDTH)}
MEASURED = ("enlarged", *CHANGES, "tall", "wide", "tall, all", "wide, all")
"""A change, a direction that the whole image is stretched in, or both."""
TARGET = 97.0
"""Per cent of the pictures that get the class of their label."""
LUMA = np.array([0.299, 0.587, 0.114])

Bytes = NDArray[np.uint8]


def bench_pictures(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure how many pictures with each change get the right class; `rounds` is not used."""
    run = workplace.directory / "pictures-run"
    train({}, dataset=workplace.dataset.location, run=run)
    model, (digits, labels) = Model.load(run), chosen_digits(workplace, ROWS)
    for change in MEASURED:
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
    with tempfile.TemporaryDirectory() as directory:
        names = [str(Path(directory, f"{row}.png")) for row in range(len(digits))]
        for name, digit in zip(names, digits, strict=True):
            Path(name).write_bytes(changed(digit, change, generator))
        results = list(predict_pictures(model, names))
    right = refused = 0
    for result, label in zip(results, labels, strict=True):
        if isinstance(result, Prediction):
            right += int(result.probabilities.argmax() == label)
        else:
            refused += 1
    return right / len(digits), refused


def changed(digit: Bytes, change: str, generator: np.random.Generator) -> bytes:
    """Return the file of a picture of a digit, changed in one way or in several."""
    changes = change.split(", ")

    def has(name: str) -> bool:
        return name in changes or "all" in changes

    stretched = [STRETCHED[name] for name in changes if name in STRETCHED]
    width, height = stretched[0] if stretched else (WIDTH, HEIGHT)
    size = (width, height) if stretched else (SIDE, SIDE)
    tile = Image.fromarray(digit).resize(size, Image.Resampling.BICUBIC)
    if has("rotated"):
        tile = tile.rotate(generator.uniform(-10, 10), Image.Resampling.BICUBIC)
    room = np.array([width, height]) - size
    corner = generator.integers(-12, room + 12) if has("moved") else room // 2
    canvas = Image.new("L", (width, height))
    canvas.paste(tile, tuple(corner.tolist()))
    paper, pen = np.zeros(3), np.full(3, 255.0)
    if change == "inverted":
        paper, pen = pen, paper
    if has("colour"):
        paper, pen = _colours(generator)  # half of the pairs have a light paper
    ink = np.asarray(canvas)[..., None] / 255
    picture = paper * (1 - ink) + pen * ink
    if has("gradient"):
        picture += _gradient(generator, width, height)[..., None]
    if has("noise"):
        picture += generator.normal(0, 20, (height, width, 1))
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


def _gradient(generator: np.random.Generator, width: int, height: int) -> NDArray[np.float64]:
    """Return a plane in a random direction, from -50 to 50 grey levels."""
    angle = generator.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j]
    plane = np.cos(angle) * x + np.sin(angle) * y
    return 100 * plane / np.ptp(plane)
