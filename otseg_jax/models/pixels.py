"""Photos on their way to a tower: bytes travel to the device, and are normalised there."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def normalised(
    image: UInt8[Array, "*b h w 4"] | Float[Array, "*b h w 3"],
    *,
    mean: Sequence[float] | Float[Array, "3"],
    std: Sequence[float] | Float[Array, "3"],
) -> Float[Array, "*b h w 3"]:
    """(image - mean) / std per channel, and 0, the mean colour, where no photo is.

    Args:
        image: red, green, blue, and whether a photo is there; what is no bytes is normalised
            already, and stays.
        mean: of each channel, in 0..255.
        std: likewise.

    Example:
        >>> pixels = jnp.array([[[255, 127, 0, 1], [9, 9, 9, 0]]], jnp.uint8)
        >>> normalised(pixels, mean=(127.0,) * 3, std=(128.0,) * 3).tolist()
        [[[1.0, 0.0, -0.9921875], [0.0, 0.0, 0.0]]]
    """
    if image.dtype != jnp.uint8:
        return image
    channels = image[..., :3].astype(jnp.float32)
    shift, width = (
        jnp.broadcast_to(jnp.asarray(each, jnp.float32), channels.shape) for each in (mean, std)
    )
    return jnp.where(image[..., 3:] > 0, (channels - shift) / width, 0.0)
