"""Figures and pictures of a training to where people look: TensorBoard, Weights & Biases.

The first process writes, into the workdir: `tensorboard/`, and `wandb/` with the id of its run in
`wandb_id`. A run that goes on does so in the same logs. Whatever fails there is told once, and the
training goes on without.
"""

import contextlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax

from otseg_jax import processes

LOGGER = logging.getLogger(__name__)

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by what `settings.log` calls them
VALIDATION = "val/"  # what the names of an evaluation's figures begin with; others with "train/"


@runtime_checkable
class Writer(Protocol):
    """One place; a name has its group before a slash."""

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write figures."""

    def picture(self, step: int, name: str, path: Path) -> None:
        """Write a picture, a PNG."""

    def close(self) -> None:
        """Write what is not written yet."""


class Writers:
    """The places that a run is logged to; one that fails is told once and left out then."""

    def __init__(self) -> None:
        self._open: dict[str, Writer] = {}

    def add(self, name: str, make: Callable[[], Writer]) -> None:
        """Open one more."""
        with self._forgiven(name):
            self._open[name] = make()

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write figures to all."""
        for name, writer in [*self._open.items()]:
            with self._forgiven(name):
                writer.scalars(step, numbers)

    def picture(self, step: int, name: str, draw: Callable[[Path], object]) -> None:
        """Write a picture to all; `draw` makes the PNG."""
        for place, writer in [*self._open.items()]:
            with self._forgiven(place), tempfile.TemporaryDirectory() as folder:
                draw(path := Path(folder) / "picture.png")
                writer.picture(step, name, path)

    def close(self) -> None:
        """Write what is not written yet."""
        for name, writer in [*self._open.items()]:
            with self._forgiven(name):
                writer.close()

    @contextlib.contextmanager
    def _forgiven(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # any type: it is their network, their service, or the disk
            if writer := self._open.pop(name, None):
                with contextlib.suppress(Exception):
                    writer.close()
            told = " ".join(str(error).split()) or type(error).__name__
            LOGGER.warning("%s gets no more of this run: %s (metrics.jsonl has all)", name, told)


@processes.together
def check(log: str) -> None:
    """Refuse, with a ValueError before the work, places whose package or login is missing.

    Args:
        log: "tensorboard", "wandb", both with a comma between them, or "".
    """
    names = [name for name in log.split(",") if name and not jax.process_index()]
    if missing := [name for name in names if not _is_installed(PACKAGES[name])]:
        packages = " and ".join(PACKAGES[name] for name in missing)
        raise ValueError(
            f"--config.log={log} needs {packages}: pip install 'otseg_jax[{','.join(missing)}]', "
            'or train with --config.log=""'
        )
    if "wandb" in names:
        from otseg_jax.training import wandb_writer

        wandb_writer.check_login()


@contextlib.contextmanager
def opened(
    log: str, workdir: Path, *, done: int, judged: bool, settings: Mapping[str, Any]
) -> Iterator[Writers]:
    """The writers of a run, open while the block runs.

    Args:
        log: as of `check`.
        done: steps of the run; what was logged after them, and was lost, is logged again.
        judged: whether the last of these was evaluated; else it will be.
        settings: of the run, by dotted name.
    """
    writers = Writers()
    if jax.process_index() == 0:
        names, again = log.split(","), "" if judged else VALIDATION
        if "tensorboard" in names:
            writers.add("tensorboard", lambda: _tensorboard(workdir / "tensorboard", done, again))
        if "wandb" in names:
            writers.add("wandb", lambda: _wandb(workdir, settings))
    try:
        yield writers
    finally:
        writers.close()


# the libraries are extras
def _tensorboard(folder: Path, done: int, again: str) -> Writer:
    from otseg_jax.training.tensorboard_writer import TensorBoardWriter

    return TensorBoardWriter(folder, done=done, again=again)


def _wandb(workdir: Path, settings: Mapping[str, Any]) -> Writer:
    from otseg_jax.training.wandb_writer import WandbWriter

    return WandbWriter(workdir, settings)


def _is_installed(package: str) -> bool:
    found = importlib.util.find_spec(package)
    # a folder of that name, such as wandb leaves, is no package
    return found is not None and found.origin is not None
