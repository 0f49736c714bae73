"""A stream in other processes: a pickled one continues there; a forked one explains itself."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from pipeline.stream import Batch, BatchStream
from storage.errors import ConflictError, UsageError
from tests.pipeline.datasets import Known, write_known
from tests.pipeline.streams import open_stream, row_lists

OPTIONS: dict[str, Any] = {
    "batch_size": 5,
    "window_chunks": 2,
    "seed": 3,
    "first_row": 4,
    "rows": 50,
    "drop_last": True,
    "epochs": 2,
}

TWO_LOADERS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pipeline.stream import BatchStream
from storage.dataset import open_dataset
from storage.places import open_location

dataset = open_dataset(open_location(sys.argv[1]))
importing = threading.Event()

class Pause:
    def find_spec(self, name, path, target=None):
        if name == "dask.system" and not importing.is_set():
            importing.set()
            time.sleep(0.05)

def rows():
    with BatchStream(dataset, "train", batch_size=5, threads=2) as stream:
        return sum(len(batch.rows) for batch in stream)

assert "dask" not in sys.modules
sys.meta_path.insert(0, Pause())
with ThreadPoolExecutor(2) as pool:
    first = pool.submit(rows)
    importing.wait(60)
    print(pool.submit(rows).result(), first.result())
"""
"""Begins a second stream while the loader of the first one imports Dask."""


def rest(stream: BatchStream) -> tuple[list[list[int]], str]:
    """The rows of the remaining batches of two epochs, and the final order digest."""
    batches: list[Batch] = []
    while stream.state.epoch < 2:
        batches += stream
    return row_lists(batches), stream.state.order_digest


def in_child(work: Callable[[], object]) -> str:
    """Return the result of `work` in a forked child, or its error's text."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        text = "another error"
        try:
            text = f"no error: {work()}"
        except UsageError as error:
            text = str(error)
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork(known: Known) -> None:
    """In a forked child every use raises at once and closing is harmless; the parent continues."""
    with open_stream(known, **OPTIONS) as whole:
        expected = rest(whole)
    with open_stream(known, **OPTIONS) as stream:
        batches = iter(stream)
        first = [next(batches)]
        for use in (partial(next, batches), partial(list, stream)):
            said = in_child(use)
            assert f"opened in process {os.getpid()} and cannot be used in its fork" in said
            assert "num_workers=0" in said
        assert "no error: None" == in_child(stream.close)
        left = f"no error: {rest(pickle.loads(pickle.dumps(stream)))}"
        assert left == in_child(lambda: rest(pickle.loads(pickle.dumps(stream))))
        rows, digest = rest(stream)
    assert expected == (row_lists(first) + rows, digest)


@pytest.mark.parametrize("taken", [0, 1, 4, 10, 13])
@pytest.mark.parametrize("copied", [lambda stream: pickle.loads(pickle.dumps(stream)), copy.copy])
def test_a_copy_continues(
    known: Known, taken: int, copied: Callable[[BatchStream], BatchStream]
) -> None:
    """A copy continues from the stream's position, open or closed, and does not change it."""
    with open_stream(known, **OPTIONS) as stream:
        for _ in range(taken):
            next(iter(stream))
        assert len(pickle.dumps(stream)) < 2000  # the location and the state, not the rows
        with copied(stream) as other:
            assert stream.state == other.state
            expected = rest(other)
        assert expected == rest(copied(copied(stream)))
        assert expected == rest(stream)
        state = stream.state
    with copied(stream) as other:
        assert state == other.state


def test_a_copy_of_another_dataset(tmp_path: Any) -> None:
    """A copy is refused if another dataset has replaced the original."""
    with open_stream(write_known(tmp_path / "set", 61, 7), batch_size=5) as stream:
        pickled = pickle.dumps(stream)
    (tmp_path / "set").rename(tmp_path / "old")
    write_known(tmp_path / "set", 61, 8)
    with pytest.raises(ConflictError, match="dataset_digest"):
        pickle.loads(pickled)


def test_without_rows(known: Known) -> None:
    """A stream without data visits the same rows, to the same digest, also as a copy."""
    with open_stream(known, **OPTIONS) as stream:
        expected = rest(stream)
    with open_stream(known, **OPTIONS, reads_rows=False) as stream:
        copied = pickle.loads(pickle.dumps(stream))
        assert expected == rest(stream) == rest(copied)


def test_closed(known: Known) -> None:
    """A closed stream says so, also in the middle of an epoch; its state opens the next one."""
    with open_stream(known, **OPTIONS) as stream:
        batches = iter(stream)
        next(batches)
    for use in (partial(next, batches), partial(list, stream), lambda: rest(stream)):
        with pytest.raises(UsageError, match=r"is closed\. Open another"):
            use()
    stream.close()
    with open_stream(known, **OPTIONS, state=stream.state) as other:
        assert stream.state == other.state


@pytest.mark.slow
def test_two_loaders_import_dask(known: Known) -> None:
    """Two streams begin at once in a process that has not imported Dask."""
    command = [sys.executable, "-c", TWO_LOADERS, str(known.dataset.location)]
    assert "61 61\n" == subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("workers", "method"), [(0, None), (2, "fork"), (1, "spawn")], ids=["none", "fork", "spawn"]
)
def test_pytorch_data_loader(known: Known, workers: int, method: str | None) -> None:
    """A DataLoader reads a stream without workers or in a spawned one; a forked worker raises."""
    data = pytest.importorskip("torch.utils.data")
    with open_stream(known, **OPTIONS) as stream:
        expected = row_lists(list(pickle.loads(pickle.dumps(stream))))
        loader = data.DataLoader(
            as_iterable_dataset(stream),
            batch_size=None,
            num_workers=workers,
            multiprocessing_context=method,
        )
        if method == "fork":
            with pytest.raises(UsageError, match="num_workers=0"):
                list(loader)
        else:
            assert expected == [rows.tolist() for rows in loader]


def as_iterable_dataset(stream: BatchStream) -> Any:
    """Return the stream as a dataset of PyTorch."""
    from tests.pipeline.torch_rows import Rows  # imports torch

    return Rows(stream)
