"""Inference: sliding windows over photos of any size, all outputs of a method in one pass.

views of a photo (`transforms.View`) u8[h, w, 4] → windows u8[n, s, t, 4] → what the model embeds
of them → logits on the patch grid f32[n, v, gh, gw] of v words, in batches of one fixed size that
hold windows of several views and photos → `labelling` → label map i32[H, W] → `tally`. The last
batch is filled up, so that one shape compiles. Logits stay on the device; the label map leaves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Shaped

from otseg_jax import sharding
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import layout
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.layout import Logits
from otseg_jax.evaluation.placed import placed
from otseg_jax.models import pixels
from otseg_jax.models.outputs import Outputs, mix

WORDS = 512  # matched at a time


@dataclass(frozen=True)
class _Structure:
    """A model without its arrays, whose hash is kept: jit asks for it at each call."""

    graphdef: Any
    tree: Any  # of the arrays, trainable and frozen

    @cached_property
    def _hash(self) -> int:
        return hash((self.graphdef, self.tree))

    def __hash__(self) -> int:
        return self._hash

    def model(self, arrays: list[Array]) -> Any:
        """With its arrays."""
        return nnx.merge(self.graphdef, *jax.tree.unflatten(self.tree, arrays))


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Runner:
    """A model with its weights on the devices of a mesh."""

    graphdef: Any
    trainable: Any
    frozen: Any
    mesh: Mesh

    @cached_property
    def _parts(self) -> tuple[_Structure, list[Array]]:
        arrays, tree = jax.tree.flatten((self.trainable, self.frozen))
        return _Structure(self.graphdef, tree), arrays

    def embed(self, batch: Shaped[np.ndarray, "b s t c"], how: Inference) -> Any:
        """What the model makes of windows, split over the `data` axis, before it sees words."""
        # every process holds the whole batch and gives its devices what is theirs
        whose = sharding.by_image(self.mesh)
        images = jax.make_array_from_callback(batch.shape, whose, lambda index: batch[index])
        scale = np.array(how.mean, np.float32), np.array(how.std, np.float32)
        with jax.set_mesh(self.mesh):
            return _embed(*self._parts, images, *scale)

    def match(
        self,
        embedded: Any,
        text: Float[Array, "v n c"],
        outputs: Outputs,
        *,
        height: int,
        how: Inference,
    ) -> dict[str, Float[Array, "b v gh gw"]]:
        """Logits of words by name of the output, in windows of this height; still under way.

        All of them are on the first device of each process, which stitches its own photos.
        """
        structure, arrays = self._parts
        several = len(text) > WORDS and not how.method.joint
        words = [text[i : i + WORDS] for i in range(0, len(text), WORDS)] if several else [text]
        with jax.set_mesh(self.mesh):
            found = [
                _match(structure, how.rows(height), arrays, embedded, some, outputs.mixtures)
                for some in words
            ]
        first, *others = jax.tree.map(lambda z: z.addressable_data(0), found)
        if not others:
            return first
        return {
            name: jnp.concatenate([first[name], *(z[name] for z in others)], 1) for name in first
        }


@partial(jax.jit, static_argnums=0, out_shardings=jax.P("data"))
def _embed(structure, arrays, batch, mean, std):
    images = pixels.normalised(batch, mean=mean, std=std)
    return structure.model(arrays).embed(images)


@partial(jax.jit, static_argnums=(0, 1), out_shardings=jax.P())
def _match(structure, rows, arrays, embedded, text, mixtures):
    flat = structure.model(arrays).match(*embedded, text)
    maps = {name: rearrange(x, "b k (h w) -> b k h w", h=rows) for name, x in flat.items()}
    return {name: mix(maps, mixture) for name, mixture in mixtures.items()}


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Predict:
    """A model bound to words: a function of batches of windows of one size.

    It gives f32[b, v, gh, gw] on the patch grid by name of the output, still under way on the
    device, and is compiled once per model, size and number of words, also over several of these.
    """

    runner: Runner
    text: Float[Array, "v n c"]
    outputs: Outputs
    how: Inference

    def __call__(self, batch: Shaped[np.ndarray, "b s t c"]) -> dict[str, Array]:
        """`match` of `embed`."""
        return self.match(self.embed(batch), height=batch.shape[1])

    def embed(self, batch: Shaped[np.ndarray, "b s t c"]) -> Any:
        """What the model makes of windows before it sees words."""
        return self.runner.embed(batch, self.how)

    def match(self, embedded: Any, *, height: int) -> dict[str, Array]:
        """Logits in windows of this height.

        On a GPU this call waits until they are embedded where Sinkhorn matches them: its loop asks
        the device whether to go on.
        """
        return self.runner.match(embedded, self.text, self.outputs, height=height, how=self.how)


def photo_embedded(
    runner: Runner, views: Sequence[View], *, how: Inference
) -> list[tuple[int, int, Any]]:
    """What the model makes of a photo before it sees words.

    Of each batch the number of its windows, their height and what is made of them. Batches hold
    windows of one size, at most `batch_size`, and are filled up by less than one window each.
    """
    found = []
    for shape, same in groupby(cut(views, how), key=np.shape):
        parts = [*same]
        batches = -(-len(parts) // how.batch_size)
        size = -(-len(parts) // batches)
        for first in range(0, len(parts), size):
            part = parts[first : first + size]
            found.append((len(part), shape[0], runner.embed(filled(part, size), how)))
    return found


def filled(
    windows: Sequence[Shaped[np.ndarray, "s t c"]], size: int
) -> Shaped[np.ndarray, "{size} s t c"]:
    """A batch of so many windows; 0, which is no photo, fills it up."""
    batch = np.empty((size, *windows[0].shape), windows[0].dtype)
    np.stack(windows, out=batch[: len(windows)])
    batch[len(windows) :] = 0
    return batch


def photo_logits(
    runner: Runner,
    embedded: list[tuple[int, int, Any]],
    views: Sequence[View],
    text: Float[Array, "v n c"],
    *,
    outputs: Outputs,
    how: Inference,
) -> list[dict[str, Logits]]:
    """Logits of words in all windows of each view, by name of the output."""
    found = []
    for count, height, part in embedded:
        logits = runner.match(part, text, outputs, height=height, how=how)
        found += [Window(logits, i) for i in range(count)]
    return by_view(found, views, how)


def cut(views: Sequence[View], how: Inference) -> list[Shaped[np.ndarray, "_ _ c"]]:
    """The windows of all views, one view after the other."""
    return [window for view in views for window in how.cut(view.image)]


class Window(NamedTuple):
    """Where the logits of a window are."""

    batch: dict[str, Array]
    row: int


def by_view(
    found: Sequence[Window], views: Sequence[View], how: Inference
) -> list[dict[str, Logits]]:
    """Of each view the logits of its windows, from those of all in the order of `cut`."""
    waiting = iter(found)
    of_views = [[*islice(waiting, len(how.origins(view.size)))] for view in views]
    return [
        _together(part, layout.count(view, how)) for part, view in zip(of_views, views, strict=True)
    ]


def _together(found: Sequence[Window], count: int) -> dict[str, Logits]:
    """The logits of windows of one size, filled up to a count."""
    batches = {id(window.batch): window.batch for window in found}
    sizes = [len(next(iter(batch.values()))) for batch in batches.values()]
    begin = dict(zip(batches, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    rows = np.zeros(count, np.int32)
    rows[: len(found)] = [begin[id(window.batch)] + window.row for window in found]
    return _rows(tuple(batches.values()), placed(rows))


@jax.jit
def _rows(batches: tuple[dict[str, Array], ...], rows: Int32[Array, " n"]) -> dict[str, Array]:
    return jax.tree.map(lambda *z: jnp.concatenate(z)[rows], *batches)
