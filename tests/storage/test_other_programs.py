"""Changes by other programs are harmless: Zarr, editors, file managers."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import xarray
import zarr

from storage.dataset import open_dataset
from storage.documents import digest_of
from storage.errors import BadDataError
from storage.location import Location
from storage.places import open_location
from storage.scores import open_scores
from storage.verify import verify_location
from tests.storage.artefacts import make_scores


def note(place: Path) -> None:
    """Give every group and array another attribute."""
    for path in place.rglob("zarr.json"):
        node = zarr.open(str(path.parent), mode="r+")
        node.attrs["note"] = "mine"


def consolidated(place: Path) -> None:
    """Consolidate the metadata again."""
    zarr.consolidate_metadata(str(place))


def rewritten(place: Path) -> None:
    """Write every document with its keys in another order, and without spaces."""
    for path in place.rglob("zarr.json"):
        path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))


def without_consolidated_metadata(place: Path) -> None:
    """Remove the consolidated metadata, as programs that do not know them do."""
    for path in place.rglob("zarr.json"):
        document = json.loads(path.read_text())
        document.pop("consolidated_metadata", None)
        path.write_text(json.dumps(document))


CHANGES = [note, consolidated, rewritten, without_consolidated_metadata]


@pytest.fixture
def scores_place(tmp_path: Path) -> Location:
    """Return published scores."""
    return make_scores(open_location(tmp_path)).location


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_what_zarr_programs_change(
    dataset_place: Location, scores_place: Location, change: Callable[[Path], None]
) -> None:
    """Datasets and scores still open, with the same digests, and are sound."""
    digests = (open_dataset(dataset_place).digest, open_scores(scores_place).digest)
    for place in (dataset_place, scores_place):
        change(place.path)
        assert [] == [error for _, error in verify_location(place) if error]
    assert digests == (open_dataset(dataset_place).digest, open_scores(scores_place).digest)


@pytest.mark.parametrize("number", [0, 1])
def test_earlier_releases(dataset_place: Location, scores_place: Location, number: int) -> None:
    """The checks of early releases pass: the seal of the whole root, the digests of the bytes."""
    place = (dataset_place, scores_place)[number]
    root = json.loads(place.get("zarr.json"))
    attributes = root["attributes"]
    assert attributes.pop("seal") == digest_of(root)
    recorded = attributes["metadata_digests"]
    below = {path.relative_to(place.path).as_posix() for path in place.path.rglob("*/zarr.json")}
    assert below == recorded.keys()
    for key, digest in recorded.items():
        assert hashlib.sha256(place.get(key)).hexdigest() == digest


@pytest.mark.parametrize(
    ("key", "ours", "other"),
    [
        ("train/inputs/zarr.json", '"scale_factor": 0.00', '"scale_factor": 0.01'),
        ("train/inputs/zarr.json", '"add_offset": 0.0', '"add_offset": 0.5'),
        ("train/inputs/zarr.json", '"add_offset"', '"add_offsot"'),
        ("train/targets/zarr.json", '"data_type": "uint8"', '"data_type": "int8"'),
        ("train/zarr.json", '"node_type": "group"', '"node_type": "array"'),
        ("zarr.json", '"compression": "lz4"', '"compression": "zstd"'),
        ("zarr.json", '"compression"', '"compressiom"'),
    ],
)
def test_own_metadata_are_checked(dataset_place: Location, key: str, ours: str, other: str) -> None:
    """Every reader refuses a changed or renamed own field or attribute."""
    text = dataset_place.get(key).decode()
    assert ours in text
    dataset_place.put(key, text.replace(ours, other).encode())
    with pytest.raises(BadDataError, match=r"zarr\.json"):
        open_dataset(dataset_place)


def test_wrong_consolidated_metadata(dataset_place: Location) -> None:
    """xarray reads consolidated metadata: `verify` compares them with the arrays' own metadata."""
    for key in ("zarr.json", "train/zarr.json"):
        text = dataset_place.get(key)
        dataset_place.put(key, text.replace(b'"scale_factor": 0.00', b'"scale_factor": 0.01'))
    open_dataset(dataset_place)
    errors = [str(error) for _, error in verify_location(dataset_place) if error]
    assert ["train/inputs", "inputs"] == [error.split()[2] for error in errors]


@pytest.mark.parametrize(
    ("ours", "other"),
    [
        (b'"consolidated_metadata"', b'"consolidated_metadatb"'),
        (b'"kind": "inline"', b'"kind": "inlinf"'),
    ],
)
def test_invalid_consolidated_metadata(dataset_place: Location, ours: bytes, other: bytes) -> None:
    """Zarr cannot read damaged consolidated metadata: `verify` reports them."""
    dataset_place.put("zarr.json", dataset_place.get("zarr.json").replace(ours, other, 1))
    open_dataset(dataset_place)
    with pytest.raises((TypeError, KeyError, ValueError)):
        zarr.open_group(str(dataset_place), mode="r")
    assert [f"{dataset_place}: groups"] == [
        what for what, error in verify_location(dataset_place) if error
    ]


@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_consolidating_changes_nothing(dataset_place: Location, scores_place: Location) -> None:
    """Consolidating a published dataset again changes no document."""
    for place in (dataset_place, scores_place):
        before = json.loads(place.get("zarr.json"))
        zarr.consolidate_metadata(str(place))
        assert before == json.loads(place.get("zarr.json"))


def test_xarray_opens_every_group(dataset_place: Location, scores_place: Location) -> None:
    """xarray opens the whole dataset and each group, without options and warnings."""
    with xarray.open_datatree(str(dataset_place), engine="zarr") as tree:
        assert {"inputs", "targets"} <= set(tree["train"].data_vars)
        rows = tree["train"]["inputs"].shape[0]
    with xarray.open_zarr(str(dataset_place), group="train") as train:
        assert rows == train["inputs"].shape[0]
    with xarray.open_zarr(str(scores_place)) as scores:
        assert {"probabilities", "predicted"} == set(scores.data_vars)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._c.0.0",
        ".nfs000000000001",
        "Thumbs.db",
        "desktop.ini",
        "Desktop.ini",
        "zarr.json~",
        "#zarr.json#",
        ".zarr.json.swp",
        "zarr.json.bak",
        "@eaDir/x",
    ],
)
def test_foreign_files_are_mentioned(dataset_place: Location, name: str) -> None:
    """Files that systems and editors create are mentioned, and are not errors."""
    digest = open_dataset(dataset_place).digest
    mentioned: list[str] = []
    for key in (name, f"train/{name}", f"train/inputs/{name}"):
        dataset_place.put(key, b"not ours")
    checks = list(verify_location(dataset_place, mentioned.append))
    assert [] == [error for _, error in checks if error]
    assert 3 == len(mentioned)
    assert f"{dataset_place}/{name} does not belong here; it is ignored." in mentioned
    assert digest == open_dataset(dataset_place).digest
