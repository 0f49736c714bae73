"""`score --review`: the least certain rows, least certain first."""

import base64
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from jobs.scoring import review
from jobs.scoring.config import ScoreConfig
from jobs.scoring.job import score
from jobs.scoring.result import ScoreResult
from storage.dataset import open_dataset
from storage.errors import MissingExtraError, UsageError
from storage.places import open_location
from tests.jobs.inboxes import Events, put_images, score_inbox


def reviewed(run: Path, digits: Path, file: Path, **options: Any) -> ScoreResult:
    return score(run=run, dataset=digits, split="test", review=file, **options)


def csv_rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as text:
        return list(csv.DictReader(text))


def probabilities(result: ScoreResult) -> np.ndarray:
    scores = result.scores
    return np.concatenate([scores.read_chunk(number)[0] for number in range(scores.schema.chunks)])


class Page(HTMLParser):
    """The tags and the texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_csv_has_the_uncertain_rows_in_order(run: Path, digits: Path, tmp_path: Path) -> None:
    """Exactly the rows below the limit, least certain first, with three classes and the truth."""
    result = reviewed(run, digits, tmp_path / "review.csv", below=0.25)
    shares = probabilities(result)
    largest = shares.max(axis=1)
    rows = csv_rows(tmp_path / "review.csv")
    assert 0 < len(rows) == np.sum(largest < 0.25) < len(largest)
    numbers = [int(row["row"]) for row in rows]
    assert numbers == sorted(np.flatnonzero(largest < 0.25).tolist(), key=lambda row: largest[row])
    names = result.scores.schema.class_names
    targets = open_dataset(open_location(digits)).split("test").read_chunk(0).targets
    assert targets is not None
    for row, line in zip(numbers, rows, strict=True):
        best = np.argsort(-shares[row], kind="stable")[:3]
        assert [names[index] for index in best] == [
            line["predicted"],
            line["second"],
            line["third"],
        ]
        columns = ("probability", "second_probability", "third_probability")
        assert [np.float32(line[name]) for name in columns] == shares[row][best].tolist()
        assert "test" == line["file"]
        if row < len(targets):
            assert names[int(targets[row].argmax())] == line["true"]


def test_at_most_so_many_rows(
    run: Path, digits: Path, tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A longer list is cut to the least certain rows, and the event has both numbers."""
    reviewed(run, digits, tmp_path / "all.csv", below=1)
    monkeypatch.setattr(review, "MOST_ROWS", {"csv": 3, "html": 2})
    reviewed(run, digits, tmp_path / "few.csv", below=1)
    every = csv_rows(tmp_path / "all.csv")
    assert every[:3] == csv_rows(tmp_path / "few.csv")
    last = events.named("review")[-1]
    assert (3, len(every)) == (last["rows"], last["uncertain"])
    reviewed(run, digits, tmp_path / "few.html", below=1)
    assert f"The 2 least certain of {len(every)} rows" in (tmp_path / "few.html").read_text()


def test_page_shows_the_images(run: Path, digits: Path, tmp_path: Path) -> None:
    """The page has the stored image of each row, needs no other file, and has no script."""
    reviewed(run, digits, tmp_path / "review.html", below=0.25)
    reviewed(run, digits, tmp_path / "review.csv", below=0.25)
    page = Page((tmp_path / "review.html").read_text())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    rows = csv_rows(tmp_path / "review.csv")
    assert [f"Image of row {row['row']}" for row in rows] == [image["alt"] for image in images]
    head, _, data = str(images[0]["src"]).partition(",")
    assert "data:image/png;base64" == head
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    dataset = open_dataset(open_location(digits))
    split, row = dataset.split("test"), int(rows[0]["row"])
    chunk = split.read_chunk(row // split.schema.chunk_rows)
    stored = chunk.inputs[row % split.schema.chunk_rows, 1:].reshape(dataset.image_shape)
    assert (drawn == 255 - stored).all()  # dark ink on white, as in a report
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe"}
    assert not re.search(r"https?://", " ".join(page.texts))


def test_inbox(run: Path, inbox: Path, tmp_path: Path, events: Events) -> None:
    """Each file has its review, named after it; hostile names are escaped; it is written once."""
    put_images(inbox / "a <b>&c-images-idx3-ubyte", seed=1)
    put_images(inbox / "under" / "x-images-idx3-ubyte", seed=2, labelled=True)
    place = tmp_path / "reviews"
    score_inbox(run, inbox, review=f"{place}/{{file}}-{{home}}.html", below=1.0)
    names = sorted(path.name for path in place.iterdir())
    assert [name.partition("-inbox-")[0] for name in names] == [
        "a-b-c-images-idx3-ubyte",
        "under-x-images-idx3-ubyte",
    ]
    page = Page((place / names[0]).read_text())
    assert "Rows to review: a <b>&c-images-idx3-ubyte" in page.texts
    assert not {"b", "script"} & {tag for tag, _ in page.tags}
    assert 2 == len(events.named("review"))
    again = score_inbox(run, inbox, review=f"{place}/{{file}}-{{home}}.html", below=1.0)
    assert 2 == len(again.results)
    assert 2 == len(events.named("review"))
    score_inbox(run, inbox, review=f"{place}/{{home}}.csv", below=1.0)
    by_file = {row["file"]: row for path in place.glob("*.csv") for row in csv_rows(path)}
    assert {"a <b>&c-images-idx3-ubyte", "under/x-images-idx3-ubyte"} == set(by_file)
    assert "" == by_file["a <b>&c-images-idx3-ubyte"]["true"]
    assert "" != by_file["under/x-images-idx3-ubyte"]["true"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"below": 0.5}, "--below requires --review"),
        ({"review": "r.csv", "below": 0.0}, "--below is 0.0"),
        ({"review": "r.csv", "below": float("nan")}, "--below is nan"),
        ({"review": "r.pdf"}, "ends in .csv or .html"),
        ({"review": "r.csv", "inbox": "in"}, "must contain {home}"),
        ({"review": "{file}.csv"}, "without --inbox use {split}"),
        ({"review": "{homes}.csv"}, "Did you mean '{home}'?"),
        ({"review": "r.csv", "splits": ("test", "train")}, "several splits"),
    ],
)
def test_invalid_options(options: dict[str, Any], words: str) -> None:
    """Options that cannot work are refused before any work."""
    with pytest.raises(UsageError, match=re.escape(words)):
        ScoreConfig(**options)


def test_predictions_and_review_in_one_file(run: Path, digits: Path, tmp_path: Path) -> None:
    """Two names of one file are refused, so that the review does not replace the predictions."""
    (tmp_path / "link.csv").symlink_to("test.csv")
    (tmp_path / "test.csv").touch()
    for out in ("test.csv", "link.csv", "./test.csv", "{split}.csv"):
        with pytest.raises(UsageError, match="the same file"):
            reviewed(run, digits, tmp_path / "test.csv", out=f"{tmp_path}/{out}")


def test_missing_library(run: Path, digits: Path, tmp_path: Path) -> None:
    """Without Pillow, only the page is refused, before any work."""
    with mock.patch.object(review, "find_spec", return_value=None):
        with pytest.raises(MissingExtraError, match="'images'"):
            reviewed(run, digits, tmp_path / "review.html")
        reviewed(run, digits, tmp_path / "review.csv")
    assert not (tmp_path / "review.html").exists()
