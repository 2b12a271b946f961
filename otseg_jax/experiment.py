"""From a configuration to the parts of an experiment: data, text, model, mesh.

A ConfigDict comes in; plain arrays and dataclasses go out. Text is f32[K, n, c] over all K classes
of the vocabulary, whatever the regime trains on.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from otseg_jax import model_dir, optim, regimes, sharding, text, towers
from otseg_jax.data import classes, folders, shapes
from otseg_jax.models.otseg import OTSeg
from otseg_jax.towers import Towers
from otseg_jax.weights import detect, table

LOGGER = logging.getLogger(__name__)

Source = folders.Folder | shapes.Shapes

DATASETS = ("voc12", "pascal_context", "coco_stuff", "ade20k", "folder", *shapes.WORDS)


@dataclass(frozen=True)
class Experiment:
    """What training and evaluation work on.

    Attributes:
        vocabulary: classes of the data set.
        regime: how they are trained.
        mesh: devices.
        graphdef: structure of the model, to be merged with `trainable` and `frozen`.
        trainable: initial state of what learns, whole on every device.
        frozen: state of the CLIP tower, its large leaves split over the mesh's `model` axis.
        text: f32[K, n, c], unit length, whole on every device.
        meta: JSON description that goes into every checkpoint.
    """

    vocabulary: classes.Vocabulary
    regime: regimes.Regime
    mesh: Mesh
    graphdef: Any
    trainable: Any
    frozen: Any
    text: Float[Array, "k n c"]
    meta: dict[str, Any]


def open_split(config: ml_collections.ConfigDict, split: str) -> Source:
    """Index one split of the data set that `config.data` names.

    Args:
        config: `data.dataset`, and `data.root` where the data set lies in a folder.
        split: "train" or "val".

    Returns:
        A source of examples {"image", "label", "name"} with a vocabulary.

    Raises:
        FileNotFoundError, ValueError: as `folders.index` and `Shapes`.
    """
    data = config.data
    if data.dataset not in DATASETS:
        raise ValueError(f"data.dataset={data.dataset!r}: choose one of {', '.join(DATASETS)}")
    if data.dataset in shapes.WORDS:
        options = {"image_size": data.crop, "seed": config.seed, "words": data.dataset}
        return shapes.Shapes(split, size=data.images[split], **options)
    if not data.root:
        raise ValueError(
            f"data set {data.dataset!r} needs --config.data.root=DIR, the folder it lies in"
        )
    return folders.index(
        data.dataset, data.root, split, augmented=data.augmented, raw_ids=data.raw_ids
    )


def assemble(config: ml_collections.ConfigDict, vocabulary: classes.Vocabulary) -> Experiment:
    """Build everything but the data.

    Args:
        config: as in `configs/common.py`.
        vocabulary: classes of the data set.

    Returns:
        The experiment, its arrays on the devices of the mesh.

    Raises:
        FileNotFoundError, ValueError: fields that do not fit together (all in one message), CLIP
            weights or text embeddings that are missing or of another shape.
    """
    mesh = sharding.make_mesh(data=config.mesh.data, model=config.mesh.model)
    check(config, devices=mesh.shape["data"])
    regime = regimes.resolve(
        config.regime, num_classes=len(vocabulary), unseen=list(vocabulary.unseen)
    )
    clip = open_towers(config)
    if config.data.crop % clip.vision_config.patch_size:
        raise ValueError(
            f"data.crop={config.data.crop} is not a multiple of the tower's patch, "
            f"{clip.vision_config.patch_size} pixels"
        )
    templates = tuple(config.text.templates)
    if config.model.decoder == "cross_attention":
        templates = templates[:1]  # ZegCLIP describes a class by one prompt
    embeddings, text_fingerprint = _embed_vocabulary(config, vocabulary, templates, clip)
    graphdef, trainable, frozen = build(config, clip, mesh)
    meta = {
        "config": json.loads(json.dumps(config.to_dict())),
        "classes": list(vocabulary.names),
        "unseen": list(vocabulary.unseen),
        "templates": list(templates),
        "vocabulary_hash": text.vocabulary_hash(vocabulary.names, templates, text_fingerprint),
        "clip_fingerprint": clip.fingerprint,
        "mean": list(config.data.mean),
        "std": list(config.data.std),
    }
    return Experiment(
        vocabulary=vocabulary,
        regime=regime,
        mesh=mesh,
        graphdef=graphdef,
        trainable=trainable,
        frozen=frozen,
        text=jax.device_put(jnp.asarray(embeddings), sharding.replicated(mesh)),
        meta=meta,
    )


def start_from_model(model: model_dir.Model, parts: Experiment, *, where: str) -> Any:
    """What is trained, taken from a model directory.

    Args:
        model: as read.
        parts: the experiment; its own trainable state gives names and shapes.
        where: the directory, for messages.

    Returns:
        Trainable state, whole on every device.

    Raises:
        ValueError: a CLIP alone, or weights of another model.
    """
    if model.config["kind"] != "otseg":
        raise ValueError(f"{where} holds a CLIP alone: set --config.clip.source={where} instead")
    trained = {
        name: leaf for name, leaf in model.leaves.items() if not name.startswith(f"{optim.FROZEN}/")
    }
    try:
        filled = table.assign(parts.trainable, trained)
    except ValueError as error:
        raise ValueError(f"{where} is not of this configuration's model: {error}") from error
    return jax.device_put(filled, sharding.replicated(parts.mesh))


def check(config: ml_collections.ConfigDict, *, devices: int = 1) -> None:
    """Refuse values that no later part could use, before anything is read or compiled.

    Args:
        config: as in `configs/common.py`.
        devices: that share a batch.

    Raises:
        ValueError: every problem, in one message.
    """
    train, data, options = config.train, config.data, config.eval
    parts = train.accumulate * devices
    problems = [
        f"{name}={value}: wanted at least {least}"
        for name, value, least in (
            ("train.steps", train.steps, 1),
            ("train.batch_size", train.batch_size, 1),
            ("train.accumulate", train.accumulate, 1),
            ("train.log_every", train.log_every, 1),
            ("train.checkpoint_every", train.checkpoint_every, 1),
            ("train.eval_every", train.eval_every, 0),
            ("train.eval_images", train.eval_images, 0),
            ("eval.batch_size", options.batch_size, 1),
            ("eval.images", options.images, 0),
            ("eval.stride", options.stride, 1),
            ("eval.scale", min(options.scale), 1),
            ("data.crop", data.crop, 1),
            ("data.scale", min(data.scale), 1),
            ("data.threads", data.threads, 1),
            ("data.buffer", data.buffer, 1),
            ("text.templates", len(config.text.templates), 1),
        )
        if value < least
    ]
    if not problems and train.batch_size % parts:
        problems.append(
            f"train.batch_size={train.batch_size} is not a multiple of train.accumulate × "
            f"mesh.data = {train.accumulate} × {devices}"
        )
    if not problems and config.eval.batch_size % devices:
        problems.append(
            f"eval.batch_size={config.eval.batch_size} is not a multiple of mesh.data = {devices}"
        )
    if options.stride > data.crop:
        problems.append(
            f"eval.stride={options.stride} leaves gaps between windows of data.crop={data.crop}"
        )
    if not 0 <= config.model.dropout < 1:
        problems.append(f"model.dropout={config.model.dropout}: wanted a rate in [0, 1)")
    if not 0 < data.ratio[0] <= data.ratio[1]:
        problems.append(f"data.ratio={tuple(data.ratio)}: wanted 0 < low ≤ high")
    if min(data.std) <= 0:
        problems.append(f"data.std={tuple(data.std)}: wanted more than 0")
    if config.dtype not in ("float32", "bfloat16"):
        problems.append(f"dtype={config.dtype!r}: choose float32 or bfloat16")
    if problems:
        raise ValueError("config: " + "; ".join(problems))


def open_towers(config: ml_collections.ConfigDict) -> Towers:
    """The CLIP that a configuration names: `clip.source`, or what is in the model it starts from.

    Args:
        config: `clip`, `data.crop`, `init_from` and `seed`.

    Returns:
        The towers.

    Raises:
        FileNotFoundError, ValueError: as `towers.pretrained`.
    """
    crop, source = config.data.crop, config.clip.source
    if config.init_from and detect.is_model(config.init_from):
        if source != config.init_from:
            LOGGER.info("clip.source=%s, the model that is started from", config.init_from)
        return towers.pretrained(config.init_from, image_size=crop)
    if source == "random":
        return towers.random(config.clip.random.to_dict(), image_size=crop, seed=config.seed)
    return towers.pretrained(source, image_size=crop)


def _embed_vocabulary(
    config: ml_collections.ConfigDict,
    vocabulary: classes.Vocabulary,
    templates: tuple[str, ...],
    clip: Towers,
) -> tuple[np.ndarray, str]:
    """Text embeddings f32[K, n, c], and a fingerprint of what made them."""
    if config.text.embeddings:
        embeddings = text.read_embeddings(
            config.text.embeddings,
            classes=len(vocabulary),
            templates=len(config.text.templates),
            width=clip.vision_config.embed_dim,
        )[:, : len(templates)]
        return embeddings, table.fingerprint({"embeddings": embeddings})
    stored = text.vocabulary_hash(vocabulary.names, templates, clip.text_fingerprint)
    if clip.stored is not None and clip.stored[1] == stored:
        return clip.stored[0], clip.text_fingerprint
    embeddings = text.load_or_embed(
        vocabulary.names,
        templates,
        clip.make_text_tower(),
        clip.tokenizer,
        text_fingerprint=clip.text_fingerprint,
        cache_dir=Path(config.text.cache).expanduser() if config.text.cache else None,
    )
    return embeddings, clip.text_fingerprint


def build(config: ml_collections.ConfigDict, clip: Towers, mesh: Mesh) -> tuple[Any, Any, Any]:
    """The model around a CLIP: its graph, what is trained (as drawn) and what is frozen.

    Args:
        config: `model`, `dtype` and `seed`.
        clip: from `open_towers`.
        mesh: devices.

    Returns:
        graphdef, trainable state, frozen state.
    """

    def make() -> OTSeg:
        return OTSeg(
            clip.vision_config,
            **config.model,
            dtype=jnp.dtype(config.dtype),
            rngs=nnx.Rngs(config.seed),
        )

    graphdef, *states = nnx.split(nnx.eval_shape(make), optim.TRAINABLE, ...)
    trainable, frozen = states
    whole = jax.tree.map(lambda _: sharding.replicated(mesh), trainable)
    parts = jax.tree.map(lambda leaf: sharding.by_weight(mesh, leaf), frozen)
    if clip.vision is None:
        draw_all = jax.jit(
            lambda: nnx.split(make(), optim.TRAINABLE, ...)[1:], out_shardings=(whole, parts)
        )
        trainable, frozen = draw_all()
        return graphdef, trainable, frozen
    # only what learns is drawn: XLA drops the random tower that nobody reads
    draw = jax.jit(lambda: nnx.split(make(), optim.TRAINABLE, ...)[1], out_shardings=whole)
    leaves = {f"{optim.FROZEN}/{name}": leaf for name, leaf in clip.vision.items()}
    return graphdef, draw(), jax.device_put(table.assign(frozen, leaves), parts)
