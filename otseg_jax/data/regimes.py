"""Training regimes as data: whose text is trained on, what a label becomes, who is pseudo-labelled.

`training.pseudo_labels` turns the ids of a data set, by the table of a `Regime`, into positions in
`Regime.classes`: the axis k of the logits of a training step.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int16

from otseg_jax.data.classes import IGNORE, MOST_CLASSES

HIDDEN: Final = -2
"""Label of a pixel whose class is hidden from training, until a pseudo-label replaces it.

It differs from `IGNORE`: a border pixel must stay out of the loss, a hidden one must come back in.
"""

NAMES: Final = ("inductive", "transductive", "supervised")


@dataclass(frozen=True, eq=False)
class Regime:
    """One training regime, resolved for one vocabulary of K classes; compared by identity.

    Attributes:
        name: one of `NAMES`, for records and messages only: nothing may branch on it.
        classes: ids of the classes whose text is trained on, ascending.
        label_table: position in `classes`, `HIDDEN` or `IGNORE` for each id 0..K-1; the last entry
            is for every id beyond. Read-only.
        unseen: positions in `classes` that pseudo-labels are drawn from; empty if there are none.
        seen_offset: subtracted at test time from the scores of the seen classes, in [0, 1].
    """

    name: str
    classes: tuple[int, ...]
    label_table: Int16[np.ndarray, " entries"]
    unseen: tuple[int, ...]
    seen_offset: float


def resolve(name: str, *, num_classes: int, unseen: Sequence[int]) -> Regime:
    """Turn the name of a regime into the data that a training step needs.

    - inductive: the seen classes alone; a pixel of any other class is ignored.
    - transductive: all classes; a pixel that is neither ignored nor of a seen class is `HIDDEN`.
    - supervised: all classes, labels unchanged.

    Args:
        num_classes: K, 1..`MOST_CLASSES`.
        unseen: ids of the classes that had no labelled pixel, in any order; may be empty, and then
            every regime trains on all classes.

    Raises:
        ValueError: unknown name, K out of range, unseen ids out of range or doubled, or no seen
            class left to learn from (all problems in one message).

    Example:
        >>> regime = resolve("inductive", num_classes=4, unseen=[1])
        >>> regime.classes, regime.label_table.tolist(), regime.seen_offset
        ((0, 2, 3), [0, -1, 1, 2, -1], 0.1)
        >>> regime = resolve("transductive", num_classes=4, unseen=[1])
        >>> regime.unseen, regime.label_table.tolist()
        ((1,), [0, -2, 2, 3, -2])

    Source: OTSeg (arXiv 2403.14183), zero-shot settings.
    Differs: an id outside the vocabulary is an ignored pixel in the supervised regime, where the
    reference would index out of bounds; and the transductive table has no special id 200.
    """
    if problems := _problems(name, num_classes, unseen):
        raise ValueError("regime: " + "; ".join(problems))
    held_out = tuple(sorted(int(k) for k in unseen))
    everything = tuple(range(num_classes))
    seen = tuple(np.setdiff1d(everything, held_out).tolist())
    if name == "inductive":
        table = _table(num_classes, seen, range(len(seen)), other=IGNORE)
        return Regime(name, seen, table, (), seen_offset=0.1)
    if name == "transductive":
        # With no class to draw a pseudo-label from, an unknown id is ignored, as it is elsewhere.
        table = _table(num_classes, seen, seen, other=HIDDEN if held_out else IGNORE)
        return Regime(name, everything, table, held_out, seen_offset=0.0)
    table = _table(num_classes, everything, everything, other=IGNORE)
    return Regime(name, everything, table, (), seen_offset=0.0)


def _table(
    num_classes: int, ids: Sequence[int], positions: Sequence[int], *, other: int
) -> Int16[np.ndarray, " entries"]:
    """`positions` for `ids`, `other` for every other id."""
    table = np.full(num_classes + 1, other, np.int16)
    table[list(ids)] = positions
    table.flags.writeable = False
    return table


def _problems(name: str, num_classes: int, unseen: Sequence[int]) -> list[str]:
    problems = []
    if name not in NAMES:
        problems.append(f"name is {name!r}, wanted one of {', '.join(NAMES)}")
    if not 1 <= num_classes <= MOST_CLASSES:
        problems.append(f"num_classes is {num_classes}, wanted 1 to {MOST_CLASSES}")
    outside = sorted({int(k) for k in unseen if not 0 <= k < num_classes})
    if outside:
        problems.append(f"unseen holds {outside}, wanted ids from 0 to {num_classes - 1}")
    doubled = sorted(int(k) for k, times in Counter(unseen).items() if times > 1)
    if doubled:
        problems.append(f"unseen names {doubled} more than once")
    if name in NAMES[:2] and num_classes >= 1 and set(range(num_classes)) <= set(unseen):
        problems.append(f"unseen names all {num_classes} classes, so {name} has none to learn from")
    return problems
