"""Arrays out of weight files: safetensors, torch's zip, flax's msgpack, recognised by content.

Names are joined by "." as torch has them, by "/" for msgpack. Arrays keep the stored dtype.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization
from msgpack.exceptions import UnpackException
from safetensors import SafetensorError
from safetensors.numpy import load_file

from otseg_jax import paths
from otseg_jax.weights import torch_file
from otseg_jax.weights.names import joined

DEEPEST, MOST = 64, 1_000_000  # levels and entries of nested dicts, far beyond any model's

# whatever damaged bytes lead safetensors, msgpack and flax into
_DAMAGE = (
    *(SafetensorError, UnpackException, OSError, RecursionError),
    *(ValueError, TypeError, KeyError, AttributeError),
)


class Stored(NamedTuple):
    """What a weight file holds."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]  # what a training program saved under "meta", or {}
    paths: tuple[Path, ...]  # the files that were read


def read(path: str | Path) -> Stored:
    """Read a weight file, or all files of a sharded one if given its `….index.json`.

    Of a training checkpoint only `"state_dict"` is taken, of a distributed one without the
    "module." before each name.

    Raises:
        FileNotFoundError: no such file, or a shard that is missing.
        ValueError: damaged, of a kind that is not read, or refused.
    """
    path = paths.local(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    kind = _recognise(path)
    tree = torch_file.read(path) if kind == "torch" else _read_whole(path, kind)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__}, wanted weights by name")
    state, meta = tree.get("state_dict"), tree.get("meta")
    separator = "/" if kind == "msgpack" else "."
    arrays = _flatten(state if isinstance(state, dict) else tree, separator, path)
    if arrays and all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    if not arrays:
        found = ", ".join(map(str, tree)) or "nothing"
        raise ValueError(f"{path} holds no weights by name, only {found}")
    return Stored(arrays, meta if isinstance(meta, dict) else {}, (path,))


def sha256(paths: Iterable[Path]) -> str:
    """SHA-256 of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def check_finite(arrays: Mapping[str, np.ndarray], where: str | Path) -> None:
    """Refuse weights that hold NaN or infinity, in one ValueError."""
    bad = [
        f"{name} ({int(np.sum(~np.isfinite(array)))} of {array.size})"
        for name, array in arrays.items()
        # a sum is one pass without a mask, and finite for weights of ordinary size
        if not np.isfinite(np.sum(array, dtype=np.float64)) and not np.isfinite(array).all()
    ]
    if bad:
        raise ValueError(
            f"{where} holds numbers that are not finite, in {joined(bad)}: the training "
            "diverged, or the file was damaged; use an earlier checkpoint or fetch it again"
        )


def _recognise(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors: the size of the JSON header, then the header
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return "safetensors"
    if start.startswith(b"PK"):
        return "torch"
    # msgpack: a map with entries, which is fixmap, map 16 or map 32
    if start and (0x81 <= start[0] <= 0x8F or start[0] in (0xDE, 0xDF)):
        return "msgpack"
    # Unknown content: the suffix decides which reader reports what is wrong with it.
    return {".safetensors": "safetensors", ".msgpack": "msgpack"}.get(path.suffix, "torch")


def _read_whole(path: Path, kind: str) -> Any:
    try:
        if kind == "safetensors":
            return load_file(path)
        return serialization.msgpack_restore(path.read_bytes())
    except _DAMAGE as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short, fetch it again: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _flatten(tree: Mapping[str, Any], separator: str, path: Path) -> dict[str, np.ndarray]:
    """Arrays of nested dicts by joined name; not recursive, as a file may nest without end."""
    arrays, visited = dict[str, np.ndarray](), 0
    waiting: list[tuple[tuple[str, ...], Any]] = [((), dict(tree))]
    while waiting:
        key, value = waiting.pop()
        visited += 1
        if len(key) > DEEPEST or visited > MOST:
            raise ValueError(f"{path} nests deeper than {DEEPEST} levels or has over {MOST} names")
        if isinstance(value, dict):
            waiting += [((*key, str(name)), inner) for name, inner in value.items()]
        elif isinstance(value, np.ndarray):
            arrays[separator.join(key)] = value
    return dict(sorted(arrays.items()))


def _read_shards(path: Path) -> Stored:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(table.values()))
        plain = all(isinstance(n, str) and Path(n).name == n for n in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the index of a sharded checkpoint: {error!r}") from error
    if not plain:
        raise ValueError(f"{path} names shards outside of its own folder: refused")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names shards that are not there: {', '.join(missing)}")
    arrays: dict[str, np.ndarray] = {}
    for name in names:
        arrays |= read(path.parent / name).arrays
    absent, surplus = sorted(set(table) - set(arrays)), sorted(set(arrays) - set(table))
    if absent or surplus:
        raise ValueError(
            f"{path} does not fit its shards: they lack {absent[:5]}, it does not list "
            f"{surplus[:5]}; fetch them again"
        )
    return Stored(arrays, {}, (path, *(path.parent / name for name in names)))
