"""Pictures of labels and of training: colour maps, overlays, panels and curves, written as PNG.

Images are RGB in 0..255, labels hold class ids or `IGNORE`, a palette is `Vocabulary.palette`.
Ignored pixels are white in a colour map and keep the photo in an overlay. Missing folders are made.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from otseg_jax import paths
from otseg_jax.data.classes import IGNORE, Vocabulary
from otseg_jax.data.codings import IGNORE_8_BIT, IGNORE_16_BIT

LOGGER = logging.getLogger(__name__)

Image3 = UInt8[np.ndarray, "h w 3"]
LabelMap = Integer[np.ndarray, "h w"]
Palette = Sequence[tuple[int, int, int]]
# photo, truth, and prediction if there is one; sizes are left open: `panel` says which row has
# arrays of several sizes
Row = tuple[UInt8[np.ndarray, "_ _ 3"], *tuple[Integer[np.ndarray, "_ _"], ...]]

IGNORE_COLOUR = (255, 255, 255)
MOST_NAMES = 40  # in a legend

# title and unit of each chart of a run, and how the names of the scalars in it end
_CHARTS = (
    ("loss", "", ("loss", "focal", "dice")),
    ("learning rate", "", ("learning_rate",)),
    ("mIoU", "%", ("miou_seen", "miou_unseen", "hiou")),
)
_TITLES = ("photo", "truth", "prediction")
_COLUMNS = 4  # of a legend
_ALPHA, _FAINT_ALPHA, _PALE = 0.8, 0.22, 0.5
_INK, _FAINT = "#2b2d33", "#b9bdc6"
_LINES = ("#3563b8", "#d9622b", "#2f9163", "#8a4fae", "#b8911f", "#5a6270", "#c2417c", "#3aa6b0")


def colorize(label: LabelMap, palette: Palette) -> Image3:
    """Give every pixel the colour of its class.

    Raises:
        ValueError: the label holds ids without a colour, which are listed.

    Example:
        >>> colorize(np.array([[1, -1]]), [(0, 0, 0), (9, 8, 7)]).tolist()
        [[[9, 8, 7], [255, 255, 255]]]
    """
    _check_label(label, palette)
    # White stands last, where the index -1 finds it: `IGNORE` needs no case of its own.
    return np.array([*palette, IGNORE_COLOUR], np.uint8)[label]


def overlay(image: Image3, label: LabelMap, palette: Palette, *, alpha: float = 0.6) -> Image3:
    """Lay the colours of the classes over the photo: (1 - alpha)·image + alpha·colour, rounded.

    Raises:
        ValueError: alpha is outside [0, 1], or the label holds ids without a colour.

    Example:
        >>> photo = np.full((1, 2, 3), 100, np.uint8)
        >>> overlay(photo, np.array([[0, -1]]), [(200, 0, 100)], alpha=0.5).tolist()
        [[[150, 50, 100], [100, 100, 100]]]
    """
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha={alpha}: wanted a weight in [0, 1]")
    weight = np.where(label == IGNORE, 0.0, alpha)[..., None]
    return _blend(image, colorize(label, palette), weight)


def label_png(path: str | Path, label: LabelMap, palette: Palette) -> None:
    """Write a label map as a PNG that holds the ids: indexed where they fit, else 16-bit grey.

    An indexed PNG shows the colours, and holds up to 256 classes, or 255 and the value 255, white,
    for `IGNORE`. In 16-bit grey, `IGNORE` is 65535.

    Raises:
        ValueError: the label holds ids without a colour, which are listed.
    """
    _check_label(label, palette)
    ignored = label == IGNORE
    indexed = len(palette) + ignored.any() <= 256
    ids = np.where(ignored, IGNORE_8_BIT if indexed else IGNORE_16_BIT, label.astype(np.int32))
    picture = Image.fromarray(ids.astype(np.uint8 if indexed else np.uint16))
    if indexed:
        colours = np.full((256, 3), IGNORE_COLOUR, np.uint8)
        colours[: len(palette)] = palette
        picture.putpalette(colours.tobytes())
    with paths.atomic(paths.local(path)) as part:
        picture.save(part, format="PNG", optimize=True)


def panel(path: str | Path, rows: Sequence[Row], vocabulary: Vocabulary) -> None:
    """Write photos beside their truth and their prediction, with a legend of the classes shown.

    All rows have predictions, or none has. The legend names the `MOST_NAMES` classes of the largest
    area, unseen ones last, in italics and starred. Where the truth is ignored, truth shows the
    photo paled and the prediction is faint, because it is not scored there. Sizes may differ from
    row to row.

    Raises:
        ValueError: no rows, or a row whose arrays differ in size or hold other ids; all in one.
    """
    _check_rows(rows, vocabulary)
    classes, columns = _shown(rows), len(rows[0])
    width, head = 8.2, 0.36  # inches
    heights = [row[0].shape[0] / row[0].shape[1] for row in rows]
    marked = not set(classes[:MOST_NAMES]).isdisjoint(vocabulary.unseen)
    entries = min(len(classes), MOST_NAMES + 1)  # the last one counts the rest
    foot = 0.19 * (math.ceil(entries / _COLUMNS) + marked) + 0.22
    height = head + sum(heights) * width / columns + foot
    figure = Figure(figsize=(width, height), facecolor="white")
    spacing = {"left": 0.012, "right": 0.988, "wspace": 0.03, "hspace": 0.03}
    spacing |= {"bottom": foot / height, "top": 1 - head / height}
    grid = figure.subplots(
        len(rows), columns, squeeze=False, height_ratios=heights, gridspec_kw=spacing
    )
    for axes, title in zip(grid[0], _TITLES, strict=False):
        axes.set_title(title, fontsize=11)
    tiles = [tile for row in rows for tile in _tiles(row, vocabulary.palette)]
    for axes, tile in zip(grid.flat, tiles, strict=True):
        axes.imshow(tile, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=_FAINT, linewidth=0.6)
    _draw_legend(figure, classes, vocabulary, foot / height)
    _save(figure, path)


def curves(path: str | Path, metrics_jsonl: str | Path) -> None:
    """Write the curves of a run: losses, learning rate, mIoU of the seen and unseen halves.

    The log has on each line a JSON object with a "step" and scalars; nulls and names that are in
    none of `_CHARTS` are left out. An interrupted run may leave a line cut short, which is skipped,
    and repeat steps when it resumes: the later value holds.

    Raises:
        FileNotFoundError: there is no such log.
        ValueError: the log holds nothing to draw.
    """
    series = _read_series(paths.local(metrics_jsonl))
    charts = [
        (title, unit, names)
        for title, unit, endings in _CHARTS
        if (names := [name for name in sorted(series) if name.endswith(endings)])
    ]
    if not charts:
        wanted = ", ".join(ending for _, _, endings in _CHARTS for ending in endings)
        raise ValueError(
            f"{metrics_jsonl}: none of its names {sorted(series)} can be drawn; wanted one that "
            f"ends in one of {wanted}"
        )
    figure = Figure(figsize=(5.0 * len(charts), 3.6), layout="constrained", facecolor="white")
    grid = figure.subplots(1, len(charts), squeeze=False)
    for ax, (title, unit, names) in zip(grid[0], charts, strict=True):
        ax.set_title(title, fontsize=11)
        ax.set(xlabel="step", ylabel=unit)
        ax.set_prop_cycle(color=_LINES)
        for name in names:
            steps, values = zip(*sorted(series[name].items()), strict=True)
            ax.plot(steps, values, "o-" if len(steps) < 20 else "-", markersize=3.5, label=name)
        ax.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=True)
        ax.grid(color="#e8eaee", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(_FAINT)
        ax.legend(frameon=False, fontsize=9)
        if unit == "%":
            ax.set_ylim(0.0, 100.0)
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with paths.atomic(paths.local(path)) as part:
        figure.savefig(part, dpi=150, format="png")


def _unknown(label: np.ndarray, classes: int) -> list[int]:
    values = np.unique(label)
    return values[(values != IGNORE) & ((values < 0) | (values >= classes))].tolist()


def _check_label(label: np.ndarray, palette: Palette) -> None:
    if unknown := _unknown(label, len(palette)):
        wanted = f"wanted 0..{len(palette) - 1}, which have colours, or {IGNORE} = ignored"
        raise ValueError(f"the label holds ids {unknown[:8]}; {wanted}")


def _blend(image: np.ndarray, colour: np.ndarray, weight: np.ndarray | float) -> np.ndarray:
    mixed = image.astype(np.float32) * (1.0 - weight) + colour.astype(np.float32) * weight
    return (mixed + 0.5).astype(np.uint8)


def _check_rows(rows: Sequence[Row], vocabulary: Vocabulary) -> None:
    problems = [] if rows else ["no rows"]
    if len({len(row) for row in rows}) > 1:
        problems.append("some rows have no prediction")
    for number, (image, *labels) in enumerate(rows):
        for name, label in zip(_TITLES[1:], labels, strict=False):
            if label.shape != (size := image.shape[:2]):
                problems.append(f"row {number}: {name} is {label.shape}, the photo {size}")
            if unknown := _unknown(label, len(vocabulary)):
                problems.append(f"row {number}: {name} holds ids {unknown[:8]}")
    if problems:
        wanted = f"wanted arrays of one size a row and ids 0..{len(vocabulary) - 1} or {IGNORE}"
        raise ValueError(f"panel: {'; '.join(problems)}; {wanted}")


def _shown(rows: Sequence[Row]) -> list[int]:
    """The classes of any truth, or of a prediction where it is scored, the largest area first."""
    labels = []
    for _, *(truth, *guesses) in rows:
        labels += [truth.ravel(), *(guess[truth != IGNORE] for guess in guesses)]
    ids, areas = np.unique(np.concatenate(labels), return_counts=True)
    return [k for k in ids[np.argsort(-areas, kind="stable")].tolist() if k != IGNORE]


def _tiles(row: Row, palette: Palette) -> tuple[np.ndarray, ...]:
    image, *(truth, *predictions) = row
    unscored = (truth == IGNORE)[..., None]
    backdrop = np.where(unscored, _blend(image, np.full_like(image, 255), _PALE), image)
    tiles = [image, overlay(backdrop, truth, palette, alpha=_ALPHA)]
    for guess in predictions:
        faint = overlay(backdrop, guess, palette, alpha=_FAINT_ALPHA)
        tiles.append(np.where(unscored, faint, overlay(backdrop, guess, palette, alpha=_ALPHA)))
    return tuple(tiles)


def _draw_legend(figure: Figure, classes: list[int], vocabulary: Vocabulary, top: float) -> None:
    unseen = set(vocabulary.unseen) & set(classes[:MOST_NAMES])
    named = sorted(classes[:MOST_NAMES], key=lambda k: (k in unseen, k))
    handles = [
        Patch(
            facecolor="#" + bytes(vocabulary.palette[k]).hex(),
            edgecolor=_INK if k in unseen else _FAINT,
            linewidth=0.8,
            label=vocabulary.names[k].strip() + " ★" * (k in unseen),
        )
        for k in named
    ]
    if (more := len(classes) - MOST_NAMES) > 0:
        handles.append(Patch(color="none", label=f"and {more} more"))
    legend = figure.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, top),
        ncols=_COLUMNS,
        frameon=False,
        fontsize=9,
        handlelength=1.3,
        title="★ unseen in training" if unseen else None,
        title_fontproperties={"size": 9, "style": "italic"},
    )
    for text, k in zip(legend.get_texts(), named, strict=False):
        text.set_fontstyle("italic" if k in unseen else "normal")


def _read_series(path: Path) -> dict[str, dict[int, float]]:
    """The scalars of a log: name → {step: value}."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such log; a run writes it as <workdir>/metrics.jsonl")
    series: dict[str, dict[int, float]] = {}
    broken = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, TypeError, KeyError):
            broken.append(number)
            continue
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                series.setdefault(name, {})[step] = float(value)
    if broken:
        LOGGER.warning('%s: skipped lines without a JSON object and its "step": %s', path, broken)
    return series
