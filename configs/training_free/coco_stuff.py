r"""COCO-Stuff 164k, 171 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/coco_stuff.py:naclip \
        --config.data.root=coco_stuff164k --workdir=runs/coco_stuff_naclip

Published mIoU with OpenAI's ViT-B/16: clip 5.7, maskclip 16.7, clearclip 23.9, sclip 22.4, naclip
23.3 (with --config.model.pamr=True 25.7), resclip 24.7, pearl 26.3, sc_clip 26.6.
"""

from configs.training_free import common

# the authors' lists write these in one word, which the text tower reads otherwise
JOINED = (
    *("traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball"),
    *("baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog"),
    *("potted plant", "dining table", "cell phone", "teddy bear", "hair drier"),
)


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "coco_stuff"
    config.text.words = common.joined(*JOINED)
    if method == "sclip":
        config.eval.scale = (2048, 448)
    if method == "resclip":
        config.model.earlier_share = 0.4
        config.model.mask_temperature, config.model.first_threshold = 1.8, 0.11
    return config.lock()
