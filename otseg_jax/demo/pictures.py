"""What the page shows of an answer: pictures, and lists as HTML.

Words come from strangers: everything in HTML is escaped here.
"""

import html
from collections.abc import Set

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from otseg_jax.data.classes import IGNORE
from otseg_jax.evaluation import figures
from otseg_jax.predict import Segmentation
from otseg_jax.predict.transport import Plan

SHOWN = 768  # pixels, the least longest side of a picture: small photos are enlarged
WORDS = 20  # whose prompts are listed for a pixel
OPEN = 2  # of these are not folded
PROMPTS = 12  # listed of each
LESS, EQUAL, MORE = (33, 102, 172), (247, 247, 247), (178, 24, 43)  # as of ColorBrewer's RdBu


def overlay(
    answer: Segmentation, *, hidden: Set[int], opacity: float, at: tuple[int, int] | None
) -> Image.Image:
    """The photo under its classes but the hidden ones, with a ring around a pixel (y, x)."""
    off = np.isin(answer.labels, sorted(hidden | ({0} if answer.background else set())))
    labels = np.where(off, IGNORE, answer.labels)
    factor = enlargement(answer)
    photo = _enlarged(answer.photo, factor)
    labels = labels.repeat(factor, 0).repeat(factor, 1)
    shown = Image.fromarray(figures.overlay(photo, labels, answer.palette, alpha=opacity))
    return _ringed(shown, at, factor)


def enlargement(answer: Segmentation) -> int:
    """How many pixels of a picture show one of the photo, along a side."""
    return max(1, -(-SHOWN // max(answer.labels.shape)))


def _enlarged(photo: UInt8[np.ndarray, "h w 3"], factor: int) -> UInt8[np.ndarray, "H W 3"]:
    height, width = photo.shape[:2]
    size = width * factor, height * factor
    return np.array(Image.fromarray(photo).resize(size, Image.Resampling.BICUBIC))


def _ringed(picture: Image.Image, at: tuple[int, int] | None, factor: int) -> Image.Image:
    if at is not None:
        y, x = ((i + 0.5) * factor for i in at)
        draw, radius = ImageDraw.Draw(picture), 9
        for wider, colour in ((2, "black"), (0, "white")):
            r = radius + wider
            draw.ellipse((x - r, y - r, x + r, y + r), outline=colour, width=2 + wider)
    return picture


def prompt_map(
    answer: Segmentation, plan: Plan, word: int, prompt: int, at: tuple[int, int]
) -> tuple[Image.Image, float]:
    """Where a prompt takes more of a pixel's mass than an equal share (red), and less (blue).

    Next to it the largest difference, which has the full colour.
    """
    share, equal = plan.map(word, prompt), 1 / plan.plan.shape[-1]
    largest = max(float(np.abs(share - equal).max()), 1e-9)
    height, width = answer.labels.shape
    top, left, tall, wide = plan.box
    # the patches as they lie in the photo; what is outside of the window is grey
    rows = (np.arange(height) + 0.5 - top) * share.shape[0] / tall
    columns = (np.arange(width) + 0.5 - left) * share.shape[1] / wide
    inside = [(i >= 0) & (i < n) for i, n in zip((rows, columns), share.shape, strict=True)]
    y, x = (
        np.clip(i.astype(int), 0, n - 1) for i, n in zip((rows, columns), share.shape, strict=True)
    )
    drawn = _diverging((share - equal) / largest)[y][:, x]
    grey = np.repeat(answer.photo.mean(axis=-1, keepdims=True), 3, axis=-1)
    weight = 0.7 * (inside[0][:, None] & inside[1])[..., None]
    mixed = (grey * (1 - weight) + drawn * weight).astype(np.uint8)
    factor = enlargement(answer)
    return _ringed(Image.fromarray(_enlarged(mixed, factor)), at, factor), largest


def _diverging(value: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    ends = np.where(value[..., None] < 0, np.array(LESS), np.array(MORE))
    size = np.minimum(np.abs(value), 1.0)[..., None]
    return np.array(EQUAL) * (1 - size) + ends * size


def legend(answer: Segmentation, *, hidden: Set[int]) -> str:
    """The classes that are there, the largest first: each is a switch, with its share."""
    rows = []
    for name, share in answer.ratios.items():
        number = answer.names.index(name)
        colour = "#" + bytes(answer.palette[number]).hex()
        inner = (
            f'<i style="background:{colour}"></i><span>{escape(name)}</span>'
            f"<b>{100 * share:.1f} %</b>"
        )
        if answer.background and number == 0:
            rows.append(f'<div class="entry nothing">{inner}</div>')
            continue
        pressed = "false" if number in hidden else "true"
        rows.append(
            f'<button type="button" class="entry" data-pick="{number}" '
            f'aria-pressed="{pressed}">{inner}</button>'
        )
    return f'<div class="legend">{"".join(rows)}</div>'


def listed(answer: Segmentation, plan: Plan, at: tuple[int, int]) -> list[int]:
    """The words whose prompts are shown: those of the pixel's class, then the best aligned."""
    others = _class_of(answer) != answer.labels[at]
    return np.lexsort((-plan.alignment[:, *plan.at], others))[:WORDS].tolist()


def _class_of(answer: Segmentation) -> Int[np.ndarray, " v"]:
    return np.repeat(np.arange(len(answer.words)), [len(each) for each in answer.words])


def bars(answer: Segmentation, plan: Plan, words: list[int], picked: tuple[int, int]) -> str:
    """For each word the share of the pixel's mass that each of its prompts took, as bars."""
    class_of = _class_of(answer)
    equal = 1 / plan.plan.shape[-1]
    differences = plan.shares - equal
    longest = max(float(np.abs(differences[words]).max()), 1e-9)
    parts = []
    for place, word in enumerate(words):
        colour = "#" + bytes(answer.palette[class_of[word]]).hex()
        score = plan.alignment[word, *plan.at]
        if place == OPEN:
            opened = "open" if picked[0] in words[OPEN:] else ""
            parts.append(f"<details {opened}><summary>and {len(words) - OPEN} more</summary>")
        opened = "open" if place < OPEN or word == picked[0] else ""
        parts.append(
            f'<details {opened}><summary><i style="background:{colour}"></i>'
            f"{escape(plan.words[word])}<small>alignment {score:.2f}</small></summary>"
        )
        order = np.argsort(-plan.shares[word], kind="stable")[:PROMPTS].tolist()
        for prompt in order:
            part = differences[word, prompt] / longest
            side, width = ("more" if part >= 0 else "less"), 50 * abs(part)
            pressed = "true" if (word, prompt) == picked else "false"
            said = escape(plan.templates[prompt].replace("{}", "…").rstrip("."))
            parts.append(
                f'<button type="button" class="bar" data-pick="{word},{prompt}" '
                f'aria-pressed="{pressed}"><span>{said}</span>'
                f'<em><u class="{side}" style="width:{width:.1f}%"></u></em>'
                f"<b>{100 * plan.shares[word, prompt]:.2f} %</b></button>"
            )
        if (rest := plan.shares.shape[1] - len(order)) > 0:
            parts.append(f"<p>and {rest} more prompts</p>")
        parts.append("</details>")
    if len(words) > OPEN:
        parts.append("</details>")
    scale = (
        f"An equal share is {100 * equal:.2f} %; a bar to the right took more, to the left less, "
        f"the longest {100 * longest:.2f} points."
    )
    return f'<div class="bars">{"".join(parts)}<p>{scale}</p></div>'


def escape(text: str) -> str:
    """Text in HTML that no template language reads either."""
    safe = html.escape(text)
    return safe.translate({ord(c): f"&#{ord(c)};" for c in "{}$`\\"})
