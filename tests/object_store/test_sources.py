"""Sources in a store: the same dataset as from a disk, and nothing left of the copies."""

import shutil
import signal
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest import ingest
from pipeline.sources.digits import draw_digits
from pipeline.sources.remote import PIECE_BYTES, opened_source
from storage.dataset import Dataset
from storage.errors import BadDataError, PipelineError, UsageError
from storage.location import Location
from tests.commands.process import run_here, start_pipeline
from tests.commands.sets import TEST_IMAGES, TRAIN_IMAGES, TRAIN_LABELS, write_set
from tests.object_store.proxy import CUT, DROP, LOST, SLOW, Proxy
from tests.object_store.server import Store


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("sets") / "digits")


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The temporary directory, which must be empty at the end of each test."""
    directory = tmp_path / "copies"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    monkeypatch.setenv("TMPDIR", str(directory))
    yield directory
    assert [] == list(directory.iterdir())


@pytest.fixture
def prefix(store: Store, files: Path) -> Location:
    """A prefix with the files, in a folder that a console created."""
    place = store.new_place().child("digits")
    store.put_raw(f"{key_of(place)}/")
    for file in files.iterdir():
        place.put(file.name, file.read_bytes())
    return place


def key_of(place: Location) -> str:
    return str(place).split("/", 3)[3]


def refusal(source: str | Location, error: type[PipelineError] = BadDataError) -> str:
    with pytest.raises(error) as caught, opened_source(source):
        pass
    return str(caught.value)


def made_of(source: str | Location, out: Path) -> Dataset:
    return ingest(source, out, rows_per_chunk=64).dataset


def test_prefix(prefix: Location, files: Path, tmp_path: Path) -> None:
    """A prefix gives the dataset of the same files on a disk, and its description is the URL."""
    local = made_of(str(files), tmp_path / "local")
    result = ingest(prefix, tmp_path / "remote", rows_per_chunk=64)
    assert (local.name, local.digest) == (result.dataset.name, result.dataset.digest)
    assert local.sources == result.dataset.sources
    assert f"IDX files in {prefix}" == result.source
    again = ingest(str(files), tmp_path / "remote", rows_per_chunk=64)
    assert again.already_done


def test_formats(store: Store, tmp_path: Path) -> None:
    """An object is a file of its format; below a prefix, folders keep their names."""
    values, classes = draw_digits(0, "train", 0, 20)
    np.savez(tmp_path / "digits.npz", x_train=values, y_train=classes)
    for row, (image, label) in enumerate(zip(values, classes, strict=True)):
        path = tmp_path / f"folder/train/{label}/{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    place = store.new_place()
    for path in filter(Path.is_file, [*tmp_path.rglob("*.npz"), *tmp_path.rglob("*.png")]):
        place.put(str(path.relative_to(tmp_path)), path.read_bytes())
    for name in ("digits.npz", "folder"):
        local = made_of(str(tmp_path / name), tmp_path / f"local-{name}")
        remote = made_of(place.child(name), tmp_path / f"remote-{name}")
        assert (local.name, local.digest) == (remote.name, remote.digest)
        assert local.sources == remote.sources


def test_command(store: Store, prefix: Location, tmp_path: Path) -> None:
    """The command takes the options of the store for the source as well as for the dataset."""
    options = [
        part
        for key, value in store.options.items()
        for part in ("--storage-option", f"{key}={value}")
    ]
    out = f"{prefix.split()[0]}/set"
    assert 0 == run_here("ingest", prefix, "--out", out, *options).code
    on_disk = run_here("ingest", prefix, "--out", tmp_path / "set", *options)
    assert "digits: 300 train, 60 test rows" in on_disk.out


def test_messages(
    store: Store, prefix: Location, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors and warnings name the object, not its copy."""
    prefix.put("more.idx", (files / TRAIN_IMAGES).read_bytes())
    with opened_source(prefix) as source:
        origins = [split.origin for split in source.splits]
    assert [f"{prefix}/{TRAIN_IMAGES}", f"{prefix}/{TEST_IMAGES}"] == origins
    assert caplog.messages[0].startswith(f"{prefix} has IDX files that are not used: more.idx")
    prefix.put(TRAIN_LABELS, (files / TRAIN_LABELS).read_bytes()[:100])
    message = refusal(prefix)
    assert message.startswith(f"{prefix}/{TRAIN_LABELS}")
    one = store.location(f"{key_of(prefix)}/{TRAIN_IMAGES}")
    assert f"SOURCE '{one}' is one file" in (message := refusal(one, UsageError))
    assert f"Give '{prefix}'." in message


def test_nothing_there(store: Store) -> None:
    """A misspelt URL is a usage error."""
    place = store.new_place()
    assert f"There is no object {place}, and none below it" in refusal(place, UsageError)
    message = "is a https:// URL; expected a path, a file:// or an s3:// URL"
    assert message in refusal("https://host/mnist.npz", UsageError)


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/outside", "a//b"])
def test_keys_that_are_no_paths(store: Store, prefix: Location, tmp_path: Path, key: str) -> None:
    """A key that leads outside the prefix, or is no path, is refused; nothing is written."""
    store.put_raw(f"{key_of(prefix)}/{key}", b"odd")
    assert "no path can reach the object" in refusal(prefix)
    assert ["copies"] == [path.name for path in tmp_path.iterdir()]


def test_object_and_prefix_of_one_name(prefix: Location) -> None:
    """A name that is a file and a directory cannot be copied."""
    prefix.put("README", b"text")
    prefix.put("README/more", b"text")
    assert "is the name of an object and of a prefix of others" in refusal(prefix)


def test_object_that_changes(proxy: Proxy, store: Store, prefix: Location, files: Path) -> None:
    """An object that is replaced during its copy is refused."""
    key = f"{key_of(prefix)}/{TRAIN_IMAGES}"

    def plan(method: str, path: str) -> None:
        if method == "GET" and path.endswith(TRAIN_IMAGES):
            store.put_raw(key, (files / TEST_IMAGES).read_bytes())

    proxy.plan = plan
    message = refusal(proxy.store.location(key_of(prefix)))
    assert message == (
        f"{prefix}/{TRAIN_IMAGES} changed while it was being read. Run the same command again."
    )


def test_failing_requests(proxy: Proxy, prefix: Location, files: Path, tmp_path: Path) -> None:
    """Requests that fail are repeated."""
    failures, numbers = cycle(["500", CUT, "503", LOST, DROP]), count(1)
    proxy.plan = lambda method, path: None if next(numbers) % 3 else next(failures)
    made = made_of(proxy.store.location(key_of(prefix)), tmp_path / "remote")
    assert made_of(str(files), tmp_path / "local").digest == made.digest
    assert 15 < next(numbers)


def test_stopped(prefix: Location) -> None:
    """A stop during the copy leaves nothing behind."""
    stages = []

    def stop(stage: str, done: int, total: int, note: str = "") -> None:
        stages.append(stage)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened_source(prefix, progress=stop):
        pass
    assert [f"copy {prefix}"] == stages


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed(proxy: Proxy, prefix: Location, tmp_path: Path, copies: Path, number: int) -> None:
    """A job that ends during the copy leaves nothing in the store, and a stopped one no files."""
    proxy.plan = lambda method, path: SLOW if method == "GET" and TRAIN_LABELS in path else None
    out = prefix.split()[0].child("set")
    arguments = ("ingest", prefix, "--out", out, "--storage-option", "retry_seconds=1")
    environment = proxy.store.environment | {"TMPDIR": str(copies)}
    with start_pipeline(*arguments, cwd=tmp_path, env=environment) as process:
        while not any(path.endswith(TRAIN_LABELS) for _, path in proxy.requests):
            time.sleep(0.01)
        process.send_signal(number)
        time.sleep(0.3)
        proxy.close()
        error = process.communicate()[1]
    assert [] == out.objects()
    if number == signal.SIGTERM:
        assert 143 == process.returncode, error
        assert [] == list(copies.iterdir())
    else:
        assert -signal.SIGKILL == process.returncode, error
        shutil.rmtree(next(copies.iterdir()))


def test_memory(store: Store) -> None:
    """A copy holds a piece of an object in memory, not the object."""
    place = store.new_place().child("large-idx3-ubyte")
    store.put_raw(key_of(place), bytes(8 * PIECE_BYTES))
    tracemalloc.start()
    try:
        refusal(place, UsageError)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert PIECE_BYTES < peak < 3 * PIECE_BYTES
