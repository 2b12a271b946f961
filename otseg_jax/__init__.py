"""OTSeg, zero-shot semantic segmentation by optimal transport, in JAX and Flax."""

import logging
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"]:
    # Python is looking for the module that -m names. Most modules are no commands: they would end
    # in silence and with status 0, and this package is imported before any of them is.
    from otseg_jax import cli

    cli.check_command(sys.orig_argv[-len(sys.argv)].removeprefix("-m"))

if TYPE_CHECKING:
    from otseg_jax.ot.sinkhorn import mps, sinkhorn
    from otseg_jax.predict import load

# transformers reads tokenizers here, which need no PyTorch
logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not" not in str(record.msg))

__version__ = version("otseg-jax")
__all__ = ["__version__", "load", "mps", "sinkhorn"]


def __getattr__(name: str) -> Any:
    # `load` brings transformers, grain and orbax: seconds that `mps` alone should not cost; and
    # otseg_jax.doctor runs where JAX cannot be imported
    if name == "load":
        from otseg_jax.predict import load

        return load
    if name in __all__:
        from otseg_jax.ot import sinkhorn as solver

        return getattr(solver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
