"""The loss: softmax cross-entropy, and its gradient with respect to the logits."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jobs.nn.activations import by_class
from jobs.nn.parameters import Floats


@dataclass(frozen=True, eq=False)
class CrossEntropy:
    """The loss of a block of rows."""

    loss_sum: float
    """The cross-entropy to the targets, smoothed or not, summed over the rows, in nats."""

    correct: int
    """The number of rows whose largest logit is the target class's."""

    delta: Floats
    """The gradient of `loss_sum` with respect to the logits, `(rows, classes)`."""


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
    """
    rows = np.arange(len(logits))
    labels = targets.argmax(axis=1)
    correct = int(np.count_nonzero(logits.argmax(axis=1) == labels))

    values = by_class(logits)
    values -= np.maximum.reduce(values, axis=0)
    of_target = values[labels, rows]
    if smoothing:
        of_target += smoothing * (np.add.reduce(values, axis=0) / len(values) - of_target)
    np.exp(values, out=values)
    totals = np.add.reduce(values, axis=0)
    loss_sum = float(np.add.reduce(np.log(totals) - of_target, dtype=np.float64))

    values /= totals
    values[labels, rows] -= 1 - smoothing
    if smoothing:
        values -= smoothing / len(values)
    return CrossEntropy(loss_sum, correct, values.T)
