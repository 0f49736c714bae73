"""Values of images: those outside the arithmetic's limits, and ranges mapped to [0, 1]."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.ingest import Scaling, ingest
from storage import documents
from storage.dataset import Dataset
from storage.errors import BadDataError, ConflictError, UsageError
from storage.preparation import BYTES, Preparation, ValueRange, parse_range
from tests.storage.artefacts import stored_rows
from tests.storage.idx_files import write_idx

IMAGES = "train-images-idx3"
TEST_IMAGES = "t10k-images-idx3"


def write(directory: Path, images: NDArray[Any], name: str = IMAGES) -> str:
    """Write a file of images; return its directory."""
    directory.mkdir(exist_ok=True)
    write_idx(directory / name, images)
    return str(directory)


def stored(dataset: Dataset, split: str = "train") -> NDArray[Any]:
    """All inputs of a split."""
    return stored_rows(dataset.split(split)).inputs


@pytest.mark.parametrize(
    ("dtype", "value", "scale", "words"),
    [
        ("float32", np.nan, None, "row 6 holds the value nan; expected finite"),
        ("float64", -1e308, "none", "row 6 holds the value -1e+308; expected finite"),
        ("float64", -1e308, ValueRange(0, 1), "row 6 holds the value -1e+308; expected finite"),
        ("float32", -3.4028235e38, None, r"row 6 holds the value -3.4028235e+38; expected"),
        ("float64", 1.1e18, "none", "row 6 holds the value 1.1e+18; expected finite"),
        (
            "int32",
            7,
            ValueRange(0, 1e-30),
            "row 6 holds the value 7 (7e+30 when 0 to 1e-30 is mapped to [0, 1])",
        ),
        (
            "uint8",
            7,
            ValueRange(0, 1e-30),
            "row 6 holds the value 7 (7e+30 when 0 to 1e-30 is mapped to [0, 1])",
        ),
    ],
)
@pytest.mark.parametrize("name", [IMAGES, TEST_IMAGES])
def test_a_value_that_the_arithmetic_cannot_hold(
    name: str, dtype: str, value: float, scale: Scaling, words: str, tmp_path: Path
) -> None:
    """A value outside the limits is refused, for any split and scaling, with its file and row."""
    images = np.zeros((9, 2, 2), dtype)
    write(tmp_path / "files", images)
    images[6, 1, 0] = value
    source = write(tmp_path / "files", images, name)
    with pytest.raises(BadDataError) as caught:
        ingest(source, tmp_path / "made", rows_per_chunk=4, scale=scale)
    assert f"{name}: {words}" in str(caught.value)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("value", [-1e18, 1e18])
def test_the_largest_values(value: float, tmp_path: Path) -> None:
    """The largest allowed values are accepted."""
    source = write(tmp_path / "files", np.array([[[0.5, value]]]))
    dataset = ingest(source, tmp_path / "made", scale="none").dataset
    assert value == stored(dataset)[0, 2]


@pytest.mark.parametrize(
    ("dtype", "options", "version"),
    [
        ("uint8", {}, 2),
        ("uint8", {"scale": ValueRange(0, 255)}, 2),
        ("float32", {"scale": "none"}, 2),
        ("uint8", {"transpose": True}, 3),
        ("uint8", {"scale": "none"}, 3),
        ("uint8", {"scale": ValueRange(0, 128)}, 3),
        ("float32", {}, 3),
        ("float32", {"scale": ValueRange(0, 255)}, 3),
    ],
)
def test_what_earlier_releases_would_misread(
    dtype: str, options: dict[str, Any], version: int, tmp_path: Path
) -> None:
    """They only scale bytes by 1/255; everything else has a version that they refuse."""
    source = write(tmp_path / "files", np.arange(8, dtype=dtype).reshape(2, 2, 2))
    tree = ingest(source, tmp_path / "made", **options).dataset.tree
    assert version == documents.read_document(tree, "zarr.json")["attributes"]["format_version"]


def test_the_training_split_gives_the_range(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The training split's range is mapped to [0, 1] in every split; rows are stored unchanged."""
    source = write(tmp_path / "files", np.array([[[-1024, 2036]], [[0, 5]]], np.int16))
    write(tmp_path / "files", np.array([[[-30000, 30000]]], np.int16), TEST_IMAGES)
    caplog.set_level(logging.INFO, "pipeline")
    dataset = ingest(source, tmp_path / "made").dataset
    assert ValueRange(-1024, 2036) == dataset.preparation.scaling
    assert [[2036, -1024, 2036], [2036, 0, 5]] == stored(dataset).tolist()
    assert [[2036, -30000, 30000]] == stored(dataset, "test").tolist()
    attributes = {
        name: json.loads(dataset.tree.get(f"{name}/inputs/zarr.json"))["attributes"]
        for name in dataset.splits
    }
    assert {"scale_factor": 1 / 3060, "add_offset": 1024 / 3060} == attributes["test"]
    assert attributes["train"] == attributes["test"]
    assert "int16 images: values from -1024 to 2036 mapped to [0, 1]" in caplog.messages


@pytest.mark.parametrize(
    ("scaling", "text"),
    [
        (ValueRange(-7.167664051055908, 2.5), "-7.16766 to 2.5"),
        (ValueRange(-(2.0**31), 2.0**31 - 1), "-2147483648 to 2147483647"),
    ],
)
def test_the_text_of_a_range(scaling: ValueRange, text: str) -> None:
    """A text for people has 6 digits of fractions and all of whole numbers; the name has all."""
    assert text == str(scaling)
    assert scaling == Preparation.from_names([scaling.name], "the test").scaling


@pytest.mark.parametrize(
    ("value", "scaling"), [(0, ValueRange(0, 1)), (-7, ValueRange(-7, 0)), (3e17, None)]
)
def test_values_that_are_all_the_same(
    value: float, scaling: ValueRange | None, tmp_path: Path
) -> None:
    """A constant split is mapped to 0."""
    dataset = ingest(
        write(tmp_path / "files", np.full((2, 1, 2), float(value))), tmp_path / "made"
    ).dataset
    assert (scaling or ValueRange(3e17, 6e17)) == dataset.preparation.scaling


def test_negative_zero(tmp_path: Path) -> None:
    """The sign of zero does not change the dataset."""
    digests = set()
    for number, low in enumerate([[-0.0, 0.0], [0.0, -0.0]]):
        source = write(tmp_path / f"{number}", np.array([[low], [[1.0, 2.0]]]))
        dataset = ingest(source, tmp_path / f"made-{number}", rows_per_chunk=1).dataset
        digests.add(dataset.transforms)
    assert {("bias-column", "scale[0.0,2.0]")} == digests


@pytest.mark.parametrize(
    ("dtype", "scale", "expected", "bias"),
    [
        ("int16", "none", None, 1),
        ("uint8", "none", None, 1),
        ("uint8", ValueRange(0, 255), BYTES, 255),
        ("uint8", ValueRange(0, 100.4), ValueRange(0, 100.4), 100),
        ("int8", ValueRange(0, 4095), ValueRange(0, 4095), 127),
        ("float64", ValueRange(-1, 0.5), ValueRange(-1, 0.5), 0.5),
    ],
)
def test_a_range_of_ones_own(
    dtype: str, scale: Scaling, expected: ValueRange | None, bias: float, tmp_path: Path
) -> None:
    """A chosen range or none is used; the bias is the nearest value to the range's end."""
    source = write(tmp_path / "files", np.array([[[3, 100]]], dtype))
    dataset = ingest(source, tmp_path / "made", scale=scale).dataset
    assert [[bias, 3, 100]] == stored(dataset).tolist()
    assert expected == dataset.preparation.scaling


@pytest.mark.parametrize("scale", [ValueRange(256, 300), ValueRange(-9, -1)])
def test_a_range_without_any_byte(scale: ValueRange, tmp_path: Path) -> None:
    """A range without any value of the element type is refused."""
    source = write(tmp_path / "files", np.zeros((1, 1, 2), np.uint8))
    with pytest.raises(UsageError, match=r"contains none of the values of uint8 images, 0 to 255"):
        ingest(source, tmp_path / "made", scale=scale)


@pytest.mark.parametrize(
    "text", ["", "1", "a,b", "1,2,3", "5,5", "5,1", "nan,1", "0,inf", "0,1e19", "0,1e-310", "None"]
)
def test_ranges_that_are_none(text: str) -> None:
    """Anything but two finite numbers in ascending order is refused."""
    with pytest.raises(ValueError, match="expected"):
        parse_range(text)


def test_another_preparation(tmp_path: Path) -> None:
    """Another range for the same files conflicts with the existing dataset."""
    source = write(tmp_path / "files", np.array([[[-1, 4]]], np.int16))
    first = ingest(source, tmp_path / "made")
    assert ingest(source, tmp_path / "made").already_done
    assert ingest(source, tmp_path / "made", scale=ValueRange(-1, 4)).already_done
    for other in ({"scale": "none"}, {"transpose": True}):
        with pytest.raises(
            ConflictError, match=r"--overwrite .* or pass --scale -1.0,4.0 --compr.* keep it"
        ):
            ingest(source, tmp_path / "made", **other)
    replaced = ingest(source, tmp_path / "made", scale="none", overwrite=True).dataset
    assert first.dataset.digest != replaced.digest


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 2)])
def test_transposed_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    """Height and width are swapped, whatever axes follow."""
    images = np.arange(24, dtype=np.uint8).reshape(-1, *shape)
    dataset = ingest(write(tmp_path / "files", images), tmp_path / "made", transpose=True).dataset
    assert (3, 2, *shape[2:]) == dataset.image_shape
    swapped = stored(dataset)[:, 1:].reshape(-1, *dataset.image_shape)
    assert images.swapaxes(1, 2).tolist() == swapped.tolist()
    assert dataset.preparation.transposed


def test_rows_without_height_and_width(tmp_path: Path) -> None:
    """They cannot be transposed."""
    source = write(tmp_path / "files", np.zeros((2, 4), np.uint8), "train-images-idx2-ubyte")
    with pytest.raises(UsageError, match="are rows of 4 values"):
        ingest(source, tmp_path / "made", transpose=True)


@pytest.mark.parametrize(
    ("name", "transpose", "hinted"),
    [
        ("emnist-letters-train-images-idx3-ubyte", None, True),
        ("emnist-letters-train-images-idx3-ubyte", True, False),
        ("emnist-letters-train-images-idx3-ubyte", False, False),
        ("train-images-idx3-ubyte", None, False),
    ],
)
def test_a_hint_at_emnist(
    name: str,
    transpose: bool | None,
    hinted: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """EMNIST files cause a hint about their orientation unless it is given."""
    source = write(tmp_path / "files", np.zeros((2, 4, 4), np.uint8), name)
    ingest(source, tmp_path / "made", transpose=transpose)
    assert hinted == any("--transpose" in text for text in caplog.messages)
