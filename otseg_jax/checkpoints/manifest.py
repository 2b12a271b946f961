"""What a checkpoint contains, told and checked without Orbax: arrays by name, files by checksum.

Paths are `pathlib.Path`, or `epath.Path` for buckets. The list of files lies in their folder as
`files.json`, {"item/file": [bytes, CRC-32]}, and covers its subfolders, here called items.
"""

import functools
import json
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

import jax

from otseg_jax import paths
from otseg_jax.weights import names

NAME: Final = "files.json"
METRICS: Final = "metrics.json"  # is written when the rest is in place


def record(
    arrays: Mapping[str, Any], meta: Mapping[str, Any], *, has_text: bool
) -> tuple[dict[str, Any], list[str]]:
    """The JSON that describes a checkpoint, and what in it is not JSON."""
    described = {"meta": dict(meta), "leaves": names.describe(arrays), "has_text": has_text}
    try:
        json.dumps(described, allow_nan=False)
    except (TypeError, ValueError) as error:
        return described, [f"meta must be plain JSON (a ConfigDict: .to_dict()): {error}"]
    return described, []


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Plain numbers, null where not finite: numpy's scalars and NaN are not JSON."""

    def number(value: Any) -> Any:
        if isinstance(value, str | bool | int):
            return value
        return float(value) if math.isfinite(value) else None

    return jax.tree.map(number, dict(metrics))


def write_metrics(folder: Any, metrics: Mapping[str, Any]) -> None:
    """Put the plain metrics of an evaluation into a complete checkpoint, whole or not at all."""
    with paths.writing(folder / METRICS), paths.atomic(folder / METRICS) as part:
        part.write_text(json.dumps(metrics, sort_keys=True))


def read_metrics(folder: Any) -> dict[str, Any] | None:
    """The metrics, or None before there are any; a ValueError where they are damaged."""
    if not (folder / METRICS).exists():
        return None
    try:
        return {**json.loads((folder / METRICS).read_text())}
    except (OSError, ValueError, TypeError) as error:  # any JSON, if damaged
        raise ValueError(f"{METRICS} of {folder} is damaged ({type(error).__name__})") from error


def write(folder: Any) -> None:
    """List everything in the subfolders of a folder."""
    found = [file for file in _files(folder) if file.parent != folder]
    files = {file.relative_to(folder).as_posix(): _fingerprint(file) for file in found}
    (folder / NAME).write_text(json.dumps(files, indent=0, sort_keys=True))


def damage(folder: Any, item: str) -> list[str]:
    """Missing, shortened or changed files of an item; empty if it is as it was written."""
    try:
        files = json.loads((folder / NAME).read_text()).items()
        expected = {n: [int(size), int(crc)] for n, (size, crc) in files if n.split("/")[0] == item}
    except (OSError, ValueError, TypeError, AttributeError) as error:  # any JSON, if damaged
        return [f"{NAME} cannot be read ({type(error).__name__})"]
    problems = [] if expected else [f"{NAME} does not mention {item}"]
    for name, wanted in expected.items():
        if not (folder / name).exists():
            problems.append(f"{name} is missing")
        elif (got := _fingerprint(folder / name)) != wanted:
            cut = f"is {got[0]} bytes long, wanted {wanted[0]}"
            problems.append(f"{name} {cut if got[0] != wanted[0] else 'has other contents'}")
    return problems


def is_deleted(folder: Any) -> bool:
    """Whether a folder in which something is missing is gone: wait while it is being deleted."""
    before = -1
    while folder.exists():
        try:
            left = sum(1 for _ in _files(folder))
        except FileNotFoundError:
            left = 0
        if left == before:
            return False
        before = left
        time.sleep(0.02)
    return True


def _files(folder: Any) -> Iterator[Any]:
    for path in folder.iterdir():  # epath has no recursive glob
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _fingerprint(file: Any) -> list[int]:
    # CRC-32 finds accidents, which is all that is asked of it, as fast as a disk reads
    size = checksum = 0
    with file.open("rb") as stream:
        for piece in iter(functools.partial(stream.read, 1 << 24), b""):
            size, checksum = size + len(piece), zlib.crc32(piece, checksum)
    return [size, checksum]
