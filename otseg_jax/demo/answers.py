"""What the page computes: from a stranger's bytes and words to a `Segmentation`, within limits.

Photos are bytes, never paths. One thread works; the latest answers are kept, so that a switch, a
click or the same question again costs no model. What a visitor can mend is a ValueError.
"""

import hashlib
import io
import re
import threading
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLate
from copy import copy
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from otseg_jax.data import decode
from otseg_jax.models.training_free import METHODS
from otseg_jax.predict import Segmentation, Segmenter, load
from otseg_jax.predict.asked import Background
from otseg_jax.predict.kept import Kept
from otseg_jax.predict.segmenter import THRESHOLD
from otseg_jax.predict.transport import Plan, plan

MOST_BYTES = 20_000_000  # of a photo's file
MOST_PIXELS = 50_000_000  # of a photo's file: those of telephones
SIDE = 1024  # pixels, the longest side of what is segmented and shown
MOST_WORDS = 100
MOST_LETTERS = 60  # of a word
MOST_SECONDS = 60.0  # that somebody whose turn has come waits for an answer
KEPT = 24  # answers, up to 7 MB each
PLANS = 4  # plans kept
# what browsers show and cameras write; Pillow opens more, some by running other programs
Image.init()
WANTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
FORMATS = tuple(name for name in WANTED if name in Image.OPEN)
SHIPPED, SHIPPED_CLIP = "shapes", "shapes-clip"
# σ(logit) of the shipped model: its objects are above, and what is none of them is below
SHIPPED_THRESHOLD = 0.22
# of a photo's background
EVERY = "none: every pixel gets one of the words"
OTHERS = "words: usual things compete"
LEAST = "threshold: what scores less"

Made = TypeVar("Made")

NO_WORDS = "give some words, for example: cat, sofa|couch, grass"
NOT_KEPT = "this answer is no longer kept: press Segment again"
NO_TIME = (
    "this takes longer than {:.0f} s and goes on: press Segment again later, or give a smaller "
    "photo or fewer words"
)
NO_TURN = "others came first, and {:.0f} s were not enough: press Segment again later"


@dataclass(frozen=True)
class Question:
    """What a visitor asks."""

    photo: bytes
    words: str  # as typed
    background: Background
    method: str

    @property
    def key(self) -> str:
        """The same for the same question."""
        asked = repr((self.words, self.background, self.method)).encode()
        return hashlib.blake2b(asked + b"\0" + self.photo, digest_size=16).hexdigest()


def decode_photo(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    """A photo of at most `SIDE` pixels a side, from the bytes of a file.

    Raises:
        ValueError: no picture, a broken one, or one that is too large.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(
            f"the file has {len(data):,} bytes, more than the {MOST_BYTES:,} that this page takes: "
            "give a smaller copy"
        )
    if not data:
        raise ValueError("the file is empty: give a photo")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(_too_large("far more")) from None
    except Exception:  # on corrupt bytes Pillow's readers raise nearly any type
        raise ValueError(
            f"this file is no picture that can be read: give one of {', '.join(FORMATS)}"
        ) from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(_too_large(f"{image.width:,} × {image.height:,}"))
        image.draft(None, (2 * SIDE, 2 * SIDE))  # a large JPEG is decoded in a fraction of its size
        pixels = decode.rgb(image)
    if max(pixels.shape) <= SIDE:
        return pixels
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.array(small)


def _too_large(size: str) -> str:
    return f"the photo has {size} pixels, and this page takes {MOST_PIXELS:,}: give a smaller copy"


def read_words(typed: str) -> list[str]:
    """The words of a line or of several, between commas; none if nothing is typed.

    Raises:
        ValueError: too many, or one too long.

    Example:
        >>> read_words("sofa|couch, cat")
        ['sofa|couch', 'cat']
    """
    entries = [part.strip() for part in re.split(r"[,;\n]", typed)]
    found = [part for part in entries if part]
    count = sum(entry.count("|") + 1 for entry in found)
    if count > MOST_WORDS:
        raise ValueError(f"{count:,} words, and this page takes {MOST_WORDS}: leave some out")
    for word in (word for entry in found for word in entry.split("|")):
        if len(word) > MOST_LETTERS:
            raise ValueError(
                f"the word '{word[:20]}…' has {len(word):,} letters, and this page takes "
                f"{MOST_LETTERS}: shorten it, and put commas between words"
            )
    return found


class Answers:
    """A model behind the page, as of `load`: its methods, its words, and the latest answers."""

    def __init__(self, source: str, **options: Any) -> None:
        self.first = first = load(source, **options)
        self.shipped = source == SHIPPED
        self.words = () if first.vocabulary is None else first.vocabulary.names
        words_compete = first.spec.model.scale is not None
        self.threshold = SHIPPED_THRESHOLD if self.shipped else THRESHOLD[words_compete]
        # by the name that the page shows: outputs of a trained model, methods of a CLIP alone
        self.methods: dict[str, Callable[[], Segmenter]] = {}
        if self.words:
            for name in _first(first.method, first.spec.outputs.mixtures):
                self.methods[f"{name}, trained"] = partial(_with_method, first, name)
        if self.shipped or not self.words:
            clip = SHIPPED_CLIP if self.shipped else source
            alone = lru_cache(2)(lambda method: load(clip, method=method, **options))
            for name in _first(first.method, METHODS):
                loaded = partial(copy, first) if name == first.method else partial(alone, name)
                self.methods[f"{name}, nothing trained"] = loaded
        self._worker = ThreadPoolExecutor(1, "answers")
        self._lock = threading.Lock()
        self._answers: Kept[Hashable, Future[Segmentation]] = Kept(KEPT)
        self._plans: Kept[Hashable, Future[Plan]] = Kept(PLANS)

    def ask(self, question: Question) -> Segmentation:
        """Answer a question, or give the answer that is kept.

        Raises:
            ValueError: a photo, words, a background or a method that cannot be used, or no time.
        """
        make = self._method(question.method)
        words = read_words(question.words)  # before anything waits
        if not words and not self.words:
            raise ValueError(NO_WORDS)

        def segment() -> Segmentation:
            segmenter = make()
            own = self.words if segmenter.vocabulary is None else None
            photo = decode_photo(question.photo)
            found = segmenter(photo, words or own, background=question.background)
            # scores hold on to the features of the photo, and the page does not show them
            return replace(found, make_scores=_no_scores)

        return self._wait(self._answers, question.key, segment)

    def find(self, key: str) -> Segmentation:
        """An answer that is kept; a ValueError if it is not."""
        work = self._answers.find(key)
        if work is None or not work.done() or work.cancelled() or work.exception() is not None:
            raise ValueError(NOT_KEPT)
        return work.result()

    def plan(self, key: str, method: str, at: tuple[int, int]) -> Plan:
        """The transport plans around a pixel (y, x) of a kept answer; errors as of `plan`."""
        answer, make = self.find(key), self._method(method)
        words = [word for each in answer.words for word in each]
        return self._wait(
            self._plans, (key, method, at), lambda: plan(make(), answer.photo, words, at=at)
        )

    def _method(self, name: str) -> Callable[[], Segmenter]:
        if name not in self.methods:
            raise ValueError(f"method {name!r}: choose one of {', '.join(self.methods)}")
        return self.methods[name]

    def _wait(
        self, kept: Kept[Hashable, Future[Made]], key: Hashable, make: Callable[[], Made]
    ) -> Made:
        with self._lock:  # who ask the same at once wait for one answer
            (work,) = kept.get([key], lambda _: [self._worker.submit(make)])
        try:
            return work.result(timeout=MOST_SECONDS)
        except (TooLate, CancelledError):
            if not work.cancel():
                raise ValueError(NO_TIME.format(MOST_SECONDS)) from None
            # nobody waits for it: what has not begun must not pile up
            kept.forget(key)
            raise ValueError(NO_TURN.format(MOST_SECONDS)) from None
        except Exception:
            kept.forget(key)  # a second try is a try
            raise


def _first(name: str, names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda each: each != name)


def _with_method(segmenter: Segmenter, method: str) -> Segmenter:
    """The same weights and caches by another of its outputs."""
    found = copy(segmenter)
    found.method = method
    return found


def _no_scores(size: tuple[int, int], classes: Any) -> np.ndarray:
    raise ValueError("the page keeps no scores")
