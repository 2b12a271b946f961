"""What a command line adds to a source of weights that does not tell all."""

from typing import NamedTuple

from otseg_jax.settings import Settings

HELP = {
    "tokenizer": "Tokenizer to put inside: folder or hub name",
    "classes": "CSV file name,split, where the configuration has none",
    "clip": "CLIP of a workdir, where it lies elsewhere now",
    "checkpoint": "Of a workdir: latest, best or a step",
    "image_size": "Resize a CLIP's positions to this side, pixels; 0: as stored",
    "vision_heads": "Attention heads; 0: one per 64 channels",
    "text_heads": "Attention heads; 0: one per 64 channels",
    "activation": 'Where the file does not tell; "": quick_gelu',
}


class Hints(NamedTuple):
    """`settings` of the data set, for checkpoints of the original programs; `HELP` has the rest."""

    settings: Settings | None = None
    tokenizer: str = ""
    classes: str = ""
    clip: str = ""
    checkpoint: str = "latest"
    image_size: int = 0
    vision_heads: int = 0
    text_heads: int = 0
    activation: str = ""
