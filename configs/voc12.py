r"""PASCAL VOC 2012: 20 classes, 5 of them unseen.

    python -m otseg_jax.main --config=configs/voc12.py --config.data.root=VOCdevkit/VOC2012 \
        --workdir=runs/voc12

Published mIoU(U) / mIoU(S) / hIoU: inductive OTSeg 78.1 / 92.1 / 84.5, OTSeg+ 81.6 / 93.3 / 87.1;
`:transductive` OTSeg 94.3 / 94.2 / 94.2; `:supervised` OTSeg 94.4 / 94.0 / 94.2. Batch 16 was four
GPUs with four images each; with less memory set --config.train.accumulate=4.
"""

from configs import common


def get_config(regime: str = "inductive"):
    """Configuration of one regime: inductive, transductive or supervised."""
    config = common.defaults(regime, steps=20_000)
    config.data.dataset = "voc12"
    config.text.templates = common.TEMPLATES_6
    return config.lock()
