"""Our own runs, made into a `Model`: trained weights of a step, and the CLIP around them."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from otseg_jax import experiment, model_dir, recipe, sharding, text
from otseg_jax.checkpoint import Checkpoints
from otseg_jax.data import classes
from otseg_jax.model_dir import Model
from otseg_jax.recipe import Options
from otseg_jax.weights import table


def load(path: Path, options: Options) -> Model:
    """Make a model of a workdir.

    Args:
        path: the workdir.
        options: step, CLIP and tokenizer, where they are not as in the run.

    Returns:
        The model; embeddings are those that the run was trained with.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or a CLIP that is not the run's.
    """
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
            **recipe.description(config, vocabulary, config.model.to_dict()),
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
