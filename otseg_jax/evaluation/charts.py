"""Charts of a run and of an evaluation: a PNG file, or SVG inside of a page."""

import io
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from otseg_jax import paths
from otseg_jax.evaluation import figures
from otseg_jax.evaluation.offsets import Curve

LOGGER = logging.getLogger(__name__)

LOG = "metrics.jsonl"  # of a run
CURVES = "curves.png"

# title and unit of each chart of a run, and how the names of the scalars in it end
_CHARTS = (
    ("loss", "", ("loss", "focal", "dice")),
    ("learning rate", "", ("learning_rate",)),
    ("mIoU", "%", ("miou_seen", "miou_unseen", "hiou")),
)
_AXIS, _GRID = "#b9bdc6", "#e8eaee"
SEEN, UNSEEN, BOTH = "#3563b8", "#d9622b", "#2f9163"
_LINES = (SEEN, UNSEEN, BOTH, "#8a4fae", "#b8911f", "#5a6270", "#c2417c", "#3aa6b0")
# text stays text, and the same chart is the same file
_SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "otseg_jax", "font.family": "sans-serif"}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class Chart(NamedTuple):
    """Lines over one axis."""

    title: str
    across: str  # what the axis to the right is of
    up: str
    lines: Sequence[Line]
    ends: tuple[float, float | None] | None = None  # of the upright axis
    mark: tuple[float, str] | None = None  # an upright line, and its name
    filled: bool = False  # below the lines


def curves(path: str | Path, metrics_jsonl: str | Path) -> None:
    """Write the charts of a run as one PNG.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: the log holds nothing to draw.
    """
    charts = of_run(metrics_jsonl)
    if not charts:
        wanted = ", ".join(ending for _, _, endings in _CHARTS for ending in endings)
        raise ValueError(
            f"{metrics_jsonl}: nothing in it can be drawn; wanted a name that ends in one of "
            f"{wanted}"
        )
    figure = Figure(figsize=(5.0 * len(charts), 3.6), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(charts), squeeze=False)
    for axes, chart in zip(grid[0], charts, strict=True):
        _draw(axes, chart)
    figures.save(figure, path)


def svg(chart: Chart) -> str:
    """A chart as an SVG element; its text has the colour of the text around it."""
    with mpl.rc_context(_SVG):
        figure = Figure(figsize=(4.6, 3.3), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        _draw(axes, chart)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata=_NO_METADATA)
    text = drawn.getvalue()
    text = text[text.index("<svg") :]

    def kept(found: re.Match[str]) -> str:
        # ids would repeat in a page of several charts; those that are pointed at are hashes
        return found[0] if f"#{found[1]}" in text else ""

    return re.sub(r' id="([^"]+)"', kept, text)


def of_run(metrics_jsonl: str | Path) -> list[Chart]:
    """Losses, learning rate, and mIoU of the seen and unseen halves, by step.

    The log has on each line a JSON object with a "step" and scalars; nulls and names that are in
    none of `_CHARTS` are left out. An interrupted run may leave a line cut short, which is skipped,
    and repeat steps when it resumes: the later value holds.

    Raises:
        FileNotFoundError: there is no such log.
    """
    series = _read_series(paths.local(metrics_jsonl))
    charts = []
    for title, unit, endings in _CHARTS:
        names = [name for name in sorted(series) if name.endswith(endings)]
        lines = [Line(n, *zip(*sorted(series[n].items()), strict=True)) for n in names]
        if lines:
            ends = (0.0, 100.0) if unit == "%" else None
            charts.append(Chart(title, "step", unit, lines, ends=ends))
    return charts


def of_offsets(curves: Mapping[str, Curve]) -> list[Chart]:
    """For each method its figures where an offset changes them, for all mIoU(S) over mIoU(U)."""
    charts = []
    for method, curve in curves.items():
        changes = np.flatnonzero(np.diff(curve.seen) != 0.0)
        shown = slice(*(changes[[0, -1]] + [0, 2] if changes.size else [None]))
        lines = [
            Line(name, curve.offsets[shown].tolist(), values[shown].tolist())
            for name, values in (
                ("mIoU(S)", curve.seen),
                ("mIoU(U)", curve.unseen),
                ("hIoU", curve.harmonic),
            )
        ]
        mark = (curve.base, f"evaluated at {curve.base:g}")
        across = "subtracted from scores of seen classes"
        charts.append(Chart(method, across, "%", lines, ends=(0.0, None), mark=mark))
    lines = []
    for method, curve in curves.items():
        unseen, seen = zip(*curve.front, strict=True)
        # down to the axes: what is below is the area
        lines.append(Line(method, [0.0, *unseen, unseen[-1]], [seen[0], *seen, 0.0]))
    title = "seen against unseen"
    whole = Chart(title, "mIoU(U), %", "mIoU(S), %", lines, ends=(0.0, None), filled=True)
    return [*charts, whole]


def _draw(axes: Axes, chart: Chart) -> None:
    axes.set_title(chart.title, fontsize=11)
    axes.set(xlabel=chart.across, ylabel=chart.up)
    axes.set_prop_cycle(color=_LINES)
    for name, x, y in chart.lines:
        dotted = len(x) < 20 and not chart.filled
        axes.plot(x, y, "o-" if dotted else "-", markersize=3.5, label=name)
        if chart.filled:
            axes.fill_between(x, y, alpha=0.15, linewidth=0)
    if chart.mark:
        place, name = chart.mark
        axes.axvline(place, color=_AXIS, linestyle="--", linewidth=1.2, label=name)
    axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_AXIS)
    axes.legend(frameon=False, fontsize=9)
    if chart.ends:
        axes.set_ylim(*chart.ends)
    if chart.filled:
        axes.set_xlim(0.0, None)


def _read_series(path: Path) -> dict[str, dict[int, float]]:
    """The scalars of a log: name → {step: value}."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such log; a run writes it as <workdir>/{LOG}")
    series: dict[str, dict[int, float]] = {}
    broken = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, TypeError, KeyError, OverflowError):
            broken.append(number)
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[step] = float(value)
    if broken:
        LOGGER.warning('%s: skipped lines without a JSON object and its "step": %s', path, broken)
    return series
