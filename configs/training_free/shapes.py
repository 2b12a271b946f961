"""The built-in world of shapes, 20 classes, by the packaged CLIP alone.

    python -m otseg_jax.main --mode=eval --config=configs/training_free/shapes.py:naclip \\
        --workdir=runs/shapes_naclip

Nothing is downloaded or trained; `experiments/training_free.json` has what every method finds.
"""

from configs import shapes
from configs.training_free import common


def get_config(method: str = "naclip"):
    """Configuration of one method."""
    config, trained = common.defaults(method), shapes.get_config()
    config.data.dataset = "shapes"
    config.clip.source = trained.clip.source
    config.text.templates = trained.text.templates
    config.data.mean, config.data.std = trained.data.mean, trained.data.std
    config.data.crop = config.eval.stride = trained.data.crop  # whole pictures
    config.eval.scale = trained.eval.scale
    return config.lock()
