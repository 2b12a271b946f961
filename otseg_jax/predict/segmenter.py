"""A model with words: photo in, `Segmentation` out.

photo, a path or an image → `read` u8[H, W, 3] RGB → its views u8[h, w, 4], resized as the model
wants it: one, or several for test-time augmentation → what its tower makes of every window, which
is kept, so that other words on the same photo are answered without it → logits of the words → label
map i32[H, W].
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped, UInt8

from otseg_jax import paths, sharding
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.convert import card
from otseg_jax.data import classes, decode, transforms
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import labelling, sliding
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.layout import Logits
from otseg_jax.evaluation.words import Words
from otseg_jax.models.decoder import Transport
from otseg_jax.models.outputs import Outputs
from otseg_jax.predict import asked
from otseg_jax.predict.asked import Asked, Background
from otseg_jax.predict.kept import Kept
from otseg_jax.predict.options import check_options
from otseg_jax.predict.segmentation import Segmentation
from otseg_jax.predict.vectors import Vectors

PHOTOS = 2  # whose features are kept; 1 where a photo has several views
THRESHOLD = {True: 0.1, False: 0.5}  # usual least probability where words compete, least σ if not


@dataclass(frozen=True, eq=False)
class _Seen:
    """A photo as the tower saw it."""

    views: tuple[View, ...]
    embedded: list[tuple[int, int, Any]]


class Segmenter:
    """A model with its vocabulary, or with words of your own; options as of `load`.

    `spec` describes the model; `vocabulary` are the classes that it was trained for, if any.
    """

    def __init__(
        self,
        model: Model,
        *,
        method: str = "",
        transport: Transport | None = None,
        dtype: DTypeLike = jnp.float32,
        batch_size: int = 4,
        seen_offset: float | None = None,
        scales: Sequence[int | float] = (1.0,),
        flip: bool = False,
    ) -> None:
        self._augmented = check_options(dtype, batch_size, seen_offset, scales, flip)
        self.spec, self.clip = model.spec, model.clip
        self.vocabulary = self.spec.vocabulary if self.spec.classes else None
        self.method = self._output(method)
        self._loaded = model
        self.model = model.build(transport=transport, dtype=dtype)
        self.dtype = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
        self.text: Float[Array, "k n c"] = jnp.asarray(model.embeddings)  # of its vocabulary
        self._parameters = sum(np.size(leaf) for leaf in model.model_leaves().values())
        # on one device: a photo is too little to share
        self._mesh = sharding.make_mesh(devices=jax.devices()[:1])
        graphdef, state = nnx.split(self.model)
        self._runner = sliding.Runner(
            graphdef=graphdef, trainable=state, frozen={}, mesh=self._mesh
        )
        self._how = Inference(
            method=self.spec.model,
            patch=self.clip.vision_config.patch_size,
            window=self.spec.window,
            stride=self.spec.stride,
            batch_size=batch_size,
            mean=self.spec.mean,
            std=self.spec.std,
        )
        self._vectors = Vectors(model, seen_offset)
        several = flip or len(scales) > 1
        self._photos: Kept[bytes, _Seen] = Kept(1 if several else PHOTOS)

    def __call__(
        self,
        photo: Any,
        words: Iterable[str] | None = None,
        *,
        background: Background = None,
        templates: Sequence[str] | None = None,
    ) -> Any:
        """Segment a photo, or each of several: at each pixel the class whose score is highest.

        Args:
            photo: a path, an image of Pillow, or an array [H, W, 3] RGB, grey and RGBA, too: gives
                a `Segmentation`. A list of them gives a list, an iterator an iterator.
            words: what to look for, "sofa|couch" for one class of several words; None: the classes
                that the model was trained for.
            background: what a pixel is that shows none of the words. None: nothing, every pixel is
                given to one of the words, also in a photo that holds none of them. "words": 26
                usual things ("sky", "wall", …), or a list of your own, compete: such a photo is
                mostly given to them, and so is background. "threshold" or a number of 0 to 1: what
                scores below is background. Of a CLIP alone the number (0.1) is a probability, and
                k words share out 1, so that below 1/k it changes nothing: it takes many words. Of
                a trained model it is σ(logit) (0.5) of one word, whatever the others.
            templates: what the words are put into, "a photo of a {}."; None: the model's own.

        Raises:
            FileNotFoundError, ValueError: a photo or words that cannot be used.
        """
        question = self._question(words, background)  # before the photo
        vectors = self._vectors.of(question, templates)
        segment = partial(self._segment, question=question, vectors=vectors)
        if isinstance(photo, list | tuple):
            return [segment(one) for one in photo]
        return map(segment, photo) if isinstance(photo, Iterator) else segment(photo)

    def read(self, photo: Any) -> UInt8[np.ndarray, "H W 3"]:
        """A photo, as of a call, in RGB, upright as its EXIF orientation says."""
        if isinstance(photo, str | os.PathLike):
            return decode.photo(paths.local(photo))
        return decode.rgb(photo)

    def prepare(self, photo: Any) -> UInt8[np.ndarray, "h w 4"]:
        """Resize a photo, as of a call, as the model was trained."""
        return transforms.for_eval(self.read(photo), scale=self.spec.scale)

    def scores(
        self,
        image: Shaped[np.ndarray, "h w c"],
        words: Iterable[str] | None = None,
        *,
        size: tuple[int, int] | None = None,
        method: str = "",
    ) -> Float[np.ndarray, "k H W"]:
        """Scores of every class at every pixel, as of `Segmentation.scores`, of one view.

        Args:
            image: from `prepare`, or f32[h, w, 3] that is normalised already; it is looked at as
                it is, at no other scale and not mirrored.
            words: as of a call.
            size: (H, W) of the result; None: that of `image`.
            method: one of `spec.outputs`; "": the main one.

        Raises:
            ValueError: no such method, or words that cannot be embedded: a blank one, or new ones
                without text tower or tokenizer inside.
        """
        method = self._output(method) if method else self.method
        vectors, image = self._vectors.of(self._question(words, None)), np.asarray(image)
        if image.dtype == np.uint8 and image.shape[2:] != (4,):
            raise ValueError(
                f"image is uint8{list(image.shape)}, wanted what `prepare` gives, uint8[h, w, 4]: "
                "scores(segmenter.prepare(photo))"
            )
        views = (View(image),)
        found = self._match(self._look(views), vectors, method)
        height, width = size or image.shape[:2]
        maps = labelling.score_maps(found, views, vectors, self._how, size=(height, width))
        return maps[method]

    def embed(
        self, words: Iterable[str], templates: Sequence[str] | None = None
    ) -> Float[Array, "v n c"]:
        """Text embeddings of words, kept for reuse; of a CLIP alone the mean over its templates."""
        plain = tuple(word for each in asked.check_words(words) for word in each)
        return jnp.asarray(np.stack(self._vectors.embed(plain, templates)))

    def push_to_hub(self, name: str, *, license: str = "", private: bool = False) -> str:
        """Publish the model on the Hugging Face hub, with a card; return the commit's address.

        `otseg_jax.load(name)` gives it back; options of `load` are not stored with it.

        Args:
            name: "owner/name"; the repository is made if need be.
            license: as the hub calls it, such as "apache-2.0"; "": the card says nothing of it.
            private: others do not see the repository, if it is made.

        Raises:
            ValueError: it cannot be published, and why; the hub has all files or none.
        """
        own = self._loaded
        # of a CLIP alone its weights: methods need no more
        model = own if self.spec.classes else Pretrained(clip=own.clip, origin=own.origin)
        return card.publish(model, name, license=license, private=private)

    def __repr__(self) -> str:
        count = len(self.spec.classes)
        device = self._mesh.devices.item()
        return (
            f"Segmenter({self._made_by()}, {self._parameters / 1e6:.3g} M parameters, "
            f"{f'{count} classes' if count else 'words of your own'}, {self.dtype}, "
            f"{device.device_kind})"
        )

    def _made_by(self) -> str:
        how, refined = self._augmented, " + PAMR" * getattr(self.spec.model, "pamr", False)
        scales = " + scales " + "/".join(f"{scale:g}" for scale in how.scales)
        looked = scales * (how.scales != (1,)) + " + flip" * how.flip
        return f"{self.method}{refined}{looked}, {self.clip.size}"

    def _output(self, method: str) -> str:
        outputs = self.spec.outputs
        if method and method not in outputs.mixtures:
            raise ValueError(f"method={method!r}: this model has {', '.join(outputs.mixtures)}")
        return method or outputs.main

    def _question(self, words: Iterable[str] | None, background: Background) -> Asked:
        if words is None and not self.spec.classes:
            raise ValueError(
                "a CLIP alone has no classes of its own: give words, segmenter(photo, ['cat', "
                "'sofa|couch']), or --words=\"cat,sofa|couch\" (otseg_jax.predict)"
            )
        own = tuple((name,) for name in self.spec.classes)
        found = own if words is None else asked.check_words(words)
        usual = THRESHOLD[self.spec.model.scale is not None]
        return asked.with_background(found, background, threshold=usual)

    def _look(self, views: tuple[View, ...]) -> _Seen:
        return _Seen(views, sliding.photo_embedded(self._runner, views, how=self._how))

    def _see(self, pixels: np.ndarray) -> _Seen:
        """What the tower makes of a photo, kept for other words."""
        scale, how = self.spec.scale, self._augmented

        def make(_: list[bytes]) -> list[_Seen]:
            views = transforms.views(pixels, scales=how.scales, flip=how.flip, scale=scale)
            return [self._look(views)]

        digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        (seen,) = self._photos.get([digest], make)
        return seen

    def _match(self, seen: _Seen, vectors: Words, method: str) -> list[dict[str, Logits]]:
        wanted = Outputs({method: self.spec.outputs.mixtures[method]}, main=method)
        return sliding.photo_logits(
            self._runner,
            seen.embedded,
            seen.views,
            vectors.text,
            outputs=wanted,
            how=self._how,
        )

    def _segment(self, photo: Any, *, question: Asked, vectors: Words) -> Segmentation:
        started, method = time.perf_counter(), self.method
        pixels = self.read(photo)
        seen, how = self._see(pixels), replace(self._how, threshold=question.threshold)
        logits = self._match(seen, vectors, method)
        height, width = pixels.shape[:2]
        found = labelling.label_maps(logits, seen.views, vectors, how, size=(height, width))

        def scores(size: tuple[int, int], numbers: Sequence[int] | None) -> np.ndarray:
            maps = labelling.score_maps(
                logits, seen.views, vectors, how, size=size, classes=numbers
            )
            return maps[method]

        return Segmentation(
            photo=pixels,
            labels=found[method],
            names=question.names,
            palette=self._palette(question),
            words=question.classes,
            background=question.background,
            seconds=time.perf_counter() - started,
            made_by=self._made_by(),
            source=os.fspath(photo) if isinstance(photo, str | os.PathLike) else "",
            make_scores=scores,
        )

    def _palette(self, question: Asked) -> tuple[tuple[int, int, int], ...]:
        first = 1 if question.background else 0
        names = question.names[first:]
        own = self.spec.palette if names == self.spec.classes else ()
        return ((0, 0, 0),) * first + (own or classes.default_palette(len(names)))
