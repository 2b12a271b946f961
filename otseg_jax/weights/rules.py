"""One table of names between a foreign checkpoint and a model's leaves, checked both ways.

Source arrays are numpy, named and laid out as the foreign file has them. Leaves are numpy, named as
`weights.names` does. There is one rule per leaf.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from otseg_jax.weights.names import stop_at


@dataclass(frozen=True)
class Rule:
    """The leaf `target` and the foreign array `source` that it comes from.

    Args:
        transpose: axes of the leaf as positions in the (slice of the) source; None keeps them.
        part: (i, n) takes the i-th of n equal slices of the source's axis 0, before transposing:
            torch stacks query, key and value in one `in_proj`.
    """

    source: str
    target: str
    transpose: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None


def linear(source: str, target: str) -> list[Rule]:
    """Rules of a torch Linear with bias, whose weight is [out, in] where ours is [in, out]."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", (1, 0)),
        Rule(f"{source}.bias", f"{target}/bias"),
    ]


def norm(source: str, target: str) -> list[Rule]:
    """Rules of a torch LayerNorm."""
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


def fill(
    rules: Sequence[Rule],
    arrays: Mapping[str, np.ndarray],
    target: Mapping[str, jax.ShapeDtypeStruct],
    *,
    unused: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Translate a foreign checkpoint into leaves of the shapes and dtypes of `target`.

    Every name must be accounted for on both sides; `unused` ones of the source are known, not
    needed, and may be absent. Any resizing comes before.

    Raises:
        ValueError: unmapped or missing source names, unfilled or unknown leaves, leaves filled
            twice, sources of which a part is left out, shapes that differ; all of them at once.

    Example:
        >>> wanted = {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}
        >>> fill([Rule("weight", "kernel", (1, 0))], {"weight": np.ones((3, 2))}, wanted)["kernel"]
        array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    sources, targets = {r.source for r in rules}, Counter(r.target for r in rules)
    # Collected, not raised one by one: which model a file is from shows in all of them together.
    problems = [
        f"unmapped: {n} is in the source, no rule takes it"
        for n in sorted(arrays)
        if n not in sources and n not in unused
    ]
    problems += [f"missing: {n} is not in the source" for n in sorted(sources - set(arrays))]
    problems += [f"unfilled: no rule gives {n}" for n in sorted(set(target) - set(targets))]
    problems += [f"unknown: the model has no {n}" for n in sorted(set(targets) - set(target))]
    problems += [f"twice: {count} rules give {n}" for n, count in targets.items() if count > 1]
    problems += _bad_parts(rules)
    leaves: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.source not in arrays or rule.target not in target:
            continue  # reported above
        wanted = target[rule.target]
        leaf = _take(rule, arrays[rule.source])
        if leaf is None or leaf.shape != wanted.shape:
            problems.append(
                f"shape: {rule.target} wants {wanted.shape}, "
                f"{rule.source} {arrays[rule.source].shape} does not give it by {rule}"
            )
            continue
        leaves[rule.target] = np.asarray(leaf, dtype=wanted.dtype)
    stop_at(problems)
    return leaves


def _bad_parts(rules: Sequence[Rule]) -> list[str]:
    """A source must be taken whole once, or all its n parts once each."""
    taken: dict[str, list[tuple[int, int]]] = {}
    for rule in rules:
        taken.setdefault(rule.source, []).append(rule.part or (0, 1))
    return [
        f"parts: {source} is taken as {sorted(parts)}, wanted each of its parts once"
        for source, parts in taken.items()
        if sorted(parts) != [(i, len(parts)) for i in range(len(parts))]
    ]


def _take(rule: Rule, array: np.ndarray) -> np.ndarray | None:
    if rule.part is not None:
        index, parts = rule.part
        if array.ndim == 0 or array.shape[0] % parts:
            return None
        array = np.split(array, parts)[index]
    if rule.transpose is None:
        return array
    return array.transpose(rule.transpose) if len(rule.transpose) == array.ndim else None


def invert(rules: Sequence[Rule], leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Translate leaves back into the foreign checkpoint: the inverse of `fill`.

    Raises:
        ValueError: leaves without a rule, rules without a leaf, incomplete parts; all at once.

    Example:
        >>> invert([Rule("weight", "kernel", (1, 0))], {"kernel": np.ones((2, 3))})["weight"].shape
        (3, 2)
    """
    targets = {rule.target for rule in rules}
    problems = [f"unmapped: no rule takes {name}" for name in sorted(set(leaves) - targets)]
    problems += [f"missing: {name} is not in the leaves" for name in sorted(targets - set(leaves))]
    problems += _bad_parts(rules)
    stop_at(problems)
    # sorted by part, so that `concatenate` stacks query, key, value in torch's order
    parts: dict[str, list[np.ndarray]] = {}
    for rule in sorted(rules, key=lambda rule: rule.part or (0, 1)):
        leaf = np.asarray(leaves[rule.target])
        if rule.transpose is not None:
            leaf = leaf.transpose(np.argsort(rule.transpose))
        parts.setdefault(rule.source, []).append(leaf)
    return {name: np.concatenate(p) if len(p) > 1 else p[0] for name, p in parts.items()}
