"""Pictures are prepared by what the run records: its image shape, its classes, its values."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from jobs.nn.architecture import parse_network
from jobs.nn.network import Network
from jobs.scoring.predict import Prediction, predict_pictures
from jobs.training.model import Member, Model
from storage.checkpoints import CheckpointName
from storage.errors import BadDataError, UsageError
from storage.places import open_location
from storage.preparation import BYTES, Preparation, ValueRange
from storage.runs import Run


def model_of(
    shape: tuple[int, ...], names: str = "0123456789", scaling: ValueRange | None = BYTES
) -> Model:
    """Return an untrained model of bytes."""
    network = Network(parse_network(f"{np.prod(shape)}-softmax-{len(names)}"), "float32")
    parameters = np.zeros(network.parameter_count, np.float32)
    run = Run(open_location("run"), "", {}, "", {}, {}, {})
    member = Member(network, parameters, "0" * 64, CheckpointName(1, 0), run)
    signature = math.prod(shape), tuple(names), Preparation(scaling), shape, "uint8", ()
    return Model(*signature, members=(member,), average_shifts=0)


def save(path: Path, picture: NDArray[np.uint8], **options: object) -> str:
    """Write a picture, and return its path."""
    Image.fromarray(picture).save(path, **options)
    return str(path)


def predicted(model: Model, name: str, *, as_is: bool = False) -> Prediction:
    """Return the prediction of one picture; raise the error if it has none."""
    (result,) = predict_pictures(model, [name], as_is=as_is)
    if isinstance(result, tuple):
        raise result[1]
    return result


@pytest.fixture
def seven(tmp_path: Path) -> str:
    """A drawing of a seven, dark on light, 60 x 40 pixels."""
    picture = np.full((60, 40), 250, np.uint8)
    picture[10:14, 8:32] = picture[10:50, 28:32] = 10
    return save(tmp_path / "seven.png", picture)


def test_digits_are_prepared_and_other_classes_resized(seven: str) -> None:
    """A run of digits in 28 x 28 sees an image of MNIST; any other the whole picture."""
    digit = predicted(model_of((28, 28)), seven).picture
    assert digit.steps == ("inverted", "cropped", "centred")
    assert digit.image[0, 0] == 0
    for model, size in ((model_of((28, 28), "abc"), (28, 19)), (model_of((16, 30)), (16, 11))):
        picture = predicted(model, seven).picture
        assert picture.steps == (f"resized to {size[0]} x {size[1]}", "padded")
        assert (picture.image.shape, picture.image[0, 0]) == (model.image_shape, 250)
    assert predicted(model_of((30, 20)), seven).picture.steps == ("resized to 30 x 20",)


def test_the_surer_candidate_counts(tmp_path: Path) -> None:
    """Predict both images of a picture that may be stretched; the higher probability counts."""
    image = np.zeros((28, 28), np.uint8)
    image[6:26, 8:20] = 255  # a pixel lower than MNIST has it
    picture = np.asarray(Image.fromarray(image).resize((200, 300)))
    name, model = save(tmp_path / "x.png", picture), model_of((28, 28))
    matrix = model.parameters.reshape(785, 10)  # the biases, and the weights of each pixel
    # Unstretched, the box is 12 pixels wide, else 8: it has the pixel (14, 9) or not.
    for bias, weight, expected in ((0, 1, "unstretched"), (2, -1, "cropped")):
        matrix[0, 0] = bias
        matrix[1 + 14 * 28 + 9, 0] = weight
        assert predicted(model, name).picture.steps[0] == expected


def test_colours(tmp_path: Path) -> None:
    """A run of images with three values per pixel sees colours."""
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[..., 1] = 90
    image = predicted(model_of((10, 10, 3)), save(tmp_path / "x.png", picture)).picture.image
    assert (image == (0, 90, 0)).all()
    with pytest.raises(UsageError, match="10 x 10 x 2"):
        predicted(model_of((10, 10, 2)), str(tmp_path / "x.png"))


def test_as_is(tmp_path: Path, seven: str) -> None:
    """Nothing is prepared, and the size must be the model's."""
    picture = np.arange(784, dtype=np.uint8).reshape(28, 28)
    name = save(tmp_path / "x.png", picture)
    result = predicted(model_of((28, 28)), name, as_is=True)
    assert (result.picture.image == picture).all()
    assert result.picture.steps == ()
    with pytest.raises(BadDataError, match=r"60 x 40 pixels .*takes 28 x 28"):
        predicted(model_of((28, 28)), seven, as_is=True)


def test_values_have_the_range_of_the_run(tmp_path: Path) -> None:
    """Black is the range's lower end and white its upper one, in the run's element type."""
    picture = np.array([[0, 255], [255, 0]], np.uint8)
    name = save(tmp_path / "x.png", picture)
    model = model_of((2, 2), scaling=ValueRange(-10.0, 20.0))
    matrix = model.parameters.reshape(5, 10)  # the biases, and the weights of each input
    matrix[1:3, 0] = 1  # so class 0 has the logit 0 + 1
    expected = pytest.approx(math.e / (math.e + 9))
    for element_type in ("float32", "int16"):
        ranged = replace(model, element_type=element_type)
        assert predicted(ranged, name, as_is=True).probabilities[0] == expected
    with pytest.raises(UsageError, match="int16 without a range"):
        predicted(replace(model_of((2, 2), scaling=None), element_type="int16"), name, as_is=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_formats_and_modes(form: str, tmp_path: Path, seven: str) -> None:
    """All formats, bits and colours of the same drawing lead to nearly the same image."""
    model = model_of((28, 28))
    expected = predicted(model, seven).picture.image.astype(int)
    drawing = Image.open(seven)
    modes = ["L", "RGB"]
    modes += ["1", "P", "I;16", "RGBA"] if form == "PNG" else []
    for mode in modes:
        changed = drawing.convert("L").convert(mode.removesuffix(";16"))
        if mode == "I;16":
            changed = Image.fromarray(np.asarray(drawing).astype(np.uint16) * 257)
        if mode == "RGBA":  # black ink on nothing
            changed = Image.new("RGBA", drawing.size)
            changed.putalpha(drawing.point(lambda level: 255 - level))
        buffer = io.BytesIO()
        changed.save(buffer, form)
        path = tmp_path / f"{mode.replace(';', '')}.{form}"
        path.write_bytes(buffer.getvalue())
        image = predicted(model, str(path)).picture.image
        assert abs(image - expected).mean() < 3, mode


def test_names_are_checked_first(tmp_path: Path, seven: str) -> None:
    """Missing files, directories and a second standard input are usage errors."""
    model = model_of((28, 28))
    for name, message in ((tmp_path, "is a directory"), (tmp_path / "seve.png", "Did you mean")):
        with pytest.raises(UsageError, match=message):
            list(predict_pictures(model, [seven, str(name)]))
    with pytest.raises(UsageError, match="more than once"):
        list(predict_pictures(model, ["-", "-"]))
    assert 2 == len(list(predict_pictures(model, [seven, seven])))
