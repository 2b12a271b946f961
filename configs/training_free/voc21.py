r"""PASCAL VOC 2012 with background, 21 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/voc21.py:naclip \
        --config.data.root=VOCdevkit/VOC2012 --workdir=runs/voc21_naclip

Published mIoU with OpenAI's ViT-B/16: clip 18.6, maskclip 43.4, clearclip 51.8, sclip 59.1, naclip
58.9 (with --config.model.pamr=True 64.1), resclip 61.1, pearl 64.1, sc_clip 64.6. Background is 26
things that are no class, which is worth many points: clearclip asks by one word a class, and does
not compare with the others.
"""

from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "voc21"
    config.text.words = (common.BACKGROUND, *common.VOC)
    config.eval.threshold = 0.1
    if method in common.WHOLE:
        config.data.crop = 0
    if method == "sclip":
        config.model.scale, config.eval.least_share = 65.0, 0.1
    if method == "clearclip":
        config.text.words, config.eval.threshold = common.PLAIN_VOC, 0.5
    if method == "resclip":
        config.model.first_threshold = 0.5
    if method == "sc_clip":
        config.model.scale, config.eval.least_share = 50.0, 0.1
        config.eval.threshold = 0.15
    return config.lock()
