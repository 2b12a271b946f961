"""What a command line adds to a source of weights that does not tell all."""

from typing import NamedTuple

from otseg_jax import build
from otseg_jax.settings import Settings
from otseg_jax.weights.towers import Stated

HELP = {
    "tokenizer": "Tokenizer to put inside: folder, hub name or shapes-clip",
    "classes": "CSV file name,split, where the configuration has none",
    "clip": "CLIP of a workdir, where it lies elsewhere now",
    "checkpoint": "Of a workdir: latest, best, half or a step",
    "image_size": "Resize a CLIP's positions to this side, pixels; 0: as stored",
    "vision_heads": "Attention heads; 0: as the file tells, or the published tower of its sizes",
    "text_heads": "Attention heads; 0: as of --vision_heads",
    "activation": 'quick_gelu or gelu; "": as the file tells, else assumed, which a line says',
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
    flag: str = "--checkpoint"  # what `checkpoint` is called where it is given, for messages

    @property
    def stated(self) -> Stated:
        """What is said of a CLIP, here or else in the settings' `clip`."""
        own = Stated(self.vision_heads, self.text_heads, self.activation, self.tokenizer)
        return Stated.first_told(own, build.stated(self.settings) if self.settings else None)
