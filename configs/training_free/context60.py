r"""PASCAL Context with background, 60 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/context60.py:naclip \
        --config.data.root=VOCdevkit/VOC2010 --workdir=runs/context60_naclip

Published mIoU with OpenAI's ViT-B/16: clip 7.8, maskclip 23.2, clearclip 32.6, sclip 30.4, naclip
32.2 (with --config.model.pamr=True 35.0), resclip 33.5, pearl 35.1, sc_clip 36.8.
"""

from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "context60"
    config.text.words = common.joined("tv monitor")
    config.eval.threshold = 0.15 if method in ("clearclip", "sc_clip") else 0.1
    if method == "sclip":
        config.model.scale = 50.0
    if method == "resclip":
        config.model.mask_temperature, config.model.first_threshold = 1.8, 0.3
    return config.lock()
