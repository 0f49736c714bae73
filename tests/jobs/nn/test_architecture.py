"""The text of a network: parsing, completion and errors."""

import re

import pytest

from jobs.nn.architecture import (
    Layer,
    complete_network,
    count_parameters,
    format_network,
    parse_network,
)

DEFAULT = "784-relu-200-sigmoid-80-softmax-10"


def test_reads_the_layers_in_order() -> None:
    """Each layer's inputs are the outputs of the one before; a single layer is enough."""
    expected = (Layer(784, "relu", 200), Layer(200, "sigmoid", 80), Layer(80, "softmax", 10))
    assert expected == parse_network(DEFAULT)
    assert (Layer(4, "softmax", 3),) == parse_network("4-softmax-3")
    assert 785 * 200 + 201 * 80 + 81 * 10 == count_parameters(expected)


@pytest.mark.parametrize("text", [DEFAULT, "4-softmax-3", "9-tanh-8-tanh-7-relu-6-softmax-1"])
def test_formats_what_it_parsed(text: str) -> None:
    """Formatting is the inverse of parsing."""
    assert text == format_network(parse_network(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("relu-9", "4-relu-9-softmax-3"),
        ("relu-9-tanh-8", "4-relu-9-tanh-8-softmax-3"),
        ("5-relu-9", "5-relu-9-softmax-3"),
        ("relu-9-softmax", "4-relu-9-softmax-3"),
        ("relu-9-softmax-2", "4-relu-9-softmax-2"),
        ("softmax", "4-softmax-3"),
        ("softmax-2", "4-softmax-2"),
        ("5-softmax", "5-softmax-3"),
        (" 5-relu-9-softmax-2 ", "5-relu-9-softmax-2"),
    ],
)
def test_completes_the_ends(text: str, expected: str) -> None:
    """The ends that a text leaves out are the inputs and the classes; others stay."""
    assert expected == complete_network(text, inputs=4, classes=3)
    parse_network(expected)


@pytest.mark.parametrize(
    "text", ["", "5", "relu", "rely-9", "relu-9-", "9-8", "softmax-3-relu-2", "-"]
)
def test_completion_leaves_mistakes(text: str) -> None:
    """A text that is no network is still refused after completion."""
    with pytest.raises(ValueError, match="expected"):
        parse_network(complete_network(text, inputs=4, classes=3))


def test_completion_of_a_single_mistake() -> None:
    """A single word is taken for an activation, which the message then expects."""
    complaint = "'relu20': expected a hidden layer's activation, relu or sigmoid or tanh. Did you"
    with pytest.raises(ValueError, match=complaint):
        parse_network(complete_network("relu20", inputs=4, classes=3))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Piece 1 of the network '' is '': expected a layer's width"),
        ("4", "ends after piece 1, '4': expected a last layer"),
        ("4-softmax", "ends after piece 2, 'softmax': expected a last layer"),
        ("4-softmax-", "Piece 3 of the network '4-softmax-' is '': expected a layer's width"),
        ("0-softmax-3", "Piece 1 of the network '0-softmax-3' is '0': expected a layer's width"),
        ("4-softmax-3.5", "Piece 3 of the network '4-softmax-3.5' is '3.5'"),
        ("4-softmax-99999999999999", "a whole number from 1 to 9999999"),
        ("4-softmax-\u0663", "a whole number from 1 to 9999999"),
        ("4-rellu-3-softmax-2", "is 'rellu': expected a hidden layer's activation, relu or sig"),
        ("4-Sigmoid-3-softmax-2", "Did you mean 'sigmoid'?"),
        ("4-softmax-3-softmax-2", "Piece 2 of the network '4-softmax-3-softmax-2' is 'softmax'"),
        ("4-relu-3", "Piece 2 of the network '4-relu-3' is 'relu': expected the last layer's"),
        ("4-relu-3-sofmax-2", "Did you mean 'softmax'?"),
        ("4-sofmax-3-softmax-2", "Did you mean 'softmax'?"),
        ("relu-4-softmax-2", "Piece 1 of the network 'relu-4-softmax-2' is 'relu'"),
        ("4-relu-3-2", "Piece 4 of the network '4-relu-3-2' is '2'"),
    ],
)
def test_an_error_names_the_piece_and_what_is_allowed(text: str, complaint: str) -> None:
    """A text that is no network is refused with the piece, its position and the alternatives."""
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_network(text)
