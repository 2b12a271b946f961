"""What strangers upload to the page: bombs, rubbish, and photos of unusual kinds."""

import io

import numpy as np
from PIL import Image


def png(array: np.ndarray) -> bytes:
    """The bytes of an image."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG")
    return file.getvalue()


def picture(mode: str, size: tuple[int, int], kind: str) -> bytes:
    """The bytes of a picture of one colour."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, format=kind)
    return file.getvalue()


def hostile() -> dict[str, tuple[bytes, str | None]]:
    """What strangers upload: the bytes, and a part of the sentence.

    "" where it is a photo all the same, None where either will do.
    """
    animated, deep = io.BytesIO(), np.arange(1200, dtype=np.uint16).reshape(30, 40)
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    frames[0].save(animated, format="GIF", save_all=True, append_images=frames[1:])
    jpeg = picture("RGB", (300, 200), "JPEG")
    return {
        "bomb.png": (picture("1", (20_000, 20_000), "PNG"), "far more pixels"),
        "large.png": (picture("1", (9_000, 9_000), "PNG"), "9,000 × 9,000 pixels"),
        "html.jpg": (b"<html><script>alert(1)</script></html>", "no picture that can be read"),
        "svg.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture that can be read"),
        "empty.png": (b"", "the file is empty"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "header.png": (b"\x89PNG\r\n\x1a\n" + b"\xff" * 100_000, "no picture that can be read"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        "one.png": (picture("RGB", (1, 1), "PNG"), ""),
        "long.png": (picture("RGB", (30_000, 30), "PNG"), ""),
        "animated.gif": (animated.getvalue(), ""),
        "cmyk.jpg": (picture("CMYK", (40, 30), "JPEG"), ""),
        "deep.png": (png(deep), None),
    }
