"""The repr of an open dataset, run, checkpoint and scores."""

from storage.checkpoints import CheckpointName, load_checkpoint
from storage.dataset import open_dataset
from storage.ledger import Ledger
from storage.location import Location
from storage.models import ModelName
from storage.runs import open_run
from storage.s3 import open_s3
from tests.storage.artefacts import make_scores


def test_dataset(dataset_place: Location) -> None:
    dataset = open_dataset(dataset_place)
    split = dataset.split("train")
    assert (
        f"<Dataset tiny at {dataset_place}>\n"
        "  splits: train 11 rows, test 5 rows\n"
        "  images: 2 x 3 uint8, 3 classes\n"
        f"  digest: {dataset.digest[:12]}"
    ) == repr(dataset)
    assert (
        f"<Split train of {dataset_place}>\n"
        "  inputs: 11 x 7 uint8, 3 classes\n"
        "  chunks: 3 of 4 rows\n"
        f"  digest: {split.record.digest[:12]}"
    ) == repr(split)
    assert "<Block> uint8 inputs (4, 7), targets (4, 3)" == repr(split.read_chunk(0))


def test_run(run_place: Location) -> None:
    run = open_run(run_place)
    assert (
        f"<Run at {run_place}>\n"
        "  network: 6-3, 3 epochs\n"
        "  dataset: unknown place, digest 000000000000"
    ) == repr(run)
    assert (
        "<Checkpoint 000003-000000>\n  tensors: 2 with 42 values\n  model: digest 000000000000"
    ) == repr(load_checkpoint(run, CheckpointName(3, 0)))
    assert f"<Ledger {run_place}/scores/ledger.jsonl>" == repr(Ledger(run_place))


def test_scores(run_place: Location) -> None:
    run_place.child("scores").delete_tree()
    scores = make_scores(run_place)
    assert (
        f"<Scores of test at {scores.location}>\n"
        "  rows: 5, 3 classes\n"
        "  model: dddddddddddd, dataset: 000000000000\n"
        f"  digest: {scores.digest[:12]}"
    ) == repr(scores)


def test_location(dataset_place: Location) -> None:
    """An option of a store may be a secret: it is not shown."""
    assert f"LocalLocation('{dataset_place}')" == repr(dataset_place)
    bucket = open_s3("s3://bucket/prefix", {"access_key_id": "id", "secret_access_key": "hidden"})
    assert "S3Location('s3://bucket/prefix')" == repr(bucket)
    assert "hidden" not in repr(bucket.client)
    assert f"ModelName(place={dataset_place!r}, name='best')" == repr(
        ModelName(dataset_place, "best")
    )
