"""Batches from a data set with Grain: shuffled, augmented, shared between processes, resumable.

What comes out depends on the seed and the number of batches consumed, nothing else: not on the
number of processes, threads or buffered batches. So a run is resumed by `start`, without a state
to save, and may go on with another number of processes.

Batches hold image u8[b, h, w, 4], as of `transforms`, and label i16[b, h, w]; b is one process's
share of the global batch. Evaluation examples keep their own sizes and are not batched. Sources are
read and transformed by `threads` threads (0: the caller's), `buffer` results ahead: batches in
training; photos in an evaluation, where each thread reads one at least. An error there is raised by
`next` with its own type and message.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol, runtime_checkable

import cv2
import grain
import jax
import numpy as np


@runtime_checkable
class Source(Protocol):
    """Examples by index: `folders.Folder`, `shapes.Shapes`, a TFDS data source, a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> Any: ...


def train_batches(
    source: Source,
    transform: Callable[[dict[str, Any], np.random.Generator], dict[str, Any]],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    buffer: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
    """Shuffle, augment and batch without end, each epoch in another order.

    Every image occurs once in each len(source) consecutive examples; a batch may cross epochs.

    Args:
        transform: (example, generator) → arrays of equal shapes. The generator is seeded by `seed`
            and the position in the global stream.
        batch_size: of all processes together.
        start: batches that were consumed before; none of them is read.
        process_index: which of `process_count` shares of each global batch.

    Raises:
        ValueError: an empty source, or a batch that cannot be shared equally.
    """
    _check(source, process_index, process_count, batch_size, start)
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    # Before the slice, so that processes draw different numbers, the same as a single one would.
    dataset = dataset.random_map(transform).repeat()
    # Shares in a row: an image has the same place in the global batch, and so the same dropout,
    # whatever the number of processes.
    shares = dataset.batch(batch_size // process_count, drop_remainder=True)
    return _iterate(shares[process_index::process_count][start:], threads, buffer)


def eval_examples(
    source: Source,
    transform: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    buffer: int = 4,
) -> Iterator[dict[str, Any]]:
    """Go once through a data set in its own order; nothing is dropped, repeated or stacked.

    A process gets the examples process_index, process_index + process_count, ...

    Raises:
        ValueError: an empty source, or a share that does not exist.
    """
    _check(source, process_index, process_count)
    dataset = grain.MapDataset.source(source).map(transform)[process_index::process_count]
    return _iterate(dataset, threads, max(threads, buffer))


def put(batch: Mapping[str, np.ndarray], sharding: jax.sharding.Sharding) -> dict[str, jax.Array]:
    """Place this process's share of a batch on its devices; the copy may still be under way.

    `sharding` is that of the global arrays [b · processes, ...].
    """
    place = partial(jax.make_array_from_process_local_data, sharding)
    return {name: place(array) for name, array in batch.items()}


def _check(
    source: Source, index: int, count: int, batch_size: int | None = None, start: int = 0
) -> None:
    problems = []
    if not len(source):
        problems.append("the data set is empty")
    if not 0 <= index < count:
        problems.append(f"process {index} of {count} does not exist")
    if batch_size is not None and (batch_size < 1 or batch_size % max(count, 1)):
        wanted = f"a positive multiple of the {count} processes"
        problems.append(f"batch_size {batch_size} is not {wanted}")
    if start < 0:
        problems.append(f"start {start} is negative")
    if problems:
        raise ValueError("pipeline: " + "; ".join(problems))


def _iterate(dataset: grain.MapDataset, threads: int, buffer: int) -> Iterator[dict[str, Any]]:
    # OpenCV would start threads of its own in each of ours.
    cv2.setNumThreads(0)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(dataset.to_iter_dataset(options))
