"""What images far from training look like: recognised by their statistics, or by undoing it.

Cheap remedies, such as inverting, are tried on a sample of the rows. The one that brings them back
near training names what probably happened.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.choices import LARGE_DRIFT
from jobs.output import percent
from jobs.scoring.distances import distances
from jobs.training.model import Model
from jobs.training.reference import Observation, Observer, Reference
from pipeline.statistics import BINS, STATISTICS, ImageStatistics
from pipeline.transforms import add_bias, shift_images
from storage.dataset import Dataset
from storage.preparation import ValueRange

Images = NDArray[Any]

LEAST_ROWS = 30
"""Fewer rows, scored or in the reference, have no score."""
SAMPLE_ROWS = 400
"""Rows on which remedies are tried."""
SAMPLE_BYTES = 16 * 2**20
"""Fewer rows are taken if they are larger than this."""
MUCH = 0.5
"""A remedy is named if it lowers the score to this share."""
NOTHING = 0.02
"""A mean statistic below this is that of blank, or of black-and-white images."""
NOISE = 0.6
"""Roughness over contrast of noise is 0.7, of drawings about 0.3."""


def looks_like(
    reference: Reference, observed: Observation, model: Model, dataset: Dataset, split: str
) -> str | None:
    """Return what the images of a split probably are, such as `inverted images`; None if unknown.

    Vectors are no images. Raises `BadDataError` if the first chunk is damaged.
    """
    if len(dataset.image_shape) == 1:
        return None
    if (name := _recognised(reference, observed)) is not None:
        return name
    stored = dataset.split(split)
    inputs = stored.read_chunk(0).inputs
    rows = min(SAMPLE_ROWS, SAMPLE_BYTES // stored.schema.row_bytes, len(inputs))
    if rows < LEAST_ROWS:
        return None
    inputs = inputs[np.arange(rows) * len(inputs) // rows]  # spread: the first rows may differ
    images = inputs[:, 1:].reshape(-1, *dataset.image_shape)
    observer = Observer(model.predictor, dataset.image_shape, len(images))
    scaling = model.preparation.scaling

    def score_of(changed: Images) -> float:
        rows = add_bias(changed.astype(images.dtype), model.preparation.bias(images.dtype))
        predictions, hidden = observer.predictor.with_hidden(rows)
        return distances(reference, observer.observe(0, rows, predictions, hidden)).score

    before = score_of(images)
    if before <= LARGE_DRIFT:  # other rows have drifted
        return None
    scores = {
        name: score_of(changed)
        for name, changed in _remedies(images, scaling, reference.statistics, observed.images)
    }
    best = min(scores, key=scores.__getitem__)
    return best if scores[best] <= MUCH * before else None


def _recognised(reference: Reference, observed: Observation) -> str | None:
    """Return the name of images that their statistics give away."""
    if reference.statistics is None:
        return None
    means, usual = _means(observed.images), _means(reference.statistics)
    rough, usually_rough = (each["roughness"] > NOISE * each["contrast"] for each in (means, usual))
    if means["contrast"] < NOTHING < usual["contrast"]:
        return "blank images"
    if means["greyness"] < NOTHING < usual["greyness"]:
        return "black-and-white images"
    return "noise" if rough and not usually_rough else None


def _means(images: ImageStatistics) -> dict[str, float]:
    """Return the mean of each statistic, as near as its histogram gives it."""
    means = images.counts @ np.arange(BINS) / BINS / max(images.rows, 1)
    return dict(zip(STATISTICS, means.tolist(), strict=True))


def _remedies(
    images: Images,
    scaling: ValueRange | None,
    reference: ImageStatistics | None,
    observed: ImageStatistics,
) -> Iterator[tuple[str, Images]]:
    """Yield what may have happened to images, and the images with it undone."""
    low, high = (0.0, 1.0) if scaling is None else (scaling.low, scaling.high)
    yield "inverted images", low + high - images
    yield "mirrored images", images[:, :, ::-1]
    yield "images upside down", images[:, ::-1]
    yield "images turned by 180 degrees", images[:, ::-1, ::-1]
    if images.shape[1] == images.shape[2]:
        yield "transposed images", images.swapaxes(1, 2)
        yield "images turned clockwise by 90 degrees", np.rot90(images, 1, (1, 2))
        yield "images turned counterclockwise by 90 degrees", np.rot90(images, 3, (1, 2))
    if reference is None:
        return
    means, usual = _means(observed), _means(reference)
    if images.ndim == 3:
        height, width = images.shape[1:]
        down = round((usual["centre y"] - means["centre y"]) * height)
        right = round((usual["centre x"] - means["centre x"]) * width)
        rows = shift_images(add_bias(images, 0), (height, width), down, right, scaling)
        pixels = max(abs(down), abs(right))
        if pixels:
            name = f"images moved by {pixels} pixel{'s' * (pixels > 1)}"
            yield name, rows[:, 1:].reshape(images.shape)
    if means["contrast"] > 0:
        share = means["contrast"] / usual["contrast"] if usual["contrast"] else 1.0
        values = low + (images - low) / share
        name = f"images with {percent(share, digits=0)} of the contrast"
        yield name, np.clip(values, low, high)
