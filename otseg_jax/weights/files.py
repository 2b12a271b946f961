"""Arrays out of weight files: safetensors, torch's zip, flax's msgpack, recognised by content.

Names are joined by "." as torch has them, by "/" for msgpack. Arrays keep the stored dtype.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax import serialization
from msgpack.exceptions import UnpackException
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load_file

from otseg_jax import paths
from otseg_jax.data.lists import some
from otseg_jax.weights import names, torch_file

LOGGER = logging.getLogger(__name__)

# Parts that a CLIP, an OTSeg or a ZegCLIP has in any naming: what comes before is a wrapper's name.
PARTS = re.compile(
    r"(?:^|.*?[./])(?=(visual|vision_model|text_model|backbone|decode_head|text_encoder)[./])"
)
# Wrappers that hold THE weights, where a file holds more than one set of them (an average, say).
WRAPPERS = {
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "_orig_mod",
    "params",
    "clip",
    "net",
    "network",
    "weights",
}

# Names of dtypes in safetensors, those included that its reader for numpy does not know.
DTYPES: dict[str, Any] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BOOL": "?",
    **{f"I{8 * n}": f"<i{n}" for n in (1, 2, 4, 8)},
    "U8": "u1",
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}

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
    meta = tree.get("meta")
    arrays = _flatten(tree, "/" if kind == "msgpack" else ".", path)
    if not arrays:
        found = ", ".join(map(str, tree)) or "nothing"
        raise ValueError(
            f"{path} holds no weights by name, only {found}: they are saved by "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    return Stored(arrays, meta if isinstance(meta, dict) else {}, (path,))


def unwrap(stored: Stored, where: str | Path) -> Stored:
    """The same weights without what a training program put around them or before their names.

    Raises:
        ValueError: several sets of weights, none of which is plainly the model's.
    """
    found = {match[0] for name in stored.arrays if (match := PARTS.match(name))}
    ranks = {prefix: _rank(prefix) for prefix in found}
    best = sorted(prefix for prefix in found if ranks[prefix] == min(ranks.values()))
    if len(best) > 1:
        raise ValueError(
            f"{where} holds several sets of weights, {', '.join(best)}: save the one that is "
            "wanted in a file of its own"
        )
    if best in ([], [""]):
        return stored
    (prefix,) = best
    arrays = names.below(prefix, stored.arrays)
    beside = sorted({_head(n, prefix) for n in stored.arrays if not n.startswith(prefix)})
    left = f"; beside them, and not read: {some(beside)}" if beside else ""
    LOGGER.info("%s: the weights are those below %r%s", where, prefix, left)
    return stored._replace(arrays=arrays)


def _rank(prefix: str) -> tuple[bool, int]:
    wrappers = [part for part in re.split("[./]", prefix) if part]
    return not WRAPPERS.issuperset(wrappers), len(wrappers)


def _head(name: str, prefix: str) -> str:
    """A name as far as it tells it from the prefix: "optimizer", "state_dict.head"."""
    parts, known = re.split("([./])", name), re.split("([./])", prefix)
    same = next(i for i, part in enumerate(parts) if part != known[i])
    return "".join(parts[: same + 1])


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
            f"{where} holds numbers that are not finite, in {some(bad)}: the training "
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
        if kind == "safetensors" and "has no attribute" in str(error):
            return _of_any_dtype(path)
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short, fetch it again: "
            f"{str(error) or type(error).__name__}"
        ) from error


def _of_any_dtype(path: Path) -> dict[str, np.ndarray]:
    """A whole safetensors file; costs its size in memory once more than `load_file` does."""
    entries = deserialize(path.read_bytes())
    odd = sorted({entry["dtype"] for _, entry in entries} - set(DTYPES))
    if odd:
        raise ValueError(
            f"{path} holds numbers of type {', '.join(odd)}, which are not read: save it in "
            "float32, float16, bfloat16 or float8 (E4M3, E5M2)"
        )
    return {
        name: np.frombuffer(entry["data"], DTYPES[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in entries
    }


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
        shards = sorted(set(table.values()))
        plain = all(isinstance(n, str) and Path(n).name == n for n in shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the index of a sharded checkpoint: {error!r}") from error
    if not plain:
        raise ValueError(f"{path} names shards outside of its own folder: refused")
    missing = [name for name in shards if not (path.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{path} names shards that are not there: {', '.join(missing)}")
    arrays: dict[str, np.ndarray] = {}
    for name in shards:
        arrays |= read(path.parent / name).arrays
    absent, surplus = sorted(set(table) - set(arrays)), sorted(set(arrays) - set(table))
    if absent or surplus:
        raise ValueError(
            f"{path} does not fit its shards: they lack {absent[:5]}, it does not list "
            f"{surplus[:5]}; fetch them again"
        )
    return Stored(arrays, {}, (path, *(path.parent / name for name in shards)))
