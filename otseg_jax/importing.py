"""From any source to a `Model`: checkpoints of the original programs, CLIPs, our own workdirs.

What a foreign file does not hold (class names, templates, normalisation, windows, regime) comes
from a configuration; a ConfigDict goes no further than here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np

from otseg_jax import model_dir, original, workdir
from otseg_jax.model_dir import Model
from otseg_jax.recipe import Options
from otseg_jax.weights import clip, detect, files
from otseg_jax.weights.table import Rule


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
        return Imported(workdir.load(found.path, options), found.format, {}, ())
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
        model, rules = original.load(found.stored, origin, config, options, tokenise)
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
