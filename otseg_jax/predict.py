"""Predict on any photo with a model directory: `load` makes a `Segmenter`.

photo u8[H, W, 3] RGB → `prepare` f32[h, w, 3], resized and normalised as trained → `scores`
f32[k, H, W] through sliding windows → label map u8[H, W], indices into the class names asked for.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from otseg_jax import inference, model_dir, sharding, text
from otseg_jax.data import transforms
from otseg_jax.data.classes import Vocabulary
from otseg_jax.models.otseg import OTSeg

BUCKET = 16  # new class names are filled up to multiples of it, so that few shapes compile


def load(source: str | Path, *, dtype: DTypeLike = jnp.float32, batch_size: int = 4) -> "Segmenter":
    """Load a model directory.

    Args:
        source: folder that `python -m otseg_jax.convert` wrote, or a hub name "owner/name".
        dtype: of matrix products, float32 or bfloat16.
        batch_size: windows predicted together.

    Returns:
        The model, ready to segment photos.

    Raises:
        FileNotFoundError: no such folder or hub name.
        ValueError: another kind of folder, a damaged one, or a CLIP alone.
    """
    return Segmenter(model_dir.read(source), dtype=dtype, batch_size=batch_size)


class Segmenter:
    """A trained model with its vocabulary, or with words of your own.

    Args:
        model: from `model_dir.read`.
        dtype: of matrix products.
        batch_size: windows predicted together.

    Attributes:
        config: what `config.json` says.
        vocabulary: the classes that it was trained for.
        model: `OTSeg` with its weights.
        text: f32[k, n, c], unit length, the embedded vocabulary.

    Raises:
        ValueError: the directory holds a CLIP alone.
    """

    def __init__(
        self, model: model_dir.Model, *, dtype: DTypeLike = jnp.float32, batch_size: int = 4
    ) -> None:
        if model.config["kind"] != "otseg":
            raise ValueError(
                f"the model from {model.config['source']['name']} is a CLIP alone, which does not "
                "segment: train with --config.clip.source set to it"
            )
        self.config: dict[str, Any] = model.config
        self.vocabulary: Vocabulary = model.vocabulary
        self.model: OTSeg = model.build(dtype=dtype)
        self.text: Float[Array, "k n c"] = jnp.asarray(model.embeddings)
        self._stored, self._batch_size = model, batch_size
        # on one device: a photo is too little to share
        self._mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self._embedded: dict[tuple[str, ...], Array] = {}

    def __call__(
        self, photo: UInt8[np.ndarray, "H W 3"], class_names: Sequence[str] | None = None
    ) -> UInt8[np.ndarray, "H W"]:
        """Segment a photo.

        Args:
            photo: u8[H, W, 3], RGB, any size.
            class_names: what to look for; None: the classes that it was trained for.

        Returns:
            u8[H, W], indices into the class names.

        Raises:
            ValueError: other class names than its own, and no text tower or tokenizer inside.
        """
        scores = self.scores(self.prepare(photo), class_names, size=photo.shape[:2])
        return np.argmax(scores, axis=0).astype(np.uint8)

    def prepare(self, photo: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "h w 3"]:
        """Resize and normalise a photo as the model was trained: u8[H, W, 3] → f32[h, w, 3]."""
        config = self.config
        return transforms.for_eval(
            photo,
            scale=tuple(config["scale"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    def scores(
        self,
        image: Float[np.ndarray, "h w 3"],
        class_names: Sequence[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        method: str = "",
    ) -> Float[np.ndarray, "k H W"]:
        """Scores of every class at every pixel.

        Args:
            image: f32[h, w, 3], normalised, from `prepare`.
            class_names: what to look for; None: the classes that it was trained for.
            size: (H, W) of the result; None: that of `image`.
            method: "otseg" or "otseg_plus"; "": "otseg_plus", or "zegclip" where the model is one.

        Returns:
            f32[k, H, W]: σ(logit), less the stored offset for classes that were trained with labels
            (a new name that equals one of theirs included).

        Raises:
            ValueError: no such method, or class names that cannot be embedded.
        """
        names = tuple(self.vocabulary.names if class_names is None else class_names)
        embeddings = self.text if class_names is None else self.embed(names)
        seen = {self.vocabulary.names[k] for k in self.vocabulary.seen}
        offset = np.array([self.config["seen_offset"] * (n in seen) for n in names], np.float32)
        if class_names is not None:
            # classes do not see one another, so that filling up changes nothing
            fill = [(0, -len(names) % BUCKET)]
            embeddings = jnp.pad(embeddings, [*fill, (0, 0), (0, 0)], mode="edge")
            offset = np.pad(offset, fill)
        graphdef, state = nnx.split(self.model)
        predict = inference.make_predict(
            *(graphdef, state, {}, embeddings),
            mesh=self._mesh,
            mps_weight=self.config["mps_weight"],
        )
        found = inference.photo_scores(
            predict,
            image,
            offset,
            size=image.shape[:2] if size is None else size,
            window=self.config["window"],
            stride=self.config["stride"],
            batch_size=self._batch_size,
        )
        if method and method not in found:
            raise ValueError(f"method={method!r}: this model has {', '.join(found)}")
        return found[method or list(found)[-1]][: len(names)]

    def embed(self, class_names: Sequence[str]) -> Float[Array, "k n c"]:
        """Text embeddings f32[k, n, c] of class names in the model's templates; kept for reuse.

        Raises:
            ValueError: a blank name, or no text tower or tokenizer in the model directory.
        """
        names = tuple(class_names)
        if names not in self._embedded:
            templates = self.config["templates"]
            tokens = self._stored.tokenise(text.fill(names, templates))
            tower = self._stored.build_text_tower()
            shape = (len(names), len(templates))
            self._embedded[names] = jnp.asarray(text.embed(tower, tokens, shape=shape))
        return self._embedded[names]
