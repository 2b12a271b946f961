r"""ADE20K: 150 classes; evaluates a model that was trained on another vocabulary.

    python -m otseg_jax.main --config=configs/ade20k.py --mode=eval \
        --config.init_from=runs/coco_stuff --config.data.root=ADEChallengeData2016 \
        --workdir=runs/coco_stuff_on_ade20k

Published: 21.9 mIoU from the COCO-Stuff model. The checkpoint's own normalisation is used, whatever
this file says; the classes that both vocabularies name alike are printed. Training here, all
classes labelled, works too (`:supervised`) and then uses CLIP's normalisation.
"""

from configs import common


def get_config(regime: str = "supervised"):
    """Configuration of one regime; with no unseen classes, all three train on every label."""
    config = common.defaults(regime, steps=80_000)
    config.data.dataset = "ade20k"
    config.data.mean, config.data.std = common.CLIP
    config.model.prompt_tokens = 100  # as the COCO-Stuff model that it evaluates
    return config.lock()
