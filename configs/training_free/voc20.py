r"""PASCAL VOC 2012 without background, 20 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/voc20.py:naclip \
        --config.data.root=VOCdevkit/VOC2012 --workdir=runs/voc20_naclip

Published mIoU with OpenAI's ViT-B/16: clip 49.1, maskclip 74.9, clearclip 80.9, sclip 80.4, naclip
79.7 (with --config.model.pamr=True 83.0), resclip 86.0, pearl 86.9, sc_clip 84.3.
"""

from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "voc12"
    # clearclip's own list is not public for this set: the words of its list with background
    config.text.words = common.PLAIN_VOC if method == "clearclip" else common.VOC
    if method in common.WHOLE:
        config.data.crop = 0
    if method == "resclip":
        config.model.earlier_share = 0.6
        config.model.mask_temperature, config.model.mask_share = 2.1, 0.6
        config.model.first_threshold = 0.1
    return config.lock()
