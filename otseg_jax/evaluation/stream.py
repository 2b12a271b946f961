"""A split on its way through: photos are read, cut, predicted, stitched and counted side by side.

Windows of several photos share a batch. While the device works on one, the host reads and cuts
what comes next and counts what came before; nothing is waited for until a label map is there.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int32
from tqdm import tqdm

from otseg_jax.evaluation import labelling, sliding
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.offsets import Rivals
from otseg_jax.evaluation.sliding import Predict, Window
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Best, Words

OnPhoto = Callable[[int, Mapping[str, Any], dict[str, np.ndarray]], None]


@dataclass
class _Photo:
    """A photo on its way through: its windows wait in batches until all are predicted."""

    number: int
    example: Mapping[str, Any]
    windows: list[Window | None]  # of all its views; None: not yet under way
    best: dict[str, Best] = field(default_factory=dict)  # by every output, still under way

    def label(self, asked: Words, how: Inference, labelled: Bool[np.ndarray, " k"] | None) -> None:
        """Begin with its label maps."""
        views = self.example["views"]
        logits = sliding.by_view([*filter(None, self.windows)], views, how)
        self.windows = []
        self.best = labelling.best(logits, views, asked, how, size=self.size, groups=labelled)

    def maps(self) -> dict[str, Int32[np.ndarray, "H W"]]:
        """Its label map by every output, in the size of its label."""
        return {name: labelling.label_map(best, self.size) for name, best in self.best.items()}

    def rivals(self) -> dict[str, Rivals]:
        """What an offset of the labelled classes decides between, as `maps`."""
        return {name: labelling.rivals(best, self.size) for name, best in self.best.items()}

    @property
    def size(self) -> tuple[int, int]:
        """Of its label."""
        return self.example["label"].shape


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
        examples: {"views": of the photo, "label": i16[H, W], "name": str}.
        asked: the words of the classes that are counted.
        total: number of examples, for the progress bar.
        on_photo: called with (number, example, {output: label map i32[H, W]}) for each photo.
    """
    # every process predicts every window (the batch is split over all devices) and stitches a share
    process, processes = jax.process_index(), jax.process_count()
    progress = tqdm(total=total, unit="image", desc="evaluate", leave=False, disable=process != 0)
    for photo in _labelled(_predicted(predict, examples, how), asked, how, tally.labelled):
        tally.name(photo.example["name"])
        if photo.number % processes == process:
            rivals = {} if tally.labelled is None else photo.rivals()
            maps = {name: found.label for name, found in rivals.items()} or photo.maps()
            tally.add(photo.number, photo.example["label"], maps, rivals)
            if on_photo is not None:
                on_photo(photo.number, photo.example, maps)
        progress.update()
    progress.close()


def _labelled(
    photos: Iterator[_Photo],
    asked: Words,
    how: Inference,
    labelled: Bool[np.ndarray, " k"] | None,
) -> Iterator[_Photo]:
    """The same photos in order, with the label maps of those that this process stitches.

    They come when the next batch is under way, so that the device works while the host counts.
    """
    under_way: deque[_Photo] = deque()
    for photo in photos:
        if photo.number % jax.process_count() == jax.process_index():
            photo.label(asked, how, labelled)
        under_way.append(photo)
        if len(under_way) > how.batch_size:
            yield under_way.popleft()
    yield from under_way


def _predicted(
    predict: Predict, examples: Iterator[Mapping[str, Any]], how: Inference
) -> Iterator[_Photo]:
    """Photos whose windows are all under way, in order; windows of one size share batches."""
    waiting: dict[tuple[int, ...], list[tuple[_Photo, int, np.ndarray]]] = {}
    photos: deque[_Photo] = deque()

    def flush(shape: tuple[int, ...]) -> None:
        entries = waiting.pop(shape)
        batch = np.zeros((how.batch_size, *shape), entries[0][2].dtype)
        batch[: len(entries)] = [image for *_, image in entries]
        logits = predict(batch)
        for row, (photo, place, _) in enumerate(entries):
            photo.windows[place] = Window(logits, row)

    def whole() -> Iterator[_Photo]:
        while photos and None not in photos[0].windows:
            yield photos.popleft()

    for number, example in enumerate(examples):
        parts = sliding.cut(example["views"], how)
        photos.append(_Photo(number, example, [None] * len(parts)))
        for place, image in enumerate(parts):
            alike = waiting.setdefault(image.shape, [])
            alike.append((photos[-1], place, image))
            if len(alike) == how.batch_size:
                flush(image.shape)
        # a rare size does not keep others waiting; as many again may be under way
        if len(photos) > 2 * how.batch_size:
            for shape in [*waiting]:
                flush(shape)
        yield from whole()
    for shape in [*waiting]:
        flush(shape)
    yield from whole()
