"""The text of a network: parsing, completion and errors."""

import re

import pytest

from jobs.nn.architecture import (
    Layer,
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
    """Missing ends are completed with the inputs and the classes; given ends stay."""
    assert expected == format_network(parse_network(text, inputs=4, classes=3))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Piece 1 of the network '' is '': expected an activation, relu or sigmoid or tanh"),
        ("5", "The network '5' ends after piece 1, '5': expected a layer, as in 'relu-200-"),
        ("relu", "The network 'relu' ends after piece 1, 'relu': expected a layer's width"),
        ("20-relu", "The network '20-relu' ends after piece 2, 'relu': expected a layer's width"),
        ("relu20", "Piece 1 of the network 'relu20' is 'relu20': expected an activation"),
        ("relu20", "Did you mean 'relu'?"),
        ("rely-9", "Piece 1 of the network 'rely-9' is 'rely': expected a hidden layer's"),
        ("relu-9-", "Piece 3 of the network 'relu-9-' is '': expected an activation"),
        ("relu-9-tanh", "The network 'relu-9-tanh' ends after piece 3, 'tanh': expected a layer's"),
        ("relu-9-softamx", "Piece 3 of the network 'relu-9-softamx' is 'softamx'"),
        ("relu-9-softamx", "or softmax. Did you mean 'softmax'?"),
        ("9-8", "Piece 2 of the network '9-8' is '8': expected an activation"),
        ("softmax-3-relu-2", "Piece 1 of the network 'softmax-3-relu-2' is 'softmax'"),
        ("softmax-softmax", "Piece 1 of the network 'softmax-softmax' is 'softmax'"),
        ("-", "Piece 1 of the network '-' is '': expected a hidden layer's activation"),
    ],
)
def test_mistakes_in_a_text_without_ends(text: str, complaint: str) -> None:
    """An error quotes the text without the ends that the dataset has added to it."""
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_network(text, inputs=4, classes=3)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Piece 1 of the network '' is '': expected a layer's width"),
        ("4", "ends after piece 1, '4': expected a layer, as in"),
        ("4-softmax", "ends after piece 2, 'softmax': expected a layer's width"),
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
    """An invalid text is refused with the piece, its position and the alternatives."""
    with pytest.raises(ValueError, match=re.escape(complaint)):
        parse_network(text)
