"""From the logits of a photo's windows to its scores and its label map, for every method.

logits f32[n, v, gh, gw] of n windows and v words → what the method makes of them at the windows'
size, averaged on a canvas → size of the photo → refined by its colours → scores f32[c, H, W] →
the best word of every pixel → label map i32[H, W]. Words go through it c at a time, so that neither
thousands of words nor a photo of many pixels fill the memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from otseg_jax.evaluation import windows, words
from otseg_jax.evaluation.words import Best, Words
from otseg_jax.models import pamr, pearl
from otseg_jax.models.methods import MethodConfig
from otseg_jax.models.outputs import upsample
from otseg_jax.models.training_free import TrainingFreeConfig, average

CELLS = 1 << 24  # scores at the size of the photo at a time, unless one word has more
MOST = 64  # words at a time

Logits = Float[np.ndarray, "n v gh gw"]


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is run on photos, and how its scores are read."""

    method: MethodConfig
    patch: int  # side of the tower's, pixels
    window: int  # side, pixels; 0: a photo as a whole, where the method can
    stride: int  # pixels between windows
    batch_size: int  # windows predicted together
    # a pixel is class 0 where its best score, or probability if words compete, is below
    threshold: float | None = None
    least_share: float = 0.0  # of the pixels that are not class 0; a class with less gets none

    def origins(self, size: tuple[int, int]) -> Int32[np.ndarray, "n 2"]:
        """Where the windows of a photo lie; errors as of `windows.grid`."""
        window = self.window or max(size)
        return windows.grid(*size, window=window, stride=self.stride if self.window else window)

    def window_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the windows of a photo."""
        return self.method.window_size(size, self.window, self.patch)

    def cut(self, image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "n s t 3"]:
        """The windows of a normalised photo, in the order of `origins`."""
        height, width = image.shape[:2]
        return windows.cut(
            image, self.origins((height, width)), window=self.window_size((height, width))
        )

    def rows(self, side: int) -> int:
        """Patches along the height of a window."""
        return sum(self.method.margins(side, self.patch), side) // self.patch


def label_maps(
    logits: Mapping[str, Logits],
    image: Float[np.ndarray, "h w 3"],
    asked: Words,
    how: Inference,
    *,
    size: tuple[int, int],
) -> dict[str, Int32[np.ndarray, "H W"]]:
    """The class of every pixel of a photo by every output, in `size`.

    Args:
        image: normalised, as the windows were cut from it.
    """
    found = {}
    for name, parts in logits.items():
        whole = _whole(parts, image, asked, how, size)
        best, first = _best(whole, how)
        label = best.label
        if how.threshold is not None:
            score = best.score[None]
            score = score if how.method.scale is None else words.probability(score, first)
            label = jnp.where(score[0] < how.threshold, 0, label)
        found[name] = np.asarray(label)[: size[0], : size[1]]
    return found


def _best(whole: "_Whole", how: Inference) -> tuple[Best, Best]:
    """The best words of the classes that are large enough, and of all classes."""
    everything = whole.best(np.ones(whole.asked.classes, bool))
    if not how.least_share:
        return everything, everything
    return whole.best(_kept(whole, everything, how)), everything


def score_maps(
    logits: Mapping[str, Logits],
    image: Float[np.ndarray, "h w 3"],
    asked: Words,
    how: Inference,
    *,
    size: tuple[int, int],
    classes: Sequence[int] | None = None,
) -> dict[str, Float[np.ndarray, "k H W"]]:
    """Scores of classes in `size` by every output: of the best word of each, as `label_maps`.

    Where words compete they are probabilities; else σ(z) less the offset.

    Args:
        classes: which; None: all.
    """
    chosen = range(asked.classes) if classes is None else classes
    rows, scale = {number: row for row, number in enumerate(chosen)}, how.method.scale
    found = {}
    for name, parts in logits.items():
        whole = _whole(parts, image, asked, how, size)
        scores = np.full((len(rows), *size), -np.inf if scale is None else 0.0, np.float32)
        every = np.ones(asked.classes, bool)
        first = None if scale is None else whole.best(every)
        kept = _kept(whole, first, how) if first and how.least_share else every
        for part in whole.parts():
            wanted = [(i, k) for i, k in enumerate(part.class_of.tolist()) if k in rows and kept[k]]
            if not wanted:
                continue
            values = whole.scores(part)
            if first is not None:
                values = words.probability((scale or 1.0) * values, first)
            for i, k in wanted:
                row = scores[rows[k]]
                np.maximum(row, np.asarray(values[i])[: size[0], : size[1]], out=row)
        found[name] = scores
    return found


def _kept(whole: "_Whole", best: Best, how: Inference) -> Bool[np.ndarray, " k"]:
    height, width = whole.layout.output_size
    label = np.asarray(best.label)[:height, :width]
    return words.large(label, classes=whole.asked.classes, share=how.least_share)


class Layout(NamedTuple):
    """Where windows lie in a photo, and how large it is; filled up to few shapes."""

    origins: Any  # i32[n, 2]
    weights: Any  # f32[n]: 1 for a window, 0 for filling
    size: Any  # i32[2]: what the windows were cut from
    output_size: Any  # i32[2]


@dataclass(frozen=True)
class Shapes:
    """What is compiled in."""

    method: MethodConfig
    window: tuple[int, ...]
    margins: tuple[tuple[int, int], ...]  # of zeros around it
    canvas: tuple[int, ...]  # sizes rounded up, of the photo as prepared
    output: tuple[int, ...]  # and of the result


class Part(NamedTuple):
    """Some of the words."""

    logits: Any  # f32[n, c, gh, gw]
    class_of: Any  # i32[c]
    offset: Any  # f32[c]


@dataclass(frozen=True, eq=False)
class _Whole:
    """The logits of all windows of a photo, by one output, and the words that they are about."""

    logits: Logits
    asked: Words
    layout: Layout
    shapes: Shapes
    guide: Float[Array, "m H W"] | None = None  # weights of neighbours, where PAMR refines

    def parts(self) -> Iterator[Part]:
        """The words in parts of one size, filled up."""
        output, count = self.shapes.output, len(self.asked.class_of)
        most = min(max(CELLS // (output[0] * output[1]), 1), MOST)
        step = -(-count // -(-count // most))
        for first in range(0, count, step):
            part = slice(first, first + step)
            classes = self.asked.class_of[part]
            more = (0, step - len(classes))
            yield Part(
                np.pad(self.logits[:, part], ((0, 0), more, (0, 0), (0, 0))),
                np.pad(classes, more, constant_values=-1),
                np.pad(self.asked.offset[part], more),
            )

    def scores(self, part: Part) -> Float[Array, "c H W"]:
        """Scores of some words, not scaled; past the true size they repeat the edge."""
        return _scores(part, self.layout, self.guide, self.shapes)

    def best(self, kept: Bool[np.ndarray, " k"]) -> Best:
        """The best word of every pixel, of a class that is kept."""
        best = words.nothing(*self.shapes.output)
        for part in self.parts():
            if (part.class_of >= 0).any():
                best = _compare(best, part, kept, self.layout, self.guide, self.shapes)
        return best

    def propagated(self, photo: Float[np.ndarray, "3 H W"], grid: int) -> "_Whole":
        """As PEARL carries scores on, on a grid: one window, as large as the photo."""
        height, width = photo.shape[1:]
        cell = pearl.cells((height, width), grid)
        coarse = [
            pearl.pool(np.asarray(self.scores(part))[:, :height, :width], cell)
            for part in self.parts()
        ]
        scores = np.concatenate(coarse)[: len(self.asked.class_of)]
        vectors = np.asarray(average(self.asked.text))
        solved = pearl.solve(scores, pearl.pool(photo, cell), vectors).astype(np.float32)
        size = solved.shape[1:]
        canvas = tuple(windows.bucket(side) for side in size)
        below = [(0, more - side) for more, side in zip(canvas, size, strict=True)]
        layout = Layout(
            np.zeros((1, 2), np.int32),
            np.ones(1, np.float32),
            np.array(size, np.int32),
            self.layout.output_size,
        )
        shapes = replace(self.shapes, window=canvas, margins=((0, 0), (0, 0)), canvas=canvas)
        filled = np.pad(solved, ((0, 0), *below))[None]
        return replace(self, logits=filled, layout=layout, shapes=shapes)


def _whole(
    logits: Logits, image: np.ndarray, asked: Words, how: Inference, size: tuple[int, int]
) -> _Whole:
    method, small = how.method, image.shape[:2]
    window = how.window_size(small)
    canvas = windows.bucket(max(small[0], window[0])), windows.bucket(max(small[1], window[1]))
    output = tuple(windows.bucket(side) for side in size)
    margins = tuple(method.margins(side, how.patch) for side in window)
    origins = how.origins(small)
    # photos share the shapes that are compiled
    spare = (len(how.origins(canvas)) if how.window else 1) - len(origins)
    layout = Layout(
        np.pad(origins, ((0, spare), (0, 0))),
        np.pad(np.ones(len(origins), np.float32), (0, spare)),
        np.array(small, np.int32),
        np.array(size, np.int32),
    )
    filled = np.pad(np.asarray(logits, np.float32), ((0, spare), (0, 0), (0, 0), (0, 0)))
    whole = _Whole(filled, asked, layout, Shapes(method, window, margins, canvas, output))
    if not isinstance(method, TrainingFreeConfig):
        return whole
    propagates = method.method == "pearl"
    if propagates or method.pamr:
        below = [(0, more - side) for more, side in zip(canvas, small, strict=True)]
        photo = _enlarged(np.pad(image, (*below, (0, 0))), layout, output)
    if propagates:
        whole = whole.propagated(np.asarray(photo)[:, : size[0], : size[1]], method.grid)
    return replace(whole, guide=pamr.likeness(photo)) if method.pamr else whole


@partial(jax.jit, static_argnames="output")
def _enlarged(
    image: Float[Array, "h w 3"], layout: Layout, output: tuple[int, ...]
) -> Float[Array, "3 H W"]:
    """The photo as the network saw it in the size of the result: what refines goes by it."""
    canvas = jnp.moveaxis(image, -1, 0)
    return windows.resize(
        canvas, layout.size, layout.output_size, height=output[0], width=output[1]
    )


@partial(jax.jit, static_argnames="shapes")
def _scores(part: Part, layout: Layout, guide: Any, shapes: Shapes) -> Float[Array, "c H W"]:
    height, width = (
        sum(margin, side) for side, margin in zip(shapes.window, shapes.margins, strict=True)
    )
    fine = upsample(part.logits, (height, width))
    for axis, (before, _) in enumerate(shapes.margins, 2):
        fine = jax.lax.slice_in_dim(fine, before, before + shapes.window[axis - 2], axis=axis)
    found = shapes.method.activate(fine) - part.offset[None, :, None, None]
    height, width = shapes.canvas
    canvas = windows.stitch(found, layout.origins, layout.weights, height=height, width=width)
    height, width = shapes.output
    scores = windows.resize(canvas, layout.size, layout.output_size, height=height, width=width)
    return scores if guide is None else pamr.smooth(scores, guide, size=layout.output_size)


@partial(jax.jit, static_argnames="shapes", donate_argnums=0)
def _compare(
    best: Best, part: Part, kept: Array, layout: Layout, guide: Any, shapes: Shapes
) -> Best:
    scores = (shapes.method.scale or 1.0) * _scores(part, layout, guide, shapes)
    return words.compare(best, scores, part.class_of, kept)
