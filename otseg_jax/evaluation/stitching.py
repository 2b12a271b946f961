"""Scores of a whole photo from the logits of its windows, some of the words at a time.

logits f32[n, v, gh, gw] of n windows and v words. A trained model's: upsampled to the windows, σ,
less the offset, averaged on a canvas f32[c, h, w], resized to the photo f32[c, H, W]. Of a CLIP
alone, where no σ lies between, all of that is two products (`separable`); then what the method
does with the scores of a whole photo: PEARL's propagation, and PAMR. The shapes that are compiled
are rounded up, so that photos share them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from otseg_jax.evaluation import separable, windows, words
from otseg_jax.evaluation.inference import Inference, Photo
from otseg_jax.evaluation.words import Best, Words
from otseg_jax.models import pamr, pearl, pixels
from otseg_jax.models.last_block import einsum
from otseg_jax.models.outputs import upsample
from otseg_jax.models.training_free import TrainingFreeConfig, average

CELLS = 1 << 24  # scores at the size of the photo at a time, unless one word has more
MOST = 64  # words at a time
BAND = windows.BUCKET  # rows that words are compared on, one after the other, in the cache
PATCHES = 16  # what the sizes of matrices are rounded up to

Logits = Float[np.ndarray, "n v gh gw"]


class Grid(NamedTuple):
    """Where windows lie in a photo, filled up."""

    origins: Any  # i32[n, 2]
    weights: Any  # f32[n]: 1 for a window, 0 for filling
    size: Any  # i32[2]: what the windows were cut from


class Axes(NamedTuple):
    """The same as a matrix for each axis, of `separable`."""

    down: Any  # f32[H, p]
    across: Any  # f32[W, q]


@dataclass(frozen=True)
class Shapes:
    """What is compiled in, in pixels."""

    window: tuple[int, int]
    canvas: tuple[int, int]  # rounded up: of the photo as prepared
    output: tuple[int, int]  # and of the result


class Part(NamedTuple):
    """Some of the words."""

    logits: Any  # f32[c, n, gh, gw], or f32[c, p, q]
    class_of: Any  # i32[c]
    offset: Any  # f32[c]


@dataclass(frozen=True, eq=False)
class Stitched:
    """The logits of all windows of a photo, by one output, and the words that they are about."""

    logits: Float[np.ndarray, "v ..."]
    asked: Words
    layout: Grid | Axes
    shapes: Shapes
    scale: float | None
    size: tuple[int, int]  # of the result
    guide: Float[Array, "m H W"] | None = None  # weights of neighbours, where PAMR refines

    def parts(self, *, rows: int | None = None) -> Iterator[Part]:
        """The words in parts of one size, filled up.

        Args:
            rows: for which their scores are there together; None: all.
        """
        output, count = self.shapes.output, len(self.asked.class_of)
        most = min(max(CELLS // ((rows or output[0]) * output[1]), 1), MOST)
        step = -(-count // -(-count // most))
        for first in range(0, count, step):
            part = slice(first, first + step)
            classes = self.asked.class_of[part]
            more, beside = (0, step - len(classes)), [(0, 0)] * (self.logits.ndim - 1)
            yield Part(
                np.pad(self.logits[part], (more, *beside)),
                np.pad(classes, more, constant_values=-1),
                np.pad(self.asked.offset[part], more),
            )

    def scores(self, part: Part) -> Float[Array, "c H W"]:
        """Scores of some words, not scaled; what lies past the true size means nothing."""
        return _scores(part, self.layout, np.array(self.size, np.int32), self.guide, self.shapes)

    def best(self, kept: Bool[np.ndarray, " k"], *, sums: bool) -> Best:
        """The best word of every pixel, of a class that is kept.

        Args:
            sums: also what probabilities are computed from.
        """
        best = words.nothing(*self.shapes.output)
        scale, band = self.scale or 1.0, BAND if self.guide is None else None
        for part in self.parts(rows=band):
            if (part.class_of >= 0).any():
                wins = kept[part.class_of] & (part.class_of >= 0)
                how = self.layout, np.array(self.size, np.int32), self.guide, self.shapes
                best = _compare(best, part, wins, scale, *how, sums=sums)
        return best

    def propagated(self, photo: Float[np.ndarray, "3 H W"], grid: int) -> "Stitched":
        """As PEARL carries scores on, on a grid: one window, as large as the photo."""
        height, width = self.size
        cell = pearl.cells(self.size, grid)
        coarse = [
            pearl.pool(np.asarray(self.scores(part))[:, :height, :width], cell)
            for part in self.parts()
        ]
        scores = np.concatenate(coarse)[: len(self.asked.class_of)]
        vectors = np.asarray(average(self.asked.text))
        solved = pearl.solve(scores, pearl.pool(photo, cell), vectors).astype(np.float32)
        axes = (
            _filled(separable.matrix([0], cells=n, window=n, size=n, output=length), output)
            for n, length, output in zip(
                solved.shape[1:], self.size, self.shapes.output, strict=True
            )
        )
        return replace(self, logits=_filled(solved), layout=Axes(*axes))


def of(
    logits: Logits,
    image: Photo,
    asked: Words,
    how: Inference,
    *,
    size: tuple[int, int],
) -> Stitched:
    """A photo in some size, with all that does not depend on words.

    Args:
        image: what the windows were cut from.
    """
    method, small = how.method, (image.shape[0], image.shape[1])
    window = how.window_size(small)
    canvas = windows.bucket(max(small[0], window[0])), windows.bucket(max(small[1], window[1]))
    output = windows.bucket(size[0]), windows.bucket(size[1])
    make = partial(Stitched, asked=asked, shapes=Shapes(window, canvas, output), size=size)
    if not isinstance(method, TrainingFreeConfig):
        grid, spare = _grid(how, small, canvas)
        filled = np.pad(logits, ((0, spare), (0, 0), (0, 0), (0, 0)))
        return make(logits=np.swapaxes(filled, 0, 1), layout=grid, scale=method.scale)
    axes, filled = _axes(logits, how, small, size, output)
    whole = make(logits=filled, layout=axes, scale=method.scale)
    if method.method != "pearl" and not method.pamr:
        return whole
    seen = pixels.normalised(jnp.asarray(image), mean=how.mean, std=how.std)
    photo = _enlarged(np.asarray(seen), size, output)
    if method.method == "pearl":
        whole = whole.propagated(np.asarray(photo)[:, : size[0], : size[1]], method.grid)
    return replace(whole, guide=pamr.likeness(photo)) if method.pamr else whole


def _grid(how: Inference, size: tuple[int, int], canvas: tuple[int, int]) -> tuple[Grid, int]:
    """The windows of a photo, and how many more a photo of the size of the canvas has."""
    origins = how.origins(size)
    spare = len(how.origins(canvas)) - len(origins)
    weights = np.pad(np.ones(len(origins), np.float32), (0, spare))
    return Grid(np.pad(origins, ((0, spare), (0, 0))), weights, np.array(size, np.int32)), spare


def _axes(
    logits: Logits,
    how: Inference,
    small: tuple[int, int],
    size: tuple[int, int],
    output: tuple[int, int],
) -> tuple[Axes, np.ndarray]:
    origins, window = how.origins(small), how.window_size(small)
    starts = [np.unique(axis) for axis in origins.T]
    patches = rearrange(logits, "(y x) v h w -> v (y h) (x w)", y=len(starts[0]))
    axes = (
        _filled(
            separable.matrix(
                starts[axis].tolist(),
                window=window[axis],
                margin=how.method.margins(window[axis], how.patch),
                cells=logits.shape[2 + axis],
                size=small[axis],
                output=size[axis],
            ),
            output[axis],
        )
        for axis in (0, 1)
    )
    return Axes(*axes), _filled(patches)


def _filled(array: np.ndarray, rows: int | None = None) -> np.ndarray:
    """Zeros behind the last axes, to few sizes: a matrix' rows to `rows`, patches to 16s."""
    first = [(0, 0)] * (array.ndim - 2)
    down = rows - array.shape[-2] if rows else -array.shape[-2] % PATCHES
    return np.pad(array, [*first, (0, down), (0, -array.shape[-1] % PATCHES)])


def _enlarged(
    image: Float[np.ndarray, "h w 3"], size: tuple[int, int], output: tuple[int, int]
) -> Float[Array, "3 H W"]:
    """The photo as the network saw it in the size of the result: what refines goes by it."""
    axes = (
        _filled(separable.matrix([0], cells=n, window=n, size=n, output=length), rows)
        for n, length, rows in zip(image.shape[:2], size, output, strict=True)
    )
    photo = _filled(np.moveaxis(np.asarray(image, np.float32), -1, 0))
    return _resized(photo, Axes(*axes), np.array(size, np.int32))


@jax.jit
def _resized(image: Array, axes: Axes, end: Array) -> Float[Array, "c H W"]:
    return pamr.edged(einsum("hp, cpq, wq -> chw", axes.down, image, axes.across), end)


@partial(jax.jit, static_argnames="shapes")
def _scores(
    part: Part, layout: Grid | Axes, end: Array, guide: Array | None, shapes: Shapes
) -> Float[Array, "c H W"]:
    rows = partial(_rows, layout=layout, end=end, top=0, shape=shapes.output)
    scores = jax.lax.map(rows, _half(part, layout, shapes))
    return scores if guide is None else pamr.smooth(scores, guide, size=end)


def _half(part: Part, layout: Grid | Axes, shapes: Shapes) -> Float[Array, "c h w"]:
    """Scores half-way: of all windows on a canvas, or at the result's width."""
    offset = part.offset[:, None, None]
    if isinstance(layout, Axes):
        # every row of `down` sums to 1
        return einsum("cpq, wq -> cpw", part.logits, layout.across) - offset
    fine = upsample(jnp.swapaxes(part.logits, 0, 1), shapes.window)
    height, width = shapes.canvas
    found = jax.nn.sigmoid(fine) - offset[None]
    return windows.stitch(found, layout.origins, layout.weights, height=height, width=width)


def _rows(
    half: Float[Array, "h w"],
    *,
    layout: Grid | Axes,
    end: Array,
    top: int | Array,
    shape: tuple[int, int],
) -> Float[Array, "H W"]:
    """Scores of one word, some rows of the result from `top` on."""
    height, width = shape
    if isinstance(layout, Axes):
        down = jax.lax.dynamic_slice_in_dim(layout.down, top, height)
        return einsum("hp, pw -> hw", down, half)
    return windows.resize(half[None], layout.size, end, height=height, width=width, top=top)[0]


@partial(jax.jit, static_argnames=("shapes", "sums"), donate_argnums=0)
def _compare(
    best: Best,
    part: Part,
    wins: Bool[Array, " c"],
    scale: float | Float[Array, ""],
    layout: Grid | Axes,
    end: Array,
    guide: Array | None,
    shapes: Shapes,
    *,
    sums: bool,
) -> Best:
    height, width = shapes.output
    if guide is None:
        half, rows = _half(part, layout, shapes), BAND
    else:
        half, rows = _scores(part, layout, end, guide, shapes), height

    def band(entry: tuple[Array, Best]) -> Best:
        def word(best: Best, item: tuple[Array, Array, Array]) -> tuple[Best, None]:
            scores, label, may_win = item
            if guide is None:
                shape = rows, width
                scores = _rows(scores, layout=layout, end=end, top=entry[0], shape=shape)
            return words.compare(best, scale * scores, label, may_win, sums=sums), None

        return jax.lax.scan(word, entry[1], (half, part.class_of, wins))[0]

    cut = jax.tree.map(lambda x: x.reshape(-1, rows, width), best)
    tops = jnp.arange(0, height, rows, dtype=jnp.int32)
    return jax.tree.map(lambda x: x.reshape(height, width), jax.lax.map(band, (tops, cut)))
