"""The L2 penalty by definition, and its gradient as training applies it."""

import numpy as np

from jobs.nn.network import Network
from jobs.nn.optimizers import make_optimizer
from jobs.nn.parameters import Floats, views
from jobs.training.step import UpdateRule


def penalty(network: Network, parameters: Floats, l2: float) -> float:
    """Return l2 / 2 times the sum of the squared weights, without biases.

    Biases shift a function and do not add to its variance (Goodfellow, Bengio and Courville, Deep
    Learning, 2016, section 7.1).
    """
    weights = [matrix[1:] for matrix in views(parameters, network.layers)]
    return l2 / 2 * sum(float(np.vdot(matrix, matrix)) for matrix in weights)


def regularised(network: Network, parameters: Floats, gradient: Floats, l2: float) -> Floats:
    """Return the gradient that a step of plain SGD uses, from the gradient of the mean loss."""
    rule = UpdateRule(network, make_optimizer("sgd"), l2)
    after = np.empty_like(parameters)
    whole = slice(0, len(parameters))
    rule.apply(whole, (parameters, {}), gradient.copy(), 1.0, 1, (after, {}))
    return parameters - after
