"""Scores of a whole photo from the logits of its views' windows, some of the words at a time.

A view (`transforms.View`) is the photo at one scale, perhaps mirrored; a photo has one, or several
whose scores are averaged pixel by pixel at the size of the photo: σ(z) of a trained model, cosines
of a CLIP alone, as they are averaged over windows (`layout`). Then follows what the method does
with the scores of a whole photo: PEARL's propagation, and PAMR. The shapes that are compiled are
rounded up, so that photos share them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from otseg_jax.data.transforms import View
from otseg_jax.evaluation import layout, windows, words
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.layout import ByWord, Layout, Logits
from otseg_jax.evaluation.placed import placed
from otseg_jax.evaluation.words import Best, Words
from otseg_jax.models import pamr, pearl, pixels
from otseg_jax.models.last_block import einsum
from otseg_jax.models.training_free import TrainingFreeConfig, average

CELLS = 1 << 24  # scores at the size of the photo at a time, unless one word has more
MOST = 64  # words at a time, over all views
HALVES = 1 << 27  # scores half-way at a time, over all views
BAND = windows.BUCKET  # rows at a time on a CPU, whose cache they fit
BANDED = 32  # words at a time there


class Part(NamedTuple):
    """Some of the words, which follow one another."""

    first: Any  # i32[]
    again: Any  # i32[]: so many at its beginning were in another part
    class_of: Any  # i32[c], −1 of those
    offset: Any  # f32[c]


@dataclass(frozen=True, eq=False, kw_only=True)
class Stitched:
    """The logits of all windows of a photo, by one output, and the words that they are about."""

    logits: tuple[ByWord, ...]  # of each view, as its layout has them
    layouts: tuple[Layout, ...]
    asked: Words
    scale: float | None
    size: tuple[int, int]  # of the result
    output: tuple[int, int]  # the same, rounded up
    banded: bool  # words are compared on some rows at a time: on a CPU, whose cache they fit
    guide: Float[Array, "m H W"] | None = None  # weights of neighbours, where PAMR refines

    def parts(self, *, rows: int | None = None, most: int = MOST) -> Iterator[Part]:
        """The words in parts of one size; the last begins with some of the part before.

        Args:
            rows: for which their scores are there together; None: all.
            most: words of a part, over all views.
        """
        count = len(self.asked.class_of)
        most = min(CELLS // ((rows or self.output[0]) * self.output[1]), most)
        most = min(most // len(self.layouts), HALVES // sum(where.cells for where in self.layouts))
        most = max(most, 1)
        step = -(-count // -(-count // most))
        for begin in range(0, count, step):
            first = min(begin, count - step)
            part, again = slice(first, first + step), begin - first
            classes = np.where(np.arange(step) < again, -1, self.asked.class_of[part])
            numbers = np.int32(first), np.int32(again)
            yield Part(*numbers, classes.astype(np.int32), self.asked.offset[part])

    def scores(self, part: Part) -> Float[Array, "c H W"]:
        """Scores of some words, not scaled; what lies past the true size means nothing."""
        given = placed(part), self.layouts, placed(np.array(self.size, np.int32))
        return _scores(self.logits, *given, self.guide, self.output)

    def best(self, kept: Bool[np.ndarray, "*g k"], *, sums: bool) -> Best:
        """The best word of every pixel, of a class that is kept.

        Args:
            kept: by the classes; of several groups at once, the best of each.
            sums: also what probabilities are computed from.
        """
        best, banded = None, self.banded and self.guide is None
        scale, end = placed((np.float32(self.scale or 1.0), np.array(self.size, np.int32)))
        how = {"sums": sums, "output": self.output, "banded": banded}
        for part in self.parts(rows=BAND, most=BANDED) if banded else self.parts():
            if (part.class_of >= 0).any():
                wins = np.moveaxis(kept[..., part.class_of] & (part.class_of >= 0), -1, 0)
                words_of = placed((part, wins))
                best = _compare(
                    best, self.logits, *words_of, scale, self.layouts, end, self.guide, **how
                )
        return best or words.nothing(*self.output, groups=kept.shape[:-1])

    def propagated(self, photo: Float[np.ndarray, "3 H W"], grid: int) -> "Stitched":
        """As PEARL carries scores on, on a grid: one window, as large as the photo."""
        height, width = self.size
        cell = pearl.cells(self.size, grid)
        coarse = [
            pearl.pool(np.asarray(self.scores(part))[part.again :, :height, :width], cell)
            for part in self.parts()
        ]
        scores = np.concatenate(coarse)
        vectors = np.asarray(average(self.asked.text))
        solved = pearl.solve(scores, pearl.pool(photo, cell), vectors).astype(np.float32)
        axes = layout.stretched(solved.shape[1:], self.size, self.output)
        return replace(self, logits=(layout.fill(solved),), layouts=(axes,))


def of(
    logits: Sequence[Logits],
    views: Sequence[View],
    asked: Words,
    how: Inference,
    *,
    size: tuple[int, int],
) -> Stitched:
    """A photo in some size, with all that does not depend on words.

    Args:
        logits: of the windows of each view.
    """
    method = how.method
    output = windows.canvas(size)
    laid = [
        layout.place(z, view, how, size=size, output=output)
        for z, view in zip(logits, views, strict=True)
    ]
    whole = Stitched(
        logits=tuple(z for _, z in laid),
        layouts=tuple(where for where, _ in laid),
        asked=asked,
        scale=method.scale,
        size=size,
        output=output,
        banded=jax.default_backend() == "cpu",
    )
    if not isinstance(method, TrainingFreeConfig) or not (method.method == "pearl" or method.pamr):
        return whole
    photo = _enlarged(views, size, output, how)
    if method.method == "pearl":
        whole = whole.propagated(np.asarray(photo)[:, : size[0], : size[1]], method.grid)
    return replace(whole, guide=pamr.likeness(photo)) if method.pamr else whole


def _enlarged(
    views: Sequence[View], size: tuple[int, int], output: tuple[int, int], how: Inference
) -> Float[Array, "3 H W"]:
    """The photo in the size of the result as the network saw it, at its largest: what refines
    goes by it."""
    image = max((view.image for view in views if not view.mirrored), key=np.size)
    axes = layout.stretched(image.shape[:2], size, output)
    scale = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    photo = layout.fill(np.moveaxis(image, -1, 0))
    return _resized(photo, axes, np.array(size, np.int32), *scale)


@jax.jit
def _resized(
    image: Array, axes: layout.Axes, end: Array, mean: Array, std: Array
) -> Float[Array, "3 H W"]:
    seen = pixels.normalised(jnp.moveaxis(image, 0, -1), mean=mean, std=std)
    return pamr.edged(einsum("hp, pqc, wq -> chw", axes.down, seen, axes.across), end)


@partial(jax.jit, static_argnames="output")
def _scores(
    logits: tuple[ByWord, ...],
    part: Part,
    layouts: tuple[Layout, ...],
    end: Array,
    guide: Array | None,
    output: tuple[int, int],
) -> Float[Array, "c H W"]:
    rows = partial(_rows, layouts=layouts, end=end, top=0, shape=output)
    scores = jax.vmap(rows)(_halves(logits, part, layouts))
    return scores if guide is None else pamr.smooth(scores, guide, size=end)


def _halves(
    logits: tuple[ByWord, ...], part: Part, layouts: tuple[Layout, ...]
) -> tuple[Float[Array, "c _ _"], ...]:
    """Scores of a part half-way, of each view."""
    count = len(part.class_of)
    chosen = (
        jax.lax.dynamic_slice_in_dim(z, part.first, count, axis=where.words)
        for z, where in zip(logits, layouts, strict=True)
    )
    views = zip(layouts, chosen, strict=True)
    return tuple(where.half(z, part.offset) for where, z in views)


def _rows(
    halves: tuple[Float[Array, "_ _"], ...],
    *,
    layouts: tuple[Layout, ...],
    end: Array,
    top: int | Array,
    shape: tuple[int, int],
) -> Float[Array, "H W"]:
    """Scores of one word, the mean of its views', some rows of the result from `top` on."""
    views = zip(layouts, halves, strict=True)
    found = (where.rows(half, end=end, top=top, shape=shape) for where, half in views)
    return reduce(add, found) / len(layouts)


@partial(jax.jit, static_argnames=("sums", "output", "banded"), donate_argnums=0)
def _compare(
    best: Best | None,
    logits: tuple[ByWord, ...],
    part: Part,
    wins: Bool[Array, "c *g"],
    scale: Float[Array, ""],
    layouts: tuple[Layout, ...],
    end: Array,
    guide: Array | None,
    *,
    sums: bool,
    output: tuple[int, int],
    banded: bool,
) -> Best:
    height, width = output
    if best is None:
        best = words.nothing(height, width, groups=wins.shape[1:])
    if not banded:
        scores = scale * _scores(logits, part, layouts, end, guide, output)
        return words.compare_all(best, scores, part.class_of, wins, sums=sums)
    found, shape = _halves(logits, part, layouts), (BAND, width)

    def band(entry: tuple[Array, Best]) -> Best:
        def word(best: Best, item: tuple[Array, Array, Array]) -> tuple[Best, None]:
            return words.compare(best, *item, sums=sums), None

        rows = partial(_rows, layouts=layouts, end=end, top=entry[0], shape=shape)
        scores = scale * jax.vmap(rows)(found)
        return jax.lax.scan(word, entry[1], (scores, part.class_of, wins))[0]

    def bands(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, *shape), -3, 0)

    def whole(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -3).reshape(*x.shape[1:-2], height, width)

    tops = jnp.arange(0, height, BAND, dtype=jnp.int32)
    return jax.tree.map(whole, jax.lax.map(band, (tops, jax.tree.map(bands, best))))
