"""Pictures of labels: colour maps, overlays and panels, written as PNG.

Images are RGB in 0..255, labels hold class ids or `IGNORE`, a palette is `Vocabulary.palette`.
Ignored pixels are white in a colour map and keep the photo in an overlay. Missing folders are made.
"""

import io
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

Image3 = UInt8[np.ndarray, "h w 3"]
LabelMap = Integer[np.ndarray, "h w"]
Palette = Sequence[tuple[int, int, int]]
# photo, truth, and prediction if there is one; sizes are left open: `panel` says which row has
# arrays of several sizes
Row = tuple[UInt8[np.ndarray, "_ _ 3"], *tuple[Integer[np.ndarray, "_ _"], ...]]

IGNORE_COLOUR = (255, 255, 255)
WRONG = (224, 32, 120)
MOST_NAMES = 40  # in a legend

_TITLES = ("photo", "truth", "prediction")
_COLUMNS = 4  # of a legend
_ALPHA, _FAINT_ALPHA, _PALE = 0.8, 0.22, 0.5
_INK, _FAINT = "#2b2d33", "#b9bdc6"


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
    """Write a label map as a PNG, as of `encode_label`."""
    with paths.atomic(paths.local(path)) as part:
        part.write_bytes(encode_label(label, palette))


def encode_label(label: LabelMap, palette: Palette) -> bytes:
    """A label map as a PNG that holds the ids: indexed where they fit, else 16-bit grey.

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
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


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
    classes, columns = shown(rows), len(rows[0])
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
    pictures = [tile for row in rows for tile in tiles(row, vocabulary.palette)]
    for axes, tile in zip(grid.flat, pictures, strict=True):
        axes.imshow(tile, aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=_FAINT, linewidth=0.6)
    _draw_legend(figure, classes, vocabulary, foot / height)
    save(figure, path)


def tiles(row: Row, palette: Palette) -> tuple[Image3, ...]:
    """The pictures of a row of a `panel`: the photo, and its truth and prediction laid over it."""
    image, *(truth, *predictions) = row
    backdrop, unscored = _backdrop(image, truth)
    found = [image, overlay(backdrop, truth, palette, alpha=_ALPHA)]
    for guess in predictions:
        faint = overlay(backdrop, guess, palette, alpha=_FAINT_ALPHA)
        found.append(np.where(unscored, faint, overlay(backdrop, guess, palette, alpha=_ALPHA)))
    return tuple(found)


def errors(image: Image3, truth: LabelMap, prediction: LabelMap) -> Image3:
    """Give the wrong pixels `WRONG` on a grey photo, paled where nothing is scored."""
    grey = np.repeat(image.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    backdrop, unscored = _backdrop(grey, truth)
    wrong = (truth != prediction)[..., None] & ~unscored
    return _blend(backdrop, np.full_like(image, WRONG), 0.75 * wrong)


def shown(rows: Sequence[Row]) -> list[int]:
    """The classes of any truth, or of a prediction where it is scored, the largest area first."""
    labels = []
    for _, *(truth, *guesses) in rows:
        labels += [truth.ravel(), *(guess[truth != IGNORE] for guess in guesses)]
    ids, areas = np.unique(np.concatenate(labels), return_counts=True)
    return [k for k in ids[np.argsort(-areas, kind="stable")].tolist() if k != IGNORE]


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, whole or not at all."""
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


def _backdrop(image: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The photo, paled where nothing is scored, and where that is."""
    unscored = (truth == IGNORE)[..., None]
    return np.where(unscored, _blend(image, np.full_like(image, 255), _PALE), image), unscored


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
