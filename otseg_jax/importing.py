"""From any source to a `Model`: checkpoints of the original programs, CLIPs, our own workdirs.

What a foreign file does not hold (class names, templates, normalisation, windows, regime) comes
from a configuration; a ConfigDict goes no further than here.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx

from otseg_jax import experiment, model_dir, regimes, sharding, text
from otseg_jax.checkpoint import Checkpoints
from otseg_jax.data import classes
from otseg_jax.model_dir import Model
from otseg_jax.models.otseg import OTSeg
from otseg_jax.weights import clip, detect, files, mmseg, openai, table
from otseg_jax.weights.table import Rule


class Options(NamedTuple):
    """What the command line adds to a source.

    Attributes:
        tokenizer: folder or hub name, where the source holds none.
        classes: file `name,split` of the classes, where the configuration names no data set.
        clip: CLIP of a workdir, where it lies elsewhere now.
        checkpoint: of a workdir: "latest", "best" or a step.
        image_size: side in pixels to which a CLIP's positions are resized; 0: as stored.
        vision_heads: where the file does not tell; 0: one per 64 channels.
        text_heads: where the file does not tell; 0: one per 64 channels.
        activation: where the file does not tell; "": "quick_gelu".
    """

    tokenizer: str = ""
    classes: str = ""
    clip: str = ""
    checkpoint: str = "latest"
    image_size: int = 0
    vision_heads: int = 0
    text_heads: int = 0
    activation: str = ""


class Imported(NamedTuple):
    """A model, and the arrays that it was made from.

    Attributes:
        model: the model.
        format: whose naming the source follows.
        arrays: the source's arrays by its own names; empty where it is ours.
        rules: the table between the two.
    """

    model: Model
    format: str
    arrays: Mapping[str, np.ndarray]
    rules: tuple[Rule, ...]


def load(
    source: str | Path,
    *,
    config: ml_collections.ConfigDict | None = None,
    options: Options = Options(),  # noqa: B008 (a named tuple is immutable)
    tokenise: Callable[[list[str]], np.ndarray] | None = None,
) -> Imported:
    """Read a source of any format.

    Args:
        source: file, folder or hub name.
        config: as in `configs/common.py`; needed for checkpoints of the original programs.
        options: what else to know.
        tokenise: texts → i32[t, l], in place of a tokenizer's files.

    Returns:
        The model, and what it was made from.

    Raises:
        FileNotFoundError, ValueError: one message for whoever started it.
    """
    found = detect.find(
        source,
        vision_heads=options.vision_heads,
        text_heads=options.text_heads,
        activation=options.activation,
    )
    if found.kind == "model":
        return Imported(model_dir.read(found.path), found.format, {}, ())
    if found.kind == "run":
        return Imported(_from_run(found.path, options), found.format, {}, ())
    assert found.stored is not None
    origin = {
        "name": str(source),
        "format": found.format,
        "sha256": files.sha256(found.stored.paths),
    }
    if found.kind == "clip":
        model = _from_clip(found, origin, options)
        rules: tuple[Rule, ...] = found.table
    else:
        model, rules = _from_mmseg(found.stored, origin, config, options, tokenise)
    return Imported(model, found.format, found.stored.arrays, rules)


def _from_clip(found: detect.Found, origin: dict[str, str], options: Options) -> Model:
    assert found.clip is not None
    assert found.stored is not None
    native = clip.resized(found.clip, options.image_size or None)
    scale = {n: a for n, a in found.stored.arrays.items() if n == "logit_scale"}
    return Model(
        config={
            "kind": "clip",
            "vision": model_dir.sizes(native.vision_config),
            "text": model_dir.sizes(native.text_config),
            "clip_fingerprint": native.fingerprint,
            "text_fingerprint": native.text_fingerprint,
            "tokenizer": None,
            "source": origin,
        },
        leaves={f"vision/{name}": leaf for name, leaf in native.vision.items()},
        text=native.text,
        unused=scale,
        tokenizer=options.tokenizer or found.tokenizer,
    )


def _from_mmseg(
    stored: files.Stored,
    origin: dict[str, str],
    config: ml_collections.ConfigDict | None,
    options: Options,
    tokenise: Callable[[list[str]], np.ndarray] | None,
) -> tuple[Model, tuple[Rule, ...]]:
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
        blocks=vision.layers, layers=layers, text_blocks=sizes.layers if sizes else 0
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
            **_description(config, vocabulary, head),
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
    names = ("backbone.prompt_embeddings", "backbone.deep_prompt_embeddings")
    missing = [name for name in names if name not in arrays or arrays[name].ndim != 3]
    found = {n.split(".")[3] for n in arrays if n.startswith("decode_head.decoder_1.layers.")}
    if missing or not found or not all(index.isdigit() for index in found):
        raise ValueError(
            f"{where} is no OTSeg or ZegCLIP checkpoint: it lacks visual prompts or the layers of "
            f"decode_head.decoder_1 ({', '.join(missing) or 'decode_head.decoder_1.layers.*'})"
        )
    deep = arrays[names[1]].shape[0] + 1
    return {
        **config.model.to_dict(),
        "prompt_tokens": arrays[names[0]].shape[1],
        "prompt_blocks": 0 if deep == blocks else deep,
        "decoder_layers": len(found),
    }


def _leaves_of(vision: Any, head: Mapping[str, Any], sizes: Any) -> dict[str, Any]:
    model = nnx.eval_shape(lambda: OTSeg(vision, **head, rngs=nnx.Rngs(0)))
    leaves = table.flatten(nnx.state(model))
    if sizes is not None:
        tower = nnx.eval_shape(lambda: experiment.towers.TextTower(sizes, rngs=nnx.Rngs(0)))
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


def _description(
    config: ml_collections.ConfigDict, vocabulary: classes.Vocabulary, head: Mapping[str, Any]
) -> dict[str, Any]:
    """What `config.json` says of a trained model, apart from the towers."""
    regime = regimes.resolve(
        config.regime, num_classes=len(vocabulary), unseen=list(vocabulary.unseen)
    )
    offset = config.eval.seen_offset
    templates = list(config.text.templates)
    one = config.model.decoder == "cross_attention"  # ZegCLIP describes a class by one prompt
    return {
        "kind": "otseg",
        "model": dict(head),
        "classes": list(vocabulary.names),
        "unseen": list(vocabulary.unseen),
        "palette": [list(colour) for colour in vocabulary.palette],
        "templates": templates[:1] if one else templates,
        "regime": config.regime,
        "mean": [float(x) for x in config.data.mean],
        "std": [float(x) for x in config.data.std],
        "scale": list(config.eval.scale),
        "window": config.data.crop,
        "stride": config.eval.stride,
        "seen_offset": float(regime.seen_offset if offset is None else offset),
        "mps_weight": float(config.eval.mps_weight),
    }


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


def _from_run(path: Path, options: Options) -> Model:
    """The model of a workdir: trained weights of a step, and the CLIP of its configuration."""
    with Checkpoints(path / "checkpoints") as checkpoints:
        wanted = options.checkpoint
        chosen = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
        step = chosen[wanted]() if wanted in chosen else int(wanted)
        if step is None:
            raise FileNotFoundError(f"{path} holds no {wanted} checkpoint")
        meta = checkpoints.read_meta(step)
        config = ml_collections.ConfigDict(meta["config"])
        config.init_from = ""
        if options.clip:
            config.clip.source = options.clip
        towers = experiment.open_towers(config)
        if towers.fingerprint != meta["clip_fingerprint"]:
            raise ValueError(
                f"{path} was trained with another CLIP than the one now at {config.clip.source}: "
                "give it with --clip=SOURCE"
            )
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        _, trainable, frozen = experiment.build(config, towers, mesh)
        trained = checkpoints.restore(step, {"trainable": trainable})["trainable"]
        embeddings = checkpoints.read_text(step)
        listing = (Path(checkpoints.directory) / str(step) / "files.json").read_bytes()
    names = {n: np.asarray(leaf) for n, leaf in table.flatten(trained).items()}
    names |= {n: np.asarray(leaf) for n, leaf in table.flatten(frozen).items()}
    tower = None if config.text.embeddings else towers.make_text_tower()
    known = classes.VOCABULARIES.get(config.data.dataset)
    vocabulary = classes.Vocabulary(tuple(meta["classes"]), tuple(meta["unseen"]))
    if known is not None and known.names == vocabulary.names:
        vocabulary = replace(vocabulary, palette=known.palette)
    is_bytes = towers.tokenizer_files == "bytes"
    return Model(
        config={
            **_description(config, vocabulary, config.model.to_dict()),
            "vision": model_dir.sizes(towers.vision_config),
            "text": model_dir.sizes(tower.config) if tower else None,
            "clip_fingerprint": meta["clip_fingerprint"],
            "text_fingerprint": _embedded_by(meta, towers.text_fingerprint, embeddings),
            "vocabulary_hash": meta["vocabulary_hash"],
            "tokenizer": "bytes" if is_bytes else None,
            "source": {
                "name": f"{path}, step {step}",
                "format": "otseg_jax run",
                "sha256": hashlib.sha256(listing).hexdigest(),  # of the list of checksums
            },
        },
        leaves=names,
        text={n: np.asarray(x) for n, x in table.flatten(nnx.state(tower)).items()}
        if tower
        else {},
        embeddings=embeddings,
        tokenizer=options.tokenizer or (None if is_bytes else towers.tokenizer_files or None),
    )


def _embedded_by(meta: Mapping[str, Any], tower: str, embeddings: np.ndarray) -> str:
    """Fingerprint of what made a run's embeddings: its text tower, or they themselves."""
    if text.vocabulary_hash(meta["classes"], meta["templates"], tower) == meta["vocabulary_hash"]:
        return tower
    return table.fingerprint({"embeddings": embeddings})
