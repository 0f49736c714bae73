"""The loss: softmax cross-entropy, and its gradient with respect to the logits."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jobs.nn.activations import by_class
from jobs.nn.parameters import Floats


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """The loss of a block of rows. Sums are computed when they are first used."""

    delta: Floats
    """The gradient of `loss_sum` with respect to the logits, `(rows, classes)`."""
    _logits: Floats
    _labels: NDArray[np.intp]
    _of_target: Floats
    """Each row's logit of the target, smoothed or not, below the row's largest logit."""
    _totals: Floats
    """Each row's sum of exp(x - max)."""

    @cached_property
    def loss_sum(self) -> float:
        """The cross-entropy to the targets, smoothed or not, summed over the rows, in nats."""
        return float(np.add.reduce(np.log(self._totals) - self._of_target, dtype=np.float64))

    @cached_property
    def correct(self) -> int:
        """The number of rows whose largest logit is the target class's."""
        return int(np.count_nonzero(self._logits.argmax(axis=1) == self._labels))


def loss_of_probabilities(probabilities: NDArray[np.float32], labels: NDArray[np.intp]) -> float:
    """Return the cross-entropy of `(rows, classes)` to the labels `(rows,)`, summed over the rows.

    A probability that underflows to 0 counts as the smallest positive float32.
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    of_label = np.maximum(of_label, np.finfo(np.float32).smallest_subnormal)
    return -float(np.log(of_label, dtype=np.float64).sum())


def cross_entropy(
    logits: Floats, targets: NDArray[np.uint8], smoothing: float = 0.0
) -> CrossEntropy:
    """Return the softmax cross-entropy of `logits` `(rows, classes)` to one-hot `targets`.

    A row's loss is -log softmax(x)[t] = log(sum of exp(x - max)) - (x[t] - max), where the sum is
    at least 1. Its gradient is softmax(x) - target (Bishop, Pattern Recognition and Machine
    Learning, 2006, eq. 4.109).

    With label smoothing e the target is (1 - e) one-hot + e / classes (Szegedy et al., Rethinking
    the Inception architecture, 2016, section 7), so -e (mean of x - x[t]) is added to the loss.
    The result refers to `logits`.
    """
    rows = np.arange(len(logits))
    labels = targets.argmax(axis=1)
    values = by_class(logits)
    values -= np.maximum.reduce(values, axis=0)
    of_target = values[labels, rows]
    if smoothing:
        of_target += smoothing * (np.add.reduce(values, axis=0) / len(values) - of_target)
    np.exp(values, out=values)
    totals = np.add.reduce(values, axis=0)
    values /= totals
    values[labels, rows] -= 1 - smoothing
    if smoothing:
        values -= smoothing / len(values)
    return CrossEntropy(values.T, logits, labels, of_target, totals)
