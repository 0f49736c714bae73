"""The state of a BatchStream: it restores the stream from any batch, and no other fits."""

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.stream import Batch, StreamState
from storage.errors import BadDataError, ConflictError
from tests.pipeline.datasets import Known
from tests.pipeline.streams import (
    SETTINGS,
    assert_contents,
    open_stream,
    row_lists,
    stream_settings,
)


@pytest.mark.slow
@settings(SETTINGS, max_examples=20)
@given(options=stream_settings(), epochs=st.integers(1, 2))
def test_the_state_at_every_batch(known: Known, options: dict[str, Any], epochs: int) -> None:
    """A stream restored from its state at any batch yields the same remainder and digest."""
    if 0 < options["batch_size"] < 4:
        options["batch_size"] = max(1, options["rows"] // 16)
    states: list[StreamState] = []
    batches: list[Batch] = []
    with open_stream(known, **options) as stream:
        states.append(stream.state)
        for _ in range(epochs):
            for batch in stream:
                batches.append(batch)
                states.append(stream.state)
    for taken, state in enumerate(states[:-1]):
        assert (taken // stream.batches, taken % stream.batches) == (state.epoch, state.next_batch)
        saved = StreamState.from_json(json.loads(json.dumps(state.to_json())))
        assert state == saved
        with open_stream(known, **options, epochs=epochs, state=saved) as restored:
            remainder = []
            while restored.state.epoch < epochs:
                for batch in restored:
                    remainder.append(batch)
                    assert_contents(known, batch)
                    assert states[taken + len(remainder)] == restored.state
        assert row_lists(batches[taken:]) == row_lists(remainder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 9}, "batch_size: 8 saved, 9 now"),
        ({"seed": 4}, "seed: 3 saved, 4 now"),
        ({"window_chunks": 3}, "window_chunks: 2 saved, 3 now"),
        ({"shuffle": False}, "shuffle: True saved, False now"),
        ({"drop_last": True}, "drop_last: False saved, True now"),
        ({"order_version": 2}, "order_version: 2 saved, 1 now"),
        ({"dataset_digest": "00"}, "another stream (dataset_digest: '00' saved, '"),
        ({"first_row": 1, "rows": 60}, "first_row: 0 saved, 1 now; rows: 61 saved, 60 now"),
    ],
)
def test_the_state_of_another_stream(known: Known, changed: dict[str, Any], message: str) -> None:
    """A state with other settings is refused, naming both values."""
    options: dict[str, Any] = {"batch_size": 8, "seed": 3, "window_chunks": 2}
    with open_stream(known, **options) as stream:
        next(iter(stream))
    later = {"order_version": 2, "dataset_digest": "00"}
    saved = dataclasses.replace(stream.state, **{k: v for k, v in changed.items() if k in later})
    settings = {key: value for key, value in changed.items() if key not in later}
    with pytest.raises(ConflictError) as caught:
        open_stream(known, **options | settings, state=saved)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": -1},
        {"epoch": 10**4000},
        {"epoch": 1.0},
        {"epoch": True},
        {"epoch": None},
        {"next_batch": -1},
        {"next_batch": "0"},
        {"next_batch": math.inf},
        {"order_digest": "0" * 63},
        {"order_digest": "0" * 64 + "\n"},
        {"order_digest": "A" * 64},
        {"order_digest": "é" * 64},
        {"order_digest": None},
        {"shuffle": 1},
        {"split": ["train"]},
        {"more": 1},
    ],
)
def test_hostile_states(known: Known, change: dict[str, Any]) -> None:
    """A document with a missing, additional, mistyped or out-of-range field is bad data."""
    with open_stream(known, batch_size=8) as stream:
        document = stream.state.to_json()
    with pytest.raises(BadDataError, match="it is damaged"):
        StreamState.from_json(document | change)
    for nothing in (None, [], 7, "state", {}):
        with pytest.raises(BadDataError, match="it is damaged"):
            StreamState.from_json(nothing)
    for name in set(change) & set(document):
        with pytest.raises(BadDataError, match="it is damaged"):
            StreamState.from_json({key: document[key] for key in document if key != name})


@pytest.mark.parametrize("next_batch", [8, 9, 2**62, 10**1000])
def test_a_state_past_the_epochs_end(known: Known, next_batch: int) -> None:
    """61 rows make 8 mini-batches of 8: a state at the ninth is damaged."""
    with open_stream(known, batch_size=8) as stream:
        document = stream.state.to_json() | {"next_batch": next_batch}
    with pytest.raises(BadDataError, match="an epoch of this stream has 8, counted from 0"):
        open_stream(known, batch_size=8, state=StreamState.from_json(document))
