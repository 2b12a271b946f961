"""Write what is missing of the records of a data set, and compare all of them with its files."""

import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from etils import epath
from tqdm import tqdm

from otseg_jax import cli, paths
from otseg_jax.data import records, splits, tfds_sets
from otseg_jax.data.lists import some
from otseg_jax.data.shapes import WORDS
from otseg_jax.prepare import plan, shards
from otseg_jax.prepare.shards import Shard

VERSION = "1.0.0"
"""Of the form of our records, as TFDS counts it."""


def prepare(
    dataset: str,
    root: str | Path,
    output: str,
    names: Sequence[str] = ("train", "val"),
    *,
    augmented: bool = True,
    raw_ids: bool = False,
    threads: int = 1,
) -> str:
    """Write splits of a data set, or what is missing of them, and compare all with the files.

    Returns:
        What was done, in a sentence.

    Raises:
        FileNotFoundError, ValueError: as of `splits.open_split`; photos or masks that cannot be
            read; a place that holds something else, or is being written.
        OSError: no space left, or no permission.
    """
    began, name = time.perf_counter(), dataset.removeprefix(tfds_sets.PREFIX).replace("/", "_")
    place = paths.resolve(output) / name / VERSION
    if not paths.in_bucket(place):
        paths.check_writable(output, flag="--output")
    found = _open(dataset, root, names, augmented=augmented, raw_ids=raw_ids)
    about = plan.describe(dataset, found, augmented)
    counts = plan.counts(found, plan.before(place, about))
    parts = {n: shards.cut(place, name, n, part, counts[n]) for n, part in found.items()}
    whole = [shard for part in parts.values() for shard in part]
    missing = [shard for shard in whole if not shard.path.exists()]
    plan.check_space(place, missing)
    described = shards.features(about)
    command = shlex.join(
        ["python", "-m", "otseg_jax.prepare", dataset, f"--root={root}", f"--output={output}"]
        + [f"--splits={','.join(found)}"]
        + ["--noaugmented"] * (not augmented)
        + ["--raw_ids"] * raw_ids
    )
    with plan.held(place):
        if missing:
            plan.write(place, about, counts, command)
        _write(missing, described, threads)
        if wrong := _compare(whole, described, threads):
            plan.write(place, about, counts, command)
            raise ValueError(_removed(place, wrong))
        lengths = {
            n: [int(shard.path.stat().length) for shard in part] for n, part in parts.items()
        }
        if missing or (place / records.PLAN).exists():
            with paths.writing(place):
                shards.finish(place, replace(about, sizes=lengths), described, parts)
            (place / records.PLAN).unlink()
    seconds, done = time.perf_counter() - began, _photos(whole)
    size = sum(map(sum, lengths.values())) / 1e6
    return (
        f"{place}: {done:,} photos in {len(whole)} shards, {size:,.1f} MB; "
        f"{_photos(missing):,} written, all compared with their files, in {seconds:.1f} s "
        f"({done / seconds:,.0f} photos/s). --config.data.root={output} reads them"
    )


def _open(
    dataset: str, root: str | Path, names: Sequence[str], **options: bool
) -> dict[str, plan.Split]:
    if dataset in WORDS:
        raise ValueError(f"{dataset} is drawn, never read: there is nothing to prepare")
    try:
        splits.check_name(dataset)
    except ValueError as error:
        raise ValueError(f"there is no data set {dataset!r}: {error}") from None
    found, problems = dict[str, plan.Split](), list[str]()
    for name in dict.fromkeys(names):
        try:
            found[name] = splits.open_split(dataset, root, name, **options)
        except (ValueError, OSError) as error:
            if not cli.is_ours(error):
                raise
            problems.append(str(error))
    if problems:
        others = f"; --splits={','.join(found)} leaves that out" if found else ""
        raise ValueError("; ".join(dict.fromkeys(problems)) + others)
    if not found:
        raise ValueError("--splits is empty: wanted train, val or train,val")
    return found


def _write(missing: Sequence[Shard], described: Any, threads: int) -> None:
    told = _each(missing, lambda shard: shards.write(shard, described), threads, "Written")
    if problems := [problem for part in told for problem in part]:
        raise ValueError(
            f"{len(problems)} photos cannot be prepared: {some(problems, mark='; ')}. The shards "
            "that are in order were kept: the same command goes on"
        )


def _compare(whole: Sequence[Shard], described: Any, threads: int) -> dict[Shard, list[str]]:
    """What is wrong with which shards."""
    told = _each(whole, lambda shard: shards.differences(shard, described), threads, "Compared")
    return {shard: problems for shard, problems in zip(whole, told, strict=True) if problems}


def _removed(place: epath.Path, wrong: dict[Shard, list[str]]) -> str:
    """Remove shards that are wrong; what to say of that."""
    for shard in wrong:
        shard.path.unlink()
    problems = [f"{s.path.name}: {problem}" for s, told in wrong.items() for problem in told]
    return (
        f"{place}: {len(problems)} records are not as their files, {some(problems, mark='; ')}; "
        f"{len(wrong)} shards were removed: the same command writes them again"
    )


Result = TypeVar("Result")


def _each(
    parts: Sequence[Shard], work: Callable[[Shard], Result], threads: int, said: str
) -> list[Result]:
    """Do something to shards at the same time; after an error or Ctrl-C, to no further ones."""
    if not parts:
        return []
    pool = ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(work, shard): len(shard.indices) for shard in parts}
        with tqdm(total=_photos(parts), desc=said, unit="photo", leave=False) as bar:
            for done in as_completed(running):
                done.result()
                bar.update(running[done])
        return [done.result() for done in running]
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped: the same command goes on") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _photos(parts: Sequence[Shard]) -> int:
    return sum(len(shard.indices) for shard in parts)
