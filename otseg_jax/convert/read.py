"""From any source to a loaded model: checkpoints of the original programs, CLIPs, our own runs."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flax import nnx

from otseg_jax import build
from otseg_jax.checkpoints import pretrained, restore
from otseg_jax.checkpoints.manifest import NAME as LISTING
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.checkpoints.spec import Origin, Record
from otseg_jax.convert import published
from otseg_jax.convert.hints import Hints
from otseg_jax.models.otseg import TRAINABLE
from otseg_jax.weights import files, names, source
from otseg_jax.weights.rules import Rule
from otseg_jax.weights.towers import Stated


class Loaded(NamedTuple):
    """A model, and the arrays that it was made from."""

    model: Pretrained
    format: str  # whose naming the source follows
    arrays: Mapping[str, np.ndarray]  # the source's, by its own names; empty where it is ours
    rules: tuple[Rule, ...]  # the table between the two


def load(
    place: str | Path,
    *,
    hints: Hints = Hints(),  # noqa: B008 (a named tuple is immutable)
) -> Loaded:
    """Read a source of any format: file, folder or hub name; errors are one message."""
    found = source.find(place, stated=hints.stated)
    if found.kind == "model":
        ours = pretrained.as_stated(pretrained.read(found.path), hints.stated, str(place))
        return Loaded(ours, found.format, {}, ())
    if found.kind == "run":
        return Loaded(_run(found.path, hints), found.format, {}, ())
    assert found.stored is not None
    digest = files.sha256(found.stored.paths)
    origin = Origin(name=str(place), format=found.format, sha256=digest)
    model: Pretrained
    if found.clip is not None:
        clip = found.clip.resized(hints.image_size or None)
        model, rules = Pretrained(clip=clip, origin=origin), found.rules
    else:
        model, rules = published.load(found.stored, origin, hints)
    return Loaded(model, found.format, found.stored.arrays, rules)


def _run(path: Path, hints: Hints) -> Model:
    """The trained weights of a run's step, and the CLIP around them."""

    def work(checkpoints: Checkpoints, step: int, record: Record) -> Model:
        return _step(checkpoints, step, record, path, hints)

    return restore.read(path, hints.checkpoint, work, flag=hints.flag)


def _step(checkpoints: Checkpoints, step: int, record: Record, path: Path, hints: Hints) -> Model:
    options = record.settings
    if hints.clip:
        options = replace(options, init_from="")  # of a model directory that it started from
    said = Stated.first_told(hints.stated, build.stated(options))._asdict()
    place = replace(options.clip, source=hints.clip or options.clip.source, **said)
    options = replace(options, clip=place)
    clip = build.open_clip(options).clip
    if clip.fingerprint != record.spec.clip_fingerprint:
        raise ValueError(
            f"{path} was trained with {record.spec.clip_source}, another CLIP than the one now "
            f"at {options.clip.source}: python -m otseg_jax.convert {path} DEST --clip=SOURCE "
            "makes a model directory with that one, for load and --config.init_from"
        )
    pretrained.check_tokenizer(record.spec.tokenizer_fingerprint, clip, str(path))
    abstract = nnx.eval_shape(lambda: record.spec.model.build(clip.vision_config, rngs=nnx.Rngs(0)))
    state = {"trainable": nnx.state(abstract, TRAINABLE)}
    weights = checkpoints.restore(step, state)["trainable"]
    embeddings = checkpoints.read_text(step)
    listing = (Path(checkpoints.directory) / str(step) / LISTING).read_bytes()
    if options.text.embeddings:  # other words than the tower's: it would embed new ones apart
        clip = replace(clip, text_config=None, text={})
    return Model(
        clip=clip,
        origin=Origin(
            name=f"{path}, step {step}",
            format="otseg_jax run",
            sha256=hashlib.sha256(listing).hexdigest(),  # of the list of checksums
        ),
        spec=record.spec,
        trained={name: np.asarray(leaf) for name, leaf in names.flatten(weights).items()},
        embeddings=embeddings,
    )
