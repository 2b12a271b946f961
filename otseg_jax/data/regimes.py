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
        unseen: ids of the classes that had no labelled pixel, in any order; where there are none,
            every regime trains on all classes.

    Raises:
        ValueError: unknown name, ids or K out of range, doubled ids, no seen class to learn from;
            all in one message.

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
    every = tuple(range(num_classes))
    held_out = tuple(sorted(int(k) for k in unseen))
    seen = tuple(np.setdiff1d(every, held_out).tolist())
    trained = seen if name == "inductive" else every
    labelled = every if name == "supervised" else seen
    pseudo = held_out if name == "transductive" else ()
    # With no class to draw a pseudo-label from, an unknown id is ignored, as it is elsewhere.
    table = np.full(num_classes + 1, HIDDEN if pseudo else IGNORE, np.int16)
    table[list(labelled)] = np.searchsorted(trained, labelled)
    table.flags.writeable = False
    return Regime(name, trained, table, pseudo, seen_offset=0.1 if name == "inductive" else 0.0)


def _problems(name: str, num_classes: int, unseen: Sequence[int]) -> list[str]:
    problems = []
    if name not in NAMES:
        problems.append(f"name is {name!r}, wanted one of {', '.join(NAMES)}")
    if not 1 <= num_classes <= MOST_CLASSES:
        problems.append(f"num_classes is {num_classes}, wanted 1 to {MOST_CLASSES}")
    if outside := sorted({int(k) for k in unseen if not 0 <= k < num_classes}):
        problems.append(f"unseen holds {outside}, wanted ids from 0 to {num_classes - 1}")
    if doubled := sorted(int(k) for k, times in Counter(unseen).items() if times > 1):
        problems.append(f"unseen names {doubled} more than once")
    if name in NAMES[:2] and num_classes >= 1 and set(range(num_classes)) <= set(unseen):
        problems.append(f"unseen names all {num_classes} classes, so {name} has none to learn from")
    return problems
