"""Predict on any photo with a trained model: `load` makes a `Segmenter`.

photo, a path or an image → `decode` u8[H, W, 3] RGB → `prepare` f32[h, w, 3], resized and
normalised as trained → `scores` f32[k, H, W] through sliding windows, or the label map i32[H, W]
of their best: indices into the class names asked for.
"""

import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32, UInt8

from otseg_jax import paths, sharding, text
from otseg_jax.checkpoints import pretrained, restore
from otseg_jax.checkpoints.pretrained import Model
from otseg_jax.convert import read
from otseg_jax.convert.hints import Hints
from otseg_jax.data import decode, transforms
from otseg_jax.evaluation import sliding
from otseg_jax.models.decoder import Transport
from otseg_jax.models.outputs import Outputs
from otseg_jax.weights import source as sources

BUCKET = 16  # new class names are filled up to multiples of it, so that few shapes compile
KEPT = 16  # word lists whose embeddings are kept


def load(
    source: str | os.PathLike[str],
    *,
    checkpoint: str = "latest",
    transport: Transport | None = None,
    dtype: DTypeLike = jnp.float32,
    batch_size: int = 4,
    seen_offset: float | None = None,
) -> "Segmenter":
    """Load a trained model, ready to segment photos.

    Args:
        source: folder that `python -m otseg_jax.convert` wrote, workdir of a run, or a hub name
            "owner/name".
        checkpoint: of a workdir: latest, best, half or a step.
        transport: solver of transport plans; None: the one it was trained with.
        dtype: of matrix products, float32 or bfloat16.
        batch_size: windows predicted together, at most.
        seen_offset: subtracted from the scores of names that were trained with labels; None: as
            trained, and nothing where you ask for other names.

    Raises:
        FileNotFoundError: no such folder or hub name.
        ValueError: another kind of folder, a damaged one, a CLIP alone, or another option.
    """
    _check(dtype, batch_size, seen_offset)  # before the reading
    return Segmenter(
        _model(source, checkpoint),
        transport=transport,
        dtype=dtype,
        batch_size=batch_size,
        seen_offset=seen_offset,
    )


def _check(dtype: Any, batch_size: Any, seen_offset: Any) -> None:
    problems = []
    try:
        fits = jnp.dtype(dtype) in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
    except TypeError:
        fits = False
    if not fits:
        problems.append(f"dtype={dtype!r}: choose float32 or bfloat16")
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        problems.append(f"batch_size={batch_size!r}: wanted a whole number, at least 1")
    number = isinstance(seen_offset, int | float) and not isinstance(seen_offset, bool)
    if seen_offset is not None and not (number and 0 <= seen_offset <= 1):
        problems.append(f"seen_offset={seen_offset!r}: wanted a number in [0, 1], or None")
    if problems:
        raise ValueError("; ".join(problems))


def _model(source: Any, checkpoint: str) -> Model:
    """The trained model of a source; what holds none is refused with what to do about it."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source).strip():
        raise ValueError(
            f"load({source!r}): wanted a model directory, the workdir of a run, or a hub name "
            '"owner/name"'
        )
    local = paths.local(source)
    place = local if local.exists() else os.fspath(source)
    inside = next((p for p in local.parents[:3] if local.exists() and _holds_model(p)), None)
    if inside and not _holds_model(local):
        raise ValueError(f"{source} is a part of {inside}: give that, load({str(inside)!r})")
    if place == local and local.is_dir() and not any(local.iterdir()):
        raise FileNotFoundError(f"{source} is an empty folder")
    found = sources.find(place)
    if found.kind == "run":
        return pretrained.need_model(
            read.load(place, hints=Hints(checkpoint=str(checkpoint), flag="checkpoint")).model, ""
        )
    if found.kind == "mmseg":
        raise ValueError(
            f"{source} is a checkpoint of the original program: python -m otseg_jax.convert "
            f"{source} DEST --config=configs/DATASET.py makes a model directory of it; load that"
        )
    model = pretrained.read(found.path) if found.kind == "model" else None
    if not isinstance(model, Model):
        raise ValueError(
            f"{source} is a CLIP alone, which does not segment: train with python -m "
            f"otseg_jax.main --config=configs/DATASET.py --config.clip.source={source} "
            "--workdir=DIR, and load DIR"
        )
    return model


def _holds_model(folder: Path) -> bool:
    return sources.is_model(folder) or (folder / restore.CHECKPOINTS).is_dir()


class Segmenter:
    """A trained model with its vocabulary, or with words of your own; options as of `load`.

    `spec` describes the model; `vocabulary` are the classes that it was trained for.
    """

    def __init__(
        self,
        model: Model,
        *,
        transport: Transport | None = None,
        dtype: DTypeLike = jnp.float32,
        batch_size: int = 4,
        seen_offset: float | None = None,
    ) -> None:
        _check(dtype, batch_size, seen_offset)
        self.spec, self.clip, self.vocabulary = model.spec, model.clip, model.spec.vocabulary
        self.model = model.build(transport=transport, dtype=dtype)
        self.text: Float[Array, "k n c"] = jnp.asarray(model.embeddings)  # of its vocabulary
        self._batch_size, self._seen_offset = batch_size, seen_offset
        # on one device: a photo is too little to share
        self._mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self._embed = lru_cache(KEPT)(self._new_text)

    def __call__(
        self, photo: Any, class_names: Iterable[str] | None = None
    ) -> Int32[np.ndarray, "H W"]:
        """Segment a photo: at each pixel the index of the class name whose score is highest.

        Args:
            photo: a path, an image of Pillow, or an array u8[H, W, 3] RGB; grey and RGBA, too.
            class_names: as of `scores`.

        Raises:
            FileNotFoundError, ValueError: a photo or class names that cannot be used.
        """
        words = None if class_names is None else text.check_words(class_names)  # before the photo
        pixels, main = self.read(photo), self.spec.outputs.main
        image = self.prepare(pixels)
        return self._run(sliding.photo_labels, image, words, pixels.shape[:2], main)

    def read(self, photo: Any) -> UInt8[np.ndarray, "H W 3"]:
        """A photo, as of a call, in RGB, upright as its EXIF orientation says."""
        if isinstance(photo, str | os.PathLike):
            return decode.photo(paths.local(photo))
        return decode.rgb(photo)

    def prepare(self, photo: Any) -> Float[np.ndarray, "h w 3"]:
        """Resize and normalise a photo, as of a call, as the model was trained."""
        spec = self.spec
        pixels = self.read(photo)
        return transforms.for_eval(pixels, scale=spec.scale, mean=spec.mean, std=spec.std)

    def scores(
        self,
        image: Float[np.ndarray, "h w 3"],
        class_names: Iterable[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        method: str = "",
    ) -> Float[np.ndarray, "k H W"]:
        """Scores of every class at every pixel.

        They are σ(logit), less the offset of names that were trained with labels (`load`).

        Args:
            image: normalised, from `prepare`.
            class_names: what to look for; None: the classes that it was trained for.
            size: (H, W) of the result; None: that of `image`.
            method: one of `spec.outputs`; "": the main one.

        Raises:
            ValueError: no such method, or class names that cannot be embedded: a blank one, or new
                ones without text tower or tokenizer inside.
        """
        outputs = self.spec.outputs
        if method and method not in outputs.mixtures:
            raise ValueError(f"method={method!r}: this model has {', '.join(outputs.mixtures)}")
        words = None if class_names is None else text.check_words(class_names)
        size, method = size or image.shape[:2], method or outputs.main
        found = self._run(sliding.photo_scores, image, words, size, method)
        return found if words is None else found[: len(words)]

    def _new_text(self, names: tuple[str, ...]) -> Float[Array, "k n c"]:
        trained = self.spec.tokenizer_fingerprint
        pretrained.check_tokenizer(trained, self.clip, f"the model from {self.clip.name}")
        return jnp.asarray(self.clip.embed(names, self.spec.templates))

    def _run(
        self,
        finish: Callable[..., dict[str, np.ndarray]],
        image: np.ndarray,
        words: tuple[str, ...] | None,
        size: tuple[int, ...],
        method: str,
    ) -> np.ndarray:
        spec = self.spec
        embeddings = self.text if words is None else self._embed(words)
        offset = spec.offsets(words or spec.classes, self._seen_offset)
        if words is not None:
            # classes do not see one another, so that filling up changes nothing; 3 keeps the
            # filling below every score, which are at least 0 - 1
            fill = [(0, -len(words) % BUCKET)]
            embeddings = jnp.pad(embeddings, [*fill, (0, 0), (0, 0)], mode="edge")
            offset = np.pad(offset, fill, constant_values=3.0)
        graphdef, state = nnx.split(self.model)
        wanted = Outputs({method: spec.outputs.mixtures[method]}, main=method)
        predict = sliding.make_predict(
            graphdef, state, {}, embeddings, mesh=self._mesh, outputs=wanted
        )
        window = {"window": spec.window, "stride": spec.stride, "batch_size": self._batch_size}
        return finish(predict, image, offset, size=size, **window)[method]

    def embed(self, class_names: Iterable[str]) -> Float[Array, "k n c"]:
        """Text embeddings of class names in the model's templates, kept for reuse; as `scores`."""
        return self._embed(text.check_words(class_names))
