"""Trained weights by name, wherever they are: a step of a run, or a model directory."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from otseg_jax import buckets, paths, processes
from otseg_jax.checkpoints import config, pretrained, spec
from otseg_jax.checkpoints.failure import Deleted
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.checkpoints.spec import Record, Spec
from otseg_jax.settings import Settings
from otseg_jax.weights import names, source

CHECKPOINTS = "checkpoints"  # folder of a run
LOGGER = logging.getLogger(__name__)

Result = TypeVar("Result")


class Trained(NamedTuple):
    """Weights that were found, and how to get them."""

    spec: Spec
    settings: Settings | None  # of its run; None: a model directory
    where: str  # what was found, for messages
    restore: Callable[[Any], Any]  # trainable state → it with these weights, on its devices


@processes.together
def find(place: str | Path, wanted: str = "latest", *, flag: str = "checkpoint") -> Trained:
    """Find trained weights. Of several processes the first reads a run, each a model directory.

    Args:
        place: workdir of a run, or model directory (which holds one step, whatever is wanted), here
            or in a bucket.
        wanted: "latest", "best", "half" (of the schedule), or a step.
        flag: what `wanted` is called where it is given, for messages.

    Raises:
        FileNotFoundError, ValueError: no such run or step, a CLIP alone, or what is damaged.
    """
    if is_model(place):
        found = pretrained.read(buckets.fetched(place))
        model = pretrained.need_model(found, f": set --config.clip.source={place} instead")
        return Trained(
            model.spec, None, str(place), lambda state: _assigned(state, model, str(place))
        )

    def described(checkpoints: Checkpoints, step: int, record: Record) -> list[Any]:
        return [step, checkpoints.read_meta(step)]

    step, meta = processes.by_first(read)(place, wanted, described, flag=flag)
    record = spec.read_record(meta, str(place))

    def restore(state: Any) -> Any:
        whole = {"trainable": state}

        def weights(checkpoints: Checkpoints, step: int, record: Record) -> dict[str, np.ndarray]:
            return checkpoints.read_state(step, whole)

        leaves = processes.by_first(read)(place, wanted, weights, chosen=step, flag=flag)
        return names.place(whole, leaves)["trainable"]

    return Trained(record.spec, record.settings, f"{place}, step {step}", restore)


@processes.by_first
def is_model(place: str | Path) -> bool:
    """Whether a place, here or in a bucket, is a model directory: the first process looks."""
    return source.is_model(buckets.fetched(place, lambda name: name == config.NAME))


def read(
    place: str | Path,
    wanted: str,
    work: Callable[[Checkpoints, int, Record], Result],
    *,
    chosen: int | None = None,
    flag: str = "checkpoint",
) -> Result:
    """Read a step of a run, while a training may go on there that deletes what it keeps no longer.

    Args:
        place: workdir, here or in a bucket.
        wanted: as of `find`; latest and best are chosen again where the step was deleted.
        work: reads what is wanted of a step.
        chosen: the step that was chosen before; None: choose one.
        flag: as of `find`.

    Raises:
        FileNotFoundError, ValueError: as of `find`, and what `work` raises.
    """
    gone = False
    while True:
        with Checkpoints(buckets.fetched(place) / CHECKPOINTS) as checkpoints:
            try:
                if chosen is not None and chosen not in (steps := checkpoints.steps()):
                    raise Deleted(checkpoints.directory, chosen, steps)
                step, record = choose(checkpoints, str(chosen or wanted), place, flag=flag)
                if gone:
                    LOGGER.info("%s: now step %d", place, step)
                return work(checkpoints, step, record)
            except Deleted as deleted:
                if wanted not in ("latest", "best"):
                    raise
                LOGGER.info("%s: choosing %s again", deleted, wanted)
                chosen, gone = None, True


def choose(
    checkpoints: Checkpoints, wanted: str, place: str | Path, *, flag: str = "checkpoint"
) -> tuple[int, Record]:
    """The step of a run that is wanted, and its record; as of `find`."""
    if wanted not in ("latest", "best", "half") and not wanted.isdecimal():
        steps = checkpoints.steps()
        raise ValueError(f"{flag}={wanted!r}: choose latest, best, half or a step of {steps}")
    step = checkpoints.best_step() if wanted == "best" else checkpoints.latest_step()
    if step is None and checkpoints.steps():
        raise ValueError(
            f"{place}: none of its steps {checkpoints.steps()} has an evaluation, so none is best: "
            f"choose {flag}=latest, or a step"
        )
    if step is None:
        if whole := part_of(Path(checkpoints.directory).parent):
            raise FileNotFoundError(f"{place} is a part of {whole}: give that")
        raise FileNotFoundError(
            f"{place} holds no {wanted} checkpoint in {CHECKPOINTS}/: train there first, or name a "
            "finished run or a model directory"
        )
    if wanted.isdecimal():
        step = int(wanted)
    record = _read(checkpoints, step, place)
    if wanted == "half":
        step = half(record.settings.train.steps)
        if step not in (steps := checkpoints.steps()):
            raise ValueError(
                f"{place} holds no step {step}, the half of its {record.settings.train.steps}: its "
                f"length was changed when that was past. Choose {flag}=N, one of {steps}"
            )
        record = _read(checkpoints, step, place)
    return step, record


def part_of(place: str | Path) -> str:
    """The run or model directory that a file or folder lies in; "": in none, or it is one."""
    path = paths.resolve(place)
    for folder in (path, *path.parents[:3]) if path.exists() else ():
        if source.is_model(str(folder)) or (folder / CHECKPOINTS).is_dir():
            return "" if folder == path else str(folder)
    return ""


def half(steps: int) -> int:
    """The step of a schedule that transductive training starts from."""
    return max(1, steps // 2)


def _read(checkpoints: Checkpoints, step: int, place: str | Path) -> Record:
    return spec.read_record(checkpoints.read_meta(step), f"{place}, step {step}")


def _assigned(state: Any, model: pretrained.Model, where: str) -> Any:
    try:
        assigned = names.assign(state, model.trained)
    except ValueError as error:
        raise ValueError(f"{where} is not of this configuration's model: {error}") from error
    return jax.tree.map(lambda leaf, new: jax.device_put(new, leaf.sharding), state, assigned)
