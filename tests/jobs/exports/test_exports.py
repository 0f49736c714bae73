"""Exported files predict as their model does, can be read back, and hide no damage."""

import ast
import csv
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.choices import EXPORT_ENDINGS
from jobs.exports import check, job
from jobs.exports.check import Predict, predict_onnx, predict_python
from jobs.exports.contents import description_of
from jobs.exports.job import export, parse_export, written
from jobs.training.job import train
from jobs.training.model import Model
from storage.errors import BadDataError
from tests.jobs.exports.models import CASES, random_images, random_model
from tests.jobs.trainings import small

COMPUTING = {".onnx": predict_onnx, ".py": predict_python}
"""The files that compute predictions, with what runs them."""

every_format = pytest.mark.parametrize("ending", EXPORT_ENDINGS)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ending", COMPUTING)
def test_predictions(case: str, ending: str) -> None:
    """A file predicts what its model predicts, for any batch size."""
    model = random_model(**CASES[case])
    images = random_images(model)
    predict = COMPUTING[ending](written(model, ending))
    expected = model.predict_proba(images)
    tolerance = 1e-7 if case == "float64" else 2e-6
    assert np.ptp(expected, axis=0).max() > 0.01  # the images differ
    for rows in (40, 1, 0):
        probabilities, classes = predict(images[:rows])
        assert (np.float32, (rows, 3)) == (probabilities.dtype, probabilities.shape)
        np.testing.assert_allclose(probabilities, expected[:rows], rtol=0, atol=tolerance)
        assert expected[:rows].argmax(axis=1).tolist() == classes.tolist()


@pytest.mark.parametrize("case", CASES)
@every_format
def test_read_back(case: str, ending: str) -> None:
    """A file has its description and the bits of all parameters; it is the same each time."""
    model = random_model(**CASES[case])
    data = written(model, ending)
    assert data == written(model, ending)
    content = parse_export(data, f"file{ending}")
    expected = description_of(model)
    assert {"file_digest", "model_digest"} <= expected.keys() <= content.description.keys()
    assert model.digest == content.description["model_digest"]
    for name in expected.keys() - {"file_digest", "members"}:
        assert expected[name] == content.description[name], name
    for member, values in zip(model.members, content.parameters, strict=True):
        assert (member.parameters.dtype, member.parameters.tobytes()) == (
            values.dtype,
            values.tobytes(),
        )


@every_format
def test_every_flipped_bit_is_detected(ending: str) -> None:
    """A file with a flipped bit is refused, whatever the bit belongs to."""
    data = written(random_model(networks=("relu-2", "softmax")), ending)
    positions = np.random.default_rng(0).integers(0, 8 * len(data), 300)
    for position in [0, 8 * len(data) - 1, *positions.tolist()]:
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(BadDataError, match=f"file{ending}"):
            parse_export(bytes(damaged), f"file{ending}")


@every_format
@pytest.mark.parametrize("content", [b"", b"x" * 100, b'{"format": 1}', b"\x00" * 64])
def test_other_files(ending: str, content: bytes) -> None:
    """A file that is no export is refused with its name."""
    with pytest.raises(BadDataError, match=f"file{ending}"):
        parse_export(content, f"file{ending}")


@every_format
def test_parameters_of_another_model(ending: str) -> None:
    """Parameters are compared with the digest of the model, not only with the file's."""
    model = random_model()
    (member,) = model.members
    other = replace(model, members=(replace(member, parameters=-member.parameters),))
    with pytest.raises(BadDataError, match="have digest"):
        parse_export(written(other, ending), f"file{ending}")


@pytest.mark.slow
def test_python_file_alone(tmp_path: Path) -> None:
    """The Python file imports NumPy and the standard library, and prints CSV when it is run."""
    model = random_model()
    images = random_images(model, 5)
    source = written(model, ".py")
    nodes = list(ast.walk(ast.parse(source)))
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= {"numpy", *sys.stdlib_module_names}
    (tmp_path / "model.py").write_bytes(source)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "wide.npy", images[:, :, :-1])
    command = [sys.executable, "-W", "error", "-I", "model.py"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "encoding": "utf-8"}
    printed = subprocess.run([*command, "images.npy"], check=True, **options)
    rows = list(csv.DictReader(io.StringIO(printed.stdout)))
    expected = model.predict_proba(images)
    names = [model.class_names[best] for best in expected.argmax(axis=1)]
    assert names == [row["predicted"] for row in rows]
    values = [float(row["probability"]) for row in rows]
    np.testing.assert_allclose(values, expected.max(axis=1), atol=1e-6)
    for name, words in [("wide.npy", "expected (rows, 4, 5)"), ("none.npy", "No such file")]:
        refused = subprocess.run([*command, name], check=False, **options)
        assert (1, "") == (refused.returncode, refused.stdout)
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    # As `python model.py images.npy | head -n 1` may.
    unread, output = os.pipe()
    os.close(unread)
    with open(output) as closed:
        options = {"cwd": tmp_path, "stdout": closed, "stderr": subprocess.PIPE}
        assert b"" == subprocess.run([*command, "images.npy"], check=False, **options).stderr


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 4, 5), np.float32),
        np.full((2, 4, 5), 256),
        np.full((2, 4, 5), "a"),
        np.zeros(20, np.uint8),
    ],
)
def test_python_file_refuses_other_images(images: np.ndarray) -> None:
    """Values that the training's type cannot hold, and other shapes, raise ValueError."""
    predict = predict_python(written(random_model(), ".py"))
    with pytest.raises(ValueError, match="The images have"):
        predict(images)
    predict(np.zeros((2, 20), np.int64))


def test_wrong_graph_is_not_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If predictions differ, export raises and leaves no file; an existing one stays."""
    from jobs.exports import onnx_file

    train(small(epochs=1), dataset=digits, run=tmp_path / "run")
    model = Model.load(tmp_path / "run")
    made = export(model, tmp_path / "model.onnx")
    assert (211, 0) == (made.comparison.rows, made.comparison.ties)
    before = (tmp_path / "model.onnx").read_bytes()
    monkeypatch.setitem(onnx_file.OPERATORS, "relu", "Tanh")
    for name in ("model.onnx", "new.onnx"):
        with pytest.raises(BadDataError, match=r"was not written: .* have another class"):
            export(model, tmp_path / name, overwrite=True)
    assert before == (tmp_path / "model.onnx").read_bytes()
    assert {"model.onnx", "run"} == {path.name for path in tmp_path.iterdir()}


def test_ties(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another class is accepted only where two classes are as probable, but for rounding."""
    train(small(epochs=1), dataset=digits, run=tmp_path / "run")
    model = Model.load(tmp_path / "run")

    def next_class(data: bytes) -> Predict:
        predict = predict_python(data)
        return lambda images: (predict(images)[0], (predict(images)[1] + 1) % 10)

    monkeypatch.setattr(job, "predict_python", next_class)
    with pytest.raises(BadDataError, match="211 have another class"):
        export(model, tmp_path / "model.py")
    monkeypatch.setattr(check, "ROUNDING", 1.0)
    assert 211 == export(model, tmp_path / "model.py").comparison.ties
