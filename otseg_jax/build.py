"""From a configuration to the parts of an experiment: data, text, model, mesh.

A ConfigDict comes in and goes no further: `settings_of` makes plain values of it, and everything
else works on these. Text is of all classes of the vocabulary, whatever the regime trains on.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from otseg_jax import buckets, paths, processes, settings, sharding, text
from otseg_jax.checkpoints import pretrained, restore, spec
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.checkpoints.spec import Origin, Record, Spec
from otseg_jax.data import classes, inspect, regimes, shapes, splits
from otseg_jax.data.splits import Split
from otseg_jax.models.decoder import Transport
from otseg_jax.models.methods import SegmentationModel
from otseg_jax.models.otseg import FROZEN, TRAINABLE
from otseg_jax.models.training_free import TrainingFreeConfig
from otseg_jax.settings import Settings
from otseg_jax.weights import clip, hub, names, source
from otseg_jax.weights.clip import Clip
from otseg_jax.weights.towers import Stated

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Experiment:
    """What training and evaluation work on."""

    settings: Settings
    spec: Spec
    vocabulary: classes.Vocabulary
    regime: regimes.Regime
    mesh: Mesh
    graphdef: Any  # structure of the model, to be merged with `trainable` and `frozen`
    trainable: Any  # initial state of what learns, whole on every device
    frozen: Any  # state of the CLIP tower, its blocks split over the mesh's `model` axis
    text: Float[Array, "v n c"]  # of the words, unit length, whole on every device
    class_of: tuple[int, ...]  # of each word; ascending, and but for a CLIP alone 0, 1, 2, …
    patch_size: int  # side of the tower's, pixels

    @property
    def record(self) -> Record:
        """What goes into every checkpoint."""
        return Record(self.spec, self.settings)


@processes.together
def settings_of(config: ml_collections.ConfigDict) -> Settings:
    """The plain settings that a configuration (`configs/common.py`) asks for; `settings.check`."""
    given = settings.check(config.to_dict())
    if given.clip.tokenizer:
        hub.tokenizer(given.clip.tokenizer)  # before the work
    # a run may go on in another folder
    source, tokenizer = _absolute(given.clip.source), _absolute(given.clip.tokenizer)
    start = str(paths.resolve(given.init_from)) if given.init_from else ""
    clip = replace(given.clip, source=source, tokenizer=tokenizer)
    options = replace(given, clip=clip, init_from=start)
    for doubt in settings.doubts(options):
        LOGGER.warning(doubt)
    return options


def _absolute(name: str) -> str:
    """The whole path of what is here, else the name as it is."""
    here = name not in ("", "random") and paths.local(name).exists()
    return str(paths.local(name)) if here else name


@processes.together
def open_split(options: Settings, split: str) -> Split:
    """Open one split, "train" or "val", of the data set; errors as of `splits.open_split`."""
    data = options.data
    if data.dataset in shapes.WORDS:
        size, words = asdict(data.images)[split], data.dataset
        # whatever the seed, a run is judged by the same pictures
        seed = options.seed if split == "train" else 0
        return shapes.Shapes(split, size=size, image_size=data.crop, seed=seed, words=words)
    if not data.root:
        raise ValueError(
            f"data set {data.dataset!r} needs --config.data.root=DIR, the folder it lies in"
        )
    return splits.open_split(
        data.dataset, data.root, split, augmented=data.augmented, raw_ids=data.raw_ids
    )


@processes.together
def check_labels(options: Settings, *, train: Split | None, val: Split) -> None:
    """Look at some masks before the work, and tell once what looks like a mistake.

    Raises:
        ValueError: masks that cannot be read, or that there is nothing to learn from.
    """
    if jax.process_index():
        return
    problems = []
    for name, split in (("train", train), ("val", val)):
        if split is None:
            continue
        known, regime = split.vocabulary, None
        if split is train:
            unseen = known.unseen
            regime = regimes.resolve(options.regime, num_classes=len(known), unseen=unseen)
        found = inspect.inspect(split, regime, threads=options.data.threads)
        problems += [f"{name}: {problem}" for problem in found.problems]
        for doubt in found.doubts:
            LOGGER.warning("%s: %s", name, doubt)
    if problems:
        raise ValueError("; ".join(problems))


def load_clip(
    place: str | Path,
    *,
    image_size: int | None = None,
    stated: Stated = Stated(),  # noqa: B008 (a named tuple is immutable)
) -> Pretrained:
    """Load a CLIP, alone or with the model that it lies in; errors as of `weights.source.find`.

    Args:
        place: model directory, Hugging Face or open_clip folder, file of OpenAI's, or hub name.
        image_size: side of the images to come, pixels; None: as stored.
        stated: what is known of it that its file does not tell.
    """
    found = source.find(place, stated=stated)
    if found.kind == "model":
        model = pretrained.as_stated(pretrained.read(found.path), stated, str(place))
        return replace(model, clip=model.clip.resized(image_size))
    if found.clip is None:
        raise ValueError(
            f"{place} is a trained run or checkpoint, no CLIP: python -m otseg_jax.convert "
            f"{place} DEST makes a model directory of it, for --config.init_from=DEST"
        )
    origin = Origin(name=str(place), format=found.format)
    return Pretrained(clip=found.clip.resized(image_size), origin=origin)


def stated(options: Settings) -> Stated:
    """What settings say of a CLIP whose file does not tell it."""
    return Stated(
        vision_heads=options.clip.vision_heads,
        text_heads=options.clip.text_heads,
        activation=options.clip.activation,
        tokenizer=options.clip.tokenizer,
    )


@processes.together
def open_clip(options: Settings) -> Pretrained:
    """The CLIP of a run: `clip.source`, or what is in the model directory that it starts from."""
    place, said = options.clip.source, stated(options)
    # a CLIP alone resizes positions by a kernel of its own
    size = None if isinstance(options.model, TrainingFreeConfig) else options.data.crop
    if options.init_from and restore.is_model(options.init_from):
        if place != options.init_from:
            LOGGER.info("clip.source=%s, the model that is started from", options.init_from)
            said = Stated(tokenizer=said.tokenizer)  # the rest was said of the other
        place = str(buckets.fetched(options.init_from))
    if place == "random" and any(said):
        raise ValueError(
            "--config.clip.source=random has the sizes of clip.random and the built-in tokenizer: "
            "leave clip.vision_heads, clip.text_heads, clip.activation and clip.tokenizer away"
        )
    if place == "random":
        drawn = clip.draw(asdict(options.clip.random), image_size=size or 224, seed=options.seed)
        return Pretrained(clip=drawn, origin=Origin(name=place, format=place))
    return load_clip(place, image_size=size, stated=said)


def embed(
    described: Spec, found: Pretrained, options: Settings, asked: Sequence[str] = ()
) -> tuple[Float[np.ndarray, "v n c"], Spec]:
    """Embeddings of the words for a model's classes, and its description with the identity of both.

    They come from the file that the options name, from the model that the CLIP lies in where it is
    of these words, or from the text tower; errors as of `text.read_embeddings`, `Clip.embed`.
    """
    loaded, words = found.clip, (asked or described.classes, described.templates)
    if options.text.embeddings:
        embeddings = text.read_embeddings(
            options.text.embeddings,
            classes=len(words[0]),
            templates=len(options.templates),
            width=loaded.vision_config.embed_dim,
            first=options.model.one_prompt,
        )
        made_by, read_by = names.fingerprint({"embeddings": embeddings}), ""
    elif isinstance(found, Model) and found.spec.vocabulary_hash == text.vocabulary_hash(
        *words, found.spec.text_fingerprint
    ):
        embeddings, made_by = found.embeddings, found.spec.text_fingerprint
        read_by = found.spec.tokenizer_fingerprint
    else:
        embeddings = loaded.embed(*words, cache=options.text.cache)
        made_by, read_by = loaded.text_fingerprint, loaded.tokenizer_fingerprint
    return embeddings, replace(
        described,
        clip_source=found.origin.name,
        clip_fingerprint=loaded.fingerprint,
        text_fingerprint=made_by,
        vocabulary_hash=text.vocabulary_hash(*words, made_by),
        tokenizer_fingerprint=read_by,
    )


@processes.together
def assemble(
    options: Settings,
    vocabulary: classes.Vocabulary,
    *,
    mesh: Mesh | None = None,
    transport: Transport | None = None,
    trained: bool = False,
) -> Experiment:
    """Build everything but the data, on the devices of a mesh.

    Args:
        trained: for weights that were trained with these settings, so that they are no choice.
        mesh: None: as `options.mesh` says.
        transport: solver of transport plans; None: as `options.model` says.

    Raises:
        FileNotFoundError, ValueError: settings that do not fit together, CLIP weights or text
            embeddings that are missing or of another shape.
    """
    mesh = mesh or sharding.make_mesh(data=options.mesh.data, model=options.mesh.model)
    options.check_devices(mesh.shape["data"])
    asked, class_of = classes.in_words(vocabulary.names, options.text.words)
    found = open_clip(options)
    crop, patch = options.data.crop, found.clip.vision_config.patch_size
    if crop % patch and not isinstance(options.model, TrainingFreeConfig):
        raise ValueError(f"data.crop={crop} is not a multiple of the tower's patch, {patch} pixels")
    if not trained:
        tell_normalisation(options, found.clip)
    graphdef, trainable, frozen = build(options, found.clip, mesh, transport)  # text takes longer
    embeddings, described = embed(spec.describe(options, vocabulary), found, options, asked)
    unseen = vocabulary.unseen
    return Experiment(
        settings=options,
        spec=described,
        vocabulary=vocabulary,
        regime=regimes.resolve(options.regime, num_classes=len(vocabulary), unseen=unseen),
        mesh=mesh,
        graphdef=graphdef,
        trainable=trainable,
        frozen=frozen,
        text=jax.device_put(jnp.asarray(embeddings), sharding.replicated(mesh)),
        class_of=class_of,
        patch_size=patch,
    )


def tell_normalisation(options: Settings, loaded: Clip) -> None:
    """Say where photos are normalised otherwise than in the CLIP's own training."""
    used = (options.data.mean, options.data.std)
    if loaded.normalisation is None or np.allclose(loaded.normalisation, used, rtol=1e-3):
        return
    mean, std = (",".join(f"{value:.8g}" for value in part) for part in loaded.normalisation)
    near = np.allclose(loaded.normalisation, used, rtol=0.25)
    LOGGER.log(
        logging.INFO if near else logging.WARNING,
        "data.mean=%s and data.std=%s are not those that the CLIP was trained with (OTSeg's "
        "published models took ImageNet's): for these, --config.data.mean=%s --config.data.std=%s",
        *used,
        mean,
        std,
    )


def build(
    options: Settings, loaded: Clip, mesh: Mesh, transport: Transport | None = None
) -> tuple[Any, Any, Any]:
    """The model around a CLIP: its graph, what is trained (as drawn) and what is frozen."""

    def make() -> SegmentationModel:
        vision, rngs = loaded.vision_config, nnx.Rngs(options.seed)
        return options.model.build(vision, transport=transport, dtype=options.dtype, rngs=rngs)

    graphdef, *states = nnx.split(nnx.eval_shape(make), TRAINABLE, ...)
    trainable, frozen = states
    whole = jax.tree.map(lambda _: sharding.replicated(mesh), trainable)
    parts = sharding.of_tower(mesh, frozen, heads=loaded.vision_config.heads)
    # only what learns is drawn: XLA drops the random tower that nobody reads
    draw = jax.jit(lambda: nnx.split(make(), TRAINABLE, ...)[1], out_shardings=whole)
    leaves = names.under(f"{FROZEN}/", loaded.vision)
    return graphdef, draw(), jax.device_put(names.assign(frozen, leaves), parts)
