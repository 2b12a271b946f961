"""What a command line adds to a source of weights that does not tell all."""

from typing import NamedTuple

from otseg_jax.settings import Settings


class Hints(NamedTuple):
    """What a source does not tell.

    Attributes:
        settings: of the data set, for checkpoints of the original programs.
        tokenizer: folder or hub name, where the source holds none.
        classes: file `name,split` of the classes, where the settings name no data set.
        clip: CLIP of a run, where it lies elsewhere now.
        checkpoint: of a run: "latest", "best" or a step.
        image_size: side in pixels to which a CLIP's positions are resized; 0: as stored.
        vision_heads: where the file does not tell; 0: one per 64 channels.
        text_heads: likewise.
        activation: where the file does not tell; "": "quick_gelu".
    """

    settings: Settings | None = None
    tokenizer: str = ""
    classes: str = ""
    clip: str = ""
    checkpoint: str = "latest"
    image_size: int = 0
    vision_heads: int = 0
    text_heads: int = 0
    activation: str = ""
