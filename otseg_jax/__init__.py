"""OTSeg, zero-shot semantic segmentation by optimal transport, in JAX and Flax."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from otseg_jax.ot.sinkhorn import mps, sinkhorn

if TYPE_CHECKING:
    from otseg_jax.predict import load

__version__ = version("otseg-jax")
__all__ = ["__version__", "load", "mps", "sinkhorn"]


def __getattr__(name: str) -> Any:
    # `load` brings transformers, grain and orbax: seconds that `mps` alone should not cost
    if name == "load":
        from otseg_jax.predict import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
