"""Predict on any photo with a model directory: `load` makes a `Segmenter`.

photo u8[H, W, 3] RGB → `prepare` f32[h, w, 3], resized and normalised as trained → `scores`
f32[k, H, W] through sliding windows → label map i32[H, W], indices into the class names asked for.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32, UInt8

from otseg_jax import sharding
from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.pretrained import Model
from otseg_jax.data import transforms
from otseg_jax.evaluation import sliding
from otseg_jax.models.decoder import Transport
from otseg_jax.models.outputs import Outputs

BUCKET = 16  # new class names are filled up to multiples of it, so that few shapes compile


def load(
    source: str | Path,
    *,
    transport: Transport | None = None,
    dtype: DTypeLike = jnp.float32,
    batch_size: int = 4,
) -> "Segmenter":
    """Load a model directory, ready to segment photos.

    Args:
        source: folder that `python -m otseg_jax.convert` wrote, or a hub name "owner/name".
        transport: solver of transport plans; None: the one it was trained with.
        dtype: of matrix products, float32 or bfloat16.
        batch_size: windows predicted together.

    Raises:
        FileNotFoundError: no such folder or hub name.
        ValueError: another kind of folder, a damaged one, or a CLIP alone.
    """
    hint = ", which does not segment: train with --config.clip.source set to it"
    model = pretrained.need_model(pretrained.read(source), hint)
    return Segmenter(model, transport=transport, dtype=dtype, batch_size=batch_size)


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
    ) -> None:
        self.spec, self.clip, self.vocabulary = model.spec, model.clip, model.spec.vocabulary
        self.model = model.build(transport=transport, dtype=dtype)
        self.text: Float[Array, "k n c"] = jnp.asarray(model.embeddings)  # of its vocabulary
        self._batch_size = batch_size
        # on one device: a photo is too little to share
        self._mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self._embedded: dict[tuple[str, ...], Array] = {}

    def __call__(
        self, photo: UInt8[np.ndarray, "H W 3"], class_names: Sequence[str] | None = None
    ) -> Int32[np.ndarray, "H W"]:
        """Segment a photo, RGB of any size: indices into the class names, as of `scores`."""
        scores = self.scores(self.prepare(photo), class_names, size=photo.shape[:2])
        return np.argmax(scores, axis=0).astype(np.int32)

    def prepare(self, photo: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
        """Resize and normalise a photo as the model was trained."""
        spec = self.spec
        return transforms.for_eval(photo, scale=spec.scale, mean=spec.mean, std=spec.std)

    def scores(
        self,
        image: Float[np.ndarray, "h w 3"],
        class_names: Sequence[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        method: str = "",
    ) -> Float[np.ndarray, "k H W"]:
        """Scores of every class at every pixel.

        They are σ(logit), less the stored offset for classes that were trained with labels (a new
        name that equals one of theirs included).

        Args:
            image: normalised, from `prepare`.
            class_names: what to look for; None: the classes that it was trained for.
            size: (H, W) of the result; None: that of `image`.
            method: one of `spec.outputs`; "": the main one.

        Raises:
            ValueError: no such method, or class names that cannot be embedded: a blank one, or new
                ones without text tower or tokenizer inside.
        """
        spec, outputs = self.spec, self.spec.outputs
        if method and method not in outputs.mixtures:
            raise ValueError(f"method={method!r}: this model has {', '.join(outputs.mixtures)}")
        method = method or outputs.main
        names = tuple(self.vocabulary.names if class_names is None else class_names)
        embeddings = self.text if class_names is None else self.embed(names)
        seen = {self.vocabulary.names[k] for k in self.vocabulary.seen}
        offset = np.array([spec.seen_offset * (name in seen) for name in names], np.float32)
        if class_names is not None:
            # classes do not see one another, so that filling up changes nothing
            fill = [(0, -len(names) % BUCKET)]
            embeddings = jnp.pad(embeddings, [*fill, (0, 0), (0, 0)], mode="edge")
            offset = np.pad(offset, fill)
        graphdef, state = nnx.split(self.model)
        wanted = Outputs({method: outputs.mixtures[method]}, main=method)
        predict = sliding.make_predict(
            graphdef, state, {}, embeddings, mesh=self._mesh, outputs=wanted
        )
        found = sliding.photo_scores(
            predict,
            image,
            offset,
            size=image.shape[:2] if size is None else size,
            window=spec.window,
            stride=spec.stride,
            batch_size=self._batch_size,
        )
        return found[method][: len(names)]

    def embed(self, class_names: Sequence[str]) -> Float[Array, "k n c"]:
        """Text embeddings of class names in the model's templates, kept for reuse; as `scores`."""
        names = tuple(class_names)
        if names not in self._embedded:
            self._embedded[names] = jnp.asarray(self.clip.embed(names, self.spec.templates))
        return self._embedded[names]
