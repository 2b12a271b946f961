"""Labels of a training step: ids of a data set → positions in `Regime.classes` → pseudo-labels."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int16, Int32, Integer

from otseg_jax.data.classes import IGNORE
from otseg_jax.data.regimes import HIDDEN
from otseg_jax.models.outputs import Maps, Mixture, mix, upsampled_argmax


def relabel(
    labels: Integer[Array, "*shape"], table: Int16[Array | np.ndarray, " entries"]
) -> Int32[Array, "*shape"]:
    """Look every label up in the table of a regime.

    Args:
        labels: ids of the data set; anything negative is ignored.
        table: `Regime.label_table`, whose last entry is for every id that it does not list.

    Example:
        >>> from otseg_jax.data.regimes import resolve
        >>> table = resolve("inductive", num_classes=3, unseen=[0]).label_table
        >>> relabel(jnp.array([0, 1, 2, 9, IGNORE]), table).tolist()
        [-1, 0, 1, -1, -1]
    """
    # Wide enough first: the end of the table may be no number of a narrow dtype.
    ids = labels.astype(jnp.int32)
    # Clipped to the table: its last entry is for all ids beyond; what is negative goes after that.
    known = jnp.take(jnp.asarray(table, jnp.int32), ids, mode="clip")
    return jnp.where(ids < 0, IGNORE, known)


def pseudo_label(
    maps: Maps, labels: Int32[Array, "b H W"], unseen: Sequence[int], *, mixture: Mixture
) -> Int32[Array, "b H W"]:
    """Label the hidden pixels with the likeliest unseen class of the current forward pass.

    y = argmax over u in unseen of σ( Σ weight·map[u] )

    Every other label stays, and none is left `HIDDEN`. No gradient flows through the result. With
    no unseen class the labels are returned as they are, so that one step serves every regime.

    Args:
        maps: logits on the patch grid.
        labels: what `relabel` returned.
        unseen: `Regime.unseen`, static.
        mixture: ½ decoder + ½ mps for OTSeg, the decoder alone for ZegCLIP.

    Source: OTSeg (arXiv 2403.14183), transductive setting, following ZegCLIP's self-training.
    Differs: σ is monotone and left out; in float32 it would round confident logits to the same 1.0
    and so decide between them by their order.
    """
    if not unseen:
        return labels
    candidates = jnp.asarray(unseen, jnp.int32)
    # upsampling is linear: the mixture alone goes to the size of the labels
    chosen = {name: maps[name][:, candidates].astype(jnp.float32) for name in mixture}
    guess = candidates[upsampled_argmax(mix(chosen, mixture), (labels.shape[1], labels.shape[2]))]
    return jax.lax.stop_gradient(jnp.where(labels == HIDDEN, guess, labels))
