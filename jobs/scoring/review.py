"""The rows that a person should look at: the least certain ones, as CSV or as a page of HTML.

A first pass over the scores chooses the rows, a second one reads the chunks that contain them, so
memory is bounded by a chunk and by `MOST_ROWS` rows of text or pictures.
"""

import csv
import html
import io
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from jobs.output import one_line
from jobs.scoring.images import Pixels, data_uri, pixels_of
from jobs.scoring.inbox import real_place
from jobs.scoring.outputs import check_output, labels_of
from storage.dataset import Dataset
from storage.errors import MissingExtraError, UsageError
from storage.location import Location
from storage.scores import Scores, ScoresSchema

MOST_ROWS = {"csv": 10_000, "html": 1_000}
"""The most rows of a file, by its format: the least certain ones."""
CLASSES = 3
"""Classes that are shown for each row, most probable first."""
SHOWN_SIDE = 84
"""Least width and height of a picture on the page, in pixels."""
COLUMNS = (
    *("file", "row", "predicted", "probability", "second", "second_probability"),
    *("third", "third_probability", "true"),
)
STYLE = f"""\
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 60rem;
  padding: 0 1rem; color-scheme: light dark; }}
table {{ border-collapse: collapse; width: 100%; }}
th, td {{ border-bottom: 1px solid #8884; padding: 0.3rem 0.6rem; text-align: left; }}
td.number {{ text-align: right; font-variant-numeric: tabular-nums; }}
img {{ display: block; image-rendering: pixelated; min-width: {SHOWN_SIDE}px; }}
"""
"""Without a script, and readable on a narrow or a dark screen."""


@dataclass(frozen=True)
class ReviewRow:
    """A row to look at."""

    row: int
    classes: tuple[tuple[str, float], ...]
    """The most probable classes with their probabilities, largest first."""
    true: str
    """The true class; empty without labels."""
    pixels: Pixels


def check_review(file: Location, output: Location | None) -> None:
    """Raise `UsageError` for a review that lacks a library, or can never be written there.

    `output` is the file of the predictions.
    """
    if str(file).endswith(".html") and find_spec("PIL") is None:
        raise MissingExtraError(f"--review {str(file)!r}", "pillow", "images")
    check_output(file, "--review")
    if output is not None and real_place(file) == real_place(output):
        raise UsageError(f"--review and --out are the same file, {file}; give different files.")


def write_review(
    file: Location, scores: Scores, dataset: Dataset, below: float, source: str | None
) -> tuple[int, int]:
    """Write the rows whose largest probability is less than `below`, least certain first.

    `source` is the inbox's file; without it, the split is named. Returns the number of rows
    written, and of all such rows.
    """
    form = str(file).rpartition(".")[2]
    chosen, uncertain = _least_certain(scores, below, MOST_ROWS[form])
    rows = _rows(scores, dataset, chosen)
    name = source or scores.schema.split
    text = io.StringIO()
    if form == "csv":
        _write_csv(text, rows, name)
    else:
        _write_html(text, rows, name, _summary(scores.schema, below, len(chosen), uncertain))
    check_output(file, "--review").write_object(text.getvalue().encode())
    return len(chosen), uncertain


def _least_certain(scores: Scores, below: float, most: int) -> tuple[NDArray[np.int64], int]:
    """Return the numbers of the least certain rows, in that order, and how many are uncertain."""
    rows, certainty, uncertain = np.empty(0, np.int64), np.empty(0, np.float32), 0
    for number in range(scores.schema.chunks):
        start, _ = scores.schema.chunk_bounds(number)
        largest = scores.read_chunk(number)[0].max(axis=1)
        below_limit = np.flatnonzero(largest < below)
        uncertain += len(below_limit)
        rows = np.concatenate([rows, start + below_limit])
        certainty = np.concatenate([certainty, largest[below_limit]])
        order = np.argsort(certainty, kind="stable")[:most]
        rows, certainty = rows[order], certainty[order]
    return rows, uncertain


def _rows(scores: Scores, dataset: Dataset, chosen: NDArray[np.int64]) -> list[ReviewRow]:
    """Return the chosen rows, in their order."""
    schema, labels = scores.schema, labels_of(dataset, scores.schema)
    split = dataset.split(schema.split)
    rows: dict[int, ReviewRow] = {}
    for number in np.unique(chosen // schema.chunk_rows).tolist():
        start, stop = schema.chunk_bounds(number)
        probabilities, _ = scores.read_chunk(number)
        inputs = split.read_chunk(number).inputs
        true = None if labels is None else labels.read_chunk(number)
        for row in chosen[(chosen >= start) & (chosen < stop)].tolist():
            shares = probabilities[row - start]
            best = np.argsort(-shares, kind="stable")[:CLASSES].tolist()
            rows[row] = ReviewRow(
                row,
                tuple((schema.class_names[index], float(shares[index])) for index in best),
                "" if true is None else schema.class_names[true[row - start]],
                pixels_of(inputs[row - start], dataset),
            )
    return [rows[row] for row in chosen.tolist()]


def _write_csv(text: io.StringIO, rows: list[ReviewRow], name: str) -> None:
    file = csv.writer(text, lineterminator="\n")
    file.writerow(COLUMNS)
    for row in rows:
        classes = [cell for label, share in row.classes for cell in (label, f"{share:.9g}")]
        classes += [""] * (2 * CLASSES - len(classes))
        file.writerow([name, row.row, *classes, row.true])


def _summary(schema: ScoresSchema, below: float, shown: int, uncertain: int) -> str:
    which = f"{uncertain:,} of {schema.rows:,} rows have"
    if shown < uncertain:
        which = f"The {shown:,} least certain of {uncertain:,} rows, of {schema.rows:,}, that have"
    return (
        f"{which} a largest probability below {below:g}, by model {schema.model_digest[:12]}. "
        "The least certain rows come first."
    )


def _write_html(text: io.StringIO, rows: list[ReviewRow], name: str, summary: str) -> None:
    title = html.escape(f"Rows to review: {one_line(name)}")
    text.write(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<p>{html.escape(summary)}</p>\n<table>\n<thead>\n<tr><th>row</th><th>image</th>"
        "<th>predicted</th><th>second</th><th>third</th><th>true</th></tr>\n</thead>\n<tbody>\n"
    )
    text.writelines(map(_html_row, rows))
    text.write("</tbody>\n</table>\n</body>\n</html>\n")


def _html_row(row: ReviewRow) -> str:
    cells = [f"{one_line(label)} {share:.4f}" for label, share in row.classes]
    cells += [""] * (CLASSES - len(cells)) + [one_line(row.true)]
    texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    picture = f'<img src="{data_uri(row.pixels)}" alt="Image of row {row.row}">'
    return f'<tr><td class="number">{row.row:,}</td><td>{picture}</td>{texts}</tr>\n'
