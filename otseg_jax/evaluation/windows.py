"""Sliding windows over images of any size, in shapes that compile once.

Images and their windows are numpy, as of `models.pixels`; class scores and the canvas that they are
stitched into are jax arrays. Origins are (y, x) of a window's top left pixel. An image lies in the
top left corner of its canvas, whose sides are rounded up (`bucket`) so that few sizes are ever
compiled; the true sizes are ordinary arrays. Sizes are pixels, at least 1.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Shaped

BUCKET = 128  # pixels that sides are rounded up to


def grid(height: int, width: int, *, window: int, stride: int) -> Int32[np.ndarray, "n 2"]:
    """Place square windows, row by row, so that every pixel is covered.

    Raises:
        ValueError: a size below 1, or a stride that leaves gaps: wanted 1 ≤ stride ≤ window.

    Example:
        >>> grid(48, 72, window=32, stride=24).tolist()
        [[0, 0], [0, 24], [0, 40], [16, 0], [16, 24], [16, 40]]

    Source: mmsegmentation's slide inference, which the authors evaluate with.
    """
    if min(height, width, window) < 1 or not 1 <= stride <= window:
        raise ValueError(
            f"cannot place windows: height={height}, width={width}, window={window}, "
            f"stride={stride}; wanted sizes ≥ 1 and a stride of 1 .. window"
        )
    # The last window of a row or column is shifted back inside; a short side has the start 0.
    ends = (max(side - window, 0) for side in (height, width))
    starts = ([*range(0, end, stride), end] for end in ends)
    return np.array(list(product(*starts)), np.int32)


def cut(
    image: Shaped[np.ndarray, "h w c"],
    origins: Int32[np.ndarray, "n 2"],
    *,
    window: int | tuple[int, int],
) -> Shaped[np.ndarray, "n s t c"]:
    """Copy the windows out of an image; 0, which is no photo, where one reaches past it.

    Args:
        window: side, or height and width.

    Raises:
        ValueError: an origin outside the image.

    Differs: OTSeg's authors run a smaller window on an image that is smaller than the window.
    """
    height, width, channels = image.shape
    if np.any(origins < 0) or np.any(origins >= np.array([[height, width]])):
        raise ValueError(
            f"origins reach from {origins.min(axis=0).tolist()} to {origins.max(axis=0).tolist()}, "
            f"wanted (y, x) inside the image of {height} × {width} pixels"
        )
    down, across = (window, window) if isinstance(window, int) else window
    windows = np.zeros((len(origins), down, across, channels), image.dtype)
    for target, (y, x) in zip(windows, origins, strict=True):
        part = image[y : y + down, x : x + across]
        target[: part.shape[0], : part.shape[1]] = part
    return windows


def stitch(
    scores: Float[Array, "n k s t"],
    origins: Int32[Array, "n 2"],
    weights: Float[Array, " n"],
    *,
    height: int,
    width: int,
) -> Float[Array, "k {height} {width}"]:
    """Average the windows' scores where they overlap; 0 where there is no window.

    Args:
        scores: those of weight 0 may be anything.
        origins: a window that would reach over the canvas is moved inside, without an error: under
            `jit` its value is not known.
        weights: 1 for a window, 0 for one that only fills up the batch.
        height: of the canvas, ≥ max(image, window); static, like `width`.

    Raises:
        ValueError: a canvas smaller than a window.

    Source: mmsegmentation's slide inference, which divides by the count of windows.
    """
    classes, *side = scores.shape[1:]
    if height < side[0] or width < side[1]:
        raise ValueError(
            f"a canvas of {height} × {width} pixels holds no window of {side[0]} × {side[1]}; "
            "wanted height and width ≥ window"
        )

    # One after the other: windows overlap, and a scatter on a GPU adds in no fixed order.
    def add(canvas: tuple[Array, Array], item: tuple[Array, Array, Array]):
        score, (y, x), share = item
        # `where`, as 0 · NaN of a window that fills up the batch would be NaN.
        score = jnp.where(share > 0, share * score.astype(jnp.float32), 0.0)
        patches = score, jnp.full((1, *side), share, jnp.float32)
        start = (jnp.zeros_like(y), y, x)  # all of one integer type
        return jax.tree.map(partial(_add_at, start=start), canvas, patches), None

    zeros = partial(jnp.zeros, dtype=jnp.float32)  # whatever JAX's default
    empty = zeros((classes, height, width)), zeros((1, height, width))
    (total, weight), _ = jax.lax.scan(add, empty, (scores, origins, weights))
    return total / jnp.where(weight > 0, weight, 1.0)


def resize(
    canvas: Float[Array, "k h w"],
    size: Int32[Array, "2"],
    output_size: Int32[Array, "2"],
    *,
    height: int,
    width: int,
    top: int | Int32[Array, ""] = 0,
    mirrored: bool = False,
) -> Float[Array, "k {height} {width}"]:
    """Resize the image that lies in a canvas, bilinearly, to another size in another canvas.

    On the true output it equals `jax.image.resize(..., antialias=False)` of the true input, though
    both sizes are run-time values and only the canvases are compiled in.

    Args:
        size: true (height, width) inside the canvas; what lies outside is never read.
        output_size: true (height, width) in the output canvas; values outside are unspecified.
        height: of the output canvas; static, like `width`. A side of the input times one of the
            output must stay below 2^30 (32,768 × 32,768).
        top: the output row that the result begins with, so that a band of rows can be had alone.
        mirrored: left and right change places; static.

    Source: `F.interpolate(mode="bilinear", align_corners=False)` of the reference.
    """
    canvas = canvas.astype(jnp.float32)
    upper, lower, down = _taps(top, height, size[0], output_size[0])
    left, right, across = _taps(0, width, size[1], output_size[1], mirrored=mirrored)
    down, across = down[None, :, None], across[None, None, :]
    # Should a true size exceed the canvas, which `jit` cannot know, the edge is repeated: the
    # default mode would return NaN there.
    take = partial(jnp.take, mode="clip")
    rows = take(canvas, upper, axis=1) * (1.0 - down) + take(canvas, lower, axis=1) * down
    return take(rows, left, axis=2) * (1.0 - across) + take(rows, right, axis=2) * across


def canvas(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the canvas that an image of this size lies on."""
    return bucket(size[0]), bucket(size[1])


def bucket(size: int, multiple: int = BUCKET) -> int:
    """Round a side up to a multiple, so that images of many sizes share few compiled shapes.

    Raises:
        ValueError: an argument below 1.

    Example:
        >>> bucket(500), bucket(512), bucket(513)
        (512, 512, 640)
    """
    if min(size, multiple) < 1:
        raise ValueError(f"size={size}, multiple={multiple}; wanted both ≥ 1")
    return -(-size // multiple) * multiple


def _add_at(canvas: Array, patch: Array, start: tuple) -> Array:
    old = jax.lax.dynamic_slice(canvas, start, patch.shape)
    return jax.lax.dynamic_update_slice(canvas, old + patch, start)


def _taps(
    start: int | Array, length: int, size: Array, output_size: Array, *, mirrored: bool = False
) -> tuple[Array, Array, Array]:
    """The two source indices of each output pixel from `start` on, and the weight of the second.

    Source coordinate (i + ½)·size/output − ½ = ((2i + 1)·size − output) / (2·output), kept as
    an exact fraction of integers: in float32 it would lose four digits at the far edge.
    """
    # Pixels past the true output repeat its last one: no product overflows, no tap leaves `size`.
    index = jnp.minimum(start + jnp.arange(length, dtype=jnp.int32), output_size - 1)
    index = output_size - 1 - index if mirrored else index
    numerator, denominator = (2 * index + 1) * size - output_size, 2 * output_size
    floor = numerator // denominator
    fraction = (numerator - floor * denominator) / denominator
    return jnp.maximum(floor, 0), jnp.minimum(floor + 1, size - 1), fraction.astype(jnp.float32)
