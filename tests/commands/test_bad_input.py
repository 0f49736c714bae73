"""Bad data and conflicts end with an exit code and a plain message, and leave no partial output.

`tests/storage` and `tests/pipeline` cover every error of every format; these tests run the commands
on one case of each.
"""

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
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    edit_json,
    images_header,
    replace_file,
    tree,
    write_set,
)
from tests.storage.idx_files import COMPRESS

USAGE, BAD_DATA, CONFLICT, UNREACHABLE = 2, 3, 4, 6
AGAIN = "Copy or download the file again."
MEMORY = 2 * 2**30
"""Address space of a process that must not allocate a header's claimed size; half would suffice."""
IMAGES, LABELS = TRAIN_IMAGES, TRAIN_LABELS
FEWER = bytes((0, 0, 8, 1, 0, 0, 1, 43))
"""The header of 299 labels."""
Break = Callable[[Path], object]
"""A function that damages a dataset."""


def assert_nothing_made(here: Path) -> None:
    """Assert that `data` holds no dataset, complete or partial; lock files may remain."""
    left = {path.name for path in (here / "data").glob("*")}
    assert {".mnist.lock", ".files.lock"} >= left


# ------------------------------------------------------------------ IDX files


@pytest.mark.parametrize(
    ("name", "form", "change", "words"),
    [
        (IMAGES, ".xz", lambda _: b"hello", ("a text that starts with 'hello", "Give the IDX")),
        (IMAGES, ".gz", lambda whole: whole[:7], ("header is cut off", "found 7 ", AGAIN)),
        (IMAGES, "", lambda whole: whole[:-1], ("cut off", "expected 300 rows", AGAIN)),
        (IMAGES, "", lambda whole: COMPRESS[".gz"](whole)[:-9], (AGAIN,)),
        (IMAGES, ".gz", lambda whole: whole + b"\0", ("1 byte follows", AGAIN)),
        (IMAGES, "", lambda _: images_header(0, 28, 28), ("empty", "Use a file that contains")),
        (LABELS, "", lambda whole: FEWER + whole[8:-1], ("299 labels", "300 images", "Take both")),
    ],
)
def test_broken_files(
    name: str,
    form: str,
    change: Callable[[bytes], bytes],
    words: tuple[str, ...],
    files: Path,
    call: Call,
) -> None:
    """The message names the file and the remedy; the intact rows are not published."""
    bad = replace_file(files, name, change((files / name).read_bytes()), form)
    assert_refused(call("ingest", "files"), BAD_DATA, bad.name, *words)
    assert_nothing_made(files.parent)


def test_files_that_make_no_set(files: Path, call: Call) -> None:
    """Splits of different sizes, labels without images, no files: the message has a remedy."""
    replace_file(files, IMAGES, images_header(300, 14, 56) + bytes(235_200))
    refused = call("ingest", "files")
    assert_refused(refused, BAD_DATA, "(28, 28)", "(14, 56)", "Take the files")
    (files / IMAGES).unlink()
    assert_refused(call("ingest", "files"), BAD_DATA, LABELS, IMAGES, "Add it")
    for path in files.iterdir():
        path.unlink()
    assert_refused(call("ingest", "files"), BAD_DATA, "files", IMAGES, "rename the files")
    assert_nothing_made(files.parent)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["claim", "bomb"])
def test_little_memory_is_enough_to_refuse(form: str, files: Path) -> None:
    """A header that claims 2^48 values, and a gzip bomb, are refused within 2 GiB of memory."""
    for name in (TEST_IMAGES, TEST_LABELS, TRAIN_LABELS):
        (files / name).unlink()  # images alone: no number of labels contradicts the claim
    if form == "claim":
        replace_file(files, TRAIN_IMAGES, images_header(2**32 - 1, 2**8, 2**8) + bytes(2**16))
    else:
        whole = (files / TRAIN_IMAGES).read_bytes()
        (files / TRAIN_IMAGES).write_bytes(gzip.compress(whole) + gzip.compress(bytes(2**26)) * 64)
    refused = run_pipeline(
        "ingest",
        "files",
        cwd=files.parent,
        env={"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=limited_to(MEMORY),
    )
    assert_refused(refused, BAD_DATA, TRAIN_IMAGES, AGAIN)
    assert_nothing_made(files.parent)


def test_mnist_dir_that_is_none(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing MNIST_DIR is an error, not a reason to download."""
    monkeypatch.setenv("MNIST_DIR", "/nowhere")
    assert_refused(call("ingest"), USAGE, "MNIST_DIR", "/nowhere", "unset it")


def test_no_network(here: Path) -> None:
    """Without a network, ingest exits 6 and names the sources that do not need one."""
    closed = socket.socket()
    with closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        proxy = f"http://127.0.0.1:{closed.getsockname()[1]}"
        env = dict.fromkeys(("http_proxy", "https_proxy"), proxy)
        env |= {"XDG_CACHE_HOME": str(here / "cache")}  # an empty cache
        refused = run_pipeline("ingest", "--quiet", cwd=here, env=env)
    assert_refused(refused, UNREACHABLE, "could not be reached", "MNIST_DIR", "ingest synthetic")
    assert_nothing_made(here)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(files: Path, call: Call) -> None:
    """A directory without read permission is unreachable (exit 6); the message says why."""
    files.chmod(0)
    try:
        refused = call("ingest", "files")
    finally:
        files.chmod(0o700)
    assert_refused(refused, UNREACHABLE, "files", "Permission denied", "Check its permissions")


# ------------------------------------------------------------------ datasets


def _in_attributes(**changes: object) -> Break:
    return lambda dataset: edit_json(
        dataset / "zarr.json", lambda document: document["attributes"].update(changes)
    )


def _gone(key: str) -> Break:
    return lambda dataset: (dataset / key).rename(dataset.parent / "elsewhere")


def _chunk_damaged(dataset: Path) -> None:
    chunk = dataset / "train" / "inputs" / "c.0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)


TRAIN = ("train", "--run", "runs/new", *SMALL, "--quiet")
SCORE = ("score", "--dataset", "data/mnist")
INSPECT = ("inspect", "data/mnist")


@pytest.mark.parametrize(
    ("break_it", "commands", "words"),
    [
        (
            _in_attributes(complete=None),
            (TRAIN, SCORE, INSPECT),
            ("incomplete", "Run `pipeline ingest` again"),
        ),
        (_in_attributes(format_version=99), (TRAIN,), ("format version 99", "Install a newer")),
        (
            _in_attributes(format="theirs"),
            (SCORE, INSPECT),
            ("has format 'theirs', not", "Give another place"),
        ),
        (_gone("zarr.json"), (INSPECT, TRAIN), ("zarr.json", "pipeline ingest")),
        (
            _gone("test/targets/zarr.json"),
            (INSPECT,),
            ("test/targets/zarr.json is missing", "ingest --overwrite"),
        ),
        (_gone(""), (TRAIN, SCORE), ("no dataset at data/mnist", "ingest --out data/mnist")),
        (_gone(""), (INSPECT, ("verify", "data/mnist")), ("data/mnist does not exist",)),
        (_gone("test/inputs/c.0.0"), (SCORE,), ("data/mnist/test/inputs/c.0.0", "Restore it")),
        (_chunk_damaged, (TRAIN,), ("data/mnist/train/inputs/c.0.0", "Restore it")),
    ],
)
def test_broken_dataset(
    break_it: Break,
    commands: tuple[tuple[str, ...], ...],
    words: tuple[str, ...],
    dataset: Path,
    run: Path,
    call: Call,
) -> None:
    """Every command that reads it names the damaged place, and writes no checkpoint or scores."""
    break_it(dataset)
    for command in commands:
        assert_refused(call(*command), BAD_DATA, "data/mnist", *words)
    assert [] == [*run.parent.glob("new/checkpoints/*"), *run.glob("scores/*/metrics.json")]


@pytest.mark.parametrize(
    ("missing", "options", "code", "words"),
    [
        ((TRAIN_IMAGES, TRAIN_LABELS), (), BAD_DATA, ("has no training split", "Ingest the train")),
        ((TEST_IMAGES, TEST_LABELS), ("--evaluate", "test"), USAGE, ("no split 'test'",)),
        ((TRAIN_LABELS,), (), BAD_DATA, ("data/files has no labels",)),
    ],
)
def test_parts_of_a_set(
    missing: tuple[str, ...],
    options: tuple[str, ...],
    code: int,
    words: tuple[str, ...],
    files: Path,
    call: Call,
) -> None:
    """An incomplete set can be ingested; training names the missing part."""
    for name in missing:
        (files / name).unlink()
    assert call("ingest", "files").code == 0
    train = ("train", "--dataset", "data/files", *SMALL)
    assert_refused(call(*train, *options), code, *words)
    if code == USAGE:
        assert call(*train, "--epochs", 1).code == 0


def test_something_else(dataset: Path, run: Path, call: Call) -> None:
    """No command changes a directory with other content; the message says so."""
    thesis = dataset.parent.parent / "thesis"
    thesis.mkdir()
    (thesis / "chapter-1.txt").write_text("It was a dark and stormy night.")
    before = tree(thesis), tree(dataset), tree(run)
    ingest = ("ingest", "synthetic:20,10", "--out")
    for command in ("inspect", "verify"):
        assert_refused(call(command, "thesis"), BAD_DATA, "thesis", "zarr.json", "pipeline ingest")
    for command, words in (
        ((*ingest, "thesis", "--overwrite"), ("thesis", "is left alone", "--out")),
        ((*ingest, "data/mnist"), ("data/mnist", "--overwrite", "--out")),
        (("train", "--run", "thesis", *SMALL), ("thesis", "is left alone", "--run")),
        (("train", "--run", "data/mnist", *SMALL), ("data/mnist", "is left alone", "--run")),
        (("train", *SMALL, "--epochs", "2"), ("runs/mnist exists", "--resume", "--run")),
    ):
        assert_refused(call(*command), CONFLICT, *words)
    assert before == (tree(thesis), tree(dataset), tree(run))


# ------------------------------------------------------------------ runs


def test_resume_with_another_configuration(dataset: Path, run: Path, call: Call) -> None:
    """Resuming with other settings is refused, field by field."""
    refused = call("train", "--resume", *SMALL, "--epochs", 3, "--seed", 7)
    fields = ("epochs: 2 recorded, 3 given", "seed: 0 recorded, 7 given")
    assert_refused(refused, CONFLICT, "runs/mnist", *fields, "another --run")


def test_resume_with_another_dataset(dataset: Path, run: Path, call: Call) -> None:
    """Resuming on another dataset is refused; the message names both."""
    write_set(dataset.parent.parent / "other", seed=1)
    assert call("ingest", "other", "--out", "data/other").code == 0
    refused = call("train", "--resume", *SMALL, "--epochs", 2, "--dataset", "data/other")
    assert_refused(refused, CONFLICT, "runs/mnist", "data/other", "with --dataset")


def test_locked_run(dataset: Path, run: Path) -> None:
    """A run that another process is writing is refused; the message names process and host."""
    with run_lock(open_location(run)):
        refused = run_pipeline(
            "train", "--resume", *SMALL, "--epochs", 2, cwd=dataset.parent.parent
        )
    holder = f"process {os.getpid()} on {socket.gethostname()[:80]}"
    assert_refused(refused, CONFLICT, "runs/mnist", holder, "Wait for it")


def _damage(checkpoint: Path) -> None:
    state = checkpoint / "state.safetensors"
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)


def test_nothing_to_score_with(dataset: Path, call: Call) -> None:
    """Without a run, the message names the command that makes one."""
    assert_refused(call("score"), BAD_DATA, "no run at runs/mnist", "pipeline train")


def test_checkpoints_that_are_gone_or_damaged(dataset: Path, run: Path, call: Call) -> None:
    """A damaged checkpoint gives a warning and the previous one is used; without any, exit 3."""
    before, newest = sorted(run.glob("checkpoints/0*"))
    absent = call("score", "--checkpoint", "9")
    assert_refused(absent, BAD_DATA, "000009", "000001-000000, 000002-000000")
    assert "--keep" not in absent.err + call("score", "--checkpoint", "0").err  # never saved
    assert_refused(call("score", "--checkpoint", "000001-000003"), BAD_DATA, "--keep")
    resume = ("train", "--quiet", "--resume", *SMALL, "--epochs", 2)
    _damage(newest)
    done = call(*resume)
    assert done.code == 0
    assert done.err.startswith("Warning: Checkpoint 000002-000000 is not used: ")
    assert done.err.count("\n") == 1

    for checkpoint in (before, newest):
        _damage(checkpoint)
    kept = tree(run / "checkpoints")
    for command in (resume, ("score",)):
        refused = call(*command)
        *_, last = refused.err.splitlines(keepends=True)  # after a warning for each
        assert (refused.code, refused.err.count("Traceback")) == (BAD_DATA, 0)
        assert last.startswith("Error: ")
        assert "runs/mnist" in last
    assert kept == tree(run / "checkpoints")

    for checkpoint in (before, newest):
        checkpoint.rename(run.parent / checkpoint.name)
    assert_refused(call("score"), BAD_DATA, "runs/mnist has no checkpoint yet", "pipeline train")
    assert not (run / "scores").exists()


def test_score_another_dataset(dataset: Path, run: Path, call: Call) -> None:
    """A model refuses images of another size; the message names both sizes."""
    other = write_set(dataset.parent.parent / "other")
    replace_file(other, TEST_IMAGES, images_header(60, 2, 3) + bytes(360))
    replace_file(other, TRAIN_IMAGES, images_header(300, 2, 3) + bytes(1800))
    assert call("ingest", "other", "--out", "data/other").code == 0
    refused = call("score", "--dataset", "data/other")
    assert_refused(refused, BAD_DATA, "images of 28 x 28.", "data/other has images of 2 x 3;")
