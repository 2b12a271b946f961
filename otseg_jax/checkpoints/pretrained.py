"""Model directories: all that is needed to predict, in files that hold no code.

    config.json         sizes and fingerprints of the CLIP, `Spec` of what was trained, origin
    model.safetensors   leaves of CLIP ("vision/…", "text/…"), of what was trained around it
                        ("prompts/…", "q_proj/…", "decoder/…"), "embeddings" f32[k, n, c], and
                        "unused/…": arrays of the original program that nothing reads, kept for the
                        way back
    tokenizer/          of the text tower

A directory may hold a CLIP alone; it serves as `--config.clip.source`. One that comes with the
package leaves out the leaves and the tokenizer of the packaged CLIP, which lie beside it. Arrays
are numpy, float32.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from otseg_jax import paths, text
from otseg_jax.checkpoints import config
from otseg_jax.checkpoints.spec import Origin, Spec
from otseg_jax.data import templates, transforms
from otseg_jax.models.decoder import Transport
from otseg_jax.models.methods import SegmentationModel
from otseg_jax.models.training_free import TrainingFreeConfig
from otseg_jax.weights import files, hub, hugging_face, names
from otseg_jax.weights.clip import Clip
from otseg_jax.weights.source import FORMAT
from otseg_jax.weights.towers import Stated

WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer"
PATTERNS = (config.NAME, WEIGHTS, f"{TOKENIZER}/*")


@dataclass(frozen=True, eq=False, kw_only=True)
class Pretrained:
    """A CLIP, and where its weights came from."""

    clip: Clip
    origin: Origin

    def leaves(self) -> dict[str, np.ndarray]:
        """Everything with a name of ours, as `model.safetensors` holds it."""
        return self.clip.leaves()


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(Pretrained):
    """A trained model in memory, independent of the format it came in."""

    spec: Spec
    trained: Mapping[str, np.ndarray]  # leaves of `OTSeg` outside of its frozen tower
    embeddings: np.ndarray  # f32[k, n, c], unit length
    unused: Mapping[str, np.ndarray] = field(default_factory=dict)  # by their original names

    def model_leaves(self) -> dict[str, np.ndarray]:
        """Leaves of `OTSeg`."""
        return {**names.under("vision/", self.clip.vision), **self.trained}

    def leaves(self) -> dict[str, np.ndarray]:
        return {**super().leaves(), **self.trained, "embeddings": self.embeddings}

    def build(
        self, *, transport: Transport | None = None, dtype: DTypeLike = jnp.float32
    ) -> SegmentationModel:
        """The model with these weights.

        `transport` replaces the solver that it was trained with; `dtype` is of matrix products.
        """

        def make() -> SegmentationModel:
            vision, model = self.clip.vision_config, self.spec.model
            return model.build(vision, transport=transport, dtype=dtype, rngs=nnx.Rngs(0))

        return names.build(make, self.model_leaves())


Given = TypeVar("Given", bound=Pretrained)


def write(dest: str | Path, model: Pretrained) -> None:
    """Write a model directory, whole or not at all.

    Raises:
        ValueError, FileNotFoundError: the name is taken, or the tokenizer cannot be had.
    """
    with paths.new_folder(dest) as folder:
        write_into(folder, model)


def write_into(folder: Path, model: Pretrained, *, clip_source: config.ClipSource = "") -> None:
    """Write the files of a model directory into an empty folder that the caller puts in place.

    `clip_source` is where its CLIP is read from, if not from this directory: the packaged one.
    """
    clip, arrays = model.clip, model.leaves()
    clip.check_tokenizer()
    if clip_source:
        arrays = {n: a for n, a in arrays.items() if not n.startswith(("vision/", "text/"))}
    if isinstance(model, Model):
        arrays |= names.under("unused/", model.unused)
    # safetensors writes memory as it lies, so that a transposed view would come out wrong
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": FORMAT})
    if clip.tokenizer is not None and not clip_source:
        text.save_tokenizer(clip.tokenizer, folder / TOKENIZER)
    described = config.Config(
        format=FORMAT,
        version=config.VERSION,
        clip=config.ClipPart(
            vision=clip.vision_config,
            text=clip.text_config,
            fingerprint=clip.fingerprint,
            text_fingerprint=clip.text_fingerprint,
            logit_scale=clip.logit_scale,
            normalisation=clip.normalisation,
            source=clip_source,
        ),
        model=model.spec if isinstance(model, Model) else None,
        origin=model.origin,
    )
    config.write(folder, described)
    shutil.copymode(folder / config.NAME, folder / WEIGHTS)  # safetensors writes for its user alone


def read(source: str | Path) -> Pretrained:
    """Read a model directory or hub name: a `Model`, or a CLIP alone.

    Raises:
        FileNotFoundError: no such folder or name, or one without the files.
        ValueError: another kind of folder, or a damaged one; all problems of `config.json` at once.
    """
    folder = hub.find(source, PATTERNS)
    stored = config.read(folder)
    arrays = files.read(folder / WEIGHTS).arrays
    files.check_finite(arrays, folder / WEIGHTS)
    clip, spec = _clip(stored, arrays, folder), stored.model
    if spec is None:
        return Pretrained(clip=clip, origin=stored.origin)
    embeddings = arrays.pop("embeddings", None)
    wanted = (len(spec.classes), len(spec.templates), clip.vision_config.embed_dim)
    if embeddings is None or embeddings.shape != wanted:
        got = "absent" if embeddings is None else list(embeddings.shape)
        raise ValueError(f"{folder / WEIGHTS}: embeddings are {got}, wanted {list(wanted)}")
    rest = ("vision/", "text/", "unused/")
    return Model(
        clip=clip,
        origin=stored.origin,
        spec=spec,
        trained={name: leaf for name, leaf in arrays.items() if not name.startswith(rest)},
        embeddings=embeddings,
        unused=names.below("unused/", arrays),
    )


def _clip(stored: config.Config, arrays: Mapping[str, np.ndarray], folder: Path) -> Clip:
    part = stored.clip
    if part.source:
        clip = hugging_face.load(part.source, image_size=part.vision.image_size)
        if clip.fingerprint != part.fingerprint:
            raise ValueError(
                f"{folder} was trained with another {part.source} than the one of this package: "
                "install otseg_jax anew, whose files are of two versions"
            )
        return replace(clip, name=stored.origin.name)
    return Clip(
        name=stored.origin.name,
        vision_config=part.vision,
        vision=names.below("vision/", arrays),
        text_config=part.text,
        text=names.below("text/", arrays),
        fingerprint=part.fingerprint,
        text_fingerprint=part.text_fingerprint,
        tokenizer=next(filter(text.holds_tokenizer, (folder / TOKENIZER, folder)), None),
        logit_scale=part.logit_scale,
        normalisation=part.normalisation,
    )


def as_stated(model: Given, stated: Stated, where: str) -> Given:
    """The same model with the tokenizer that is stated; the rest it tells itself.

    Raises:
        FileNotFoundError: there is no such tokenizer.
        ValueError: it tells other heads or another activation, or was trained with another
            tokenizer.
    """
    clip = model.clip
    text_heads = clip.text_config.heads if clip.text_config else 0
    told = (clip.vision_config.heads, text_heads, clip.vision_config.activation)
    for name, said, fact in zip(Stated._fields, stated[:3], told, strict=False):
        if said and said != fact:
            raise ValueError(
                f"{where} tells {name}={fact} itself: leave --{name}={said} (in a configuration "
                f"clip.{name}) away"
            )
    if not stated.tokenizer:
        return model
    new = replace(clip, tokenizer=hub.tokenizer(stated.tokenizer))
    if isinstance(model, Model):
        check_tokenizer(model.spec.tokenizer_fingerprint or clip.tokenizer_fingerprint, new, where)
    return replace(model, clip=new)


def check_tokenizer(trained: str, clip: Clip, where: str) -> None:
    """Refuse, with a ValueError, another tokenizer than the one of this fingerprint."""
    here = clip.tokenizer_fingerprint
    if trained and here and trained != here:
        raise ValueError(
            f"{clip.tokenizer} is not the tokenizer that {where} was trained with: put that one "
            "there, or leave --tokenizer (in a configuration clip.tokenizer) away if it was given"
        )


def untrained(found: Pretrained, method: TrainingFreeConfig) -> Model:
    """A CLIP alone as a model of a training-free method, without classes of its own.

    Source: SCLIP (arXiv 2312.01597) and what followed it: windows of the size that the CLIP was
        trained at, over photos half as large again; ClearCLIP (2407.12442): both twice that size.
    """
    clip = found.clip
    size, large = clip.vision_config.image_size, method.method == "clearclip"
    window, short = (2 * size, 2 * size) if large else (size, 3 * size // 2)
    mean, std = clip.normalisation or (transforms.CLIP_MEAN, transforms.CLIP_STD)
    described = Spec(
        dataset="",
        classes=(),
        unseen=(),
        palette=(),
        templates=templates.IMAGENET,
        regime="training_free",
        model=method,
        outputs=method.outputs(),
        mean=mean,
        std=std,
        scale=(2048.0, float(short)),
        window=window,
        stride=window // 2,
        seen_offset=0.0,
        clip_source=found.origin.name,
        clip_fingerprint=clip.fingerprint,
        text_fingerprint=clip.text_fingerprint,
        tokenizer_fingerprint=clip.tokenizer_fingerprint,
    )
    nothing = np.zeros((0, len(described.templates), clip.vision_config.embed_dim), np.float32)
    return Model(clip=clip, origin=found.origin, spec=described, trained={}, embeddings=nothing)


def need_model(found: Pretrained, hint: str) -> Model:
    """The trained model that was read; a ValueError with the hint if it is a CLIP alone."""
    if not isinstance(found, Model):
        raise ValueError(f"the model from {found.origin.name} is a CLIP alone{hint}")
    return found
