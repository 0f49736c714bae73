"""The layers of a network, and the text that describes them: `784-relu-200-softmax-10`."""

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

HIDDEN_ACTIVATIONS: tuple[str, ...] = ("relu", "sigmoid", "tanh")
"""Activations of hidden layers."""

OUTPUT_ACTIVATION = "softmax"
"""The activation of the last layer; the loss is the cross-entropy of its probabilities."""

ACTIVATIONS = (*HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATION)

_WIDTH = re.compile(r"[1-9][0-9]{0,6}")


@dataclass(frozen=True)
class Layer:
    """A fully connected layer: `activation(inputs @ weights + bias)`."""

    inputs: int
    """Input values per row, without the bias."""

    activation: str
    """The function applied to the weighted sums: relu, sigmoid, tanh, or softmax at the end."""

    outputs: int
    """Output values per row."""

    @cached_property
    def shape(self) -> tuple[int, int]:
        """The shape of the parameters, `(1 + inputs, outputs)`; the first row is the bias."""
        return 1 + self.inputs, self.outputs

    @cached_property
    def parameter_count(self) -> int:
        """The number of parameters, biases included."""
        return (1 + self.inputs) * self.outputs


def parse_network(
    text: str, inputs: int | None = None, classes: int | None = None
) -> tuple[Layer, ...]:
    """Return the layers of a text such as `784-relu-200-softmax-10`, from input to output.

    Widths and activations alternate. The last activation is softmax, which no other may be. With
    `inputs` and `classes` the text may leave out its ends: `relu-200`, `784-relu-200`, `softmax`.
    Raises ValueError for any other text, with the wrong piece and the allowed ones.
    """
    pieces = text.strip().split("-")
    first = 1
    if inputs is not None and not pieces[0].isdecimal():
        pieces.insert(0, str(inputs))
        first = 0  # errors count the pieces of the text
    given = len(pieces)
    if classes is not None and pieces[-1] == OUTPUT_ACTIVATION:
        pieces.append(str(classes))
    elif classes is not None and given % 2 and given > 1 and pieces[-2] != OUTPUT_ACTIVATION:
        pieces += [OUTPUT_ACTIVATION, str(classes)]
    for position, piece in enumerate(pieces):
        place = f"Piece {position + first} of the network {text!r}"
        if position % 2:
            _check_activation(place, piece, following=len(pieces) - 1 - position)
        else:
            _check_width(place, piece)
    if len(pieces) < 3 or len(pieces) % 2 == 0:
        expected = "a layer's width" if len(pieces) % 2 == 0 else "a layer"
        raise ValueError(
            f"The network {text!r} ends after piece {given - 1 + first}, {pieces[-1]!r}: expected "
            f"{expected}, as in 'relu-200-sigmoid-80'."
        )
    return tuple(
        Layer(int(pieces[i]), pieces[i + 1], int(pieces[i + 2]))
        for i in range(0, len(pieces) - 2, 2)
    )


def format_network(layers: tuple[Layer, ...]) -> str:
    """Return the text from which `parse_network` reads `layers`."""
    return "-".join(
        [str(layers[0].inputs), *(f"{layer.activation}-{layer.outputs}" for layer in layers)]
    )


def format_hidden(layers: tuple[Layer, ...]) -> str:
    """Return the text without its ends: the hidden layers, or `softmax` if there are none."""
    hidden = "-".join(f"{layer.activation}-{layer.outputs}" for layer in layers[:-1])
    return hidden or OUTPUT_ACTIVATION


def count_parameters(layers: tuple[Layer, ...]) -> int:
    """Return the number of parameters, biases included."""
    return sum(layer.parameter_count for layer in layers)


def _check_width(place: str, piece: str) -> None:
    if not _WIDTH.fullmatch(piece):
        raise ValueError(
            f"{place} is {piece!r}: expected a layer's width, a whole number from 1 to 9999999."
        )


def _check_activation(place: str, piece: str, following: int) -> None:
    """Raise ValueError unless an activation may have this many pieces after it."""
    expected, allowed = "a hidden layer's activation", HIDDEN_ACTIVATIONS
    if following == 1:
        expected, allowed = "the last layer's activation", ACTIVATIONS[-1:]
    elif following == 0:
        expected, allowed = "an activation", ACTIVATIONS
    if piece in allowed:
        return
    nearest = [] if piece in ACTIVATIONS else get_close_matches(piece.lower(), ACTIVATIONS, n=1)
    suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(
        f"{place} is {piece!r}: expected {expected}, {' or '.join(allowed)}.{suggestion}"
    )
