r"""ADE20K, 150 classes, by a CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/ade20k.py:naclip \
        --config.data.root=ADEChallengeData2016 --workdir=runs/ade20k_naclip

Published mIoU with OpenAI's ViT-B/16: clip 3.2, maskclip 11.9, clearclip 16.7, sclip 16.1, naclip
17.4 (with --config.model.pamr=True 19.1), resclip 18.0, pearl 19.4, sc_clip 20.1.
"""

from configs.training_free import common

# the authors' lists write these in one word, which the text tower reads otherwise
JOINED = (
    *("bed ", "chest of drawers", "pool table", "screen door", "coffee table", "kitchen island"),
    *("swivel chair", "arcade machine", "television receiver", "dirt track", "conveyer belt"),
    *("swimming pool", "trade name", "traffic light", "crt screen", "bulletin board"),
)


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config = common.defaults(method)
    config.data.dataset = "ade20k"
    config.text.words = common.joined(*JOINED)
    if method == "resclip":
        config.model.mask_temperature, config.model.first_threshold = 2.1, 0.25
    return config.lock()
