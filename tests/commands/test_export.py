"""`pipeline export` and `pipeline inspect FILE`: what they print, write and refuse."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.training.model import Model
from pipeline.ingest import ingest
from storage.places import open_location
from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused, document, run_pipeline, succeeded
from tests.docs.blocks import REPOSITORY, blocks_of

FILES = ("model.onnx", "model.safetensors", "model.py")
PAGE = REPOSITORY / "docs" / "how-to" / "export.md"


@pytest.mark.parametrize("file", FILES)
def test_export_and_inspect(file: str, dataset: Path, run: Path, call: Call) -> None:
    """A file is compared with the model on the test rows, and tells its model afterwards."""
    digest = Model.load(run).digest
    exported = document(call("export", "runs/mnist", "--to", file, "--json"))
    assert (file, digest, Path(file).stat().st_size) == (
        exported["file"],
        exported["model_digest"],
        exported["bytes"],
    )
    if file.endswith(".safetensors"):
        assert exported["comparison"] is None
        assert exported["note"].startswith("The parameters were read back")
    else:
        assert exported["comparison"].pop("largest_difference") < 1e-5
        assert {"split": "test", "rows": 60, "ties": 0} == exported["comparison"]
    shown = document(call("inspect", file, "--json"))
    assert ("model", digest) == (shown["kind"], shown["model_digest"])
    text = succeeded(call("inspect", file, "-v"))
    assert f"network  {SMALL[1]}, float32" in text
    assert "images   28 x 28 uint8, values from 0 to 255 mapped to [0, 1]" in text
    assert digest in text
    assert f"Model {digest} in {file}\n" == succeeded(call("inspect", file, "-q"))


def test_defaults_and_text(dataset: Path, run: Path, call: Call) -> None:
    """Without RUN it is runs/mnist; the second line has the largest difference."""
    first, second = succeeded(call("export", "--to", "model.onnx")).splitlines()
    assert first.startswith(f"Model {Model.load(run).digest[:12]} in model.onnx, ")
    assert second.startswith("60 test rows: the same class for all, largest difference ")
    assert 1 == succeeded(call("export", "--to", "other.py", "-q")).count("\n")


def test_existing_file(dataset: Path, run: Path, call: Call) -> None:
    """A file is replaced with --overwrite only."""
    Path("model.py").write_text("mine")
    assert_refused(call("export", "--to", "model.py"), 4, "model.py exists", "--overwrite")
    assert "mine" == Path("model.py").read_text()
    succeeded(call("export", "--to", "model.py", "--overwrite"))
    succeeded(call("inspect", "model.py"))


def test_choice_of_the_model(dataset: Path, run: Path, call: Call) -> None:
    """Checkpoints, shifts and promoted names are chosen as for score."""
    averaged = ("--checkpoint", "1,2", "--average-shifts", 1)
    expected = Model.load(run, "1,2", average_shifts=1).digest
    exported = document(call("export", "--to", "averaged.onnx", *averaged, "--json"))
    assert expected == exported["model_digest"]
    assert "average  over 2 checkpoints and shifts of up to 1 pixel" in succeeded(
        call("inspect", "averaged.onnx")
    )
    succeeded(call("promote", "runs/mnist", "--checkpoint", "1", "--as", "champion"))
    named = document(call("export", "--model", "champion", "--to", "champion.py", "--json"))
    assert Model.load(run, 1).digest == named["model_digest"]
    pair = document(call("export", "runs/mnist@1", "runs/mnist@2", "--to", "pair.py", "--json"))
    assert Model.load(run, "1,2").digest == pair["model_digest"]
    both = call("export", "runs/mnist", "--model", "champion", "--to", "x.py")
    assert_refused(both, 2, "leave them out")


def test_refused(dataset: Path, run: Path, here: Path, call: Call) -> None:
    """Other endings, directories, missing runs and unsuitable datasets leave no file."""
    assert_refused(call("export"), 2, "Missing option '--to'")
    assert_refused(call("export", "--to", "a.onx"), 2, "'a.onx'", "Did you mean 'a.onnx'?")
    assert_refused(call("export", "--to", "model"), 2, "'model'", ".safetensors or .py")
    assert_refused(call("export", "runs/mnits", "--to", "a.py"), 3, "Did you mean 'runs/mnist'?")
    assert_refused(call("export", "--to", "a.py", "--checkpoint", 9), 3, "000009-000000")
    assert_refused(call("export", "--to", "a.py", "--dataset", "none"), 3, "no dataset at none")
    images = np.zeros((4, 5, 6), np.uint8)
    np.savez("wide.npz", x_train=images, x_test=images)
    ingest("wide.npz", "data/wide")
    wide = call("export", "--to", "a.py", "--dataset", "data/wide")
    assert_refused(wide, 3, "data/wide has images of 5 x 6")
    (here / "dir.onnx").mkdir()
    assert_refused(call("export", "--to", "dir.onnx"), 2, "dir.onnx", "regular file")
    assert not Path("a.py").exists()
    assert not Path("a.onnx").exists()


def test_without_the_dataset(run: Path, call: Call) -> None:
    """Without its dataset the model is exported, and the text says that nothing was compared."""
    text = succeeded(call("export", "--to", "model.onnx"))
    assert "Predictions were not compared: There is no dataset at " in text


def test_missing_extra(
    dataset: Path, run: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without onnx the command names the extra; without onnxruntime it compares nothing."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    text = succeeded(call("export", "--to", "model.onnx"))
    assert "Predictions were not compared: onnxruntime is not installed" in text
    monkeypatch.setattr("jobs.exports.job.find_spec", lambda _: None)
    for command in (("export", "--to", "other.onnx"), ("inspect", "model.onnx")):
        assert_refused(call(*command), 2, "library onnx", "'.[onnx]'")
    assert not Path("other.onnx").exists()


def test_inspect_a_checkpoint(run: Path, call: Call) -> None:
    """A checkpoint's file describes its model, and its parameters are checked."""
    state = run / "checkpoints" / "000002-000000" / "state.safetensors"
    shown = document(call("inspect", state, "--json"))
    assert Model.load(run, 2).digest == shown["model_digest"]
    assert ["layer_0", "layer_1"] == shown["members"][0]["tensors"]
    copied = shutil.copy(state, "copied.safetensors")
    assert_refused(call("inspect", copied), 3, "does not record its digest")
    state.write_bytes(
        state.read_bytes().replace(b'\\"transposed\\": false', b'\\"transposed\\": true ')
    )
    assert_refused(call("inspect", state), 3, "does not have the digest in its manifest.json")


def test_export_with_the_name_of_a_checkpoint(dataset: Path, run: Path, call: Call) -> None:
    """A file named state.safetensors is protected by its own digest, like any export."""
    state = Path("state.safetensors")
    succeeded(call("export", "--to", state))
    succeeded(call("inspect", state))
    state.write_bytes(
        state.read_bytes().replace(b'\\"transposed\\": false', b'\\"transposed\\": true ')
    )
    assert_refused(call("inspect", state), 3, "state.safetensors was changed")


def test_inspect_damaged_files(dataset: Path, run: Path, call: Call) -> None:
    """A damaged file and one of another program are refused; a .py file is never run."""
    for file in FILES:
        succeeded(call("export", "--to", file))
        data = Path(file).read_bytes()
        Path(file).write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
        assert_refused(call("inspect", file), 3, file)
        Path(file).write_bytes(data[:-100])
        assert_refused(call("inspect", file), 3, file)
    Path("other.py").write_text("open('executed', 'w')")
    assert_refused(call("inspect", "other.py"), 3, "other.py is not a model exported to Python")
    assert not Path("executed").exists()
    Path("other.txt").write_text("")
    assert_refused(call("inspect", "other.txt"), 3, "other.txt is a file", ".safetensors, .py")
    assert_refused(call("verify", "model.py"), 3, "`pipeline inspect FILE` reads exported models")
    assert_refused(call("inspect", "model.py", "--images", "a.png"), 3, "model.py")


def test_in_a_store(home: str, call: Call) -> None:
    """Runs, datasets and files may be in a store."""
    for file in FILES:
        exported = document(call("export", f"{home}/run", "--to", f"{home}/{file}", "--json"))
        again = call("export", f"{home}/run", "--to", f"{home}/{file}")
        assert_refused(again, 4, f"{home}/{file} exists")
        shown = document(call("inspect", f"{home}/{file}", "--json"))
        assert exported["model_digest"] == shown["model_digest"]
    assert set(FILES) <= set(open_location(home).names())


@pytest.mark.slow
def test_onnx_in_another_process(dataset: Path, run: Path, here: Path) -> None:
    """Two processes write the same bytes, which any batch size can be put into."""
    import onnxruntime

    for name in ("a.onnx", "b.onnx"):
        succeeded(run_pipeline("export", "--to", name, cwd=here))
    assert (here / "a.onnx").read_bytes() == (here / "b.onnx").read_bytes()
    session = onnxruntime.InferenceSession(here / "a.onnx")
    for rows in (1, 7):
        images = np.zeros((rows, 28, 28), np.uint8)
        probabilities, classes = session.run(None, {"images": images})
        assert ((rows, 10), (rows,)) == (probabilities.shape, classes.shape)
    metadata = session.get_modelmeta().custom_metadata_map
    assert [str(digit) for digit in range(10)] == json.loads(metadata["class_names"])


@pytest.mark.slow
def test_reader_in_pytorch(dataset: Path, run: Path, call: Call) -> None:
    """PyTorch computes the same from the file, by the reader of the page."""
    pytest.importorskip("torch", reason="needs the extra torch")
    succeeded(call("export", "--to", "model.safetensors"))
    (block,) = [block for block in blocks_of(PAGE) if "import torch" in block.code]
    images = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    names = {"images": images}
    exec(block.code, names)
    np.testing.assert_allclose(names["values"], Model.load(run).predict_proba(images), atol=1e-5)
    state = run / "checkpoints" / "000002-000000" / "state.safetensors"
    shutil.copy(state, "model.safetensors")
    exec(block.code, names)
    np.testing.assert_allclose(names["values"], Model.load(run).predict_proba(images), atol=1e-5)


@pytest.mark.slow
def test_provenance(dataset: Path, run: Path, call: Call) -> None:
    """export and report write a statement on the file, and on the checkpoint."""
    options = ("--to", "model.py", "--provenance", "export.json", "--json")
    digest = document(call("export", *options))["sha256"]
    assert hashlib.sha256(Path("model.py").read_bytes()).hexdigest() == digest
    exported = json.loads(Path("export.json").read_bytes())
    assert {"name": "model.py", "digest": {"sha256": digest}} == exported["subject"][1]
    succeeded(call("report", run, "--provenance", "report.json"))
    reported = json.loads(Path("report.json").read_bytes())
    assert exported["predicate"] == reported["predicate"]
    assert exported["subject"][0] == reported["subject"][0]
    refused = ("report", run, "other", "--provenance", "two.json")
    assert_refused(call(*refused), 2, "--provenance is about one run")
    refused = ("export", "--to", "b.py", "--provenance")
    assert_refused(call(*refused, "b.txt"), 2, "ends in .json")
    record = run / "run.json"
    before = record.read_bytes()
    for command in (refused[:-1], ("report", run)):
        written = call(*command, "--provenance", record)
        assert_refused(written, 4, "run.json exists and is not a statement")
    assert before == record.read_bytes()
    ingest("synthetic:60,20", "data/drawn")
    other = call(*refused, "report.json", "--dataset", "data/drawn")
    assert_refused(other, 4, "was trained on")
    assert reported == json.loads(Path("report.json").read_bytes())
    assert not Path("b.py").exists()
    succeeded(call(*refused, "report.json"))
