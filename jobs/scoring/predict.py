"""Predict the classes of single pictures: photos, scans and drawings of any size."""

import csv
import io
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.output import one_line
from jobs.scoring.inbox import real_place
from jobs.scoring.outputs import check_output
from jobs.training.model import Model
from pipeline.prepare_picture import SIDE, PreparedPicture, digit_candidates, resized
from pipeline.sources.pictures import MOST_STORED_BYTES, decode_picture
from storage.errors import BadDataError, UsageError, nearest_place, translate_os_errors
from storage.local import LocalLocation
from storage.location import Location
from storage.places import open_location

STDIN = "-"
"""The name of the picture that is read from standard input."""
DIGITS = frozenset("0123456789")
"""Runs with images of 28 x 28 and no other classes see pictures prepared like MNIST's."""


@dataclass(frozen=True)
class Prediction:
    """A picture and the probabilities of its classes."""

    name: str
    picture: PreparedPicture
    probabilities: NDArray[np.float32]
    """In the order of the model's class names."""

    def best(self, class_names: Sequence[str], count: int = 3) -> list[tuple[str, float]]:
        """Return the most probable classes and their probabilities, the best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:count].tolist()
        return [(class_names[index], float(self.probabilities[index])) for index in order]


def predict_pictures(
    model: Model,
    names: Sequence[str],
    *,
    as_is: bool = False,
    storage_options: Mapping[str, str] | None = None,
) -> Iterator[Prediction | tuple[str, BadDataError]]:
    """Yield the prediction of each picture, or its name and the reason why it has none.

    Parameters
    ----------
    model
        The model that predicts.
    names
        Paths or URLs of pictures, or `-` for standard input.
    as_is
        Whether the pictures are prepared already, and have the size of the model's images.
    storage_options
        Options of an S3 store, for pictures given by their URLs.

    Raises
    ------
    UsageError
        If a name is not that of a file, before any picture is read, or if the model's values have
        no range that grey levels could be mapped to.
    UnreachableError
        If a file cannot be read.
    """
    if names.count(STDIN) > 1:
        raise UsageError("Standard input, -, is given more than once; it holds one picture.")
    files = [None if name == STDIN else open_location(name, storage_options) for name in names]
    for name, file in zip(names, files, strict=True):
        _check_file(name, file)
    for name, file in zip(names, files, strict=True):
        shown = "Standard input" if name == STDIN else one_line(name)
        try:
            candidates = _prepared(model, _read(file), shown, as_is=as_is)
        except BadDataError as error:
            yield name, error
            continue
        images = np.stack([candidate.image for candidate in candidates])
        probabilities = model.predict_proba(_values(model, images))
        surest = int(probabilities.max(axis=1).argmax())
        yield Prediction(name, candidates[surest], probabilities[surest])


def _check_file(name: str, file: Location | None) -> None:
    if isinstance(file, LocalLocation) and os.path.isdir(file.path):
        raise UsageError(f"{name} is a directory; expected a picture. Give the names of its files.")
    if isinstance(file, LocalLocation) and not os.path.exists(file.path):
        raise UsageError(f"There is no picture {name}.{nearest_place(name)}")
    if file is not None and not isinstance(file, LocalLocation) and not file.is_object():
        raise UsageError(f"There is no picture {name}. Check the URL.")


def _read(file: Location | None) -> bytes:
    """Return the content of a file or of standard input, cut where it is too large to decode."""
    limit = MOST_STORED_BYTES + 1
    if file is None:
        return sys.stdin.buffer.read(limit)
    if not isinstance(file, LocalLocation):
        directory, key = file.split()
        return directory.get(key, 0, limit)
    with translate_os_errors("read", file.path), open(file.path, "rb") as stream:
        return stream.read(limit)


def _prepared(model: Model, data: bytes, name: str, *, as_is: bool) -> list[PreparedPicture]:
    """Return a picture as the model's images are, in each way that it may have to be prepared.

    Raises `BadDataError` if that cannot be done.
    """
    if len(data) > MOST_STORED_BYTES:
        raise BadDataError(
            f"{name} has more than {MOST_STORED_BYTES:,} bytes, the most that are read. Make the "
            "picture smaller."
        )
    shape = _image_shape(model)
    picture = decode_picture(data, name, "rgb" if len(shape) == 3 else "grey")
    if as_is and picture.shape != shape:
        sizes = " x ".join(map(str, picture.shape)), " x ".join(map(str, shape))
        raise BadDataError(
            f"{name} has {sizes[0]} pixels (height x width); the model takes {sizes[1]}. Leave out "
            "--as-is, or resize it."
        )
    if as_is:
        return [PreparedPicture(picture, ())]
    if shape == (SIDE, SIDE) and set(model.class_names) <= DIGITS:
        return digit_candidates(picture, name)
    return [PreparedPicture(*_fitted(picture, shape))]


def _image_shape(model: Model) -> tuple[int, ...]:
    """Return the shape of the model's images; runs of early releases do not record it."""
    side = math.isqrt(model.features)
    shape = model.image_shape or (side, side)
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3):
        raise UsageError(
            f"The model was trained on images of {' x '.join(map(str, shape))}; pictures have a "
            "height and a width, and one or three values per pixel."
        )
    return shape


def _fitted(
    picture: NDArray[np.uint8], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Return a picture in the middle of an image, as large as it fits, and what was done.

    The rest of the image has the median colour of the picture's border.
    """
    if picture.shape == shape:
        return picture, ()
    scale = min(new / old for new, old in zip(shape[:2], picture.shape[:2], strict=True))
    height, width = (max(1, round(size * scale)) for size in picture.shape[:2])
    layers = picture.reshape(*picture.shape[:2], -1)
    image = np.empty((*shape[:2], layers.shape[2]), np.uint8)
    border = np.concatenate([layers[0], layers[-1], layers[:, 0], layers[:, -1]])
    image[:] = np.median(border, axis=0)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    for number in range(layers.shape[2]):
        scaled = np.round(np.clip(resized(layers[..., number], height, width), 0, 255))
        image[top : top + height, left : left + width, number] = scaled
    padded = ["padded"] if (height, width) != shape[:2] else []
    return image.reshape(shape), (f"resized to {height} x {width}", *padded)


def _values(model: Model, images: NDArray[np.uint8]) -> NDArray[Any]:
    """Return grey levels in the model's range, as its element type."""
    element_type, scaling = model.element_type or "float32", model.preparation.scaling
    if scaling is None:
        if element_type == "uint8":
            return images
        raise UsageError(
            f"The model was trained on values of type {element_type} without a range (--scale "
            "none), so grey levels cannot be converted to them."
        )
    values = scaling.low + images / 255 * (scaling.high - scaling.low)
    return (values if element_type.startswith("float") else np.round(values)).astype(element_type)


def write_predictions(
    file: Location, results: Sequence[Prediction | tuple[str, BadDataError]], model: Model
) -> None:
    """Write a CSV file with a row for each picture; those that failed have an error instead."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("name", "predicted", "probability", "prepared", "error"))
    for result in results:
        if isinstance(result, Prediction):
            ((predicted, probability),) = result.best(model.class_names, 1)
            prepared = ", ".join(result.picture.steps)
            rows.writerow((one_line(result.name), predicted, f"{probability:.9g}", prepared, ""))
        else:
            rows.writerow((one_line(result[0]), "", "", "", one_line(str(result[1]))))
    file.write_object(text.getvalue().encode())


def write_seen(file: Location, predictions: Sequence[Prediction]) -> None:
    """Write the prepared pictures as one PNG file, the first at the top."""
    from PIL import Image

    buffer = io.BytesIO()
    pictures = [prediction.picture.image for prediction in predictions]
    Image.fromarray(np.concatenate(pictures)).save(buffer, "PNG")
    file.write_object(buffer.getvalue())


def output_file(
    place: str, option: str, ending: str, names: Sequence[str], storage_options: Mapping[str, str]
) -> Location:
    """Return the file that an option names; raise `UsageError` if it cannot be written.

    It may be none of the pictures that are read, given by their `names`.
    """
    if not place.endswith(ending):
        raise UsageError(f"{option} is {place!r}; expected a name that ends in {ending}.")
    file = open_location(place, storage_options)
    if real_place(file) in {
        real_place(open_location(name, storage_options)) for name in names if name != STDIN
    }:
        raise UsageError(f"{option} is {place}, one of the pictures. Choose another file.")
    return check_output(file, option)
