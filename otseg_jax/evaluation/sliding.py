"""Inference: sliding windows over photos of any size, all outputs of a method in one pass.

photo u8[h, w, 4] → windows u8[n, s, t, 4] → what the model embeds of them → logits on the patch
grid f32[n, v, gh, gw] of v words, in batches of one fixed size that hold windows of several photos
→ `labelling` → label map i32[H, W] → confusion counts i64[k, k]. The last batch is filled up, so
that one shape compiles.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from einops import rearrange
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Shaped
from tqdm import tqdm

from otseg_jax import sharding
from otseg_jax.data.classes import Vocabulary
from otseg_jax.evaluation import labelling, metrics
from otseg_jax.evaluation.inference import Inference, Photo
from otseg_jax.evaluation.words import Words
from otseg_jax.models import pixels
from otseg_jax.models.outputs import Outputs, mix

WORDS = 512  # matched at a time

OnPhoto = Callable[[int, Mapping[str, Any], dict[str, np.ndarray]], None]
Predict = Callable[[np.ndarray], dict[str, np.ndarray]]


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
    ) -> dict[str, Float[np.ndarray, "b v gh gw"]]:
        """Logits of words by name of the output, in windows of this height."""
        step = len(text) if how.method.joint else WORDS
        found = [
            jax.device_get(
                _match(
                    self.graphdef,
                    self.mesh,
                    how.rows(height),
                    self.trainable,
                    self.frozen,
                    embedded,
                    text[first : first + step],
                    outputs.mixtures,
                )
            )
            for first in range(0, len(text), step)
        ]
        return {name: np.concatenate([part[name] for part in found], 1) for name in found[0]}


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

    It gives f32[b, v, gh, gw] on the patch grid by name of the output, and is compiled once per
    model, size and number of words, also over several calls of `make_predict`.
    """

    def predict(batch: np.ndarray) -> dict[str, np.ndarray]:
        embedded = runner.embed(batch, how)
        return runner.match(embedded, text, outputs, height=batch.shape[1], how=how)

    return predict


def photo_embedded(runner: Runner, image: Photo, *, how: Inference) -> list[tuple[int, Any]]:
    """What the model makes of a photo before it sees words: windows in each batch, and theirs.

    Batches are of one size, at most `batch_size`, and filled up by less than one window each.
    """
    parts = how.cut(image)
    batches = -(-len(parts) // how.batch_size)
    size = -(-len(parts) // batches)
    found = []
    for first in range(0, len(parts), size):
        part = parts[first : first + size]
        spare = ((0, size - len(part)), (0, 0), (0, 0), (0, 0))
        found.append((len(part), runner.embed(np.pad(part, spare), how)))
    return found


def photo_logits(
    runner: Runner,
    embedded: list[tuple[int, Any]],
    text: Float[Array, "v n c"],
    *,
    outputs: Outputs,
    height: int,
    how: Inference,
) -> dict[str, Float[np.ndarray, "b v gh gw"]]:
    """Logits of words in all windows of a photo, of this height, by name of the output."""
    match = partial(runner.match, text=text, outputs=outputs, height=height, how=how)
    found = [{name: z[:count] for name, z in match(part).items()} for count, part in embedded]
    return {name: np.concatenate([part[name] for part in found]) for name in found[0]}


@dataclass
class _Photo:
    """A photo on its way through: its windows wait in a batch until all are predicted."""

    number: int
    example: Mapping[str, Any]
    count: int
    logits: list[dict[str, np.ndarray]] = field(default_factory=list)

    def maps(self, asked: Words, how: Inference) -> dict[str, Int32[np.ndarray, "H W"]]:
        """Its label map by every output, in the size of its label."""
        whole = {name: np.stack([z[name] for z in self.logits]) for name in self.logits[0]}
        size = self.example["label"].shape
        return labelling.label_maps(whole, self.example["image"], asked, how, size=size)


def evaluate(
    predict: Predict,
    examples: Iterator[Mapping[str, Any]],
    vocabulary: Vocabulary,
    asked: Words,
    how: Inference,
    *,
    total: int,
    on_photo: OnPhoto | None = None,
) -> dict[str, metrics.Summary]:
    """Segment every example and compare with its label.

    Args:
        examples: {"image": `Photo`, "label": i16[H, W], "name": str}.
        asked: the words of the vocabulary's classes.
        total: number of examples, for the progress bar.
        on_photo: called with (number, example, {output: label map i32[H, W]}) for each photo.
    """
    counts: dict[str, np.ndarray] = {}
    # every process predicts every window (the batch is split over all devices) and stitches a share
    process, processes = jax.process_index(), jax.process_count()
    progress = tqdm(total=total, unit="image", desc="evaluate", leave=False, disable=process != 0)
    for photo in _predicted(predict, examples, how):
        # also where none of the photos is stitched: all processes add up the same names
        for name in photo.logits[0]:
            counts.setdefault(name, np.zeros((len(vocabulary),) * 2, np.int64))
        if photo.number % processes == process:
            maps = photo.maps(asked, how)
            for name, prediction in maps.items():
                truth = photo.example["label"]
                counts[name] += metrics.confusion(truth, prediction, len(vocabulary))
            if on_photo is not None:
                on_photo(photo.number, photo.example, maps)
        progress.update()
    progress.close()
    return {
        name: metrics.summary(found, vocabulary.names, vocabulary.unseen)
        for name, found in _sum_over_processes(counts).items()
    }


def _predicted(
    predict: Predict, examples: Iterator[Mapping[str, Any]], how: Inference
) -> Iterator[_Photo]:
    """Photos with the logits of all their windows, in order."""
    waiting: list[tuple[_Photo, np.ndarray]] = []
    photos: list[_Photo] = []

    def flush() -> Iterator[_Photo]:
        batch = np.zeros((how.batch_size, *waiting[0][1].shape), waiting[0][1].dtype)
        batch[: len(waiting)] = [image for _, image in waiting]
        logits = predict(batch)
        for i, (photo, _) in enumerate(waiting):
            photo.logits.append({name: z[i] for name, z in logits.items()})
        waiting.clear()
        while photos and len(photos[0].logits) == photos[0].count:
            yield photos.pop(0)

    for number, example in enumerate(examples):
        parts = how.cut(example["image"])
        photos.append(_Photo(number, example, len(parts)))
        for image in parts:
            if waiting and waiting[0][1].shape != image.shape:
                yield from flush()
            waiting.append((photos[-1], image))
            if len(waiting) == how.batch_size:
                yield from flush()
    if waiting:
        yield from flush()


def _sum_over_processes(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    if jax.process_count() == 1:
        return counts

    def total(part: np.ndarray) -> np.ndarray:
        gathered = multihost_utils.process_allgather(part.astype(np.int32))
        return np.asarray(gathered, np.int64).sum(0)

    # Halves, because JAX would cut 64-bit counts to 32; sorted, because processes must agree on
    # what they exchange next.
    return {
        name: total(counts[name] & 0xFFFFFF) + (total(counts[name] >> 24) << 24)
        for name in sorted(counts)
    }
