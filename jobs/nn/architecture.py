"""The layers of a network, and the text that describes them: `784-relu-200-softmax-10`."""

import difflib
import re
from dataclasses import dataclass
from functools import cached_property

HIDDEN_ACTIVATIONS = ("relu", "sigmoid", "tanh")
"""Activations of hidden layers."""

OUTPUT_ACTIVATION = "softmax"
"""The activation of the last layer; the loss is the cross-entropy of its probabilities."""

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


def parse_network(text: str) -> tuple[Layer, ...]:
    """Return the layers of a text such as `784-relu-200-softmax-10`, from input to output.

    Widths and activations alternate. The last activation is softmax, which no other may be.
    Raises ValueError for any other text, with the wrong piece and the allowed ones.
    """
    pieces = text.strip().split("-")
    for position, piece in enumerate(pieces, start=1):
        if position % 2:
            _check_width(text, position, piece)
        else:
            _check_activation(text, position, piece, is_last=position >= len(pieces) - 1)
    if len(pieces) < 3 or len(pieces) % 2 == 0:
        raise ValueError(
            f"The network {text!r} ends after piece {len(pieces)}, {pieces[-1]!r}: expected a last "
            f"layer, as in '784-relu-200-softmax-10'."
        )
    return tuple(
        Layer(int(pieces[i]), pieces[i + 1], int(pieces[i + 2]))
        for i in range(0, len(pieces) - 2, 2)
    )


def complete_network(text: str, inputs: int, classes: int) -> str:
    """Return a network's text with the ends that it leaves out: `relu-200`, `784-relu-200`.

    The first width is `inputs` unless given, and the last layer `softmax-{classes}`; `softmax` is
    a network without hidden layers. Mistakes are left to `parse_network`.
    """
    pieces = text.strip().split("-")
    if len(pieces) == 1 and pieces[0].isdecimal():
        return text
    if not pieces[0].isdecimal():
        pieces.insert(0, str(inputs))
    if pieces[-1] == OUTPUT_ACTIVATION:
        pieces.append(str(classes))
    elif OUTPUT_ACTIVATION not in pieces[-2:]:
        pieces += [OUTPUT_ACTIVATION, str(classes)]
    return "-".join(pieces)


def format_network(layers: tuple[Layer, ...]) -> str:
    """Return the text from which `parse_network` reads `layers`."""
    return "-".join(
        [str(layers[0].inputs), *(f"{layer.activation}-{layer.outputs}" for layer in layers)]
    )


def count_parameters(layers: tuple[Layer, ...]) -> int:
    """Return the number of parameters, biases included."""
    return sum(layer.parameter_count for layer in layers)


def _check_width(text: str, position: int, piece: str) -> None:
    if not _WIDTH.fullmatch(piece):
        raise ValueError(
            f"Piece {position} of the network {text!r} is {piece!r}: expected a layer's width, "
            f"a whole number from 1 to 9999999."
        )


def _check_activation(text: str, position: int, piece: str, *, is_last: bool) -> None:
    allowed = (OUTPUT_ACTIVATION,) if is_last else HIDDEN_ACTIVATIONS
    if piece in allowed:
        return
    place = "the last layer's activation" if is_last else "a hidden layer's activation"
    known = allowed if is_last else (*HIDDEN_ACTIVATIONS, OUTPUT_ACTIVATION)
    nearest = [] if piece in known else difflib.get_close_matches(piece.lower(), known, n=1)
    suggestion = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(
        f"Piece {position} of the network {text!r} is {piece!r}: expected {place}, "
        f"{' or '.join(allowed)}.{suggestion}"
    )
