"""Pictures: examples of a dataset, and a model's worst mistakes."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jobs.choices import DISTORTION_SETS, RECIPES
from jobs.commands.tables import wrap
from jobs.training.config import TrainConfig
from jobs.training.gradients import distortions
from jobs.training.presets import flat_settings, read_toml, with_recipe
from pipeline.distortions import Distorter, Distortions, check_distortable
from storage.dataset import Dataset, Split, open_dataset
from storage.errors import MissingExtraError, UsageError, did_you_mean
from storage.files import file_to_write
from storage.location import Location
from storage.places import open_location
from storage.scores import Scores

COLUMNS = 10
ROWS = 6
TITLE_WIDTH = 14
"""Characters of a title that are as wide as its tile."""
TITLE_LINES = 3

Tile: TypeAlias = tuple[NDArray[Any], str]
"""An image of shape (height, width) and its title."""


def write_examples(location: Location, path: Path, distort: str = "none") -> None:
    """Write a grid of the first images of each split's first chunk as a PNG file.

    With distortions, write the first rows of the first split, as stored and distorted; see
    `distortions_of`.
    """
    dataset, strengths = open_dataset(location), distortions_of(distort)
    if strengths.any:
        title = f"{dataset.name} with --distort {distort}"
        write_grid(distorted_tiles(dataset, strengths), path, title)
        return
    each = COLUMNS * ROWS // len(dataset.splits)
    tiles = [
        tile for split in dataset.splits.values() for tile in _first_tiles(dataset, split, each)
    ]
    write_grid(tiles, path, f"{dataset.name}: {', '.join(dataset.splits)}")


def distortions_of(name: str) -> Distortions:
    """Return the distortions of a set, of a recipe, or of a TOML file with settings.

    Raises `UsageError` if `name` is none of these, or the settings are invalid.
    """
    if name in DISTORTION_SETS:
        given = {"distort": name}
    elif name in RECIPES:
        given = {"recipe": name}
    elif name.endswith(".toml"):
        given = read_toml(Path(name))
    else:
        known = (*DISTORTION_SETS, *RECIPES)
        raise UsageError(
            f"--distort is {name!r}; expected one of {', '.join(known)}, or a TOML file."
            f"{did_you_mean(name, known)}"
        )
    return distortions(TrainConfig(**with_recipe(flat_settings(given, name))))


def _first_tiles(dataset: Dataset, split: Split, count: int) -> list[Tile]:
    block = split.read_chunk(0)
    titles = [""] * len(block.inputs)
    if block.targets is not None:
        titles = [dataset.class_names[index] for index in block.targets.argmax(axis=1)]
    rows = zip(block.inputs[:count], titles[:count], strict=True)
    return [(as_image(row, dataset.image_shape), title) for row, title in rows]


def distorted_tiles(dataset: Dataset, strengths: Distortions) -> list[Tile]:
    """Return rows of tiles: an image as stored, and as the first epochs with seed 0 see it."""
    split, shape = next(iter(dataset.splits.values())), dataset.image_shape
    check_distortable(strengths, shape, split.schema.dtype, str(dataset.location))
    stored = split.read_chunk(0).inputs[:ROWS]
    distorter, rows = Distorter(strengths, shape, seed=0), np.arange(len(stored))
    epochs = [distorter(stored, epoch, rows).copy() for epoch in range(COLUMNS - 1)]
    titles = ["as stored", *(f"epoch {number}" for number in range(1, COLUMNS))]
    versions = list(zip([stored, *epochs], titles, strict=True))
    return [(as_image(inputs[row], shape), title) for row in rows for inputs, title in versions]


def worst_mistakes(dataset: Dataset, scores: Scores, count: int = 30) -> list[Tile]:
    """Return the misclassified rows whose true class got the lowest probability, lowest first."""
    split = dataset.split(scores.schema.split)
    names = dataset.class_names
    worst: list[tuple[float, int, Tile]] = []
    for number in range(scores.schema.chunks):
        block = split.read_chunk(number)
        if block.targets is None:
            return []
        probabilities, predicted = scores.read_chunk(number)
        truth = block.targets.argmax(axis=1)
        of_truth = probabilities[np.arange(len(truth)), truth]
        start, _ = scores.schema.chunk_bounds(number)
        wrong = np.flatnonzero(predicted != truth)
        for row in wrong[np.argsort(of_truth[wrong], kind="stable")][:count].tolist():
            title = f"{names[truth[row]]}, not {names[predicted[row]]}"
            tile = (as_image(block.inputs[row], dataset.image_shape), title)
            worst.append((float(of_truth[row]), start + row, tile))
        worst = sorted(worst, key=lambda item: item[:2])[:count]
    return [tile for _, _, tile in worst]


def as_image(row: NDArray[Any], image_shape: tuple[int, ...]) -> NDArray[Any]:
    """Return a stored row of shape (1 + features,) as an image, without its bias."""
    return row[1:].reshape(image_shape[0] if len(image_shape) > 1 else 1, -1)


def check_picture(path: Path) -> Path:
    """Return the file to write; raise `UsageError` unless it ends in .png and is writable."""
    if path.suffix != ".png":
        raise UsageError(f"The picture's name is {str(path)!r}; expected one that ends in .png.")
    return file_to_write(path, "The picture")


def write_grid(tiles: Sequence[Tile], path: Path, title: str) -> None:
    """Write tiles in rows of ten, with one grey scale for all, as a PNG file, atomically.

    Raises `UsageError` if matplotlib is not installed or the name does not end in .png.
    """
    path = check_picture(path)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise MissingExtraError("A picture", "matplotlib", "plot") from None

    lines = max(1, -(-len(tiles) // COLUMNS))
    titles = [_lines_of(name) for _, name in tiles]
    height = 1.05 + 0.15 * max((text.count("\n") + 1 for text in titles), default=1)
    figure = Figure(figsize=(COLUMNS, 0.5 + height * lines), layout="tight")
    figure.suptitle(title, parse_math=False)  # a name may contain dollar signs
    axes = np.atleast_1d(np.asarray(figure.subplots(lines, COLUMNS))).reshape(-1)
    for axis in axes:
        axis.set_axis_off()
    values = [value for image, _ in tiles for value in (image.min(), image.max())]
    for axis, (image, _), text in zip(axes, tiles, titles, strict=False):
        axis.imshow(image, cmap="gray_r", vmin=min(values), vmax=max(values))
        axis.set_title(text, fontsize=8, parse_math=False)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as a box
        figure.savefig(buffer, format="png", dpi=100)
    open_location(path).write_object(buffer.getvalue())


def _lines_of(title: str) -> str:
    """Return a tile's title in lines as wide as the tile, cut off after the third."""
    lines = wrap(title, TITLE_WIDTH)
    return "\n".join(lines[:TITLE_LINES]) + "..." * (len(lines) > TITLE_LINES)
