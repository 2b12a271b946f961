"""The built-in world of shapes: 20 classes such as "striped red disc", 5 of them unseen.

    python -m otseg_jax.main --config=configs/shapes.py --workdir=runs/shapes

Nothing is downloaded: images are drawn from a seed, and the CLIP comes with the package
(`experiments/shapes_clip/pretrain.py`). It has read captions of all 100 combinations of pattern,
colour and shape, and never seen a mask, so unseen classes are found by their names, as with a real
CLIP. Two more vocabularies name the same pictures, for evaluation across vocabularies:

    python -m otseg_jax.main --config=configs/shapes.py --mode=eval --workdir=runs/synonyms \
        --config.init_from=runs/shapes --config.data.dataset=shapes_synonyms   # or shapes_colours
"""

from configs import common


def get_config(regime: str = "inductive"):
    """Configuration of one regime: inductive, transductive or supervised."""
    config = common.defaults(regime, steps=600)
    config.data.dataset = "shapes"
    config.data.crop = 96
    config.data.scale = (96, 96)
    config.data.ratio = (1.0, 1.2)
    config.data.hue = 0  # a class is a colour, among others
    config.data.mean, config.data.std = common.CLIP  # those that its CLIP was trained with
    config.text.templates = common.TEMPLATES_6
    config.clip.source = "shapes-clip"
    config.train.batch_size = 8
    config.train.learning_rate = 1e-3
    config.train.warmup = 50
    config.train.log_every = 10
    config.train.eval_every = 200
    config.train.eval_images = 40
    config.train.checkpoint_every = 100
    config.eval.scale = (96, 96)
    config.eval.stride = 64
    # 0.1 is tuned for fully trained models; experiments/ablations.md has the curve of this one
    config.eval.seen_offset = 0.0
    return config.lock()
