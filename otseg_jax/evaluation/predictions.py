"""Label maps as PNGs in the workdir; of several processes the first alone may have one."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Int32

from otseg_jax import paths, processes
from otseg_jax.evaluation import figures
from otseg_jax.evaluation.figures import Palette

FOLDER = "predictions"


class Predictions:
    """Writes `predictions/<output>/<photo>.png`, if they are wanted."""

    def __init__(self, workdir: Path, palette: Palette, *, wanted: bool) -> None:
        self._workdir, self._palette, self._wanted = workdir, palette, wanted
        self._unwritten = dict[str, bytes]()

    def add(self, photo: str, maps: Mapping[str, Int32[np.ndarray, "H W"]]) -> None:
        """Take the label maps of a photo, by output; the first process writes its own at once."""
        for output, label in maps.items() if self._wanted else ():
            name = f"{FOLDER}/{output}/{photo}.png"
            self._unwritten[name] = figures.encode_label(label, self._palette)
        if processes.is_first():
            self._write(self._unwritten)
            self._unwritten.clear()

    def finish(self) -> None:
        """Write those of the other processes; all call it."""
        for process in range(1, jax.process_count() if self._wanted else 1):
            theirs = processes.tell(self._unwritten, by=process)
            processes.by_first(self._write)(theirs)

    def _write(self, pictures: Mapping[str, bytes]) -> None:
        for name, picture in pictures.items():
            with paths.writing(self._workdir / name), paths.atomic(self._workdir / name) as part:
                part.write_bytes(picture)
