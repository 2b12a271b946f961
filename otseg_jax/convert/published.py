"""Checkpoints of the original OTSeg and ZegCLIP programs, made into a `Model`.

Their files do not hold class names, templates, normalisation, windows and regime: settings tell
them, and what the file does note of its classes is compared with these.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from otseg_jax import build, paths
from otseg_jax.checkpoints import spec
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.checkpoints.spec import Origin
from otseg_jax.convert.hints import Hints
from otseg_jax.data import classes, records, splits
from otseg_jax.models import methods
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.models.otseg import OTSegConfig
from otseg_jax.settings import Settings
from otseg_jax.weights import clip, files, hub, mmseg, names, openai, rules
from otseg_jax.weights.rules import Rule
from otseg_jax.weights.towers import Stated

FIRST, DEEP = "backbone.prompt_embeddings", "backbone.deep_prompt_embeddings"


def load(stored: files.Stored, origin: Origin, hints: Hints) -> tuple[Model, tuple[Rule, ...]]:
    """A checkpoint's model, and the table that gave its leaves; errors tell all of a kind."""
    where, options, arrays = origin.name, hints.settings, stored.arrays
    if options is None:
        raise ValueError(
            f"{where} is a checkpoint of OTSeg or ZegCLIP, and does not tell its classes, "
            "templates, normalisation and regime: give --config=configs/voc12.py:inductive (or the "
            "like; for ZegCLIP with --config.model.decoder=cross_attention)"
        )
    vision, words = _towers(arrays, hints, where)
    model = _model_config(methods.trained(options.model), arrays, vision.layers, where)
    options, layers = replace(options, model=model), model.decoder_layers
    text_blocks = words.layers if words else 0
    table = mmseg.rules(
        blocks=vision.layers, layers=layers, text_blocks=text_blocks, deep=DEEP in arrays
    )
    unused = mmseg.unused(layers=layers)
    try:
        abstract = nnx.eval_shape(lambda: model.build(vision, rngs=nnx.Rngs(0)))
        target = clip.shapes(vision, words) | names.flatten(nnx.state(abstract))
        leaves = rules.fill(table, arrays, target, unused=unused)
    except ValueError as error:
        raise ValueError(f"{where} is no OTSeg or ZegCLIP checkpoint: {error}") from error
    files.check_finite(leaves, where)
    vocabulary = vocabulary_of(options, hints.classes)
    _check_vocabulary(vocabulary, stored, where)

    towers = {n: leaf for n, leaf in leaves.items() if n.startswith(("vision/", "text/"))}
    # where the embeddings are given, nobody has asked for a tokenizer
    place = hints.stated.tokenizer or ("" if options.text.embeddings else options.clip.source)
    tokenizer = hub.tokenizer(place) if place else None
    loaded = clip.identified(towers, vision, words, name=where, tokenizer=tokenizer)
    embeddings, described = build.embed(
        spec.describe(options, vocabulary),
        Pretrained(clip=loaded, origin=origin),
        replace(options, text=replace(options.text, cache="")),
    )
    found = Model(
        clip=loaded,
        origin=origin,
        spec=described,
        trained={name: leaf for name, leaf in leaves.items() if name not in towers},
        embeddings=embeddings,
        unused={name: arrays[name] for name in unused if name in arrays},
    )
    return found, tuple(table)


def _towers(
    arrays: Mapping[str, np.ndarray], hints: Hints, where: str
) -> tuple[VisionConfig, TextConfig | None]:
    """Sizes of the towers; there may be no text tower in the file."""
    # the original programs know no other activation than OpenAI's
    stated = Stated.first_told(hints.stated, Stated(activation="quick_gelu"))
    prefix = "text_encoder."
    words = prefix if any(name.startswith(prefix) for name in arrays) else None
    return openai.configs(arrays, "backbone.", words, where, stated)


def _model_config(
    config: OTSegConfig, arrays: Mapping[str, np.ndarray], blocks: int, where: str
) -> OTSegConfig:
    """The settings' choices, but for those that show in the shapes: they are read off them."""
    first, every = arrays.get(FIRST), arrays.get(DEEP)
    missing = [name for name, x in ((FIRST, first), (DEEP, every)) if x is not None and x.ndim != 3]
    found = {n.split(".")[3] for n in arrays if n.startswith("decode_head.decoder_1.layers.")}
    if first is None or missing or not found or not all(index.isdigit() for index in found):
        raise ValueError(
            f"{where} is no OTSeg or ZegCLIP checkpoint: it lacks visual prompts or the layers of "
            f"the decoder ({', '.join(missing) or FIRST}, decode_head.decoder_1.layers.*)"
        )
    deep = 1 if every is None else every.shape[0] + 1
    return replace(
        config,
        prompt_tokens=first.shape[1],
        prompt_blocks=0 if deep == blocks else deep,
        decoder_layers=len(found),
    )


def vocabulary_of(options: Settings, listing: str = "") -> classes.Vocabulary:
    """The classes alone, without the photos; `listing` is a file `name,split` of other ones.

    Raises:
        FileNotFoundError, ValueError: no such file, or a data set without known classes.
    """
    dataset, root = options.data.dataset, options.data.root
    if not listing and dataset in classes.VOCABULARIES:
        return classes.VOCABULARIES[dataset]
    if not listing and not root:
        raise ValueError(
            f"data set {dataset!r} has no known classes: give --classes=FILE.csv (name,split), or "
            "--config.data.root=DIR, where classes.csv lies"
        )
    place = None if listing else splits.find(root, dataset)
    if place and (about := records.read_about(place)):
        return about.vocabulary
    return classes.read(paths.local(listing or (place or Path(root)) / "classes.csv"))


def _check_vocabulary(vocabulary: classes.Vocabulary, stored: files.Stored, where: str) -> None:
    """Compare with what the original program noted of its classes."""
    problems = []
    newer = stored.meta.get("dataset_meta")  # of mmsegmentation 1.x
    theirs = stored.meta.get("CLASSES") or (isinstance(newer, dict) and newer.get("classes"))
    if isinstance(theirs, list | tuple):
        if len(theirs) != len(vocabulary):
            problems.append(f"it was trained on {len(theirs)} classes, here are {len(vocabulary)}")
        else:
            problems += [
                f"its class {i} is {a!r}, here {b!r}"
                for i, (a, b) in enumerate(zip(theirs, vocabulary.names, strict=True))
                if _letters(str(a)) != _letters(b)
            ][:5]
    weights = stored.arrays.get("decode_head.loss_decode.criterion.empty_weight")
    if weights is not None and weights.size - 1 not in (len(vocabulary), len(vocabulary.seen)):
        problems.append(
            f"its loss knew {weights.size - 1} classes, here {len(vocabulary.seen)} are seen of "
            f"{len(vocabulary)}"
        )
    if problems:
        raise ValueError(
            f"{where} does not fit these classes: {'; '.join(problems)}. Choose the configuration "
            "of its data set, or give --classes=FILE.csv (name,split)"
        )


def _letters(name: str) -> str:
    """A name without what spelling varies in: pottedplant and "potted plant" are one."""
    return "".join(filter(str.isalnum, name.lower()))
