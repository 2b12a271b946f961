"""Training regimes as data: whose text is trained on, what a label becomes, who is pseudo-labelled.

Label maps hold ids u8[b, h, w]: 0..K-1 index the vocabulary of the data set, 255 (`losses.IGNORE`)
is ignored. After `relabel` an id indexes `Regime.classes` instead, 255 is ignored as before, and
254 (`UNLABELLED`) marks a pixel whose class exists but is hidden. Logits are f32[b, k, h, w] over
`Regime.classes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Integer, UInt8

from otseg_jax.losses import IGNORE

UNLABELLED: Final = 254
"""Label of a pixel whose class is hidden from training, to be replaced by `pseudo_label`.

It differs from `IGNORE`: a border pixel must stay out of the loss, a hidden one must come back in.
"""

NAMES: Final = ("inductive", "transductive", "supervised")


@dataclass(frozen=True, eq=False)
class Regime:
    """One training regime, resolved for one vocabulary; compared by identity.

    Attributes:
        name: one of `NAMES`, for records and messages only: nothing may branch on it.
        classes: [k] indices into the vocabulary, the classes whose text is trained on, ascending.
        label_table: u8[256], id in the data set → position in `classes`, `UNLABELLED` or `IGNORE`.
        unseen: positions in `classes` that pseudo-labels are drawn from; empty if there are none.
        seen_offset: subtracted at test time from the scores of the seen classes, in [0, 1].
    """

    name: str
    classes: tuple[int, ...]
    label_table: UInt8[np.ndarray, "256"]
    unseen: tuple[int, ...]
    seen_offset: float


def resolve(name: str, *, num_classes: int, unseen: Sequence[int]) -> Regime:
    """Turn the name of a regime into the data that a training step needs.

    - inductive: the seen classes alone; a pixel of any other class is ignored.
    - transductive: all classes; a pixel that is not of a seen class, and not 255, is `UNLABELLED`.
    - supervised: all classes, labels unchanged.

    Args:
        name: "inductive", "transductive" or "supervised".
        num_classes: size K of the vocabulary, 1..254.
        unseen: indices of the classes that had no labelled pixel, in any order; may be empty, and
            then every regime trains on all classes.

    Returns:
        The regime. Its table is read-only.

    Raises:
        ValueError: unknown name, K out of range, unseen indices out of range or doubled, or no seen
            class left to learn from (all problems in one message).

    Example:
        >>> regime = resolve("inductive", num_classes=4, unseen=[1])
        >>> regime.classes, regime.label_table[:5].tolist(), regime.seen_offset
        ((0, 2, 3), [0, 255, 1, 2, 255], 0.1)
        >>> regime = resolve("transductive", num_classes=4, unseen=[1])
        >>> regime.unseen, regime.label_table[:4].tolist(), int(regime.label_table[255])
        ((1,), [0, 254, 2, 3], 255)

    Source: OTSeg (arXiv 2403.14183), zero-shot settings.
    Differs: an id outside the vocabulary is an ignored pixel in the supervised regime, where the
    reference would index out of bounds; and the transductive table has no special id 200.
    """
    problems = _problems(name, num_classes, unseen)
    if problems:
        raise ValueError("regime: " + "; ".join(problems))
    hidden = frozenset(int(k) for k in unseen)
    seen = tuple(k for k in range(num_classes) if k not in hidden)
    everything = tuple(range(num_classes))
    if name == "inductive":
        return Regime(name, seen, _table(seen, seen), (), seen_offset=0.1)
    if name == "transductive":
        # With no class to draw a pseudo-label from, a strange id is ignored, as it is elsewhere.
        other = UNLABELLED if hidden else IGNORE
        table = _table(everything, seen, other=other)
        return Regime(name, everything, table, tuple(sorted(hidden)), seen_offset=0.0)
    return Regime(name, everything, _table(everything, everything), (), seen_offset=0.0)


def relabel(
    labels: Integer[Array, "*shape"], table: UInt8[Array, "256"] | UInt8[np.ndarray, "256"]
) -> Int32[Array, "*shape"]:
    """Look every label up in the table of a regime.

    Args:
        labels: any integer dtype [b, h, w], ids of the data set, 0..255.
        table: u8[256], `Regime.label_table`.

    Returns:
        i32[b, h, w], positions in `Regime.classes`, `UNLABELLED` or `IGNORE`.

    Example:
        >>> import jax.numpy as jnp
        >>> regime = resolve("inductive", num_classes=3, unseen=[0])
        >>> relabel(jnp.array([0, 1, 2, 255]), regime.label_table).tolist()
        [255, 0, 1, 255]
    """
    return jnp.asarray(table).astype(jnp.int32)[labels]


def pseudo_label(
    logits_decoder: Float[Array, "b k h w"],
    logits_mps: Float[Array, "b k h w"] | None,
    labels: Int32[Array, "b h w"],
    unseen: Sequence[int],
    *,
    mps_weight: float = 0.5,
) -> Int32[Array, "b h w"]:
    """Label the unlabelled pixels with the likeliest unseen class of the current forward pass.

    y = argmax over u in unseen of σ( (1 - w) z_dec[u] + w z_mps[u] )

    Every other label stays. No gradient flows through the result. With no unseen class the labels
    are returned as they are, so that one training step serves every regime.

    Args:
        logits_decoder: f32[b, k, h, w], decoder logits at the size of the labels.
        logits_mps: f32[b, k, h, w], logits of the MPS path, or None if there is none (ZegCLIP).
        labels: i32[b, h, w] as `relabel` returns them.
        unseen: `Regime.unseen`, positions on axis k; static.
        mps_weight: weight w of the MPS path, in [0, 1].

    Returns:
        i32[b, h, w] in which no pixel is `UNLABELLED`.

    Source: OTSeg (arXiv 2403.14183), transductive setting, following ZegCLIP's self-training.
    Differs: σ is monotone and left out; in float32 it would round confident logits to the same 1.0
    and so decide between them by their order.
    """
    if not unseen:
        return labels
    candidates = jnp.asarray(unseen, jnp.int32)
    # Only the unseen channels are touched: at 171 classes the mixture of all would cost gigabytes.
    logits = logits_decoder[:, candidates].astype(jnp.float32)
    if logits_mps is not None:
        mps = logits_mps[:, candidates].astype(jnp.float32)
        logits = (1 - mps_weight) * logits + mps_weight * mps
    guess = candidates[jnp.argmax(logits, axis=1)]
    return jax.lax.stop_gradient(jnp.where(labels == UNLABELLED, guess, labels))


def _table(
    classes: Sequence[int], labelled: Sequence[int], *, other: int = IGNORE
) -> UInt8[np.ndarray, "256"]:
    """Positions in `classes` for the ids in `labelled`, `other` for every other id but 255."""
    table = np.full(256, other, np.uint8)
    table[list(labelled)] = [classes.index(k) for k in labelled]
    table[IGNORE] = IGNORE
    table.flags.writeable = False
    return table


def _problems(name: str, num_classes: int, unseen: Sequence[int]) -> list[str]:
    problems = []
    if name not in NAMES:
        problems.append(f"name is {name!r}, wanted one of {', '.join(NAMES)}")
    if not 1 <= num_classes <= UNLABELLED:
        problems.append(
            f"num_classes is {num_classes}, wanted 1 to {UNLABELLED}: "
            f"{UNLABELLED} and {IGNORE} are reserved in an 8-bit label map"
        )
    outside = sorted({int(k) for k in unseen if not 0 <= k < num_classes})
    if outside:
        problems.append(f"unseen holds {outside}, wanted indices from 0 to {num_classes - 1}")
    doubled = sorted({int(k) for k in unseen if list(unseen).count(k) > 1})
    if doubled:
        problems.append(f"unseen names {doubled} more than once")
    if name in NAMES[:2] and num_classes >= 1 and set(range(num_classes)) <= set(unseen):
        problems.append(f"unseen names all {num_classes} classes, so {name} has none to learn from")
    return problems
