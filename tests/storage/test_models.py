"""Model names: their holders and history."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import BadDataError, UsageError
from storage.location import Location
from storage.models import (
    HeldRun,
    Holder,
    ModelName,
    check_model_name,
    held_name,
    names,
    open_name,
)
from storage.places import open_location, reference_to, referenced

HOLDER = Holder("../run", "id", "000001-000000", "ab" * 32, "2026-01-01T00:00:00", 0.5, "test of d")


@pytest.fixture
def place(tmp_path: Path) -> Location:
    """Return a directory of names that does not exist yet."""
    return open_location(tmp_path / "models")


def test_round_trip(place: Location) -> None:
    """A name is read back as it was saved."""
    other = replace(HOLDER, accuracy=None, judged_by=None)
    saved = ModelName(place, "champion", (other, HOLDER), ({"event": "promoted"},))
    saved.save()
    assert saved == open_name(place, "champion")
    assert (saved, HOLDER) == held_name(place, "champion")
    assert ["champion"] == names(place)


def test_a_name_of_an_earlier_release(place: Location) -> None:
    """A holder without a field for shifts has none; a value of another type is refused."""
    document = {name: value for name, value in HOLDER.to_json().items() if name != "average_shifts"}
    assert HOLDER == Holder.from_json(document, "champion.json")
    later = replace(HOLDER, average_shifts=2)
    assert later == Holder.from_json(later.to_json(), "champion.json")
    for value in (None, "1", 1.0):
        with pytest.raises(BadDataError, match="for its 'average_shifts'; expected a int"):
            Holder.from_json(HOLDER.to_json() | {"average_shifts": value}, "champion.json")


def test_an_average_has_a_format_of_its_own(place: Location) -> None:
    """Earlier releases, which would drop the shifts, refuse a name with an average."""
    averages = (replace(HOLDER, average_shifts=1), replace(HOLDER, checkpoint="a,b"))
    histories = {(): 1, (HOLDER,): 1} | {(average, HOLDER): 2 for average in averages}
    for holders, version in histories.items():
        ModelName(place, "champion", holders).save()
        document = json.loads((place.path / "champion.json").read_text())
        assert version == document["format_version"]
        assert holders == open_name(place, "champion").holders


def test_a_name_without_a_holder(place: Location) -> None:
    """A name without a holder is empty, and an error if a model is needed."""
    assert ModelName(place, "champion") == open_name(place, "champion")
    with pytest.raises(UsageError, match=r"No model is called 'champion'.*pipeline promote"):
        held_name(place, "champion")
    assert not place.exists()


def test_damage(place: Location) -> None:
    """A flipped bit is an error that names the document."""
    ModelName(place, "champion", (HOLDER,)).save()
    path = place.path / "champion.json"
    path.write_bytes(path.read_bytes().replace(b"000001", b"000002"))
    with pytest.raises(BadDataError, match=r"champion\.json is damaged"):
        open_name(place, "champion")


def test_renamed(place: Location) -> None:
    """A document that was renamed is refused."""
    ModelName(place, "challenger", (HOLDER,)).save()
    (place.path / "challenger.json").rename(place.path / "champion.json")
    with pytest.raises(BadDataError, match="'challenger': the file was renamed"):
        open_name(place, "champion")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 65, "-x"])
def test_no_name(name: str) -> None:
    """A name that is not a plain file name is refused."""
    with pytest.raises(UsageError, match="is not a valid model name"):
        check_model_name(name)


def test_several_runs(place: Location) -> None:
    """The runs of an average are recorded in a version that earlier releases refuse."""
    runs = (HeldRun("../a", "1"), HeldRun("../b", "2"))
    average = replace(HOLDER, checkpoint="000001-000000,000002-000000", runs=runs)
    for holder, version in ((HOLDER, 1), (replace(HOLDER, average_shifts=1), 2), (average, 3)):
        ModelName(place, "champion", (holder,)).save()
        document = json.loads((place.path / "champion.json").read_text())
        assert version == document["format_version"]
        assert ("runs" in document["holders"][0]) == (version == 3)
        assert holder == open_name(place, "champion").holder
    wrong = average.to_json() | {"checkpoint": "000001-000000"}
    with pytest.raises(BadDataError, match="has 2 runs for checkpoint 000001-000000"):
        Holder.from_json(wrong, "champion.json")


def test_moved_together(tmp_path: Path) -> None:
    """A run is found after names and runs were moved together."""
    before = tmp_path / "before"
    (before / "runs" / "r").mkdir(parents=True)
    place = open_location(before / "models")
    reference = reference_to(open_location(before / "runs" / "r"), place)
    ModelName(place, "champion", (replace(HOLDER, run=reference),)).save()
    before.rename(tmp_path / "after")
    model, holder = held_name(open_location(tmp_path / "after" / "models"), "champion")
    assert str(tmp_path / "after" / "runs" / "r") == model.run_place(holder)


def test_names_without_a_holder_are_not_offered(place: Location) -> None:
    """A name without a holder is not offered as a known name."""
    ModelName(place, "champion").save()
    ModelName(place, "old", (HOLDER,)).save()
    place.put("damaged.json", b"{")
    with pytest.raises(UsageError, match="which has old"):
        held_name(place, "champion")


def test_a_reference_through_a_link(tmp_path: Path) -> None:
    """If the directory of the names is a link, `..` starts from its target."""
    run = open_location(tmp_path / "real" / "run")
    (tmp_path / "real" / "models").mkdir(parents=True)
    (tmp_path / "models").symlink_to(tmp_path / "real" / "models")
    place = open_location(tmp_path / "models")
    assert str(run) == referenced(reference_to(run, place), place)
