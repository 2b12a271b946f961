"""Checkpoints of the original OTSeg and ZegCLIP programs, made into a `Model`.

Their files do not hold class names, templates, normalisation, windows and regime: a configuration
tells them, and what the file does note of its classes is compared with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from flax import nnx

from otseg_jax import model_dir, recipe, text
from otseg_jax.data import classes
from otseg_jax.model_dir import Model
from otseg_jax.models.clip import TextTower
from otseg_jax.models.otseg import OTSeg
from otseg_jax.recipe import Options
from otseg_jax.weights import clip, files, mmseg, openai, table
from otseg_jax.weights.table import Rule

FIRST, DEEP = "backbone.prompt_embeddings", "backbone.deep_prompt_embeddings"


def load(
    stored: files.Stored,
    origin: dict[str, str],
    config: ml_collections.ConfigDict | None,
    options: Options,
    tokenise: Callable[[list[str]], np.ndarray] | None,
) -> tuple[Model, tuple[Rule, ...]]:
    """Make a model of a checkpoint.

    Args:
        stored: the file.
        origin: its name, format and SHA-256, for `config.json`.
        config: of the data set it was trained on.
        options: heads, activation, tokenizer and classes, where they must be told.
        tokenise: texts → i32[t, l], in place of a tokenizer's files.

    Returns:
        The model, and the table that gave its leaves.

    Raises:
        FileNotFoundError, ValueError: what does not fit, all of a kind in one message.
    """
    where = origin["name"]
    if config is None:
        raise ValueError(
            f"{where} is a checkpoint of OTSeg or ZegCLIP, and does not tell its classes, "
            "templates, normalisation and regime: give --config=configs/voc12.py:inductive (or the "
            "like; for ZegCLIP with --config.model.decoder=cross_attention)"
        )
    arrays = stored.arrays
    has_text = any(name.startswith("text_encoder.") for name in arrays)
    heads = {"activation": options.activation or "quick_gelu"}
    vision = openai.vision_config(arrays, "backbone.", where, heads=options.vision_heads, **heads)
    sizes = None
    if has_text:
        sizes = openai.text_config(
            arrays, "text_encoder.", where, heads=options.text_heads, **heads
        )
    head = _head(config, arrays, vision.layers, where)
    layers = head["decoder_layers"]
    rules = mmseg.rules(
        blocks=vision.layers,
        layers=layers,
        text_blocks=sizes.layers if sizes else 0,
        deep=DEEP in arrays,
    )
    unused = mmseg.unused(layers=layers)
    target = _leaves_of(vision, head, sizes)
    try:
        leaves = table.fill(rules, arrays, target, unused=unused)
    except ValueError as error:
        raise ValueError(f"{where} is no OTSeg or ZegCLIP checkpoint: {error}") from error
    files.check_finite(leaves, where)
    vocabulary = _vocabulary(config, options)
    _check_vocabulary(vocabulary, stored, where)

    text_leaves = clip.below("text/", leaves)
    below_vision = clip.below("vision/", leaves)
    if sizes:
        whole = clip.identified(vision, sizes, below_vision, text_leaves)
        prints = (whole.fingerprint, whole.text_fingerprint)
    else:
        prints = (table.fingerprint(below_vision, config=vision), "")
    model = Model(
        config={
            **recipe.description(config, vocabulary, head),
            "vision": model_dir.sizes(vision),
            "text": model_dir.sizes(sizes) if sizes else None,
            "clip_fingerprint": prints[0],
            "text_fingerprint": prints[1],
            "tokenizer": None,
            "source": origin,
        },
        leaves={n: leaf for n, leaf in leaves.items() if not n.startswith("text/")},
        text=text_leaves,
        unused={name: arrays[name] for name in unused if name in arrays},
        tokenizer=options.tokenizer or None,
    )
    return _with_embeddings(model, config, tokenise), tuple(rules)


def _head(
    config: ml_collections.ConfigDict,
    arrays: Mapping[str, np.ndarray],
    blocks: int,
    where: str,
) -> dict[str, Any]:
    """Options of `OTSeg`: those that show in the shapes are read off them."""
    first, every = arrays.get(FIRST), arrays.get(DEEP)
    missing = [name for name, x in ((FIRST, first), (DEEP, every)) if x is not None and x.ndim != 3]
    found = {n.split(".")[3] for n in arrays if n.startswith("decode_head.decoder_1.layers.")}
    if first is None or missing or not found or not all(index.isdigit() for index in found):
        raise ValueError(
            f"{where} is no OTSeg or ZegCLIP checkpoint: it lacks visual prompts or the layers of "
            f"the decoder ({', '.join(missing) or FIRST}, decode_head.decoder_1.layers.*)"
        )
    deep = 1 if every is None else every.shape[0] + 1
    return {
        **config.model.to_dict(),
        "prompt_tokens": first.shape[1],
        "prompt_blocks": 0 if deep == blocks else deep,
        "decoder_layers": len(found),
    }


def _leaves_of(vision: Any, head: Mapping[str, Any], sizes: Any) -> dict[str, Any]:
    model = nnx.eval_shape(lambda: OTSeg(vision, **head, rngs=nnx.Rngs(0)))
    leaves = table.flatten(nnx.state(model))
    if sizes is not None:
        tower = nnx.eval_shape(lambda: TextTower(sizes, rngs=nnx.Rngs(0)))
        leaves |= {f"text/{n}": leaf for n, leaf in table.flatten(nnx.state(tower)).items()}
    return leaves


def _vocabulary(config: ml_collections.ConfigDict, options: Options) -> classes.Vocabulary:
    dataset = config.data.dataset
    if options.classes:
        return classes.read(Path(options.classes))
    if dataset == "folder":
        return classes.read(Path(config.data.root) / "classes.csv")
    if dataset not in classes.VOCABULARIES:
        raise ValueError(
            f"data set {dataset!r} has no known classes: give --classes=FILE.csv (name,split)"
        )
    return classes.VOCABULARIES[dataset]


def _check_vocabulary(vocabulary: classes.Vocabulary, stored: files.Stored, where: str) -> None:
    """Compare with what the original program noted of its classes."""
    problems = []
    theirs = stored.meta.get("CLASSES")
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


def _with_embeddings(
    model: Model,
    config: ml_collections.ConfigDict,
    tokenise: Callable[[list[str]], np.ndarray] | None,
) -> Model:
    """Embed the classes by the model's own text tower, or take them from a file."""
    names, templates = model.config["classes"], model.config["templates"]
    fingerprint = model.config["text_fingerprint"]
    if config.text.embeddings:
        embeddings = text.read_embeddings(
            config.text.embeddings,
            classes=len(names),
            templates=len(config.text.templates),
            width=model.vision_config.embed_dim,
        )[:, : len(templates)]
        fingerprint = table.fingerprint({"embeddings": embeddings})
    elif not model.text:
        raise ValueError(
            f"{model.config['source']['name']} holds no text tower: give the embeddings of its "
            "classes, --config.text.embeddings=FILE.npy f32[classes, templates, channels]"
        )
    else:
        if tokenise is None and model.tokenizer is None:
            model = replace(model, tokenizer=config.clip.source)
        tokens = (tokenise or model.tokenise)(text.fill(names, templates))
        embeddings = text.embed(
            model.build_text_tower(), tokens, shape=(len(names), len(templates))
        )
    described = {
        **model.config,
        "text_fingerprint": fingerprint,
        "vocabulary_hash": text.vocabulary_hash(names, templates, fingerprint),
    }
    return replace(model, config=described, embeddings=embeddings)
