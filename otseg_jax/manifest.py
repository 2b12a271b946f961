"""What a checkpoint contains, told and checked without Orbax: arrays by name, files by checksum.

Paths are `pathlib.Path`, or `epath.Path` for buckets. The list of files lies in their folder as
`files.json`, {"item/file": [bytes, CRC-32]}, and covers its subfolders, here called items.
"""

import functools
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import jax
from flax import traverse_util

NAME: Final = "files.json"


def leaves(tree: Any) -> tuple[dict[str, Any], list[str]]:
    """Arrays of a tree by name, whatever holds them: dicts, optax's named tuples, nnx states.

    Returns:
        Name, joined by "/" → array, in the order of `jax.tree.leaves`; and what is wrong with the
        tree: no names, equal names, leaves that are not arrays (left out).

    Example:
        >>> import numpy as np
        >>> leaves({"q_proj": {"bias": np.ones(2)}, "layers": [3]})
        ({'q_proj/bias': array([1., 1.])}, ['layers/0 is a int, wanted an array'])
    """
    paths = jax.tree_util.tree_leaves_with_path(tree)
    found = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in paths}
    problems = []
    if not found or "" in found:
        problems.append("the state has no named array")
    if len(found) < len(paths):
        problems.append("two arrays of the state share a name (a key that holds a slash?)")
    strange = [n for n, x in found.items() if not (hasattr(x, "shape") and hasattr(x, "dtype"))]
    problems += [f"{n} is a {type(found.pop(n)).__name__}, wanted an array" for n in strange]
    return found, problems


def nest(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of plain dicts that `leaves` has flattened."""
    return traverse_util.unflatten_dict(dict(arrays), sep="/")


def describe(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape of every array, as in "float32[3, 2]"."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in arrays.items()}


def differences(saved: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What keeps the wanted arrays from being filled; whole top-level entries may be left out.

    Example:
        >>> differences({"a/x": "float32[2]", "a/y": "int8[]", "b/z": "int8[]"}, {"a/x": "int8[]"})
        ['it has a/y, the model has not', 'a/x is float32[2], the model wants int8[]']
    """
    entries = {_item(name) for name in wanted}
    surplus = [n for n in saved if n not in wanted and _item(n) in entries]
    return [f"it has {name}, the model has not" for name in surplus] + [
        f"{name} is {saved[name]}, the model wants {array}" if name in saved else f"it lacks {name}"
        for name, array in wanted.items()
        if saved.get(name) != array
    ]


def record(
    arrays: Mapping[str, Any],
    meta: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    *,
    has_text: bool,
) -> tuple[dict[str, Any], list[str]]:
    """The JSON that describes a checkpoint, and what in it is not JSON.

    Metrics become plain numbers, null where not finite: numpy's scalars and NaN are not JSON.

    Example:
        >>> import numpy as np
        >>> metrics = {"hiou": np.float32(0.5), "loss": np.nan}
        >>> record({}, {"classes": ("cat",)}, metrics, has_text=True)[0]["metrics"]
        {'hiou': 0.5, 'loss': None}
    """

    def plain(value: Any) -> Any:
        if isinstance(value, str | bool | int):
            return value
        return float(value) if math.isfinite(value) else None

    described = {
        "meta": dict(meta),
        "metrics": jax.tree.map(plain, metrics),
        "leaves": describe(arrays),
        "has_text": has_text,
    }
    try:
        json.dumps(described, allow_nan=False)
    except (TypeError, ValueError) as error:
        return described, [f"meta must be plain JSON (a ConfigDict: .to_dict()): {error}"]
    return described, []


def joined(problems: Sequence[str], *, most: int = 8) -> str:
    """One line of problems, the first `most` of them in full."""
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def write(folder: Any) -> None:
    """List everything in the subfolders of a folder.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     item = pathlib.Path(name, "state")
        ...     item.mkdir()
        ...     (item / "a").write_bytes(b"abc"), write(item.parent), damage(item.parent, "state")
        ...     (item / "a").write_bytes(b"abd"), damage(item.parent, "state")
        (3, None, [])
        (3, ['state/a has other contents'])
    """
    files = {
        f.relative_to(folder).as_posix(): _fingerprint(f)
        for item in folder.iterdir()
        if item.is_dir()
        for f in _files(item)
    }
    (folder / NAME).write_text(json.dumps(files, indent=0, sort_keys=True))


def damage(folder: Any, item: str) -> list[str]:
    """What is wrong with the files of an item: missing, cut short, changed; empty if nothing is."""
    try:
        files = json.loads((folder / NAME).read_text()).items()
        expected = {n: [int(size), int(crc)] for n, (size, crc) in files if _item(n) == item}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return [f"{NAME} cannot be read ({type(error).__name__})"]
    problems = [] if expected else [f"{NAME} does not mention {item}"]
    for name, wanted in expected.items():
        if not (folder / name).exists():
            problems.append(f"{name} is missing")
        elif (got := _fingerprint(folder / name)) != wanted:
            cut = f"is {got[0]} bytes long, wanted {wanted[0]}"
            problems.append(f"{name} {cut if got[0] != wanted[0] else 'has other contents'}")
    return problems


def _item(name: str) -> str:
    return name.split("/")[0]


def _files(folder: Any) -> Iterator[Any]:
    for path in folder.iterdir():  # epath has no recursive glob
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _fingerprint(file: Any) -> list[int]:
    size = checksum = 0
    with file.open("rb") as stream:
        for piece in iter(functools.partial(stream.read, 1 << 24), b""):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]
