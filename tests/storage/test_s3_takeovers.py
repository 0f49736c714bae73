"""A writer that continues after its lock was taken over changes nothing the new holder published.

The former holder is stopped before each of its requests in turn. Another writer takes over and gets
as far as each of its own requests in turn, or to its end. Then the former finishes, then the other.
"""

from collections.abc import Callable
from typing import Any

import pytest

from storage.checkpoints import (
    Checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    prune_checkpoints,
    recorded_metrics,
    sweep_checkpoints,
)
from storage.dataset import open_dataset
from storage.dataset_writer import dataset_lock, stage_dataset
from storage.errors import ConflictError
from storage.location import Location
from storage.runs import SCORES, open_run, run_lock
from storage.scores import open_scores, score_into
from tests.object_store.memory import Gate, MemoryClient, interleave
from tests.storage.artefacts import (
    assert_holds_its_rows,
    dataset_schema,
    make_dataset,
    make_run,
    metrics_line,
    save_epoch,
    scores_schema,
    write_dataset,
    write_scores,
)

Work = Callable[[Location, str], None]
"""A writer's work at a place, given the writer's name."""


def ignored(message: str) -> None:
    """Take over a lock without a message."""


def ingest(place: Location, who: str) -> None:
    """Replace the dataset; the two writers' have different rows."""
    schema = dataset_schema(rows=3 if who == "former" else 7, test_rows=1)
    with (
        dataset_lock(place.child("set"), ignored) as locked,
        stage_dataset(locked, schema, overwrite=True) as writer,
    ):
        made = write_dataset(writer)
    assert schema.splits["train"].rows == made.split("train").schema.rows, (
        "another writer's dataset"
    )


def prepare_dataset(place: Location) -> None:
    make_dataset(place.child("set"), dataset_schema(rows=2, test_rows=1))


def published_dataset(place: Location) -> Any:
    dataset = open_dataset(place.child("set"))
    rows = dataset.split("train").schema.rows
    assert_holds_its_rows(dataset, dataset_schema(rows=rows, test_rows=1))
    return rows


def train(place: Location, who: str) -> None:
    """Resume: sweep, rewrite the metrics, then save and prune after each epoch."""
    with run_lock(place.child("run"), ignored) as locked:
        run = open_run(locked)
        sweep_checkpoints(run)
        (newest,) = load_newest(run, None)
        assert isinstance(newest, Checkpoint)
        lines = [dict(line) for line in newest.progress["metrics"]]
        run.rewrite_metrics(lines)
        for epoch in range(newest.name.epoch + 1, 4):
            line = metrics_line(epoch) | {"seconds": who}
            run.append_metrics(line, lines)
            lines.append(line)
            prune_checkpoints(run, save_epoch(run, epoch, lines), 1, set())


def prepare_run(place: Location) -> None:
    make_run(place.child("run"), epochs=1)


def published_run(place: Location) -> Any:
    run = open_run(place.child("run"))
    recorded_metrics(run)
    # The former holder may still remove older ones that it saved itself.
    return load_checkpoint(run, list_checkpoints(run)[-1]).progress, run.metrics()


SCHEMA = scores_schema(rows=5)


def score(place: Location, who: str) -> None:
    """Continue an interrupted scoring."""
    with score_into(place.child(f"{SCORES}/{SCHEMA.home}"), SCHEMA, ignored) as writer:
        write_scores(writer, writer.missing)
        writer.publish({"rows": 5, "by": who})


def prepare_scoring(place: Location) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        score_into(place.child(f"{SCORES}/{SCHEMA.home}"), SCHEMA) as writer,
    ):
        write_scores(writer, [0])
        raise ZeroDivisionError


def published_scoring(place: Location) -> Any:
    scores = open_scores(place.child(f"{SCORES}/{SCHEMA.home}"))
    for number in range(SCHEMA.chunks):
        scores.read_chunk(number)
    return scores.metrics


SCENARIOS = {
    "dataset": (prepare_dataset, ingest, published_dataset),
    "run": (prepare_run, train, published_run),
    "scoring": (prepare_scoring, score, published_scoring),
}


NEVER = 10**9


def moments(gate: Gate) -> list[int]:
    """Return the requests before which to stop: the first of several to one version's objects."""
    private = ["/version-" in request and "delete" not in request for request in gate.sent]
    return [n for n in range(3, len(private)) if not (private[n] and private[n - 1])]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_published_trees_are_not_changed(name: str) -> None:
    """Whenever the former holder stalls, and however far the other gets before it continues."""
    prepare, work, published = SCENARIOS[name]
    client = MemoryClient()
    prepare(client.place(""))

    def run(stop: int, stop_other: int) -> tuple[Gate, Gate]:
        """Run and check one interleaving; return both gates with the requests that were sent."""
        objects, first_gate, second_gate = dict(client.objects), Gate(stop), Gate(stop_other)
        places = [
            MemoryClient(objects=objects, gate=gate).place("") for gate in (first_gate, second_gate)
        ]
        place, before = MemoryClient(objects=objects).place(""), []

        def look() -> None:
            if stop_other == NEVER:
                before.append(published(place))

        ends = interleave(
            lambda: work(places[0], "former"),
            first_gate,
            lambda: work(places[1], "other"),
            second_gate,
            look,
        )
        assert isinstance(ends[0], ConflictError | None)
        # The former may have completed the same scores before the other took over.
        assert ends[1] is None or "are complete; open them" in str(ends[1])
        assert published(place) in (before or [published(place)])
        return first_gate, second_gate

    alone, _ = run(NEVER, NEVER)
    for stop in moments(alone):
        _, second_gate = run(stop, NEVER)
        for stop_other in moments(second_gate):
            run(stop, stop_other)
