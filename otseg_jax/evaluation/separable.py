"""Windows that are only upsampled, averaged and resized, as one matrix along each axis.

All of it is linear where a method leaves its logits as they are, and a grid of windows is the
product of its rows and columns: scores[H, W] = down[H, p]·logits[p, q]·across[W, q]ᵀ, p and q the
patches of all rows and columns of windows. Two small products in place of a canvas.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from otseg_jax.models.outputs import bilinear


def matrix(
    starts: Sequence[int],
    *,
    window: int,
    margin: tuple[int, int] = (0, 0),
    cells: int,
    size: int,
    output: int,
) -> Float[np.ndarray, "{output} p"]:
    """From the patches of all windows along an axis to the pixels of the result.

    Args:
        starts: of the windows, pixels.
        window: side, pixels.
        margin: zeros before and behind it that are cut off again.
        cells: patches of a window.
        size: of the photo that the windows were cut from; what reaches past it is cut off.
        output: of the result, pixels.
    """
    side = sum(margin, window)
    fine = bilinear(cells, side)[margin[0] : margin[0] + window]
    whole, count = np.zeros((size, len(starts) * cells)), np.zeros((size, 1))
    for i, start in enumerate(starts):
        inside = min(window, size - start)
        whole[start : start + inside, i * cells : (i + 1) * cells] += fine[:inside]
        count[start : start + inside] += 1
    return (bilinear(size, output) @ (whole / count)).astype(np.float32)
