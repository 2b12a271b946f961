"""What a model directory says beyond its weights, taken from a configuration and a command line."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections

from otseg_jax import regimes
from otseg_jax.data import classes


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


def description(
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
        "dataset": config.data.dataset,
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
