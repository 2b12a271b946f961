"""The built-in data set: toy objects on muted backgrounds, drawn from a seed; nothing to download.

A class is a pattern, a colour and a shape, as in "striped red square". Pattern and colour already
name the class, and both show within 8 pixels of a 96-pixel image, so one patch of a ViT sees what
it is looking at. Unseen classes occur in both splits: hiding them is up to the training regime. The
background and a border of about 1.5 pixels around each object are `IGNORE`, as in PASCAL VOC.
Lengths below are in pixels of a 96-pixel image and grow with it.

An image is a pure function of (seed, split, index, image_size). It is made of uniform draws and
elementwise IEEE arithmetic alone, and sines are rounded, so that machines agree on every byte.
"""

import colorsys
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import SupportsIndex

import numpy as np
from jaxtyping import Int16, UInt8

from otseg_jax.data.classes import IGNORE, VOCABULARIES, Vocabulary
from otseg_jax.data.decode import Example

SPLITS = ("train", "val")
WORDS = ("shapes", "shapes_synonyms", "shapes_colours")
SHAPES = VOCABULARIES["shapes"]

Thing = tuple[str, str, str]  # pattern, colour, shape of an object
_Place = tuple[float, float, float]  # x, y, radius of an object in pixels

_REFERENCE_SIZE = 96
_BORDER = 0.75  # half the width of the ignored band
_PERIOD = (6.0, 8.0)  # of a pattern: 8 pixels hold one full repeat of any
_LIGHT = (-0.6, -0.8)  # unit vector towards the lamp, which hangs at the upper left

# hue in degrees, its half-range, saturation and value; ranges of two colours stay 30 degrees apart
_COLOURS = {
    "red": (356.0, 7.0, (0.78, 0.90), (0.78, 0.92)),
    "yellow": (47.0, 5.0, (0.85, 0.97), (0.92, 1.00)),
    "green": (138.0, 14.0, (0.62, 0.85), (0.55, 0.72)),
    "blue": (213.0, 9.0, (0.72, 0.90), (0.75, 0.95)),
    "purple": (278.0, 9.0, (0.55, 0.72), (0.62, 0.80)),
}


@dataclass(frozen=True)
class Shapes:
    """A split of the shapes world, with the protocol of `folders.Folder`.

    Any 20 consecutive images contain every class, so a small split already measures all of them.
    The splits share no image, nor do two seeds.

    Args:
        size: number of images.
        image_size: height and width, pixels, at least 32.
        words: what the classes of the same pictures are called: "shapes", "shapes_synonyms", or
            "shapes_colours", whose 5 classes are the colours alone.

    Raises:
        ValueError: naming every argument out of range.

    Example:
        >>> example = Shapes("val", size=10)[3]
        >>> example["name"], example["image"].shape, example["label"].shape
        ('val_000003', (96, 96, 3), (96, 96))
    """

    split: str
    _: KW_ONLY
    size: int
    image_size: int = _REFERENCE_SIZE
    seed: int = 0
    words: str = "shapes"

    def __post_init__(self) -> None:
        problems = []
        least = {"size": (1, ""), "image_size": (32, " (data.crop)"), "seed": (0, "")}
        for name, (low, field) in least.items():
            if (value := getattr(self, name)) < low:
                problems.append(f"{name}={value}{field}: wanted an integer of at least {low}")
        for name, allowed in (("split", SPLITS), ("words", WORDS)):
            if (value := getattr(self, name)) not in allowed:
                problems.append(f"{name}={value!r}: wanted one of {', '.join(allowed)}")
        if problems:
            raise ValueError("the shapes data set cannot be drawn: " + "; ".join(problems))

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes: 20 of them, 5 unseen, unless `words` says otherwise."""
        return VOCABULARIES[self.words]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: SupportsIndex) -> Example:
        # A list would take -1; and `for` over a split ends at the IndexError.
        if not 0 <= (i := operator.index(index)) < self.size:
            raise IndexError(f"index {i} of a split of {self.size} images")
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), i])
        # The first object walks through the classes, so that a small split lacks none.
        further = int(rng.random() * 4)
        ids = [i % len(SHAPES), *(int(rng.random() * len(SHAPES)) for _ in range(further))]
        things = [(p, c, s) for p, c, s in (SHAPES.names[k].split() for k in ids)]
        image, which = draw(rng, things, image_size=self.image_size)
        # Ids go through the colours in turn, so that the rest of the division by 5 is the colour.
        # `IGNORE` stands last, where the index -1 of `which` finds it.
        table = np.array([*(k % len(self.vocabulary) for k in ids), IGNORE], np.int16)
        return {"image": image, "label": table[which], "name": f"{self.split}_{i:06d}"}


def draw(
    rng: np.random.Generator, things: Sequence[Thing], *, image_size: int, unit: float | None = None
) -> tuple[UInt8[np.ndarray, "s s 3"], Int16[np.ndarray, "s s"]]:
    """Draw one to four things, back to front, on a background; the last only if there is room.

    Next to the image, what is seen at every pixel: its position in `things`, or `IGNORE`.

    Args:
        unit: pixels for one of a 96-pixel image in the lengths of patterns, borders and shadows;
            None: image_size / 96, so that a larger image is the same scene in more detail.
    """
    unit = image_size / _REFERENCE_SIZE if unit is None else unit
    image = _background(rng, image_size)
    which = np.full((image_size, image_size), IGNORE, np.int16)
    places = _layout(rng, image_size, len(things))
    for order, (place, thing) in enumerate(zip(places, things, strict=False)):
        window, outline = _draw(rng, image, place, thing, unit)
        which[window][outline < _BORDER * unit] = IGNORE
        which[window][outline < -_BORDER * unit] = order
    image = np.clip(image + 0.025 * (rng.random(image.shape[:2])[..., None] - 0.5), 0.0, 1.0)
    return (image * 255.0 + 0.5).astype(np.uint8), which


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    # uniform doubles alone: NumPy may change the streams of its other distributions
    return low + (high - low) * float(rng.random())


def _rotation(rng: np.random.Generator) -> tuple[float, float]:
    angle = _between(rng, 0.0, 2.0 * math.pi)
    # libraries of mathematics differ in the last digit of a cosine: six digits are the same in all
    return round(math.cos(angle), 6), round(math.sin(angle), 6)


def _layout(rng: np.random.Generator, size: int, count: int) -> list[_Place]:
    """Places for one to four objects, back to front, that hide at most a part of each other."""
    largest = (33.0, 29.0, 26.0, 23.0)[count - 1]
    placed: list[_Place] = []
    for _ in range(count):
        radius = _between(rng, 0.65 * largest, largest) * size / _REFERENCE_SIZE
        for _ in range(20):
            x, y = (_between(rng, 0.75 * radius, size - 0.75 * radius) for _ in range(2))
            if all(math.dist((x, y), (u, v)) / (radius + r) > 0.75 for u, v, r in placed):
                placed.append((x, y, radius))
                break
    return placed


def _noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth value noise in [0, 1]: a random lattice of rows × columns cells, interpolated."""
    lattice = rng.random((rows + 1, columns + 1))
    # Along the first axis and transposed, twice: the rows, then the columns.
    for cells in (rows, columns):
        cell, rest = np.divmod((np.arange(size) + 0.5) * cells / size, 1.0)
        low, high = (lattice[cell.astype(np.intp) + corner] for corner in (0, 1))
        lattice = (low + (high - low) * (rest * rest * (3.0 - 2.0 * rest))[:, None]).T
    # A transposed view would pass its order on to all that is computed with it, the image included.
    return np.ascontiguousarray(lattice)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Clouds, brushed strokes or camouflage in two muted tones, f64[h, w, 3] in [0, 1]."""
    rows, columns = ((3, 3), (2, 9), (9, 2), (4, 4))[int(rng.random() * 4)]
    field = 0.60 * _noise(rng, size, rows, columns)
    field += 0.28 * _noise(rng, size, 2 * rows + 1, 2 * columns + 1)
    field += 0.12 * _noise(rng, size, 5 * rows, 5 * columns)
    if rng.random() < 0.4:  # flat patches with soft rims: edges that belong to no object
        levels = 3.0 + 2.0 * float(rng.random())
        step = np.floor(field * levels)
        field = (step + np.clip((field * levels - step - 0.8) * 5.0, 0.0, 1.0)) / levels
    field = np.clip(1.6 * (field - 0.5) + 0.5, 0.0, 1.0)[..., None]
    # saturation under 0.25 keeps every tone apart from the classes, which are above 0.5
    value = _between(rng, 0.56, 0.96)
    tones = [
        np.array(colorsys.hsv_to_rgb(float(rng.random()), _between(rng, 0.05, 0.24), v))
        for v in (value, value - _between(rng, 0.08, 0.24))
    ]
    image = tones[0] + (tones[1] - tones[0]) * field
    ramp = (np.arange(size) + 0.5) / size - 0.5  # towards the lamp, the ground is lighter
    return image * (1.0 + 0.12 * (_LIGHT[0] * ramp + _LIGHT[1] * ramp[:, None]))[..., None]


def _draw(
    rng: np.random.Generator, image: np.ndarray, place: _Place, thing: Thing, unit: float
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Paint one object in place; the window it lies in, and its signed distance there."""
    (x, y, radius), (pattern, colour, shape) = place, thing
    cosine, sine = _rotation(rng)
    reach = 1.25 * radius + 6.0 * unit
    left, top = (max(0, math.floor(at - reach)) for at in (x, y))
    right, bottom = (min(len(image), math.ceil(at + reach)) for at in (x, y))
    window = slice(top, bottom), slice(left, right)
    dx = np.arange(left, right) + 0.5 - x
    dy = (np.arange(top, bottom) + 0.5 - y)[:, None]

    def distance(shift: float) -> np.ndarray:
        across, down = dx + shift * _LIGHT[0], dy + shift * _LIGHT[1]
        u = (cosine * across + sine * down) / radius
        v = (cosine * down - sine * across) / radius
        return _SHAPES[shape](u, v) * radius

    outline = distance(0.0)
    paint = _paint(rng, pattern, colour, dx, dy, unit)
    # a bevel: rims that face the lamp are lighter, the others darker
    slope = distance(1.0) - outline
    rim = np.clip(1.0 + outline / (4.0 * unit), 0.0, 1.0)
    across = (_LIGHT[0] * dx + _LIGHT[1] * dy) / radius
    paint *= (1.0 + 0.10 * across + 0.16 * slope * rim)[..., None]
    colours = image[window]
    shadow = np.clip(0.5 - distance(3.6 * unit) / (6.0 * unit), 0.0, 1.0)
    colours *= (1.0 - 0.42 * shadow)[..., None]
    colours += (paint - colours) * np.clip(0.5 - outline, 0.0, 1.0)[..., None]
    return window, outline


def _paint(
    rng: np.random.Generator, pattern: str, colour: str, dx: np.ndarray, dy: np.ndarray, unit: float
) -> np.ndarray:
    """The surface of an object: its colour, and cream where the pattern has some."""
    hue, spread, saturation, value = _COLOURS[colour]
    turn = _between(rng, hue - spread, hue + spread) / 360.0 % 1.0
    body = np.array(colorsys.hsv_to_rgb(turn, _between(rng, *saturation), _between(rng, *value)))
    cream = colorsys.hsv_to_rgb(turn, _between(rng, 0.02, 0.09), _between(rng, 0.95, 1.0))
    cosine, sine = _rotation(rng)
    u = cosine * dx + sine * dy + unit * _between(rng, 0.0, 8.0)
    v = cosine * dy - sine * dx + unit * _between(rng, 0.0, 8.0)
    share = _PATTERNS[pattern](u, v, _between(rng, *_PERIOD) * unit)[..., None]
    return body + (np.array(cream) - body) * share


def _striped(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    phase = u / period
    return np.clip((0.25 - np.abs(phase - np.rint(phase))) * period + 0.5, 0.0, 1.0)


def _checked(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    along, across = _striped(u, v, period), _striped(v, u, period)
    return along + across - 2.0 * along * across


def _dotted(u: np.ndarray, v: np.ndarray, period: float) -> np.ndarray:
    # rows √3/2 apart and staggered by half a period: every dot has six equal neighbours
    row = np.rint(v / (0.866 * period))
    a = u / period + 0.5 * row
    a = (a - np.rint(a)) * period
    b = v - 0.866 * period * row
    return np.clip(0.31 * period - np.sqrt(a * a + b * b) + 0.5, 0.0, 1.0)


_PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, float], np.ndarray]] = {
    "plain": lambda u, v, period: 0.0 * (u + v),
    "striped": _striped,
    "dotted": _dotted,
    "checked": _checked,
}


def _box(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    a, b = np.abs(x) - width, np.abs(y) - height
    outside = np.sqrt(np.maximum(a, 0.0) ** 2 + np.maximum(b, 0.0) ** 2)
    return outside + np.minimum(np.maximum(a, b), 0.0)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # folded into one half of one arm, after I. Quilez, "2D distance functions"
    radius, depth = 1.1, 0.52  # of the tips, and of the arms in terms of a pentagon
    cosine, sine = 0.809017, 0.5877853  # of 36 degrees
    x, y = np.abs(x), -y
    reflect = 2.0 * np.maximum(cosine * x - sine * y, 0.0)
    x, y = x - reflect * cosine, y + reflect * sine
    reflect = 2.0 * np.maximum(-cosine * x - sine * y, 0.0)
    x, y = np.abs(x + reflect * cosine), y + reflect * sine - radius
    a, b = depth * sine, depth * cosine - 1.0
    along = np.clip((x * a + y * b) / (a * a + b * b), 0.0, radius)
    side = np.sign(y * a - x * b)
    return np.sqrt((x - a * along) ** 2 + (y - b * along) ** 2) * side - 0.07


# signed distances to outlines of about equal area, negative inside; y points down
_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": lambda x, y: np.sqrt(x * x + y * y) - 0.93,
    "square": lambda x, y: _box(x, y, 0.74, 0.74) - 0.08,
    "triangle": lambda x, y: np.maximum(0.8660254 * np.abs(x) - 0.5 * y, y) - 0.6,
    "star": _star,
    "cross": lambda x, y: np.minimum(_box(x, y, 1.0, 0.32), _box(x, y, 0.32, 1.0)) - 0.06,
}
