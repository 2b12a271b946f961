"""A split on its way through: photos are read, cut, predicted, stitched and counted side by side.

Windows of several photos share a batch. While the device works on one, the host's readers read and
cut what comes next; the photos of a batch are counted while the next batch is under way.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32
from tqdm import tqdm

from otseg_jax.data.transforms import View
from otseg_jax.evaluation import counting, labelling, sliding
from otseg_jax.evaluation.counting import Counts
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.sliding import Predict, Window
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Words

OnPhoto = Callable[[int, Mapping[str, Any], Mapping[str, np.ndarray]], None]


@dataclass
class _Photo:
    """A photo on its way through: its windows wait in batches until all are predicted."""

    number: int
    example: Mapping[str, Any]
    windows: list[Window | None]  # of all its views; None: not yet under way
    counts: dict[str, Counts] = field(default_factory=dict)  # by every output, still under way

    def count(self, asked: Words, how: Inference, tally: Tally) -> None:
        """Begin to stitch it and to compare it with its label."""
        views, size = self.example["views"], self.example["label"].shape
        logits = sliding.by_view([*filter(None, self.windows)], views, how)
        self.windows = []
        best = labelling.best(logits, views, asked, how, size=size, groups=tally.labelled)
        self.counts = tally.count(self.example["canvas"], best)


class _Maps(Mapping[str, np.ndarray]):
    """The label maps of a photo, which leave the device when they are asked for."""

    def __init__(self, photo: _Photo) -> None:
        self._photo = photo

    def __getitem__(self, name: str) -> Int32[np.ndarray, "H W"]:
        size = self._photo.example["label"].shape
        return labelling.label_map(self._photo.counts[name].label, size)

    def __iter__(self) -> Iterator[str]:
        return iter(self._photo.counts)

    def __len__(self) -> int:
        return len(self._photo.counts)


def cut(
    example: Mapping[str, Any], views: Sequence[View], how: Inference, *, classes: int
) -> dict[str, Any]:
    """An example with all that comes of it before the device: for the threads that read.

    That is views of its photo, their windows, and its label as it is counted (ValueErrors as of
    `counting.canvas`).
    """
    label = counting.canvas(example["label"], classes=classes)
    return {**example, "views": views, "windows": sliding.cut(views, how), "canvas": label}


def evaluate(
    predict: Predict,
    examples: Iterator[Mapping[str, Any]],
    asked: Words,
    how: Inference,
    tally: Tally,
    *,
    total: int,
    on_photo: OnPhoto | None = None,
) -> None:
    """Segment every example and count how that compares with its label.

    Args:
        examples: as of `cut`, {"label": i16[H, W], "name": str} in them.
        asked: the words of the classes that are counted.
        total: number of examples, for the progress bar.
        on_photo: called with (number, example, {output: label map i32[H, W]}) for each photo; a
            map leaves the device when it is asked for.
    """
    # every process predicts every window (the batch is split over all devices) and stitches a share
    process, processes = jax.process_index(), jax.process_count()
    progress = tqdm(total=total, unit="image", desc="evaluate", leave=False, disable=process != 0)
    for photo in _counted(_predicted(predict, examples, how), asked, how, tally):
        tally.name(photo.example["name"])
        if photo.number % processes == process:
            tally.add(photo.number, photo.example["label"], photo.counts)
            if on_photo is not None:
                on_photo(photo.number, photo.example, _Maps(photo))
        progress.update()
    progress.close()


def _counted(
    photos: Iterator[_Photo], asked: Words, how: Inference, tally: Tally
) -> Iterator[_Photo]:
    """The same photos in order, with the counts of those that this process stitches.

    They come when the next batch is under way, so that the device works while the host reads.
    """
    under_way: deque[_Photo] = deque()
    for photo in photos:
        if photo.number % jax.process_count() == jax.process_index():
            photo.count(asked, how, tally)
        under_way.append(photo)
        if len(under_way) > how.batch_size:
            yield under_way.popleft()
    yield from under_way


def _predicted(
    predict: Predict, examples: Iterator[Mapping[str, Any]], how: Inference
) -> Iterator[_Photo]:
    """Photos whose windows are all under way, in order; windows of one size share batches.

    To match windows may wait until they are embedded (`sliding.Predict`). So the next batch is
    embedded right after that, and gives the device work while the photos of this one are counted.
    """
    waiting: dict[tuple[int, ...], list[tuple[_Photo, int, np.ndarray]]] = {}
    embedded: list[tuple[Any, int, list[tuple[_Photo, int]]]] = []  # a batch, or none
    photos: deque[_Photo] = deque()

    def flush(shape: tuple[int, ...]) -> None:
        entries = waiting.pop(shape)
        batch = sliding.filled([image for *_, image in entries], how.batch_size)
        match()
        embedded.append((predict.embed(batch), shape[0], [(photo, i) for photo, i, _ in entries]))

    def match() -> None:
        while embedded:
            batch, height, entries = embedded.pop()
            logits = predict.match(batch, height=height)
            for row, (photo, place) in enumerate(entries):
                photo.windows[place] = Window(logits, row)

    def whole() -> Iterator[_Photo]:
        while photos and None not in photos[0].windows:
            yield photos.popleft()

    for number, example in enumerate(examples):
        parts = example["windows"]
        photos.append(_Photo(number, example, [None] * len(parts)))
        for place, image in enumerate(parts):
            alike = waiting.setdefault(image.shape, [])
            alike.append((photos[-1], place, image))
            if len(alike) == how.batch_size:
                flush(image.shape)
        # a rare size keeps others waiting for no longer than a batch that is embedded, one that is
        # filled up, and as many photos again
        if len(photos) > 3 * how.batch_size:
            for shape in [*waiting]:
                flush(shape)
            match()
        yield from whole()
    for shape in [*waiting]:
        flush(shape)
    match()
    yield from whole()
