"""Plots as SVG elements of a page: they follow its colours and have titles for screen readers."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

INK, GRID = "#010203", "#040506"
SERIES = ("#0a0b00", "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04")
VARIABLES = {INK: "currentColor", GRID: "var(--grid)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}
"""Colours that no plot has, and what replaces them: variables of style.css."""
DASHES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv"
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.parse_math": False,
    "legend.frameon": False,
    "legend.handlelength": 2.6,
} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
)
SIZE = (4.2, 2.9)
MOST_DAYS = 4
"""The most dates below the plot of drift."""
NAMESPACE = re.compile(r"\{[^}]*\}")


@dataclass(frozen=True)
class Plot:
    """An element `svg`, and its title."""

    title: str
    element: Markup


@dataclass(frozen=True)
class Line:
    """A curve."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: int | None = None
    """Number of its colour, dashes and marker; by default that of the line in its plot."""


def line_plot(
    title: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    is_log: bool = False,
    percent: bool = False,
) -> Plot:
    """Return curves over one another, told apart by colour, dashes and markers."""
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes(x_label, y_label)
        for number, line in enumerate(lines):
            style = (number if line.style is None else line.style) % len(SERIES)
            axes.plot(
                *(line.x, line.y),
                color=SERIES[style],
                linestyle=DASHES[style],
                marker=MARKERS[style] if len(line.x) <= 30 else "",
                markersize=3.5,
                linewidth=1.6,
                label=line.name,
            )
        if is_log and all(y > 0 for line in lines for y in line.y):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}" if _spans_little(lines) else "")
        if percent:
            axes.yaxis.set_major_formatter("{x:g} %")
        if all(float(x).is_integer() for line in lines for x in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        if len(lines) > 1 or lines[0].style is not None:
            _legend(axes, len(lines))
        return Plot(title, _element(figure, title, description))


def _spans_little(lines: Sequence[Line]) -> bool:
    """Return whether all values are within a decade, where few powers of ten are ticks."""
    values = [y for line in lines for y in line.y]
    return bool(values) and max(values) < 10 * min(values)


def reliability_plot(
    title: str,
    description: str,
    confidence: Sequence[float],
    accuracy: Sequence[float],
    intervals: Sequence[tuple[float, float]],
) -> Plot:
    """Return a reliability diagram: accuracy by confidence, with intervals, and the diagonal."""
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes("mean confidence of the bin", "accuracy of the bin")
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="calibrated")
        pairs = list(zip(accuracy, intervals, strict=True))
        below = [max(0.0, share - low) for share, (low, _) in pairs]
        above = [max(0.0, high - share) for share, (_, high) in pairs]
        axes.errorbar(
            *(confidence, accuracy),
            yerr=(below, above),
            color=SERIES[0],
            fmt="o",
            markersize=5,
            elinewidth=1.2,
            capsize=2.5,
            label="this model, 95 % interval",
        )
        axes.set_xlim(0, 1.02)
        axes.set_ylim(-0.02, 1.05)
        _legend(axes, 2)
        return Plot(title, _element(figure, title, description))


def drift_plot(
    title: str,
    description: str,
    drifts: NDArray[np.float64],
    limits: NDArray[np.float64],
    days: Sequence[str],
) -> Plot:
    """Return the drift of each scoring, oldest first, with its limit, NaN if it had none.

    The first scoring of a day has a tick with its date, as far as there is room.
    """
    places, above = np.arange(len(drifts)), drifts > limits
    with mpl.rc_context(SETTINGS):
        figure, axes = _axes("scorings, oldest first", "drift")
        axes.vlines(places, 0, drifts, color=GRID, linewidth=2)
        groups = ((~above, 0, "o", 4.0, "drift"), (above, 1, "D", 5.5, "drift above the limit"))
        for group, number, marker, size, name in groups:
            if group.any():
                (points,) = axes.plot(places[group], drifts[group], marker, label=name, ms=size)
                points.set(color=SERIES[number], clip_on=False)
        if not np.isnan(limits).all():
            ends, name = (places - 0.5, places + 0.5), "limit (--max-drift)"
            axes.hlines(limits, *ends, color=INK, linestyle="--", linewidth=1, label=name)
        axes.set_ylim(bottom=0)
        ticks = _spread([days.index(day) for day in dict.fromkeys(days)], len(days))
        axes.set_xticks(ticks, [days[place] for place in ticks])
        axes.grid(visible=False, axis="x")
        _legend(axes, 3)
        return Plot(title, _element(figure, title, description))


def _spread(places: Sequence[int], length: int) -> list[int]:
    """Return the first place, and of the others those that are not too near to the one before."""
    spread: list[int] = []
    for place in places:
        if not spread or place - spread[-1] >= length / MOST_DAYS:
            spread.append(place)
    return spread


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes, entries: int) -> None:
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(entries, 2), fontsize=9)


def _element(figure: Figure, title: str, description: str) -> Markup:
    """Return a figure as an element `svg` with a title, without names outside of the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 - written by matplotlib
    prefix = "p" + re.sub(r"\W+", "-", title.lower())
    _make_plain(root, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-labelledby": f"{prefix}-title {prefix}-text"}
    texts = []
    for tag, text in (("title", title), ("desc", description)):
        element = ET.Element(tag, {"id": f"{prefix}-{'text' if tag == 'desc' else tag}"})
        element.text = text
        texts.append(element)
    root[:0] = texts
    source = ET.tostring(root, encoding="unicode")
    for colour, variable in VARIABLES.items():
        source = source.replace(colour, variable)
    return Markup(source)  # noqa: S704 - ElementTree escapes every text


def _make_plain(root: ET.Element, prefix: str) -> None:
    """Remove namespaces, metadata and fonts; make identifiers unique in the page."""
    used = set()
    for parent in root.iter():
        for child in list(parent):
            tag = NAMESPACE.sub("", child.tag)
            if tag in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = NAMESPACE.sub("", element.tag)
        plain = {NAMESPACE.sub("", name): value for name, value in element.attrib.items()}
        plain = {name: _local(name, value, prefix) for name, value in plain.items()}
        used |= set(re.findall(r"#([\w-]+)", " ".join(plain.values())))
        element.attrib.clear()
        element.attrib.update(plain)
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)


def _local(name: str, value: str, prefix: str) -> str:
    """Return an attribute with the identifiers of the page, and without the name of a font."""
    if name == "id":
        return f"{prefix}-{value}"
    if name == "href":
        return value.replace("#", f"#{prefix}-", 1)
    if name == "style":
        return re.sub(r"font: ([\d.]+)px [^;]*", r"font-size: \1px", value)
    return re.sub(r"url\(#", f"url(#{prefix}-", value)
