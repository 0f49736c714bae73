"""Whatever is wrong with what a command is given: an exit code, a plain message, nothing broken."""

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.places import open_location
from storage.runs import run_lock
from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused, limited_to, run_pipeline
from tests.commands.sets import (
    IMAGE_HEADER_BYTES,
    PACK,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    TRAIN_ROWS,
    copy,
    edit_json,
    images_header,
    replace_file,
    write_set,
)

USAGE, BAD_DATA, CONFLICT, UNREACHABLE = 2, 3, 4, 6
AGAIN = "Copy or download the file again."
forms = pytest.mark.parametrize("form", PACK, ids=lambda form: form or "raw")

MEMORY = 2 * 2**30
"""Address space for a process that must not believe a size: a command needs half of it."""


def assert_nothing_made(here: Path) -> None:
    """No dataset is in `data`, whole or half: at most the hidden file of a lock."""
    left = {path.name for path in (here / "data").glob("*")}
    assert {".mnist.lock", ".files.lock"} >= left


# ------------------------------------------------------------------ IDX files


@forms
def test_not_idx(form: str, files: Path, call: Call) -> None:
    """A file that is not IDX is named, with its first bytes and what was expected."""
    bad = replace_file(files, TRAIN_IMAGES, b"hello, this is a letter\n", form)
    refused = call("ingest", "files")
    assert_refused(
        refused, BAD_DATA, bad.name, "a text that starts with 'hello", "Give the IDX file"
    )
    assert_nothing_made(files.parent)


def test_not_idx_in_a_process(files: Path) -> None:
    """The same, of the real command: exit code 3, and one line on stderr."""
    bad = replace_file(files, TRAIN_IMAGES, b"<!DOCTYPE html><html>not found</html>")
    refused = run_pipeline("ingest", "files", cwd=files.parent)
    assert_refused(refused, BAD_DATA, f"files/{bad.name}", "an HTML page")
    assert_nothing_made(files.parent)


@pytest.mark.parametrize("length", range(IMAGE_HEADER_BYTES))
@forms
def test_cut_off_in_the_header(length: int, form: str, files: Path, call: Call) -> None:
    """A file that ends in the middle of its header, at whichever byte, is refused."""
    whole = (files / TRAIN_IMAGES).read_bytes()
    bad = replace_file(files, TRAIN_IMAGES, whole[:length], form)
    refused = call("ingest", "files")
    assert_refused(refused, BAD_DATA, bad.name, "header is cut off", f"found {length} ", AGAIN)
    assert_nothing_made(files.parent)


@forms
@pytest.mark.parametrize("length", [IMAGE_HEADER_BYTES, 5000, -1])
def test_cut_off_in_the_data(length: int, form: str, files: Path, call: Call) -> None:
    """A file that ends before the rows that its header claims is refused, with both counts."""
    whole = (files / TRAIN_IMAGES).read_bytes()
    bad = replace_file(files, TRAIN_IMAGES, whole[:length], form)
    refused = call("ingest", "files")
    assert_refused(refused, BAD_DATA, bad.name, "cut off", f"the {TRAIN_ROWS} rows", AGAIN)
    assert_nothing_made(files.parent)


@pytest.mark.parametrize("length", [*range(1, 24), 2000, -9, -8, -4, -1])
def test_cut_off_gzip(length: int, files: Path, call: Call) -> None:
    """A .gz file cut off anywhere, in its own header or its checksum too, is refused."""
    packed = PACK[".gz"]((files / TEST_IMAGES).read_bytes())
    (files / TEST_IMAGES).unlink()
    bad = files / f"{TEST_IMAGES}.gz"
    bad.write_bytes(packed[:length])
    assert_refused(call("ingest", "files"), BAD_DATA, bad.name)
    assert_nothing_made(files.parent)


@forms
def test_bytes_after_the_end(form: str, files: Path, call: Call) -> None:
    """A byte after the last row is told of, and nothing is made of the rows before it."""
    whole = (files / TRAIN_IMAGES).read_bytes()
    bad = replace_file(files, TRAIN_IMAGES, whole + b"\0", form)
    refused = call("ingest", "files")
    assert_refused(refused, BAD_DATA, bad.name, "1 bytes follow", AGAIN)
    assert_nothing_made(files.parent)


def test_damaged_gzip(files: Path, call: Call) -> None:
    """A .gz file with one changed bit is refused."""
    packed = bytearray(PACK[".gz"]((files / TRAIN_IMAGES).read_bytes()))
    packed[len(packed) // 2] ^= 1
    (files / TRAIN_IMAGES).unlink()
    bad = files / f"{TRAIN_IMAGES}.gz"
    bad.write_bytes(packed)
    assert_refused(call("ingest", "files"), BAD_DATA, bad.name, AGAIN)
    assert_nothing_made(files.parent)


@pytest.mark.parametrize("shape", [(2**32 - 1, 2**8, 1), (2**32 - 1,) * 3, (1, 2**20, 2**20)])
@pytest.mark.parametrize("form", ["", ".gz"], ids=["raw", "gz"])
def test_claims_of_2_to_the_40(shape: tuple[int, ...], form: str, files: Path) -> None:
    """A header that claims 2^40 values and more is refused before anything is allocated for it."""
    for name in (TEST_IMAGES, TEST_LABELS, TRAIN_LABELS):
        (files / name).unlink()  # images alone: no count of labels gives the claim away
    bad = replace_file(files, TRAIN_IMAGES, images_header(*shape) + bytes(2**16), form)
    refused = run_pipeline(
        "ingest",
        "files",
        cwd=files.parent,
        env={"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=limited_to(MEMORY),
    )
    assert_refused(refused, BAD_DATA, bad.name)
    assert_nothing_made(files.parent)


def test_gzip_bomb(files: Path) -> None:
    """4 GiB of zeros behind the last row, in 4 MB of gzip, are refused without decoding them."""
    whole = (files / TRAIN_IMAGES).read_bytes()
    (files / TRAIN_IMAGES).unlink()
    bad = files / f"{TRAIN_IMAGES}.gz"
    bad.write_bytes(gzip.compress(whole) + gzip.compress(bytes(2**26)) * 64)
    refused = run_pipeline(
        "ingest",
        "files",
        cwd=files.parent,
        env={"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=limited_to(MEMORY),
    )
    assert_refused(refused, BAD_DATA, bad.name, "or more bytes follow", AGAIN)
    assert_nothing_made(files.parent)


def test_counts_differ(files: Path, call: Call) -> None:
    """Images and labels of different counts are refused; both files and counts are named."""
    replace_file(files, TRAIN_LABELS, (files / TEST_LABELS).read_bytes())
    refused = call("ingest", "files")
    names = (TRAIN_LABELS, TRAIN_IMAGES)
    assert_refused(refused, BAD_DATA, *names, "60 labels", "300 images", "Take both files")
    assert_nothing_made(files.parent)


def test_missing_images(files: Path, call: Call) -> None:
    """Labels without their images are refused; the file to add is named."""
    (files / TRAIN_IMAGES).unlink()
    refused = call("ingest", "files")
    assert_refused(refused, BAD_DATA, TRAIN_LABELS, "Add the images")
    assert_nothing_made(files.parent)


def test_no_files(here: Path, call: Call) -> None:
    """A directory without IDX files is refused; the names to give them are told."""
    (here / "files").mkdir()
    refused = call("ingest", "files")
    assert_refused(refused, BAD_DATA, "files", "train-images-idx3-ubyte", "rename the files")


@pytest.mark.parametrize("shape", [(0, 28, 28), (300, 0, 28)])
def test_empty_set(shape: tuple[int, ...], files: Path, call: Call) -> None:
    """A set without rows, or with rows without values, is refused."""
    bad = replace_file(files, TRAIN_IMAGES, images_header(*shape))
    assert_refused(call("ingest", "files"), BAD_DATA, bad.name, "empty", "Use a file that holds")
    assert_nothing_made(files.parent)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nothing-here", "neither a directory nor a known name"),
        ("mnst", "Did you mean 'mnist'?"),
        ("synthetic:0", "TRAIN 1 or more"),
        ("synthetic:many", "whole numbers"),
        ("", "neither a directory"),
    ],
)
def test_unknown_source(source: str, words: str, call: Call) -> None:
    """A source that is nothing that we know is refused, with what there is."""
    assert_refused(call("ingest", source), USAGE, repr(source), words)


def test_a_file_as_source(files: Path, call: Call) -> None:
    """A file where a directory is wanted: its directory is named."""
    refused = call("ingest", f"files/{TRAIN_IMAGES}")
    assert_refused(refused, USAGE, TRAIN_IMAGES, "is a file", "Give 'files'")


def test_mnist_dir_that_is_none(here: Path) -> None:
    """MNIST_DIR that names nothing is an error, not a reason to download."""
    refused = run_pipeline("ingest", cwd=here, env={"MNIST_DIR": "/nowhere"})
    assert_refused(refused, USAGE, "MNIST_DIR", "/nowhere", "unset it")


def test_no_network(here: Path) -> None:
    """Where no mirror answers the command exits 6 and names what works without a network."""
    closed = socket.socket()
    with closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: whoever connects is refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        env = dict.fromkeys(("http_proxy", "https_proxy"), proxy)
        env |= {"XDG_CACHE_HOME": str(here / "cache")}  # where nothing is kept yet
        refused = run_pipeline("ingest", "--quiet", cwd=here, env=env)
    assert_refused(refused, UNREACHABLE, "could not be reached", "MNIST_DIR", "ingest synthetic")
    assert_nothing_made(here)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(files: Path, call: Call) -> None:
    """A directory that may not be listed is out of reach, and says why."""
    files.chmod(0)
    try:
        refused = call("ingest", "files")
    finally:
        files.chmod(0o700)
    assert_refused(refused, UNREACHABLE, "files", "Permission denied", "Check its permissions")


# ------------------------------------------------------------------ where an ingest writes


def test_another_source_at_the_same_place(dataset: Path, call: Call) -> None:
    """A dataset made of something else is left alone without --overwrite."""
    before = (dataset / "zarr.json").read_bytes()
    refused = call("ingest", "synthetic:20,10", "--out", "data/mnist")
    assert_refused(refused, CONFLICT, "data/mnist", "--overwrite", "--out")
    assert before == (dataset / "zarr.json").read_bytes()


def test_overwrite_what_is_not_ours(here: Path, call: Call) -> None:
    """--overwrite replaces datasets only: other directories are left alone."""
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter-1.txt").write_text("It was a dark and stormy night.")
    refused = call("ingest", "synthetic:20,10", "--out", "thesis", "--overwrite")
    assert_refused(refused, CONFLICT, "thesis", "is left alone", "--out")
    assert ["chapter-1.txt"] == [path.name for path in (here / "thesis").iterdir()]


@pytest.mark.parametrize(("out", "words"), [("", "empty"), ("gs://bucket/set", "gs URL")])
def test_strange_place(out: str, words: str, call: Call) -> None:
    """A place that cannot be written to is refused before anything is downloaded."""
    assert_refused(call("ingest", "--out", out), USAGE, words)


@pytest.mark.parametrize(
    "arguments",
    [("ingest", "synthetic:20,10", "--out", "file/set"), ("train", "--run", "file/run")],
    ids=["ingest", "train"],
)
def test_below_a_file(arguments: tuple[str, ...], dataset: Path, call: Call) -> None:
    """A place below a file cannot be used: exit 2, and the file is named."""
    (dataset.parent.parent / "file").write_text("here lies a file")
    refused = call(*arguments, *(SMALL if arguments[0] == "train" else ()))
    assert_refused(refused, USAGE, "file is not a directory", "Choose another place")


# ------------------------------------------------------------------ datasets


def _uncomplete(dataset: Path) -> None:
    edit_json(dataset / "zarr.json", lambda document: document["attributes"].pop("complete"))


def _of_the_future(dataset: Path) -> None:
    edit_json(
        dataset / "zarr.json", lambda document: document["attributes"].update(format_version=99)
    )


def _foreign(dataset: Path) -> None:
    edit_json(dataset / "zarr.json", lambda document: document.update(attributes={}))


def _no_metadata(dataset: Path) -> None:
    (dataset / "zarr.json").unlink()


def _changed(dataset: Path) -> None:
    edit_json(dataset / "zarr.json", lambda document: document["attributes"].update(name="mine"))


def _not_json(dataset: Path) -> None:
    (dataset / "zarr.json").write_text("{")


def _array_gone(dataset: Path) -> None:
    (dataset / "test" / "targets" / "zarr.json").unlink()


broken = pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (_uncomplete, ("incomplete", "Run `pipeline ingest` again")),
        (_of_the_future, ("format version 99", "Install a newer")),
        (_foreign, ("not a dataset", "Make one with `pipeline ingest`")),
        (_no_metadata, ("holds no zarr.json", "Give")),
        (_changed, ("zarr.json is damaged", "Restore it")),
        (_not_json, ("not valid JSON", "damaged")),
        (_array_gone, ("test/targets/zarr.json is missing", "pipeline ingest --overwrite")),
    ],
    ids=lambda value: getattr(value, "__name__", "").strip("_"),
)


@broken
@pytest.mark.parametrize("command", ["train", "score", "inspect"])
def test_broken_dataset(
    command: str,
    break_it: Callable[[Path], None],
    words: tuple[str, ...],
    dataset: Path,
    run: Path,
    call: Call,
) -> None:
    """A dataset that is incomplete, newer, damaged or none is refused by whoever reads it."""
    break_it(dataset)
    arguments = {
        "train": ("--run", "runs/new", *SMALL),
        "score": (),
        "inspect": ("data/mnist",),
    }[command]
    assert_refused(call(command, *arguments), BAD_DATA, "data/mnist", *words)
    assert not (run.parent / "new").exists()
    assert not (run / "scores").exists()


def test_broken_dataset_in_a_process(dataset: Path) -> None:
    """The same, of the real command."""
    _uncomplete(dataset)
    refused = run_pipeline("train", *SMALL, cwd=dataset.parent.parent)
    assert_refused(refused, BAD_DATA, "data/mnist is incomplete", "Run `pipeline ingest` again")


@pytest.mark.parametrize("command", ["train", "score"])
def test_no_dataset(command: str, run: Path, call: Call) -> None:
    """Where there is no dataset the command that makes one is told."""
    refused = call(command, "--dataset", "data/none", "--run", "runs/mnist")
    assert_refused(refused, BAD_DATA, "no dataset at data/none", "pipeline ingest --out data/none")


def _chunk(dataset: Path, split: str) -> Path:
    return dataset / split / "inputs" / "c.0.0"


def test_missing_chunk(dataset: Path, run: Path, call: Call) -> None:
    """A missing chunk is an error that names it, never rows of zeros; the scores stay unwritten."""
    _chunk(dataset, "test").unlink()
    assert_refused(call("score"), BAD_DATA, "data/mnist/test/inputs/c.0.0", "Restore it")
    assert [] == list(run.glob("scores/*/metrics.json"))


def test_damaged_chunk(dataset: Path, call: Call) -> None:
    """A training that meets a damaged chunk stops and names it; no checkpoint is left of it."""
    chunk = _chunk(dataset, "train")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    refused = call("train", "--quiet", *SMALL)
    assert_refused(refused, BAD_DATA, "data/mnist/train/inputs/c.0.0", "Restore it")
    assert [] == list(dataset.parent.parent.glob("runs/mnist/checkpoints/*"))


def test_test_split_alone(files: Path, call: Call) -> None:
    """A dataset without a training split cannot be trained on, and says what it has."""
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        (files / name).unlink()
    assert call("ingest", "files").code == 0
    refused = call("train", "--dataset", "data/files", *SMALL)
    assert_refused(refused, BAD_DATA, "data/files has no training split", "Ingest the training")


def test_nothing_to_evaluate_on(files: Path, call: Call) -> None:
    """A dataset without a test split cannot be evaluated on one; what to pass is told."""
    for name in (TEST_IMAGES, TEST_LABELS):
        (files / name).unlink()
    assert call("ingest", "files").code == 0
    refused = call("train", "--dataset", "data/files", *SMALL)
    assert_refused(refused, USAGE, "no split 'test'", "--evaluate train")
    done = call("train", "--dataset", "data/files", *SMALL, "--evaluate", "train", "--epochs", 1)
    assert done.code == 0


def test_no_labels(files: Path, call: Call) -> None:
    """A training split without labels has nothing to learn."""
    (files / TRAIN_LABELS).unlink()
    assert call("ingest", "files").code == 0
    refused = call("train", "--dataset", "data/files", *SMALL)
    assert_refused(refused, BAD_DATA, "data/files has no labels")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_nothing_there(command: str, call: Call) -> None:
    """A place that holds nothing is told as such."""
    assert_refused(call(command, "nothing"), BAD_DATA, "nothing")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_something_else_there(command: str, here: Path, call: Call) -> None:
    """A directory that is neither dataset nor run is told as such."""
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter-1.txt").write_text("It was a dark and stormy night.")
    assert_refused(call(command, "thesis"), BAD_DATA, "thesis", "zarr.json", "pipeline ingest")


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("784-relu-8-softmax-26", "--network 784-relu-8-softmax-10"),
        ("100-relu-8-softmax-10", "--network 784-relu-8-softmax-10"),
        ("784-gelu-8-softmax-10", "gelu"),
        ("784-relu-8-relu-10", "softmax"),
        ("784-relu-0-softmax-10", "'0'"),
        ("784", "784"),
        ("", "''"),
    ],
)
def test_network_that_does_not_fit(network: str, words: str, dataset: Path, call: Call) -> None:
    """A network that does not fit the dataset, or is none, is refused; no run begins."""
    assert_refused(call("train", "--network", network), USAGE, network, words)
    assert not (dataset.parent.parent / "runs").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--epochs", 0), "at least 1, --epochs, 1 to 1,000,000"),
        (("--learning-rate", "-0.1"), "--learning-rate, -0.1, 0 to 1,000,000"),
        (("--learning-rate", "nan"), "--learning-rate, nan"),
        (("--l2", "inf"), "--l2, inf"),
        (("--batch-size", -1), "--batch-size, -1, at least 0"),
        (("--batch-size", TRAIN_ROWS + 1), "--batch-size 301, 300 training rows, 0 for all"),
        (("--holdout", TRAIN_ROWS), "--holdout 300, 300 training rows"),
        (("--holdout", 200, "--batch-size", 101), "--batch-size 101, 100 training rows"),
        (("--momentum", 1), "--momentum, 0 to 0.9999"),
        (("--seed", -1), "--seed, -1"),
        (("--keep", 0), "--keep, at least 1"),
        (("--shuffle-memory", 5), "--shuffle-memory, at least 1,048,576"),
        (("--threads", 99999), "--threads, 0 to 1,024"),
        (("--patience", 3), "--patience, --holdout"),
        (("--evaluate", "dev"), "--evaluate, 'dev', none, train, validation, test"),
        (("--evaluate", "validation"), "no split 'validation', --evaluate train,test, --holdout"),
        (("--epochs", "ten"), "--epochs, 'ten'"),
        (("--optimizer", "sgdd"), "--optimizer, 'sgd', 'adamw'"),
        (("--schedule", "linear"), "--schedule, 'cosine'"),
        (("--dtype", "float16"), "--dtype, 'float32'"),
        (("--init", "zeros"), "--init, 'he-normal'"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_setting_out_of_range(
    options: tuple[object, ...], words: str, dataset: Path, call: Call
) -> None:
    """A setting out of its range is refused, with the range; no run begins."""
    expected = [word for word in words.split(", ") if word != "at least 1"]
    assert_refused(call("train", *SMALL, *options), USAGE, *expected)
    assert not (dataset.parent.parent / "runs").exists()


def test_setting_out_of_range_in_a_process(dataset: Path) -> None:
    """The same, of the real command."""
    refused = run_pipeline("train", "--epochs", 0, cwd=dataset.parent.parent)
    assert_refused(refused, USAGE, "--epochs is 0")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("learning_rat = 0.1", ("'learning_rat'", "did you mean 'learning_rate'")),
        ("batchsize = 3", ("'batchsize'", "did you mean 'batch_size'")),
        ("[train]\nepochs = 3", ("'train'",)),
        ("epochs = '3'", ("epochs", "'3'", "a whole number")),
        ("epochs = 3.5", ("epochs", "3.5", "a whole number")),
        ("shuffle = 1", ("shuffle", "true or false")),
        ("epochs = true", ("epochs", "a whole number")),
        ("epochs = =", ("not valid TOML", "line 1")),
        ("epochs = 0", ("--epochs is 0",)),
        ("optimizer = 'adan'", ("'adan'", "nearest: adam")),
    ],
)
def test_bad_configuration_file(
    toml: str, words: tuple[str, ...], dataset: Path, call: Call
) -> None:
    """A configuration file with an unknown key, a wrong type or value is refused."""
    (dataset.parent.parent / "settings.toml").write_text(toml)
    assert_refused(call("train", "--config", "settings.toml"), USAGE, *words)


def test_no_configuration_file(dataset: Path, call: Call) -> None:
    """A configuration file that is not there is named."""
    refused = call("train", "--config", "settings.toml")
    assert_refused(refused, USAGE, "no configuration file settings.toml")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--epoch", "3"), "--epochs"),
        (("ingest", "--overwite"), "--overwrite"),
        (("ingest", "--rows-per-chunk", "0"), "--rows-per-chunk"),
        (("score", "--threads", "-1"), "--threads"),
        (("inspect",), "PLACE"),
        (("demo", "one", "two"), "two"),
        (("trane",), "trane"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_usage(arguments: tuple[str, ...], words: str, call: Call) -> None:
    """An unknown command or option is refused, with the usage and, if any, what is like it."""
    assert_refused(call(*arguments), USAGE, words)


def test_wrong_usage_in_a_process(here: Path) -> None:
    """The same, of the real command: usage, then the error."""
    refused = run_pipeline("train", "--bogus", cwd=here)
    assert_refused(refused, USAGE, "--bogus")
    assert refused.err.startswith("Usage: pipeline train [OPTIONS]\n")


# ------------------------------------------------------------------ runs


def test_run_exists(dataset: Path, run: Path, call: Call) -> None:
    """A run that exists is not touched without --resume."""
    before = (run / "metrics.jsonl").read_bytes()
    refused = call("train", *SMALL, "--epochs", 2)
    assert_refused(refused, CONFLICT, "runs/mnist exists", "--resume", "--run")
    assert before == (run / "metrics.jsonl").read_bytes()


def test_run_exists_in_a_process(dataset: Path, run: Path) -> None:
    """The same, of the real command: exit code 4."""
    refused = run_pipeline("train", *SMALL, "--epochs", 2, cwd=dataset.parent.parent)
    assert_refused(refused, CONFLICT, "runs/mnist exists", "--resume", "--run")


def test_resume_with_another_configuration(dataset: Path, run: Path, call: Call) -> None:
    """A resume with other settings is refused, field by field."""
    refused = call("train", "--resume", *SMALL, "--epochs", 3, "--seed", 7)
    fields = ("epochs: 2 recorded, 3 given", "seed: 0 recorded, 7 given")
    assert_refused(refused, CONFLICT, "runs/mnist", *fields, "another --run")


def test_resume_with_another_dataset(dataset: Path, run: Path, call: Call) -> None:
    """A resume on another dataset is refused; both digests are shown."""
    write_set(dataset.parent.parent / "other", seed=1)
    assert call("ingest", "other", "--out", "data/other").code == 0
    refused = call("train", "--resume", *SMALL, "--epochs", 2, "--dataset", "data/other")
    assert_refused(refused, CONFLICT, "runs/mnist", "data/other", "the same dataset")


def test_locked_run(dataset: Path, run: Path) -> None:
    """A run that another process writes is refused; the process and its host are named."""
    with run_lock(open_location(run)):
        refused = run_pipeline(
            "train", "--resume", *SMALL, "--epochs", 2, cwd=dataset.parent.parent
        )
    holder = f"process {os.getpid()} on {socket.gethostname()[:80]}"
    assert_refused(refused, CONFLICT, "runs/mnist", holder, "Wait for it")


@pytest.mark.parametrize("place", ["data/mnist", "thesis"])
def test_run_at_a_place_that_is_not_ours(place: str, dataset: Path, call: Call) -> None:
    """A directory that holds something else does not become a run, nor does a file get into it."""
    here = dataset.parent.parent
    (here / "thesis").mkdir()
    (here / "thesis" / "chapter-1.txt").write_text("It was a dark and stormy night.")
    before = sorted((here / place).iterdir())
    refused = call("train", "--run", place, *SMALL)
    assert_refused(refused, CONFLICT, place, "is left alone", "--run")
    assert before == sorted((here / place).iterdir())


def _checkpoints(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoints/0*"))


def _damage(checkpoint: Path) -> None:
    state = checkpoint / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)


def test_score_without_a_run(dataset: Path, call: Call) -> None:
    """Where there is no run the command that makes one is told."""
    assert_refused(call("score"), BAD_DATA, "no run at runs/mnist", "pipeline train")


def test_score_without_checkpoints(dataset: Path, run: Path, call: Call) -> None:
    """A run without checkpoints cannot be scored; nothing is written."""
    for checkpoint in _checkpoints(run):
        copy(checkpoint, run.parent / "away" / checkpoint.name)
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    refused = call("score")
    assert_refused(refused, BAD_DATA, "runs/mnist has no checkpoint yet", "pipeline train")
    assert not (run / "scores").exists()


@pytest.mark.parametrize(
    "arguments", [("score",), ("train", "--quiet", "--resume", *SMALL, "--epochs", "2")], ids=str
)
def test_no_sound_checkpoint(
    arguments: tuple[str, ...], dataset: Path, run: Path, call: Call
) -> None:
    """Where every checkpoint is damaged nothing begins anew in silence: it is an error."""
    for checkpoint in _checkpoints(run):
        _damage(checkpoint)
    refused = call(*arguments)
    *_, last = refused.err.splitlines(keepends=True)  # each is warned of before
    assert refused.code == BAD_DATA
    assert "Traceback" not in refused.err
    assert last.startswith("Error: ")
    assert "runs/mnist" in last


def test_damaged_newest_checkpoint(dataset: Path, run: Path, call: Call) -> None:
    """A damaged newest checkpoint is told of, even with --quiet, and the one before it is used."""
    _damage(_checkpoints(run)[-1])
    done = call("train", "--quiet", "--resume", *SMALL, "--epochs", 2)
    assert done.code == 0
    assert done.err.startswith("Warning: Checkpoint 000002-000000 is not used: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--split", "validation"), USAGE, ("'validation'", "--split", "train, test")),
        (("--checkpoint", "newest"), USAGE, ("'newest'", "best, latest")),
        (("--checkpoint", "9"), BAD_DATA, ("epoch 9", "epochs 1, 2", "--keep")),
        (("--out", "scores.txt"), USAGE, ("'scores.txt'", ".csv, .npz or .parquet")),
        (("--out", "scores"), USAGE, ("'scores'", ".csv, .npz or .parquet")),
    ],
    ids=str,
)
def test_wrong_scoring(
    options: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
    dataset: Path,
    run: Path,
    call: Call,
) -> None:
    """A split, checkpoint or file that cannot be is refused before anything is scored."""
    assert_refused(call("score", *options), code, *words)
    assert not (run / "scores").exists()


def test_score_another_dataset(dataset: Path, run: Path, call: Call) -> None:
    """A model is not used on images of another size; both sizes are named."""
    other = write_set(dataset.parent.parent / "other")
    rows = (other / TEST_IMAGES).read_bytes()[IMAGE_HEADER_BYTES:]
    replace_file(other, TEST_IMAGES, images_header(60, 14, 56) + rows)
    replace_file(other, TRAIN_IMAGES, images_header(300, 2, 3) + bytes(1800))
    refused = call("ingest", "other", "--out", "data/other")
    assert_refused(refused, BAD_DATA, "(2, 3)", "(14, 56)", "Take the files")
    replace_file(other, TEST_IMAGES, images_header(60, 2, 3) + bytes(360))
    assert call("ingest", "other", "--out", "data/other").code == 0
    refused = call("score", "--dataset", "data/other")
    assert_refused(refused, BAD_DATA, "images of 28 x 28.", "data/other has images of 2 x 3;")


@pytest.mark.parametrize("name", ["examples.jpg", "examples"])
def test_picture_that_is_no_png(name: str, dataset: Path, call: Call) -> None:
    """A picture's name that does not end in .png is refused; nothing is written."""
    assert_refused(call("inspect", "data/mnist", "--images", name), USAGE, name, ".png")
    assert not (dataset.parent.parent / name).exists()
