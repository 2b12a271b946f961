"""One view of a photo: where its windows lie, and from their logits to scores of the photo.

logits f32[n, v, gh, gw] of n windows and v words, on the device. A trained model's: upsampled to
the windows, σ, less the offset, averaged on a canvas f32[c, h, w], resized to the photo. Of a CLIP
alone, where no σ lies between, all of that is two products (`separable`). A mirrored view is turned
back by the last resizing across. The shapes that are compiled are rounded up, so that photos share
them.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from otseg_jax.data.transforms import View
from otseg_jax.evaluation import separable, windows
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.placed import placed
from otseg_jax.models.last_block import einsum
from otseg_jax.models.outputs import upsample
from otseg_jax.models.training_free import TrainingFreeConfig

PATCHES = 16  # what the sizes of matrices are rounded up to

# n windows, v words, gh × gw patches; views differ in all but words
Logits = Float[Array, "_ v _ _"] | Float[np.ndarray, "_ v _ _"]
ByWord = Float[Array, "..."] | Float[np.ndarray, "..."]
STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Grid:
    """Windows that are averaged on a canvas, filled up."""

    origins: Any  # i32[n, 2]
    weights: Any  # f32[n]: 1 for a window, 0 for filling
    size: Any  # i32[2]: what the windows were cut from
    window: tuple[int, int] = field(metadata=STATIC)
    canvas: tuple[int, int] = field(metadata=STATIC)
    mirrored: bool = field(metadata=STATIC)

    words = 1  # the axis of the logits

    @property
    def cells(self) -> int:
        """Scores of a word half-way."""
        return len(self.origins) * self.window[0] * self.window[1]

    def half(
        self, logits: Float[Array, "n c gh gw"], offset: Float[Array, " c"]
    ) -> Float[Array, "c h w"]:
        """Scores half-way: of all windows on a canvas."""
        height, width = self.canvas

        def at_once(logits, offset):
            fine = upsample(logits, self.window)
            found = jax.nn.sigmoid(fine) - offset[:, None, None][None]
            return windows.stitch(found, self.origins, self.weights, height=height, width=width)

        def in_turn(logits, offset):
            words = jnp.moveaxis(logits, 1, 0)[:, :, None], offset[:, None]
            return jax.lax.map(lambda word: at_once(*word)[0], words)

        # what is made of one word stays in a CPU's cache
        return jax.lax.platform_dependent(logits, offset, cpu=in_turn, default=at_once)

    def rows(
        self, half: Float[Array, "h w"], *, end: Array, top: int | Array, shape: tuple[int, int]
    ) -> Float[Array, "H W"]:
        """Scores of one word, some rows of the result from `top` on."""
        height, width = shape
        found = windows.resize(
            half[None],
            self.size,
            end,
            height=height,
            width=width,
            top=top,
            mirrored=self.mirrored,
        )
        return found[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Axes:
    """Windows that are only upsampled and averaged: a matrix for each axis, of `separable`."""

    down: Any  # f32[H, p]
    across: Any  # f32[W, q]

    words = 0  # the axis of the logits

    @property
    def cells(self) -> int:
        """Scores of a word half-way."""
        return self.down.shape[1] * self.across.shape[0]

    def half(
        self, logits: Float[Array, "c p q"], offset: Float[Array, " c"]
    ) -> Float[Array, "c p W"]:
        """Scores half-way: at the result's width."""
        # every row of `down` sums to 1
        return einsum("cpq, wq -> cpw", logits, self.across) - offset[:, None, None]

    def rows(
        self, half: Float[Array, "p W"], *, end: Array, top: int | Array, shape: tuple[int, int]
    ) -> Float[Array, "H W"]:
        """Scores of one word, some rows of the result from `top` on."""
        down = jax.lax.dynamic_slice_in_dim(self.down, top, shape[0])
        return einsum("hp, pw -> hw", down, half)


Layout: TypeAlias = Grid | Axes


def place(
    logits: Logits, view: View, how: Inference, *, size: tuple[int, int], output: tuple[int, int]
) -> tuple[Layout, ByWord]:
    """Where the windows of a view lie, and their logits as `half` takes them.

    Args:
        size: of the result.
        output: the same, rounded up.
    """
    if isinstance(how.method, TrainingFreeConfig):
        return _axes(logits, view, how, size, output)
    return _grid(len(logits), view, how), logits


def stretched(cells: tuple[int, ...], size: tuple[int, int], output: tuple[int, int]) -> Axes:
    """One window as large as the photo, whose cells are resized to the result."""
    axes = (
        fill(separable.matrix([0], cells=n, window=n, size=n, output=length), rows)
        for n, length, rows in zip(cells, size, output, strict=True)
    )
    return jax.device_put(Axes(*axes))


def fill(array: np.ndarray, rows: int | None = None) -> np.ndarray:
    """Zeros behind the last axes, to few sizes: a matrix' rows to `rows`, patches to 16s."""
    first = [(0, 0)] * (array.ndim - 2)
    down = rows - array.shape[-2] if rows else -array.shape[-2] % PATCHES
    return np.pad(array, [*first, (0, down), (0, -array.shape[-1] % PATCHES)])


def count(view: View, how: Inference) -> int:
    """Windows of a view, filled up to those that a photo of the size of its canvas has."""
    if isinstance(how.method, TrainingFreeConfig):
        return len(how.origins(view.size))
    return len(how.origins(_canvas(view, how)))


def _canvas(view: View, how: Inference) -> tuple[int, int]:
    height, width = map(max, zip(view.size, how.window_size(view.size), strict=True))
    return windows.canvas((height, width))


def _grid(count: int, view: View, how: Inference) -> Grid:
    origins, found = np.zeros((count, 2), np.int32), how.origins(view.size)
    origins[: len(found)] = found
    return Grid(
        origins=placed(origins),
        weights=placed((np.arange(count) < len(found)).astype(np.float32)),
        size=placed(np.array(view.size, np.int32)),
        window=how.window_size(view.size),
        canvas=_canvas(view, how),
        mirrored=view.mirrored,
    )


def _axes(
    logits: Logits, view: View, how: Inference, size: tuple[int, int], output: tuple[int, int]
) -> tuple[Axes, ByWord]:
    origins, window = how.origins(view.size), how.window_size(view.size)
    starts = [np.unique(axis) for axis in origins.T]
    down, across = (
        separable.matrix(
            starts[axis].tolist(),
            window=window[axis],
            margin=how.method.margins(window[axis], how.patch),
            cells=logits.shape[2 + axis],
            size=view.size[axis],
            output=size[axis],
        )
        for axis in (0, 1)
    )
    across = across[::-1] if view.mirrored else across
    axes = jax.device_put(Axes(fill(down, output[0]), fill(across, output[1])))
    return axes, _patches(logits, len(starts[0]))


@partial(jax.jit, static_argnums=1)
def _patches(logits: Logits, rows: int) -> Float[Array, "v p q"]:
    """The patches of all windows beside one another, filled up as `fill` does."""
    found = rearrange(logits, "(y x) v h w -> v (y h) (x w)", y=rows)
    return jnp.pad(found, [(0, 0), *((0, -side % PATCHES) for side in found.shape[1:])])
