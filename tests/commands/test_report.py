"""The report: its numbers, hostile names, holes, several runs, and the page in a browser."""

import json
import re
import shutil
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from jobs.commands.report.examine import examine, wilson_interval
from storage.dataset import open_dataset
from storage.errors import QualityGateError
from storage.ledger import Ledger
from storage.places import open_location
from storage.runs import open_run
from storage.scores import open_scores, scoring_homes
from tests.commands.browser import chromium, visit
from tests.commands.conftest import SMALL, Call
from tests.commands.process import assert_refused
from tests.commands.sets import TEST_ROWS, TRAIN_ROWS, write_kaggle

VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """A parsed page: its texts, elements and identifiers; fails for elements left open."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.pieces: list[str] = []
        self.source = path.read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of each element with this tag."""
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def scored(dataset: Path, run: Path, call: Call) -> Path:
    """The run, after its test and training splits have been scored."""
    assert 0 == call("score").code
    assert 0 == call("score", "--split", "train").code
    return run


def report(call: Call, *arguments: object) -> Page:
    """Write a report and return its page."""
    ended = call("report", *arguments)
    assert (0, "") == (ended.code, ended.err), ended
    assert re.fullmatch(r"Report in report\.html, [\d.]+ kB\n", ended.out)
    return Page(Path("report.html"))


@pytest.mark.slow
def test_numbers(scored: Path, call: Call) -> None:
    """Accuracy, calibration, coverage and confusions are those of the scores and labels."""
    page = report(call, "runs/mnist")
    location = open_location("runs/mnist/scores")
    [home] = [name for name in scoring_homes(location) if name.startswith("test")]
    scores, data = open_scores(location.child(home)), open_dataset(open_location("data/mnist"))
    probabilities, predicted = scores.read_chunk(0)
    block = data.split("test").read_chunk(0)
    assert block.targets is not None
    truth, confidence = block.targets.argmax(axis=1), probabilities.max(axis=1)
    hits = predicted == truth
    assert len(hits) == TEST_ROWS
    low, high = wilson_interval(int(hits.sum()), TEST_ROWS)
    assert f"Accuracy on test {hits.mean():.2%}".replace("%", " %") in page.text
    assert f"95 % interval {100 * low:.2f} % to {100 * high:.2f} %" in page.text
    bins = np.minimum((confidence * 15).astype(int), 14)
    error = sum(
        abs(hits[bins == number].mean() - confidence[bins == number].mean())
        * (bins == number).mean()
        for number in set(bins.tolist())
    )
    assert f"expected calibration error is {error:.4f}." in page.text
    for threshold, rows, wrong in examine(data, scores).coverage():
        decided = confidence.astype(np.float64) >= threshold
        assert (rows, wrong) == (decided.sum(), (decided & ~hits).sum())
        if threshold == 0.5:
            shown = f"0.5 {rows / TEST_ROWS:.2%} {rows} {wrong}".replace("%", " %")
            assert shown in page.text
    confusions = Counter(zip(truth[~hits].tolist(), predicted[~hits].tolist(), strict=True))
    for true, answer in re.findall(r"(\d) classified as (\d) : (?=\d+ row)", page.text):
        count = confusions[int(true), int(answer)]
        assert f"{true} classified as {answer} : {count} row" in page.text
    of_truth = np.where(hits, 2.0, probabilities[np.arange(TEST_ROWS), truth])
    worst = int(of_truth.argmin())
    answer = f"labelled {truth[worst]}, classified as {predicted[worst]}"
    alts = [attributes["alt"] for attributes in page.all("img")]
    assert f"Row {worst}: {answer}" in alts
    assert f"of {TRAIN_ROWS} rows, the most confident first" in page.text


@pytest.mark.parametrize(("hits", "rows"), [(9823, 10_000), (0, 10), (10, 10), (1, 3)])
def test_wilson_interval(hits: int, rows: int) -> None:
    """The interval is SciPy's."""
    expected = binomtest(hits, rows).proportion_ci(method="wilson")
    assert wilson_interval(hits, rows) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_page_stands_alone(scored: Path, call: Call) -> None:
    """No address, no script; headings in order, texts for all pictures, captions for tables."""
    page = report(call, "runs/mnist")
    assert not re.search(
        r"https?:|//|url\((?!#)", re.sub(r"data:image/png;base64,[\w+/=]*", "", page.source)
    )
    assert page.all("script") == []
    assert len(page.source) < 3_000_000
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    steps = [after - before for before, after in pairwise(headings)]
    assert max(steps) == 1
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all("scope" in attributes for attributes in page.all("th"))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        named = (attributes.get("aria-labelledby") or "").split()
        link = attributes.get("href") or ""
        assert {*named, *([link[1:]] if link.startswith("#") else [])} <= set(identifiers)
    drawn = [attributes for attributes in page.all("svg") if attributes["role"] == "img"]
    assert len(drawn) == len(page.all("svg")) == page.source.count("<title") - 1


HOSTILE = "<script>alert(1)</script>\"'&{{ 7 * 7 }}$x$"


@pytest.mark.slow
def test_hostile_names(here: Path, call: Call) -> None:
    """Names of classes, of directories and of files are shown as they are."""
    names = Path("names.txt")
    names.write_text("\n".join([HOSTILE, *map(str, range(1, 10))]) + "\n")
    ingest = call("ingest", "synthetic:300,60", "--class-names", names, "--out", "data")
    assert 0 == ingest.code, ingest
    place = "<img src=x>"
    trained = call("train", *SMALL, "--epochs", 1, "--dataset", "data", "--run", place)
    assert 0 == trained.code, trained
    assert 0 == call("score", "--run", place).code
    page = report(call, place)
    assert page.all("script") == []
    assert "x" not in [attributes["src"] for attributes in page.all("img")]
    assert f"Report on {place}" in page.text
    assert HOSTILE in page.text
    second = call(
        "train", *SMALL, "--epochs", 1, "--seed", 1, "--dataset", "data", "--run", HOSTILE
    )
    assert 0 == second.code, second
    compared = report(call, place, HOSTILE)
    assert compared.all("script") == []
    assert HOSTILE in compared.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "words", "still"),
    [
        ("data/mnist", "There is no dataset at", "Confusion matrix"),
        ("data/mnist/test/inputs/c.0.0", "Chunk 0", "What ingest found"),
        ("runs/mnist/scores", "The test split has not been scored", "Source files"),
        ("runs/mnist/checkpoints", "no checkpoint", "Table of the epochs"),
        ("runs/mnist/scores/ledger.jsonl", "ledger.jsonl is missing", "Worst mistakes"),
        ("runs/mnist/metrics.jsonl", "No epoch is finished yet", "Worst mistakes"),
    ],
)
def test_holes(scored: Path, call: Call, damage: str, words: str, still: str) -> None:
    """What is missing leaves a note that says so; the rest is shown."""
    path = Path(damage)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    page = report(call, "runs/mnist")
    assert "Not shown." in page.text
    assert "Missing here:" in page.text
    assert words in page.text
    assert still in page.text


@pytest.mark.slow
def test_a_failed_training(run: Path, call: Call) -> None:
    """A training that diverged is not called stopped; its reason is shown."""
    record = open_run(open_location(run))
    record.reconfigured(record.configuration | {"epochs": 7})
    assert "2 of 7 epochs. It is running or was stopped." in report(call, "runs/mnist").text
    record.record_failure(QualityGateError("Training diverged: the loss of step 2 is nan."))
    text = report(call, "runs/mnist").text
    assert "2 of 7 epochs. Training diverged: the loss of step 2 is nan." in text


def test_damaged_pieces(scored: Path, call: Call) -> None:
    """A damaged chunk of the scores and a damaged ledger are reported in their sections."""
    [chunk] = Path("runs/mnist/scores").glob("test-*/probabilities/c.0.0")
    chunk.write_bytes(b"x" * 100)
    ledger = Path("runs/mnist/scores/ledger.jsonl")
    ledger.write_text(ledger.read_text().replace('"rows"', '"row"'))
    text = report(call, "runs/mnist").text
    assert re.search(r"Not shown\. Chunk 0 in \S*probabilities", text)
    assert re.search(r"Not shown\. \S*ledger\.jsonl line 1", text)
    assert "Quality of each class" in text


@pytest.mark.slow
def test_no_labels(here: Path, call: Call) -> None:
    """For a test split without labels, the report shows what there is: the least certain rows."""
    write_kaggle(Path("kaggle"), 300, 40)
    assert 0 == call("ingest", "kaggle", "--out", "data").code
    train = call("train", *SMALL, "--epochs", 1, "--dataset", "data", "--run", "runs/it")
    assert 0 == train.code, train
    assert 0 == call("score", "--run", "runs/it").code
    text = report(call, "runs/it").text
    assert "The test split has no labels." in text
    assert "Most uncertain" in text
    assert re.search(r"At 0\.99 confidence \d+ % are decided\.", text)
    assert "Suspicious labels need the scores of the training split. Run `pipeline score" in text


@pytest.mark.slow
def test_a_night_with_bad_files(scored: Path, call: Call) -> None:
    """Failed files, missed gates and drift are shown, and named at the top."""
    Path("inbox").mkdir()
    Path("inbox/torn.npy").write_bytes(b"not an array")
    ended = call("score", "--inbox", "inbox", "--settle", 0)
    assert ended.code == 3, ended
    assert call("score", "--min-accuracy", "1").code == 5
    text = report(call, "runs/mnist").text
    assert "2 of 3 scorings failed or missed a gate." in text
    assert "torn.npy: not scored. " in text
    assert "test: accuracy below 100.00 %" in text


def test_drift(scored: Path, call: Call) -> None:
    """A scoring's drift is a column of the table and a point of the plot, beside its limit.

    What it looks like is a line at the top.
    """
    ledger = Ledger(open_location("runs/mnist"))
    text = "Brightness 6.8 from training: inverted images?"
    for name, drift, passed in (("dawn.npy", 2.5, True), ("noon.npy", 6.8, False)):
        gate = {"gate": "max-drift", "limit": 3.0, "found": drift, "passed": passed}
        entry = ledger.entries()[0] | {"file": name, "drift": drift, "gates": [gate]}
        entry |= {"result": f"scores/{name}", "exit": 0 if passed else 5}
        entry |= {"drift_text": None if passed else text}
        assert ledger.record(entry, lambda _: False, "")
    page = report(call, "runs/mnist")
    assert re.search(rf"noon\.npy: drift above 3\. .*{re.escape(text)}", page.text)
    assert re.search(r"noon\.npy drift above 3 6\.8 [\d.]+ % 60 ", page.text)
    assert re.search(r"dawn\.npy ok 2\.5 [\d.]+ % 60 ", page.text)
    described = "The largest of 4 is 6.8, of noon.npy; 1 above the limit."
    assert f"Drift of each scoring {described}" in page.text
    assert "limit (--max-drift)" in page.text


@pytest.mark.slow
def test_the_run_before(scored: Path, call: Call) -> None:
    """Accuracy is compared with the run beside it that was written before."""
    assert "Against the run before" not in report(call, "runs/mnist").text
    first = json.loads(Path("runs/mnist/metrics.jsonl").read_text().splitlines()[-1])
    assert 0 == call("train", *SMALL, "--epochs", 3, "--run", "runs/next").code
    assert 0 == call("score", "--run", "runs/next").code
    second = json.loads(Path("runs/next/metrics.jsonl").read_text().splitlines()[-1])
    accuracies = [line["evaluation"]["test"]["accuracy"] for line in (first, second)]
    text = report(call, "runs/next").text
    points = f"Against the run before {100 * (accuracies[1] - accuracies[0]):+.2f} points"
    assert f"{points} runs/mnist : {100 * accuracies[0]:.2f} %" in text


@pytest.mark.slow
def test_several_runs(scored: Path, call: Call) -> None:
    """Several runs are compared: results, curves, and settings that differ, no others."""
    assert 0 == call("train", *SMALL, "--epochs", 3, "--run", "runs/next").code
    page = report(call, "runs/mnist", "runs/next")
    assert re.search(r"runs/mnist test [\d.]+ % .* 2 of 2", page.text)
    assert "epochs 2 3" in page.text
    assert "batch_size" not in page.text
    titles = ("Accuracy on training rows", "Cross-entropy on test rows")
    assert all(title in page.text for title in titles)
    assert [svg["role"] for svg in page.all("svg")] == ["img"] * 4


@pytest.mark.slow
def test_in_a_store(home: str, call: Call) -> None:
    """A run and its dataset may be in an object store; the file is local."""
    assert 0 == call("score", "--run", f"{home}/run").code
    text = report(call, f"{home}/run").text
    assert "Worst mistakes" in text
    assert f"Report on {home}/run" in text
    assert "Missing here" not in text


def test_refusals(run: Path, call: Call) -> None:
    """A run that cannot be read is exit code 3; another name of the file or a twin, 2."""
    assert_refused(call("report", "runs/none"), 3, "There is no run at runs/none")
    assert_refused(call("report", "runs/mnist", "--out", "x.pdf"), 2, "ends in .html")
    assert_refused(call("report", "runs/mnist", "runs/mnist"), 2, "named twice")
    (run / "run.json").write_text("{}")
    assert_refused(call("report", "runs/mnist"), 3, "run.json")
    assert not Path("report.html").exists()


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_missing_extra(
    run: Path, call: Call, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one of its libraries, the command names the extra."""
    for module in list(sys.modules):
        if re.match(r"jobs\.commands\.report(\.|$)", module):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, library, None)
    assert_refused(call("report", "runs/mnist"), 2, "A report", library, "'.[plot]'")


def test_open(run: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """--open shows the file in the browser; without one it says so."""
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: bool(opened.append(url)))
    ended = call("report", "runs/mnist", "--open")
    assert ended.code == 0
    assert opened == [Path("report.html").absolute().as_uri()]
    assert "No browser could be started; open report.html yourself." in ended.err


@pytest.mark.slow
def test_in_a_browser(scored: Path, call: Call, tmp_path: Path) -> None:
    """At 400, 1,280 and 1,600 pixels, a page makes no request, logs nothing and fits its width.

    Screen readers get a name for every image and table, and the keyboard reaches what scrolls.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not on PATH")
    assert 0 == call("train", *SMALL, "--epochs", 3, "--run", "runs/next").code
    for out, runs in {"one": ["runs/mnist"], "two": ["runs/mnist", "runs/next"]}.items():
        assert 0 == call("report", *runs, "--out", f"{out}.html").code
    reach = "[...document.querySelectorAll('.scroll')].every(element => element.tabIndex === 0)"
    overflow = "document.documentElement.scrollWidth - window.innerWidth"
    with chromium(program, tmp_path / "profile") as address:
        for out in ("one", "two"):
            page = Path(f"{out}.html")
            for width in (400, 1280, 1600):
                seen = visit(address, page, width, reach, overflow)
                assert page.absolute().as_uri() in seen.requests
                others = [url for url in seen.requests if not url.startswith("data:")]
                assert len(others) == 1, others
                assert seen.messages == []
                assert seen.values == [True, 0]
                names = {
                    role: [
                        node.get("name", {}).get("value")
                        for node in seen.nodes
                        if not node["ignored"] and node["role"]["value"] == role
                    ]
                    for role in ("image", "table", "region")
                }
                assert all(names.values()), names
                assert all(all(values) for values in names.values()), names
