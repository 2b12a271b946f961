r"""PASCAL Context without background, 59 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/context59.py:naclip \
        --config.data.root=VOCdevkit/VOC2010 --workdir=runs/context59_naclip

Published mIoU with OpenAI's ViT-B/16: clip 11.2, maskclip 26.4, clearclip 35.9, sclip 34.2, naclip
35.2 (with --config.model.pamr=True 38.4), resclip 36.8, pearl 38.6, sc_clip 40.1.
"""

from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "pascal_context"
    config.text.words = common.joined("tv monitor")
    if method == "resclip":
        config.model.earlier_share = 0.4
        config.model.mask_temperature, config.model.first_threshold = 1.8, 0.25
    return config.lock()
