r"""Cityscapes, 19 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/cityscapes.py:naclip \
        --config.data.root=cityscapes --workdir=runs/cityscapes_naclip

Published mIoU with OpenAI's ViT-B/16: clip 6.7, maskclip 24.9, clearclip 30.0, sclip 32.2, naclip
35.5 (with --config.model.pamr=True 38.3), resclip 35.9, pearl 37.6, sc_clip 41.0.
"""

from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "cityscapes"
    config.text.words = common.joined("traffic light", "traffic sign")
    if method == "clearclip":
        config.data.crop = config.eval.stride = 224
    else:
        config.eval.scale = (2048, 560)
    if method == "resclip":
        config.model.earlier_share = 0.2
        config.model.mask_temperature, config.model.mask_share = 2.1, 0.6
        config.model.first_threshold = 0.1
    return config.lock()
