"""Small arrays that are the same for many photos: they go to one device once, not with each call.

Every array of numpy that a compiled function is called with is a transfer of its own, which on a
GPU takes Python longer than the call. Not for what several devices share.
"""

from functools import lru_cache
from typing import Any

import jax
import numpy as np


def placed(tree: Any) -> Any:
    """The arrays and numbers of a tree on the default device; equal ones are one array there."""
    return jax.tree.map(_placed, tree)


def _placed(array: Any) -> jax.Array:
    array = np.asarray(array)
    return _of_bytes(array.tobytes(), array.dtype, array.shape)


@lru_cache(maxsize=1 << 14)  # a photo and 10,000 words: hundreds for each size of a photo
def _of_bytes(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> jax.Array:
    return jax.device_put(np.frombuffer(data, dtype).reshape(shape))
