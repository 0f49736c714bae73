"""Distorting MNIST's rows on one thread: this project, SciPy, torchvision and Keras.

Each distorts every image by draws of its own, as strongly as `--distort digits`. Keras' elastic
layer has other parameters than a root mean square; it is used with its defaults. Epochs are trained
with and without distortions, on all cores.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from jobs.nn.architecture import parse_network
from jobs.training.config import TrainConfig
from jobs.training.trainer import Trainer
from pipeline.distortions import DIGITS, Distorter
from tests.benchmarks.contest import Contestant, Verdict, medians
from tests.benchmarks.data import NETWORK, Workplace
from tests.benchmarks.epochs import MANY, WIDE_CASE, epoch_of

ROWS, PEER_ROWS, BATCH_ROWS = 60_000, 500, 64
SIDE = 28
TARGET = 114_000
"""Rows a second."""
LEAST_RATIO = 20
"""Times as fast as each peer."""
EPOCHS = {
    1.08: TrainConfig(
        network=WIDE_CASE.network,
        batch_size=WIDE_CASE.batch_size,
        micro_batches=WIDE_CASE.micro_batches,
        learning_rate=0.001,
        schedule="constant",
        epochs=MANY,
    ),
    1.6: TrainConfig(network=NETWORK, learning_rate=0.001, schedule="constant", epochs=MANY),
}
"""Trainings by the target for a distorted epoch / the same without distortions."""

Images = NDArray[np.uint8]


def bench_distortions(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Measure rows a second of processor time, distorted in memory."""
    inputs = np.ascontiguousarray(workplace.train_bytes[:ROWS])
    images = inputs[:PEER_ROWS, 1:].reshape(-1, SIDE, SIDE)
    contestants: dict[str, Contestant] = {"ours": _ours(inputs)}
    for name, peer in {"SciPy": _scipy, "torchvision": _torchvision, "Keras": _keras}.items():
        try:
            contestants[name] = peer(images)
        except ImportError as missing:
            print(f"Distortions by {name} are left out: {missing}.", file=sys.stderr)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        seconds = medians(contestants, rounds)
    rates = {name: 1 / value for name, value in seconds.items()}
    note = ", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in rates.items())
    yield Verdict("distortions, one thread", rates["ours"], TARGET, True, "rows/s", note)
    for name, rate in rates.items():
        if name != "ours":
            yield Verdict(f"distortions / {name}", rates["ours"] / rate, LEAST_RATIO, True)


def bench_distorted(workplace: Workplace, rounds: int) -> Iterator[Verdict]:
    """Compare epochs of training with and without distortions, on all cores."""
    for target, plain in EPOCHS.items():
        if workplace.quick:
            plain = replace(plain, holdout=4 * len(workplace.train_bytes) // 5)  # noqa: PLW2901
        distorted = replace(plain, **asdict(DIGITS))
        contestants, layers = {}, parse_network(plain.network)
        with ExitStack() as stack:
            for name, config in {"plain": plain, "distorted": distorted}.items():
                trainer = stack.enter_context(Trainer(config, layers, workplace.dataset))
                contestants[name] = epoch_of(trainer)
            times = medians(contestants, rounds)
        yield Verdict(
            f"distorted epoch / plain, {plain.network}",
            times["distorted"] / times["plain"],
            target,
            note=", ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items()),
        )


def _measured(work: Callable[[], object], rows: int) -> Contestant:
    """Return a contestant that measures processor time per row."""

    def contestant() -> float:
        began = time.process_time()
        work()
        return (time.process_time() - began) / rows

    return contestant


def _ours(inputs: Images) -> Contestant:
    distorter = Distorter(DIGITS, (SIDE, SIDE), seed=0)
    numbers = np.arange(len(inputs))

    def work() -> None:
        for start in range(0, len(inputs), BATCH_ROWS):
            batch = slice(start, start + BATCH_ROWS)
            distorter(inputs[batch], 0, numbers[batch])

    return _measured(work, len(inputs))


def _scipy(images: Images) -> Contestant:
    from scipy.ndimage import gaussian_filter, map_coordinates

    generator = np.random.default_rng(0)
    centre = (SIDE - 1) / 2
    grid = np.mgrid[:SIDE, :SIDE] - centre
    # The root mean square of filtered noise of variance 1, away from the border.
    strength = DIGITS.elastic * 2 * math.sqrt(math.pi) * DIGITS.elastic_sigma

    def distort(image: Images) -> Images:
        draws = generator.uniform(-1, 1, 6)
        angle = draws[0] * math.radians(DIGITS.rotate)
        rotation = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        shear = [[1, 0], [draws[1] * DIGITS.shear, 1]]
        matrix = np.array(rotation) @ shear @ np.diag(1 + draws[2:4] * DIGITS.scale)
        shift = draws[4:, None, None] * DIGITS.shift + centre
        origins = np.tensordot(matrix, grid, 1) + shift
        noise = generator.standard_normal((2, SIDE, SIDE))
        origins += [strength * gaussian_filter(part, DIGITS.elastic_sigma) for part in noise]
        distorted: Images = map_coordinates(image, origins, order=1)
        return distorted

    return _measured(lambda: [distort(image) for image in images], len(images))


def _torchvision(images: Images) -> Contestant:
    # A build for CUDA beside a torch for processors has no compiled operators, which registering
    # them would need. Transforms do not use any.
    sys.modules.setdefault("torchvision._meta_registrations", ModuleType("unused"))
    from torchvision.transforms import v2

    affine = v2.RandomAffine(
        DIGITS.rotate,
        translate=(DIGITS.shift / SIDE, DIGITS.shift / SIDE),
        scale=(1 - DIGITS.scale, 1 + DIGITS.scale),
        shear=math.degrees(math.atan(DIGITS.shear)),
        interpolation=v2.InterpolationMode.BILINEAR,
    )
    # Its noise is uniform, and the unit of its strength is half an image's side of 2 / SIDE.
    alpha = DIGITS.elastic * 4 * math.sqrt(3 * math.pi) * DIGITS.elastic_sigma
    elastic = v2.ElasticTransform(alpha, DIGITS.elastic_sigma)
    tensors = torch.from_numpy(images[:, None].copy())
    return _measured(lambda: [elastic(affine(image)) for image in tensors], len(images))


def _keras(images: Images) -> Contestant:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    from keras import Sequential, layers

    zero = {"fill_mode": "constant"}
    transforms = Sequential(
        [
            layers.RandomRotation(DIGITS.rotate / 360, **zero),
            layers.RandomZoom(DIGITS.scale, DIGITS.scale, **zero),
            layers.RandomShear(DIGITS.shear, 0.0, **zero),
            layers.RandomTranslation(DIGITS.shift / SIDE, DIGITS.shift / SIDE, **zero),
            layers.RandomElasticTransform(**zero),
        ]
    )
    floats = images[..., None].astype(np.float32)

    def work() -> None:
        for start in range(0, len(floats), BATCH_ROWS):
            transforms(floats[start : start + BATCH_ROWS], training=True)

    return _measured(work, len(floats))
