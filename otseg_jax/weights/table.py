"""One table of names between a foreign checkpoint and a model's leaves, checked both ways.

Source arrays are numpy, named and laid out as the foreign file has them. Leaves are numpy, named by
their path in the model's pure dict joined by "/", for example "blocks/0/attention/query/kernel".
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jaxtyping import Float

from otseg_jax.models.clip import resize_positions

# nnx.State itself, in a form that beartype can check: its bases name the deprecated typing.Hashable
State = TypeVar("State", bound=Mapping[Any, Any])


@dataclass(frozen=True)
class Rule:
    """One leaf and where it comes from.

    Args:
        source: name in the foreign checkpoint.
        target: name of the leaf.
        transpose: axes of the leaf as positions in the (slice of the) source; None keeps them.
        part: (i, n) takes the i-th of n equal slices of the source's axis 0, before transposing:
            torch stacks query, key and value in one `in_proj`.

    Example:
        >>> Rule("attn.in_proj_weight", "attention/key/kernel", transpose=(1, 0), part=(1, 3)).part
        (1, 3)
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
    """Translate a foreign checkpoint into leaves; every name must be accounted for on both sides.

    Args:
        rules: one per leaf.
        arrays: name → array of the foreign checkpoint, after any resizing.
        target: leaf name → shape and dtype wanted.
        unused: source names that are known and not needed; they may be absent.

    Returns:
        Leaf name → array of the shape and dtype wanted.

    Raises:
        ValueError: unmapped or missing source names, unfilled or unknown leaves, leaves filled
            twice, sources of which a part is left out, shapes that differ; all of them at once.

    Example:
        >>> wanted = {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32)}
        >>> fill([Rule("weight", "kernel", (1, 0))], {"weight": np.ones((3, 2))}, wanted)["kernel"]
        array([[1., 1., 1.],
               [1., 1., 1.]], dtype=float32)
    """
    problems = _uncovered(rules, arrays, target, unused)
    leaves: dict[str, np.ndarray] = {}
    for rule in rules:
        if rule.source not in arrays or rule.target not in target:
            continue
        wanted = target[rule.target]
        leaf = _take(rule, arrays[rule.source])
        if leaf is None or leaf.shape != wanted.shape:
            problems.append(
                f"shape: {rule.target} wants {wanted.shape}, "
                f"{rule.source} {arrays[rule.source].shape} does not give it by {rule}"
            )
            continue
        leaves[rule.target] = np.asarray(leaf, dtype=wanted.dtype)
    _stop_at(problems)
    return leaves


def _uncovered(
    rules: Sequence[Rule],
    arrays: Mapping[str, np.ndarray],
    target: Mapping[str, jax.ShapeDtypeStruct],
    unused: Sequence[str],
) -> list[str]:
    sources, targets = {r.source for r in rules}, Counter(r.target for r in rules)
    problems = [
        f"unmapped: {n} is in the source, no rule takes it"
        for n in sorted(arrays)
        if n not in sources and n not in unused
    ]
    problems += [f"missing: {n} is not in the source" for n in sorted(sources - set(arrays))]
    problems += [f"unfilled: no rule gives {n}" for n in sorted(set(target) - set(targets))]
    problems += [f"unknown: the model has no {n}" for n in sorted(set(targets) - set(target))]
    problems += [f"twice: {count} rules give {n}" for n, count in targets.items() if count > 1]
    return problems + _bad_parts(rules)


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

    Args:
        rules: one per leaf.
        leaves: leaf name → array.

    Returns:
        Source name → array, parts concatenated in order.

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
    _stop_at(problems)
    parts: dict[str, list[np.ndarray]] = {}
    for rule in sorted(rules, key=lambda rule: rule.part or (0, 1)):
        leaf = np.asarray(leaves[rule.target])
        if rule.transpose is not None:
            leaf = leaf.transpose(np.argsort(rule.transpose))
        parts.setdefault(rule.source, []).append(leaf)
    return {name: np.concatenate(p) if len(p) > 1 else p[0] for name, p in parts.items()}


def flatten(state: Mapping[Any, Any]) -> dict[str, Any]:
    """Leaves of an `nnx.State` or of a nested dict, by path joined with "/".

    Args:
        state: the state or its pure dict; leaves may be arrays or `jax.ShapeDtypeStruct`.

    Returns:
        Leaf name → leaf.

    Example:
        >>> flatten({"blocks": {0: {"bias": 1.0}}})
        {'blocks/0/bias': 1.0}
    """
    nested = nnx.to_pure_dict(state) if isinstance(state, nnx.State) else dict(state)
    return {"/".join(map(str, k)): leaf for k, leaf in traverse_util.flatten_dict(nested).items()}


def assign(state: State, leaves: Mapping[str, Any]) -> State:
    """A copy of `state` with every leaf replaced: the inverse of `flatten`.

    Args:
        state: `nnx.State` of the model to be filled; its leaves may be abstract.
        leaves: leaf name → array, for every leaf of `state`.

    Returns:
        The state of jax arrays, to be merged with the model's graph definition.

    Raises:
        ValueError: names or shapes differ, all of them at once.

    Example:
        >>> model = nnx.eval_shape(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
        >>> graphdef, state = nnx.split(model)
        >>> filled = assign(state, {"kernel": np.eye(2), "bias": np.ones(2)})
        >>> nnx.merge(graphdef, filled)(jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """
    wanted = flatten(state)
    problems = [
        f"unfilled: {name} is not in the leaves" for name in sorted(set(wanted) - set(leaves))
    ]
    problems += [f"unknown: the model has no {name}" for name in sorted(set(leaves) - set(wanted))]
    problems += [
        f"shape: {name} is {leaves[name].shape}, wanted {leaf.shape}"
        for name, leaf in wanted.items()
        if name in leaves and leaves[name].shape != leaf.shape
    ]
    _stop_at(problems)
    nested = {
        tuple(name.split("/")): jnp.asarray(leaves[name], leaf.dtype)
        for name, leaf in wanted.items()
    }
    filled = jax.tree.map(lambda leaf: leaf, state)
    nnx.replace_by_pure_dict(filled, traverse_util.unflatten_dict(nested))
    return filled


def _stop_at(problems: Sequence[str]) -> None:
    if problems:
        raise ValueError(f"{len(problems)} problem(s) in weights:\n  " + "\n  ".join(problems))


def resize_position_embedding(
    embedding: Float[np.ndarray, "t d"], grid: int
) -> Float[np.ndarray, "1+{grid}**2 d"]:
    """Resize a square position embedding to another square grid, the first of two steps (!).

    A 14×14 checkpoint for a 512 input is first brought to 32×32 here; the tower resizes that to the
    grid of the actual image. Bilinear twice is not bilinear once, and published models had twice.

    Args:
        embedding: f32[1+g², d], class token first.
        grid: side wanted.

    Returns:
        f32[1+grid², d].

    Raises:
        ValueError: the embedding is not 1 + a square number of rows.
    """
    rows = len(embedding) - 1
    side = round(max(rows, 0) ** 0.5)
    if side < 1 or side * side != rows:
        raise ValueError(
            f"position embedding has {len(embedding)} rows, wanted 1 + a square number"
        )
    return np.asarray(resize_positions(jnp.asarray(embedding), grid, grid, grid=side))


def fingerprint(leaves: Mapping[str, np.ndarray], *, config: object = None) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, whatever file format they came from.

    Args:
        leaves: leaf name → array.
        config: anything whose `repr` also decides what the weights compute (heads, activation).

    Returns:
        64 hexadecimal digits.

    Example:
        >>> one, two = np.zeros(2), np.ones(2)
        >>> fingerprint({"a": one, "b": two}) == fingerprint({"b": two, "a": one})
        True
    """
    digest = hashlib.sha256(f"{config!r}\n".encode())
    for name in sorted(leaves):
        leaf = leaves[name]
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
