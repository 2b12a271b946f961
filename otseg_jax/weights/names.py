"""Trees and names: an array is called by its path, as in "blocks/0/attention/query/kernel".

A tree is whatever JAX flattens: dicts, optax's named tuples, `nnx.State` (whose variables count as
their arrays). Arrays may be abstract (`jax.ShapeDtypeStruct`).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from otseg_jax.data.lists import some

Tree = TypeVar("Tree")
Module = TypeVar("Module", bound=nnx.Module)


def flatten(tree: Any) -> dict[str, Any]:
    """Arrays of a tree by name, in the order of `jax.tree.leaves`.

    Raises:
        ValueError: no array has a name, or two have the same; leaves that are not arrays.

    Example:
        >>> flatten({"blocks": {0: {"bias": np.ones(2)}}})
        {'blocks/0/bias': array([1., 1.])}
    """
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    leaves = {
        # a variable is a tree of one array
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.tree.leaves(leaf)[0]
        for path, leaf in paths
    }
    problems = [
        f"{name} is a {type(leaf).__name__}, wanted an array"
        for name, leaf in leaves.items()
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
    ]
    if not leaves or "" in leaves:
        problems.append("the state has no named array")
    if len(leaves) < len(paths):
        problems.append("two arrays of the state share a name (a key that holds a slash?)")
    if problems:
        raise ValueError(some(problems, mark="; "))
    return leaves


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of plain dicts that these names describe."""
    return traverse_util.unflatten_dict(dict(leaves), sep="/")


def assign(tree: Tree, leaves: Mapping[str, Any]) -> Tree:
    """A copy of `tree` with every array replaced, in the tree's own dtypes: `flatten` backwards.

    Raises:
        ValueError: names or shapes differ, all of them at once.
    """
    wanted = flatten(tree)
    problems = [f"unfilled: {n} is not in the leaves" for n in sorted(set(wanted) - set(leaves))]
    problems += [f"unknown: the model has no {n}" for n in sorted(set(leaves) - set(wanted))]
    problems += [
        f"shape: {name} is {leaves[name].shape}, wanted {leaf.shape}"
        for name, leaf in wanted.items()
        if name in leaves and leaves[name].shape != leaf.shape
    ]
    stop_at(problems)
    filled = [jnp.asarray(leaves[name], leaf.dtype) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(tree), filled)


def place(tree: Tree, leaves: Mapping[str, np.ndarray]) -> Tree:
    """The arrays that `flatten` names, in the shardings of `tree`; without one, on one device.

    Each process fills its own devices, where `jax.device_put` would first compare what all have.
    """
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = [
        jax.make_array_from_callback(
            x.shape, getattr(x, "sharding", None) or here, leaves[name].__getitem__
        )
        for name, x in flatten(tree).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), placed)


def build(make: Callable[[], Module], leaves: Mapping[str, Any]) -> Module:
    """The model that `make` describes, with these weights; errors are those of `assign`.

    Example:
        >>> leaves = {"kernel": np.eye(2), "bias": np.ones(2)}
        >>> build(lambda: nnx.Linear(2, 2, rngs=nnx.Rngs(0)), leaves)(jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """
    # abstract, so that no weights are drawn only to be replaced
    graphdef, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, assign(state, leaves))


def below(prefix: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves whose names begin with `prefix`, without it."""
    return {n.removeprefix(prefix): leaf for n, leaf in leaves.items() if n.startswith(prefix)}


def under(prefix: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The same leaves with `prefix` before every name: `below` backwards."""
    return {f"{prefix}{name}": leaf for name, leaf in leaves.items()}


def describe(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of every array, as in "float32[3, 2]"."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in leaves.items()}


def differences(saved: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What keeps arrays so described from being filled with saved ones.

    Whole entries of the top level may be left out of what is wanted.

    Example:
        >>> differences({"a/x": "float32[2]", "a/y": "int8[]", "b/z": "int8[]"}, {"a/x": "int8[]"})
        ['it has a/y, the model has not', 'a/x is float32[2], the model wants int8[]']
    """
    entries = {name.split("/")[0] for name in wanted}
    surplus = [n for n in saved if n not in wanted and n.split("/")[0] in entries]
    return [f"it has {name}, the model has not" for name in surplus] + [
        f"{name} is {saved[name]}, the model wants {array}" if name in saved else f"it lacks {name}"
        for name, array in wanted.items()
        if saved.get(name) != array
    ]


def fingerprint(leaves: Mapping[str, np.ndarray], *, config: object = None) -> str:
    """SHA-256 of names, dtypes, shapes and bytes, whatever format and order they came in.

    The `repr` of `config` tells what else decides what the weights compute: heads, activation.
    """
    digest = hashlib.sha256(f"{config!r}\n".encode())
    for name in sorted(leaves):
        leaf = leaves[name]
        digest.update(f"{name} {leaf.dtype} {leaf.shape}\n".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()


def stop_at(problems: Sequence[str]) -> None:
    """Raise a ValueError that lists the problems, if there are any."""
    if problems:
        raise ValueError(
            f"{len(problems)} problem(s) in weights: {some(problems, most=20, mark='; ')}"
        )
