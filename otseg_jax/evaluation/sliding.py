"""Inference: sliding windows over photos of any size, all outputs of a method in one pass.

photo f32[h, w, 3] → windows f32[n, s, s, 3] → logits on the patch grid f32[n, k, h/p, w/p], in
batches of one fixed size that hold windows of several photos → scores stitched on a canvas
f32[k, h, w] → original size, argmax → label map i32[H, W] → confusion counts i64[k, k].
`window` (the side of a window) and `stride` are pixels; `batch_size` counts windows that are
predicted together: the last batch is filled up, so that one shape compiles.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Int32
from tqdm import tqdm

from otseg_jax import sharding
from otseg_jax.data.classes import Vocabulary
from otseg_jax.evaluation import metrics, windows
from otseg_jax.models.otseg import upsample
from otseg_jax.models.outputs import Outputs, mix

OnPhoto = Callable[[int, Mapping[str, Any], dict[str, np.ndarray]], None]
Predict = Callable[[np.ndarray], dict[str, np.ndarray]]


def make_predict(
    graphdef: Any,
    trainable: Any,
    frozen: Any,
    text: Float[Array, "k n c"],
    *,
    mesh: Mesh,
    outputs: Outputs,
) -> Predict:
    """Bind trained weights into a function of batches of windows.

    It turns f32[b, s, s, 3], split over the `data` axis of the mesh, into f32[b, k, h, w] on the
    patch grid by name of the output. It is compiled once per model and batch size, also over
    several calls of `make_predict`.
    """

    def predict(batch: np.ndarray) -> dict[str, np.ndarray]:
        # every process holds the whole batch and gives its devices what is theirs
        whose = sharding.by_image(mesh)
        placed = jax.make_array_from_callback(batch.shape, whose, lambda index: batch[index])
        logits = _forward(graphdef, mesh, trainable, frozen, text, placed, outputs.mixtures)
        return jax.device_get(logits)

    return predict


@partial(jax.jit, static_argnums=(0, 1))
def _forward(graphdef, mesh, trainable, frozen, text, batch, mixtures):
    maps = nnx.merge(graphdef, trainable, frozen)(batch, text)
    mixed = {name: mix(maps, mixture) for name, mixture in mixtures.items()}
    # one copy everywhere: each process then stitches its own photos
    return jax.lax.with_sharding_constraint(mixed, sharding.replicated(mesh))


def scores(
    logits: Float[Array, "n k gh gw"],
    origins: Int[Array, "n 2"],
    weights: Float[Array, " n"],
    offset: Float[Array, " k"],
    size: Int[Array, "2"],
    output_size: Int[Array, "2"],
    *,
    window: int,
    canvas: tuple[int, int],
    output: tuple[int, int],
) -> Float[Array, "k H W"]:
    """Turn the logits of a photo's windows into its scores: σ(z) − offset, averaged and resized.

    Logits are on the patch grid. Scores outside `output_size` are unspecified.

    Args:
        weights: 1 for a window, 0 for filling.
        offset: 0.1 for seen classes after inductive training, else 0.
        size: (h, w) that the windows were cut from.
        output_size: (H, W) of the original photo.
        canvas: (h, w) rounded up; static, as `window` and `output` are.
        output: (H, W) rounded up.

    Source: OTSeg (arXiv 2403.14183), sliding.
    """
    stitched = _on_canvas(logits, origins, weights, offset, window, canvas)
    return windows.resize(stitched, size, output_size, height=output[0], width=output[1])


def _on_canvas(logits, origins, weights, offset, window, canvas) -> Array:
    found = jax.nn.sigmoid(upsample(logits, (window, window))) - offset[None, :, None, None]
    return windows.stitch(found, origins, weights, height=canvas[0], width=canvas[1])


_score_map = jax.jit(scores, static_argnames=("window", "canvas", "output"))


@partial(jax.jit, static_argnames=("window", "canvas", "output"))
def _label_map(
    logits, origins, weights, offset, size, output_size, *, window, canvas, output
) -> Int32[Array, "H W"]:
    """The best class of `scores`, a band of rows at a time: a photo may have many more pixels."""
    stitched = _on_canvas(logits, origins, weights, offset, window, canvas)

    def band(top: Array) -> Array:
        shape = {"height": windows.BUCKET, "width": output[1], "top": top}
        best = jnp.argmax(windows.resize(stitched, size, output_size, **shape), axis=0)
        return best.astype(jnp.int32)

    tops = jnp.arange(0, output[0], windows.BUCKET, dtype=jnp.int32)
    return jax.lax.map(band, tops).reshape(output)


def photo_scores(
    predict: Predict,
    image: Float[np.ndarray, "h w 3"],
    offset: Float[np.ndarray, " k"],
    *,
    size: tuple[int, int],
    window: int,
    stride: int,
    batch_size: int,
) -> dict[str, Float[np.ndarray, "k H W"]]:
    """Scores, less `offset`, of one normalised photo in `size` by every output, as in `scores`.

    Of few windows the batch is smaller: the next power of two.
    """
    photo = _one(predict, image, size, window, stride, batch_size)
    return _stitched(_score_map, photo, offset, window, stride)


def photo_labels(
    predict: Predict,
    image: Float[np.ndarray, "h w 3"],
    offset: Float[np.ndarray, " k"],
    *,
    size: tuple[int, int],
    window: int,
    stride: int,
    batch_size: int,
) -> dict[str, Int32[np.ndarray, "H W"]]:
    """The class of the best of `photo_scores` at every pixel; the scores stay on the device."""
    photo = _one(predict, image, size, window, stride, batch_size)
    return _stitched(_label_map, photo, offset, window, stride)


@dataclass
class _Photo:
    """A photo on its way through: its windows wait in a batch until all are predicted."""

    number: int
    example: Mapping[str, Any]
    origins: np.ndarray
    logits: list[dict[str, np.ndarray]] = field(default_factory=list)


def evaluate(
    predict: Predict,
    examples: Iterator[Mapping[str, Any]],
    vocabulary: Vocabulary,
    offset: Float[np.ndarray, " k"],
    *,
    total: int,
    window: int,
    stride: int,
    batch_size: int,
    on_photo: OnPhoto | None = None,
) -> dict[str, metrics.Summary]:
    """Segment every example and compare with its label.

    Args:
        examples: {"image": f32[h, w, 3] normalised, "label": i16[H, W], "name": str}.
        offset: subtracted from the scores of each class, in [0, 1].
        total: number of examples, for the progress bar.
        on_photo: called with (number, example, {output: label map i32[H, W]}) for each photo.
    """
    counts: dict[str, np.ndarray] = {}
    # every process predicts every window (the batch is split over all devices) and stitches a share
    process, processes = jax.process_index(), jax.process_count()
    progress = tqdm(total=total, unit="image", desc="evaluate", leave=False, disable=process != 0)
    for photo in _predicted(predict, examples, window, stride, batch_size):
        # also where none of the photos is stitched: all processes add up the same names
        for name in photo.logits[0]:
            counts.setdefault(name, np.zeros((len(vocabulary),) * 2, np.int64))
        if photo.number % processes == process:
            maps = _stitched(_label_map, photo, offset, window, stride)
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


def _one(predict, image, size, window, stride, batch_size) -> _Photo:
    count = len(windows.grid(*image.shape[:2], window=window, stride=stride))
    batch_size = min(batch_size, 1 << (count - 1).bit_length())
    example = {"image": image, "label": np.zeros(size, np.int16)}
    (photo,) = _predicted(predict, iter([example]), window, stride, batch_size)
    return photo


def _predicted(
    predict: Predict,
    examples: Iterator[Mapping[str, Any]],
    window: int,
    stride: int,
    batch_size: int,
) -> Iterator[_Photo]:
    """Photos with the logits of all their windows, in order."""
    waiting: list[tuple[_Photo, np.ndarray]] = []
    photos: list[_Photo] = []

    def flush() -> Iterator[_Photo]:
        batch = np.zeros((batch_size, window, window, 3), np.float32)
        batch[: len(waiting)] = [image for _, image in waiting]
        logits = predict(batch)
        for i, (photo, _) in enumerate(waiting):
            photo.logits.append({name: z[i] for name, z in logits.items()})
        waiting.clear()
        while photos and len(photos[0].logits) == len(photos[0].origins):
            yield photos.pop(0)

    for number, example in enumerate(examples):
        origins = windows.grid(*example["image"].shape[:2], window=window, stride=stride)
        photos.append(_Photo(number, example, origins))
        for image in windows.cut(example["image"], origins, window=window):
            waiting.append((photos[-1], image))
            if len(waiting) == batch_size:
                yield from flush()
    if waiting:
        yield from flush()


def _stitched(
    finish: Callable[..., Array], photo: _Photo, offset: np.ndarray, window: int, stride: int
) -> dict[str, np.ndarray]:
    """`_score_map` or `_label_map` per output, in the size of the label.

    Their arguments are filled up so that photos share the shapes that are compiled.
    """
    size, output_size = photo.example["image"].shape[:2], photo.example["label"].shape
    canvas = tuple(windows.bucket(max(side, window)) for side in size)
    output = tuple(windows.bucket(side) for side in output_size)
    slots, used = len(windows.grid(*canvas, window=window, stride=stride)), len(photo.origins)
    origins = np.zeros((slots, 2), np.int32)
    origins[:used] = photo.origins
    weights = (np.arange(slots) < used).astype(np.float32)
    sizes = (np.array(size, np.int32), np.array(output_size, np.int32))
    found = {}
    for name, first in photo.logits[0].items():
        logits = np.zeros((slots, *first.shape), np.float32)
        logits[:used] = [z[name] for z in photo.logits]
        arrays = (logits, origins, weights, offset, *sizes)
        whole = finish(*arrays, window=window, canvas=canvas, output=output)
        found[name] = np.asarray(whole)[..., : output_size[0], : output_size[1]]
    return found


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
