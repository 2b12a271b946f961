"""OTSeg, zero-shot semantic segmentation by optimal transport, in JAX and Flax."""

from importlib.metadata import version

from otseg_jax.sinkhorn import mps, sinkhorn

__version__ = version("otseg-jax")
__all__ = ["__version__", "mps", "sinkhorn"]
