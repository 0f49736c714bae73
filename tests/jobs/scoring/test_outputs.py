"""Files of predictions, read back exactly by other libraries."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import xarray
from pyarrow import parquet

from jobs.scoring.config import ScoreConfig
from jobs.scoring.job import score
from jobs.scoring.outputs import check_output
from jobs.scoring.result import ScoreResult
from jobs.training.job import train
from pipeline.ingest import ingest
from storage.dataset import open_dataset
from storage.errors import UnreachableError, UsageError
from storage.local import LocalLocation
from storage.places import open_location
from tests.jobs.inboxes import put_images, score_inbox
from tests.jobs.scoring.test_job import predictions
from tests.jobs.trainings import small
from tests.storage.idx_files import write_idx

FACTS = ("model_digest", "checkpoint", "average_shifts", "dataset_digest", "split", "scores_digest")
COLUMNS = ["row", "predicted", "probability", "true", "correct"]
EVERY = [f"p_{digit}" for digit in range(10)]
TYPES = dict(zip(COLUMNS, ["int64", "str", "float32", "str", "bool"], strict=True))

every_form = pytest.mark.parametrize("form", ["csv", "parquet", "npz"])


@pytest.fixture(scope="module")
def run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch whose training split of five chunks is scored."""
    place = tmp_path_factory.mktemp("trained") / "run"
    train(small(epochs=1, learning_rate=0.03), dataset=digits, run=place)
    score(run=place, dataset=digits, split="train")
    return place


def written(run: Path, digits: Path, out: Path, *, every: bool) -> ScoreResult:
    return score(run=run, dataset=digits, split="train", out=out, all_probabilities=every)


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A file's columns and facts, as pandas, pyarrow or numpy read them; classes by name."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            facts = {name: str(arrays[name]) for name in FACTS}
            columns = {name: arrays[name] for name in COLUMNS if name in arrays}
            for name in {"predicted", "true"} & columns.keys():
                columns[name] = arrays["class_names"][columns[name]]
            if "probabilities" in arrays:
                columns |= dict(zip(EVERY, arrays["probabilities"].T, strict=True))
            return columns, facts
    if path.suffix == ".parquet":
        table = parquet.read_table(path)
        facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        frame = table.to_pandas()
    else:
        frame = pandas.read_csv(path, dtype=TYPES | dict.fromkeys(EVERY, "float32"))
        facts = {}
    return {name: frame[name].to_numpy() for name in frame}, facts


@every_form
@pytest.mark.parametrize("every", [False, True])
def test_read_back(form: str, every: bool, run: Path, digits: Path, tmp_path: Path) -> None:
    """Every column has the exact values, classes by name."""
    result = written(run, digits, tmp_path / f"scores.{form}", every=every)
    columns, _ = read(tmp_path / f"scores.{form}")
    probabilities, predicted = predictions(result)
    targets = open_dataset(LocalLocation(digits)).split("train").targets
    assert targets is not None
    true = np.asarray(targets[:]).argmax(axis=1)
    assert [*COLUMNS, *(EVERY if every else [])] == list(columns)
    assert list(range(1031)) == columns["row"].tolist()
    assert [str(index) for index in predicted] == columns["predicted"].tolist()
    assert [str(index) for index in true] == columns["true"].tolist()
    assert (predicted == true).tolist() == columns["correct"].tolist()
    assert columns["correct"].dtype == bool
    assert result.accuracy == columns["correct"].mean()
    assert probabilities.max(axis=1).tolist() == columns["probability"].tolist()
    if every:
        assert probabilities.T.tolist() == [columns[name].tolist() for name in EVERY]


@every_form
def test_without_labels(form: str, run: Path, digits: Path, tmp_path: Path) -> None:
    """Without labels the columns `true` and `correct` are missing."""
    images = np.arange(3 * 784, dtype=np.uint8).reshape(3, 28, 28)
    write_idx(tmp_path / "test-images-idx3-ubyte", images)
    dataset = ingest(str(tmp_path), tmp_path / "data").dataset
    score(run=run, dataset=dataset.location, split="test", out=tmp_path / f"scores.{form}")
    assert ["row", "predicted", "probability"] == list(read(tmp_path / f"scores.{form}")[0])


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_columns(form: str, run: Path, digits: Path, tmp_path: Path) -> None:
    """Only the columns that are asked for are written, in their order."""
    names, path = ("p_7", "Label", "ImageId", "true"), tmp_path / f"scores.{form}"
    result = score(run=run, dataset=digits, split="train", out=path, columns=names)
    probabilities, predicted = predictions(result)
    columns, _ = read(path)
    assert names == tuple(columns)
    assert list(range(1, 1032)) == columns["ImageId"].tolist()
    assert predicted.tolist() == columns["Label"].astype(int).tolist()
    assert probabilities[:, 7].tolist() == columns["p_7"].tolist()
    score(run=run, dataset=digits, split="train", out=path, columns=("ImageId", "Label"))
    assert ["ImageId", "Label"] == list(read(path)[0])


@pytest.mark.parametrize(
    ("column", "words"),
    [("Lable", "Did you mean 'Label'"), ("p_10", "'p_10'"), ("true", "have no labels")],
)
def test_columns_that_are_not_there(column: str, words: str, run: Path, tmp_path: Path) -> None:
    """An unknown column, or one of labels that rows lack, is refused before anything is scored."""
    write_idx(tmp_path / "test-images-idx3-ubyte", np.zeros((3, 28, 28), np.uint8))
    dataset = ingest(str(tmp_path), tmp_path / "data").dataset
    before = sorted((run / "scores").iterdir())
    with pytest.raises(UsageError, match=words):
        score(run=run, dataset=dataset.location, out=tmp_path / "x.csv", columns=("row", column))
    assert before == sorted((run / "scores").iterdir())
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("form", ["parquet", "npz"])
def test_facts(form: str, run: Path, digits: Path, tmp_path: Path) -> None:
    """The file's metadata name the model, checkpoint, dataset and scores."""
    result = written(run, digits, tmp_path / f"scores.{form}", every=False)
    expected = {name: str(result.metrics.get(name)) for name in FACTS}
    expected["scores_digest"] = result.scores.digest
    assert expected == read(tmp_path / f"scores.{form}")[1]


@every_form
def test_written_whole(form: str, run: Path, digits: Path, tmp_path: Path) -> None:
    """An existing file is replaced; no temporary file is left."""
    path = tmp_path / f"scores.{form}"
    path.write_bytes(b"before")
    written(run, digits, path, every=True)
    first = path.read_bytes()
    written(run, digits, path, every=True)
    assert first == path.read_bytes()
    assert [path.name] == [file.name for file in tmp_path.iterdir()]


def test_partial_files_are_removed(run: Path, digits: Path, tmp_path: Path) -> None:
    """Partial files of the same name are removed by the next job; others are kept."""
    names = [".x.csv.", ".y.csv."]
    left = [tmp_path / f"{name}{0:032x}.tmp" for name in names]
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    written(run, digits, tmp_path / "x.csv", every=False)
    assert [False, True] == [path.exists() for path in left]


def test_parquet_has_a_row_group_for_each_chunk(run: Path, digits: Path, tmp_path: Path) -> None:
    """Parquet is written chunk by chunk, so memory does not grow with the rows."""
    written(run, digits, tmp_path / "scores.parquet", every=False)
    assert 5 == parquet.ParquetFile(tmp_path / "scores.parquet").num_row_groups


@pytest.mark.filterwarnings("ignore:Object at metrics.json is not recognized")
def test_scores_open_in_xarray(run: Path, digits: Path) -> None:
    """xarray reads the scores with the names of their dimensions."""
    result = score(run=run, dataset=digits, split="train")
    with xarray.open_zarr(str(result.scores.location)) as opened:
        assert ("sample", "class") == opened["probabilities"].dims
        assert predictions(result)[1].tolist() == opened["predicted"].values.tolist()


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pyarrow, the error names the extra to install before anything is scored."""
    monkeypatch.setattr("jobs.scoring.outputs.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="the extra 'parquet'"):
        check_output(open_location("scores.parquet"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("there.csv", "not a regular file"),
        ("x" * 214 + ".csv", "at most 217"),
        ("y" * 256 + "/x.csv", "255 for a directory"),
        ("file/x.csv", "Not a directory"),
        ("pipe.csv", "not a regular file"),
        ("{home}" + "z" * 200 + ".npz", "at most 217"),
    ],
)
def test_impossible_files(name: str, words: str, run: Path, digits: Path, tmp_path: Path) -> None:
    """A directory, a pipe or a name that is too long is refused before anything is scored."""
    (tmp_path / "there.csv").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe.csv")
    files = sorted(os.listdir(tmp_path))
    before = sorted((run / "scores").iterdir())
    with pytest.raises(UsageError, match=words):
        score(run=run, dataset=digits, split="test", out=str(tmp_path / name))
    assert files == sorted(os.listdir(tmp_path))
    assert before == sorted((run / "scores").iterdir())


def test_a_long_name(run: Path, digits: Path, tmp_path: Path) -> None:
    """The longest accepted name can be written."""
    written(run, digits, tmp_path / f"{'x' * 213}.csv", every=False)
    assert 1 == len(list(tmp_path.iterdir()))


def test_nothing_is_left_of_a_file_that_failed(
    run: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the rename fails, the temporary file is removed."""

    def rename(source: Path, target: Path) -> None:
        if target.name == "scores.csv":
            raise OSError(errno.EIO, "Input/output error")
        os.rename(source, target)

    monkeypatch.setattr("storage.files.rename", rename)
    with pytest.raises(UnreachableError, match="Input/output error"):
        written(run, digits, tmp_path / "scores.csv", every=False)
    assert [] == list(tmp_path.iterdir())


def test_the_inbox_file_of_each_row(run: Path, tmp_path: Path) -> None:
    """Rows from an inbox name their file: as the last column by default, or where it is asked."""
    put_images(tmp_path / "inbox" / "under" / "x-images-idx3-ubyte", seed=1, rows=3)
    name = "under/x-images-idx3-ubyte"

    def out(pattern: str, **options: Any) -> Path:
        score_inbox(run, tmp_path / "inbox", out=f"{tmp_path}/{pattern}", **options)
        (path,) = tmp_path.glob(pattern.replace("{home}", "*").replace("{file}", "*"))
        return path

    plain = pandas.read_csv(out("{home}.csv"))
    assert ["row", "predicted", "probability", "file"] == list(plain)
    assert [name] * 3 == plain["file"].tolist()
    chosen = pandas.read_csv(out("c-{home}.csv", columns=("file", "Label")))
    assert ["file", "Label"] == list(chosen)
    named = out("{file}_{home}.npz")
    assert named.name.startswith("under-x-images-idx3-ubyte_inbox-")
    with np.load(named) as arrays:
        assert name == str(arrays["file"])
        assert "probabilities" not in arrays
    table = parquet.read_table(out("{home}.parquet"))
    assert [name] * 3 == table["file"].to_pylist()
    assert name.encode() == table.schema.metadata[b"file"]


def test_rows_of_a_split_have_no_file(run: Path, digits: Path, tmp_path: Path) -> None:
    """The column is refused for a split, which is no file."""
    with pytest.raises(UsageError, match="have no file of their own"):
        score(run=run, dataset=digits, split="train", out=tmp_path / "x.csv", columns=("file",))


def test_a_file_name_that_is_safe() -> None:
    """`{file}` is short, and no path, whatever the inbox's file is called."""
    config = ScoreConfig(inbox="in", out="{file}/{home}.csv")
    for file, expected in {
        "a/b c.npy": "a-b-c.npy",
        "../..": "file",
        "\x1b[31m{home}": "31m-home",
        "x" * 300: "x" * 80,
    }.items():
        assert f"{expected}/h.csv" == str(config.output("h", "inbox", file))
