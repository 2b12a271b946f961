r"""PASCAL Context: 59 classes, 10 of them unseen.

    python -m otseg_jax.main --config=configs/pascal_context.py \
        --config.data.root=VOCdevkit/VOC2010 --workdir=runs/pascal_context

Published mIoU(U) / mIoU(S) / hIoU: inductive OTSeg 56.7 / 53.0 / 54.8, OTSeg+ 60.4 / 55.2 / 57.7;
`:transductive` OTSeg 66.7 / 53.4 / 59.3; `:supervised` OTSeg 78.1 / 55.2 / 64.7. Windows of 480 at
a stride of 80 overlap a lot: evaluation takes far longer per image than on the other data sets.
"""

from configs import common


def get_config(regime: str = "inductive"):
    """Configuration of one regime: inductive, transductive or supervised."""
    config = common.defaults(regime, steps=40_000)
    config.data.dataset = "pascal_context"
    config.data.crop = 480
    config.data.scale = (520, 520)
    config.eval.scale = (2048, 520)
    config.eval.stride = 80
    return config.lock()
