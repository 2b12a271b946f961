"""Which prompts take a pixel's mass: the transport plans of a trained model, to be looked at.

A word is n prompts, one for each template, and a photo's window is gh × gw patches; between the two
the model solves a transport problem for every word. Of a photo larger than the window, that window
is looked at in whose middle the pixel lies most.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from otseg_jax.evaluation import windows
from otseg_jax.models.decoder import alignment
from otseg_jax.models.otseg import OTSeg
from otseg_jax.models.pixels import normalised
from otseg_jax.predict import asked
from otseg_jax.predict.segmenter import Segmenter
from otseg_jax.predict.vectors import BUCKET

NO_PLAN = (
    "{} has no transport plan: {}. A model that is trained as OTSeg has one, and so has "
    'load("shapes"), which comes with the package'
)


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Plan:
    """The transport plans of the words of a photo, in the window around one pixel."""

    words: tuple[str, ...]
    templates: tuple[str, ...]  # a prompt is a template with a word in it
    plan: Float[np.ndarray, "v gh gw n"]  # of each word it sums to 1, of a patch to 1/(gh·gw)
    alignment: Float[np.ndarray, "v gh gw"]  # the model's "mps" map
    weight: float  # of that map in the logits of the segmenter's method
    at: tuple[int, int]  # the patch of the pixel
    box: tuple[float, float, float, float]  # of the patches in the photo: y, x, height, width

    @property
    def shares(self) -> Float[np.ndarray, "v n"]:
        """What part of the pixel's mass each prompt of each word took; 1 for each word."""
        row = self.plan[:, self.at[0], self.at[1]]
        return row / row.sum(axis=-1, keepdims=True)

    def map(self, word: int, prompt: int) -> Float[np.ndarray, "gh gw"]:
        """Where a prompt's mass comes from: the part of each patch's that it took."""
        return self.plan[word, :, :, prompt] * self.plan[word, :, :, 0].size


def plan(segmenter: Segmenter, photo: Any, words: Iterable[str], *, at: tuple[int, int]) -> Plan:
    """The transport plans between a photo and each word, as the model's MPS path solves them.

    Args:
        photo: as of a call of the segmenter.
        words: as of a call; each of "sofa|couch" is a word of its own.
        at: the pixel of the photo, (y, x).

    Raises:
        FileNotFoundError, ValueError: a photo or words that cannot be used, a pixel outside of the
            photo, or a model that solves no transport problem.
    """
    model, spec = segmenter.model, segmenter.spec
    if not isinstance(model, OTSeg) or model.decoder.kind != "mpsa":
        averages = "it compares pixels with the mean of a word's templates"
        one = "its cross-attention takes one prompt for each word"
        raise ValueError(
            NO_PLAN.format(repr(segmenter), one if spec.model.one_prompt else averages)
        )
    plain = tuple(word for each in asked.check_words(words) for word in each)
    pixels = segmenter.read(photo)
    size = pixels.shape[:2]
    if not all(0 <= i < side for i, side in zip(at, size, strict=True)):
        raise ValueError(f"at={at}: the photo has {size[0]} × {size[1]} pixels, (y, x) from 0 on")
    image, patch = segmenter.prepare(pixels), model.patch_size
    shape = np.array(image.shape[:2])
    where = (np.array(at) + 0.5) * shape / size  # of the pixel in the prepared photo
    origins = windows.grid(*shape.tolist(), window=spec.window, stride=spec.stride)
    middle = np.abs(origins + spec.window / 2 - where).max(axis=1)
    origin = origins[np.argmin(middle)]
    (part,) = windows.cut(image, origin[None], window=spec.window)
    window = normalised(jnp.asarray(part), mean=spec.mean, std=spec.std)[None]
    graphdef, state = nnx.split(model)
    # filled up, so that few numbers of words are compiled
    filled = np.pad(segmenter.embed(plain), ((0, -len(plain) % BUCKET), (0, 0), (0, 0)), "edge")
    found, score = jax.device_get(_solve(graphdef, state, window, filled))
    side = spec.window // patch
    scale = size / shape
    row, column = np.minimum((where - origin) // patch, side - 1).astype(int).tolist()
    y, x, height, width = np.concatenate([origin * scale, side * patch * scale]).tolist()
    return Plan(
        words=plain,
        templates=spec.templates,
        plan=found[: len(plain)].reshape(len(plain), side, side, -1),
        alignment=score[: len(plain)].reshape(len(plain), side, side),
        weight=spec.outputs.mixtures[segmenter.method].get("mps", 0.0),
        at=(row, column),
        box=(y, x, height, width),
    )


@partial(jax.jit, static_argnums=0)
def _solve(
    graphdef: Any, state: Any, window: Float[Array, "1 s s 3"], vectors: Float[Array, "v n c"]
) -> tuple[Float[Array, "v m n"], Float[Array, "v m"]]:
    model = nnx.merge(graphdef, state)
    whole, pixels = model.embed(window)
    found, similarity = model.plan(model.describe(whole, vectors), pixels)
    return found[0], alignment(found, similarity)[0]
