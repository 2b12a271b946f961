"""How a model is run on photos: its windows, and how its scores become labels.

Sizes are (height, width) in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Shaped

from otseg_jax.data.transforms import Photo
from otseg_jax.evaluation import windows
from otseg_jax.models.methods import MethodConfig


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How a model is run on photos, and how its scores are read."""

    method: MethodConfig
    patch: int  # side of the tower's, pixels
    window: int  # side, pixels; 0: a photo as a whole, where the method can
    stride: int  # pixels between windows
    batch_size: int  # windows predicted together
    mean: Sequence[float]  # of photos' channels, 0..255, as the tower wants them
    std: Sequence[float]
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

    def cut(self, image: Photo) -> Shaped[np.ndarray, "n s t c"]:
        """The windows of a photo, in the order of `origins`."""
        height, width = image.shape[:2]
        return windows.cut(
            image, self.origins((height, width)), window=self.window_size((height, width))
        )

    def rows(self, side: int) -> int:
        """Patches along the height of a window."""
        return sum(self.method.margins(side, self.patch), side) // self.patch
