r"""COCO-Object, the 80 things of COCO and a background, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/coco_object.py:naclip \
        --config.data.root=coco_stuff164k --workdir=runs/coco_object_naclip

Published mIoU with OpenAI's ViT-B/16: clip 6.5, maskclip 20.6, clearclip 33.0, sclip 30.5, naclip
33.2 (with --config.model.pamr=True 36.2), resclip 35.0, pearl 37.3, sc_clip 37.7. The label maps
are those of COCO-Stuff, in which everything but the things is background here; clearclip asks by
plain names, and does not compare with the others.
"""

from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "coco_object"
    config.text.words = (common.BACKGROUND, f"{common.PERSON}|body")
    config.eval.threshold = 0.1
    if method == "sclip":
        config.model.scale = 50.0
    if method == "clearclip":
        config.text.words, config.eval.threshold = (), 0.4
    if method == "resclip":
        config.model.earlier_share = 0.4
        config.model.mask_temperature, config.model.first_threshold = 1.8, 0.11
    if method == "sc_clip":
        config.model.scale, config.eval.threshold = 55.0, 0.35
    return config.lock()
