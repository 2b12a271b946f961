"""From the logits of a photo's windows to its scores and its label map, for every method.

logits f32[n, v, gh, gw] of n windows and v words → `stitching`: scores f32[c, H, W] of c words at
a time, at the size of the photo → the best word of every pixel → label map i32[H, W]. Neither
thousands of words nor a photo of many pixels fill the memory.
"""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from otseg_jax.data.transforms import View
from otseg_jax.evaluation import stitching, words
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.layout import Logits
from otseg_jax.evaluation.stitching import Stitched
from otseg_jax.evaluation.words import Best, Words


def label_maps(
    logits: Sequence[Mapping[str, Logits]],
    views: Sequence[View],
    asked: Words,
    how: Inference,
    *,
    size: tuple[int, int],
) -> dict[str, Int32[np.ndarray, "H W"]]:
    """The class of every pixel of a photo by every output, in `size`.

    Args:
        logits: by every output, of the windows of each view.
    """
    found = best(logits, views, asked, how, size=size)
    for each in found.values():
        each.label.copy_to_host_async()
    return {name: label_map(each.label, size) for name, each in found.items()}


def best(
    logits: Sequence[Mapping[str, Logits]],
    views: Sequence[View],
    asked: Words,
    how: Inference,
    *,
    size: tuple[int, int],
    groups: Bool[np.ndarray, " k"] | None = None,
) -> dict[str, Best]:
    """The best word of every pixel by every output, still under way, for what follows.

    Args:
        logits: as of `label_maps`.
        groups: some classes, but not all: the best of these and the best of the others; for
            methods without a threshold. None: of all.
    """
    found = {}
    for name in logits[0]:
        whole = stitching.of([z[name] for z in logits], views, asked, how, size=size)
        if groups is None:
            found[name] = _thresholded(whole, how)
        else:
            found[name] = whole.best(np.stack([groups, ~groups]), sums=False)
    return found


def label_map(label: Int32[Array, "h w"], size: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """The class of every pixel of a photo, from that of its canvas."""
    return np.asarray(label)[: size[0], : size[1]]


def _thresholded(whole: Stitched, how: Inference) -> Best:
    """The best word, or class 0 where even that scores too low."""
    best, first = _best(whole, how)
    if how.threshold is None:
        return best
    score = best.score[None]
    score = score if how.method.scale is None else words.probability(score, first)
    return best._replace(label=jnp.where(score[0] < how.threshold, 0, best.label))


def _best(whole: Stitched, how: Inference) -> tuple[Best, Best]:
    """The best words of the classes that are large enough, and of all classes."""
    sums = whole.scale is not None and how.threshold is not None
    everything = whole.best(np.ones(whole.asked.classes, bool), sums=sums)
    if not how.least_share:
        return everything, everything
    return whole.best(_kept(whole, everything, how), sums=False), everything


def score_maps(
    logits: Sequence[Mapping[str, Logits]],
    views: Sequence[View],
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
    for name in logits[0]:
        whole = stitching.of([z[name] for z in logits], views, asked, how, size=size)
        scores = np.zeros((len(rows), *size), np.float32)
        if scale is None:  # scores less an offset may be below 0
            scores[np.isin(chosen, asked.class_of)] = -np.inf
        every = np.ones(asked.classes, bool)
        first = None if scale is None else whole.best(every, sums=True)
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


def _kept(whole: Stitched, best: Best, how: Inference) -> Bool[np.ndarray, " k"]:
    height, width = whole.size
    label = np.asarray(best.label)[:height, :width]
    return words.large(label, classes=whole.asked.classes, share=how.least_share)
