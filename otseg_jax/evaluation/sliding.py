"""Inference: sliding windows over photos of any size, all outputs of a method in one pass.

views of a photo (`transforms.View`) u8[h, w, 4] → windows u8[n, s, t, 4] → what the model embeds
of them → logits on the patch grid f32[n, v, gh, gw] of v words, in batches of one fixed size that
hold windows of several views and photos → `labelling` → label map i32[H, W] → `tally`. The last
batch is filled up, so that one shape compiles.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, Shaped
from tqdm import tqdm

from otseg_jax import sharding
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import labelling
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.layout import Logits
from otseg_jax.evaluation.offsets import Rivals
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Words
from otseg_jax.models import pixels
from otseg_jax.models.outputs import Outputs, mix

WORDS = 512  # matched at a time

OnPhoto = Callable[[int, Mapping[str, Any], dict[str, np.ndarray]], None]
Predict = Callable[[np.ndarray], dict[str, Array]]


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Runner:
    """A model with its weights on the devices of a mesh."""

    graphdef: Any
    trainable: Any
    frozen: Any
    mesh: Mesh

    def embed(self, batch: Shaped[np.ndarray, "b s t c"], how: Inference) -> Any:
        """What the model makes of windows, split over the `data` axis, before it sees words."""
        # every process holds the whole batch and gives its devices what is theirs
        whose = sharding.by_image(self.mesh)
        placed = jax.make_array_from_callback(batch.shape, whose, lambda index: batch[index])
        scale = np.array(how.mean, np.float32), np.array(how.std, np.float32)
        return _embed(self.graphdef, self.trainable, self.frozen, placed, *scale)

    def match(
        self,
        embedded: Any,
        text: Float[Array, "v n c"],
        outputs: Outputs,
        *,
        height: int,
        how: Inference,
    ) -> dict[str, Float[Array, "b v gh gw"]]:
        """Logits of words by name of the output, in windows of this height; still under way."""
        step = len(text) if how.method.joint else WORDS
        first, *others = [
            _match(
                self.graphdef,
                self.mesh,
                how.rows(height),
                self.trainable,
                self.frozen,
                embedded,
                text[start : start + step],
                outputs.mixtures,
            )
            for start in range(0, len(text), step)
        ]
        if not others:
            return first
        return {
            name: jnp.concatenate([first[name], *(z[name] for z in others)], 1) for name in first
        }


@partial(jax.jit, static_argnums=0)
def _embed(graphdef, trainable, frozen, batch, mean, std):
    images = pixels.normalised(batch, mean=mean, std=std)
    return nnx.merge(graphdef, trainable, frozen).embed(images)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _match(graphdef, mesh, rows, trainable, frozen, embedded, text, mixtures):
    flat = nnx.merge(graphdef, trainable, frozen).match(*embedded, text)
    maps = {name: rearrange(x, "b k (h w) -> b k h w", h=rows) for name, x in flat.items()}
    mixed = {name: mix(maps, mixture) for name, mixture in mixtures.items()}
    # one copy everywhere: each process then stitches its own photos
    return jax.lax.with_sharding_constraint(mixed, sharding.replicated(mesh))


def make_predict(
    runner: Runner, text: Float[Array, "v n c"], *, outputs: Outputs, how: Inference
) -> Predict:
    """Bind words to a model: a function of batches of windows of one size.

    It gives f32[b, v, gh, gw] on the patch grid by name of the output, still under way on the
    device, and is compiled once per
    model, size and number of words, also over several calls of `make_predict`.
    """

    def predict(batch: np.ndarray) -> dict[str, Array]:
        embedded = runner.embed(batch, how)
        return runner.match(embedded, text, outputs, height=batch.shape[1], how=how)

    return predict


def photo_embedded(
    runner: Runner, views: Sequence[View], *, how: Inference
) -> list[tuple[int, int, Any]]:
    """What the model makes of a photo before it sees words.

    Of each batch the number of its windows, their height and what is made of them. Batches hold
    windows of one size, at most `batch_size`, and are filled up by less than one window each.
    """
    found = []
    for shape, same in groupby(_windows(views, how), key=np.shape):
        parts = np.stack([*same])
        batches = -(-len(parts) // how.batch_size)
        size = -(-len(parts) // batches)
        for first in range(0, len(parts), size):
            part = parts[first : first + size]
            spare = ((0, size - len(part)), (0, 0), (0, 0), (0, 0))
            found.append((len(part), shape[0], runner.embed(np.pad(part, spare), how)))
    return found


def photo_logits(
    runner: Runner,
    embedded: list[tuple[int, int, Any]],
    views: Sequence[View],
    text: Float[Array, "v n c"],
    *,
    outputs: Outputs,
    how: Inference,
) -> list[dict[str, Logits]]:
    """Logits of words in all windows of each view, by name of the output."""
    found = []
    for count, height, part in embedded:
        logits = jax.device_get(runner.match(part, text, outputs, height=height, how=how))
        found += [{name: z[i] for name, z in logits.items()} for i in range(count)]
    return _by_view(found, views, how)


def _windows(views: Sequence[View], how: Inference) -> list[Shaped[np.ndarray, "_ _ c"]]:
    """The windows of all views, one view after the other."""
    return [window for view in views for window in how.cut(view.image)]


def _by_view(
    logits: Sequence[Mapping[str, Float[np.ndarray, "v _ _"]]],
    views: Sequence[View],
    how: Inference,
) -> list[dict[str, Logits]]:
    """Of each view those of its windows, from those of all in the order of `_windows`."""
    waiting = iter(logits)
    of_views = [[*islice(waiting, len(how.origins(view.size)))] for view in views]
    return [{name: np.stack([z[name] for z in part]) for name in part[0]} for part in of_views]


@dataclass
class _Photo:
    """A photo on its way through: its windows wait in batches until all are predicted."""

    number: int
    example: Mapping[str, Any]
    logits: list[dict[str, np.ndarray]]  # of the windows of all its views; empty: not yet there

    def maps(self, asked: Words, how: Inference) -> dict[str, Int32[np.ndarray, "H W"]]:
        """Its label map by every output, in the size of its label."""
        return labelling.label_maps(*self._stitched(how), asked, how, size=self.size)

    def rivals(
        self, asked: Words, how: Inference, labelled: Bool[np.ndarray, " k"]
    ) -> dict[str, Rivals]:
        """What an offset of the labelled classes decides between, as `maps`."""
        return labelling.rivals(*self._stitched(how), asked, how, labelled, size=self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Of its label."""
        return self.example["label"].shape

    def _stitched(self, how: Inference) -> tuple[list[dict[str, Logits]], Sequence[View]]:
        views = self.example["views"]
        return _by_view(self.logits, views, how), views


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
    for photo in _predicted(predict, examples, how):
        tally.name(photo.example["name"])
        if photo.number % processes == process:
            if tally.labelled is None:
                rivals, maps = {}, photo.maps(asked, how)
            else:
                rivals = photo.rivals(asked, how, tally.labelled)
                maps = {name: found.label for name, found in rivals.items()}
            tally.add(photo.number, photo.example["label"], maps, rivals)
            if on_photo is not None:
                on_photo(photo.number, photo.example, maps)
        progress.update()
    progress.close()


def _predicted(
    predict: Predict, examples: Iterator[Mapping[str, Any]], how: Inference
) -> Iterator[_Photo]:
    """Photos with the logits of all their windows, in order; windows of one size share batches."""
    waiting: dict[tuple[int, ...], list[tuple[_Photo, int, np.ndarray]]] = {}
    running: deque[tuple[list[tuple[_Photo, int, np.ndarray]], dict[str, Array]]] = deque()
    photos: list[_Photo] = []

    def flush(shape: tuple[int, ...]) -> None:
        entries = waiting.pop(shape)
        batch = np.zeros((how.batch_size, *shape), entries[0][2].dtype)
        batch[: len(entries)] = [image for *_, image in entries]
        running.append((entries, predict(batch)))
        # while the device works on it, the host reads, cuts and stitches
        take(but=1)

    def take(but: int) -> None:
        while len(running) > but:
            entries, under_way = running.popleft()
            logits = jax.device_get(under_way)
            for i, (photo, place, _) in enumerate(entries):
                photo.logits[place] = {name: z[i] for name, z in logits.items()}

    def whole() -> Iterator[_Photo]:
        while photos and all(photos[0].logits):
            yield photos.pop(0)

    for number, example in enumerate(examples):
        parts = _windows(example["views"], how)
        photos.append(_Photo(number, example, [{}] * len(parts)))
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
    take(but=0)
    yield from whole()
