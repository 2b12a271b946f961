"""TensorBoard's event files: figures and pictures of a run, each step once."""

import struct
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from otseg_jax import paths


class TensorBoardWriter:
    """Writes in the caller's thread: that of tensorboardX's own writer hangs where a disk is full.

    Args:
        folder: of the event files; one more is begun, as a file cannot be gone on with.
        done: steps that the run has; what comes after them is removed from the files.
        again: what the names begin with that will be written again at the last of these steps.
    """

    def __init__(self, folder: Path, *, done: int, again: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("events.out.tfevents.*"):
            _cut(path, done, again)
        # the library tells files apart by the second
        self._file = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write figures."""
        for name, value in numbers.items():
            self._write(step, summary.scalar(name, value))
        self._file.flush()

    def picture(self, step: int, name: str, path: Path) -> None:
        """Write a picture, a PNG."""
        pixels = np.asarray(Image.open(path).convert("RGB"))
        self._write(step, summary.image(name, pixels, dataformats="HWC"))
        self._file.flush()

    def close(self) -> None:
        """Write what is not written yet."""
        self._file.close()

    def _write(self, step: int, found: Summary) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), summary=found))


def _cut(path: Path, done: int, again: str) -> None:
    """Remove from a file what comes after the steps that a run has."""
    data, kept, start = path.read_bytes(), [], 0
    # a record: u64 length, u32 checksum, an event, u32 checksum; a killed run cuts the last short
    while start + 12 <= len(data):
        end = start + 16 + struct.unpack_from("<Q", data, start)[0]
        if end > len(data):
            break
        event = Event.FromString(data[start + 12 : end - 4])
        repeated = again and any(value.tag.startswith(again) for value in event.summary.value)
        if event.step < done or (event.step == done and not repeated):
            kept.append(data[start:end])
        start = end
    if (left := b"".join(kept)) != data:
        with paths.atomic(path) as part:
            part.write_bytes(left)
