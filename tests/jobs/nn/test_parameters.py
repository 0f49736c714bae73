"""The flat vector and its views as matrices."""

import numpy as np

from jobs.nn.architecture import parse_network
from jobs.nn.parameters import names, views, weight_slices

LAYERS = parse_network("2-relu-3-softmax-2")


def test_views_share_the_vectors_memory() -> None:
    """The matrices are views of the vector, bias row first; nothing is copied."""
    flat = np.arange(17.0)
    first, second = views(flat, LAYERS)
    np.testing.assert_array_equal([[0, 1, 2], [3, 4, 5], [6, 7, 8]], first)
    np.testing.assert_array_equal([[9, 10], [11, 12], [13, 14], [15, 16]], second)
    second[0, 0] = -1
    assert -1 == flat[9]
    assert ["layer_0", "layer_1"] == names(LAYERS)


def test_weight_slices_leave_out_the_biases() -> None:
    """The slices cover every row of every matrix except the first."""
    flat = np.zeros(17)
    for weights in weight_slices(LAYERS):
        flat[weights] = 1
    for matrix in views(flat, LAYERS):
        np.testing.assert_array_equal(0, matrix[0])
        np.testing.assert_array_equal(1, matrix[1:])
