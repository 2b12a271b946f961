"""Photos and words to masks: `load` makes a `Segmenter`, and that gives a `Segmentation`."""

from otseg_jax.predict.loading import load
from otseg_jax.predict.segmentation import Segmentation
from otseg_jax.predict.segmenter import Segmenter

__all__ = ["Segmentation", "Segmenter", "load"]
