"""A flat vector of parameters in which the units of each part of the first layer are contiguous.

part 0: first layer's columns, second layer's rows | part 1: ... | upper layers
"""

from collections.abc import Sequence

import numpy as np

from jobs.nn.architecture import Layer
from jobs.nn.backpropagation import SplitMatrices, split
from jobs.nn.parameters import Floats


class UnitLayout:
    """Where the matrices of a network lie in such a vector, which has as many elements."""

    def __init__(self, layers: tuple[Layer, ...], units: Sequence[slice]) -> None:
        self._layers, self._units = layers, units
        sample = split(np.empty(sum(layer.parameter_count for layer in layers)), layers, units)
        parts = [
            [sample.first[part], *sample.second[part : part + 1]] for part in range(len(units))
        ]
        self.sections: list[slice] = []
        """The stretch of each part, and at the end that of the upper layers."""
        self._places: list[tuple[slice, tuple[int, ...]]] = []
        weights = []
        start = 0
        for matrices in [*parts, sample.upper]:
            section = start
            for matrix in matrices:
                has_bias = not any(matrix is other for other in sample.second[1:])
                stop = start + matrix.size
                self._places.append((slice(start, stop), matrix.shape))
                weights.append(slice(start + has_bias * matrix.shape[1], stop))
                start = stop
            self.sections.append(slice(section, start))
        self.weights = tuple(weights)
        """The elements that are weights, not biases."""

    def matrices(self, flat: Floats) -> SplitMatrices:
        """Return the matrices as views of a vector in this layout."""
        all_views = [flat[place].reshape(shape) for place, shape in self._places]
        parts = len(self._units)
        if len(self._layers) == 1:
            return SplitMatrices(all_views, [], [])
        return SplitMatrices(
            all_views[: 2 * parts : 2], all_views[1 : 2 * parts : 2], all_views[2 * parts :]
        )

    def put(self, plain: Floats, flat: Floats) -> None:
        """Copy a vector in the layout of `jobs.nn.parameters` to one in this layout."""
        for source, target in self._pairs(plain, flat):
            target[:] = source

    def plain(self, flat: Floats) -> Floats:
        """Return a copy in the layout of `jobs.nn.parameters`."""
        plain = np.empty_like(flat)
        for target, source in self._pairs(plain, flat):
            target[:] = source
        return plain

    def _pairs(self, plain: Floats, flat: Floats) -> list[tuple[Floats, Floats]]:
        one, other = split(plain, self._layers, self._units), self.matrices(flat)
        return [
            *zip(one.first, other.first, strict=True),
            *zip(one.second, other.second, strict=True),
            *zip(one.upper, other.upper, strict=True),
        ]
