r"""COCO-Stuff 164k: 171 classes, 15 of them unseen.

    python -m otseg_jax.main --config=configs/coco_stuff.py --config.data.root=coco_stuff164k \
        --workdir=runs/coco_stuff

Published mIoU(U) / mIoU(S) / hIoU: inductive OTSeg 41.4 / 41.4 / 41.4, OTSeg+ 41.8 / 41.3 / 41.5;
`:transductive` OTSeg 60.7 / 41.8 / 49.5; `:supervised` OTSeg 64.0 / 41.8 / 50.5.
"""

from configs import common


def get_config(regime: str = "inductive"):
    """Configuration of one regime: inductive, transductive or supervised."""
    config = common.defaults(regime, steps=80_000)
    config.data.dataset = "coco_stuff"
    config.model.prompt_tokens = 100
    return config.lock()
