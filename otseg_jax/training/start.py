"""Where a run starts: fresh, from the weights of another one, or where it left off."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

from otseg_jax import sharding
from otseg_jax.build import Experiment, Split
from otseg_jax.checkpoints import compare, mirror, restore, spec
from otseg_jax.checkpoints.restore import Trained
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.checkpoints.spec import Record
from otseg_jax.data import inspect, pipeline, regimes, transforms
from otseg_jax.data.classes import Vocabulary
from otseg_jax.processes import together
from otseg_jax.settings import Settings
from otseg_jax.training.step import State

LOGGER = logging.getLogger(__name__)


def checkpoints_of(workdir: Path, options: Settings, vocabulary: Vocabulary) -> Checkpoints:
    """The checkpoints of a run: latest, best on validation, and the half of the schedule."""
    # a transductive run starts from the half of an inductive one
    half, metric = restore.half(options.train.steps), "hiou" if vocabulary.unseen else "miou"
    directory = workdir / restore.CHECKPOINTS
    return mirror.checkpoints(directory, milestones=[half], metric=metric)


@together
def origin(
    options: Settings, vocabulary: Vocabulary, checkpoints: Checkpoints
) -> Record | Trained | None:
    """Its own record where a run goes on, the weights of `init_from` where it starts from those."""
    if (latest := checkpoints.latest_step()) is not None:
        where = Path(checkpoints.directory).parent
        return spec.read_record(checkpoints.read_meta(latest), str(where))
    regime = regimes.resolve(options.regime, num_classes=len(vocabulary), unseen=vocabulary.unseen)
    step, place = options.init_step, options.init_from
    if not place and regime.unseen:
        raise ValueError(
            "transductive training starts from an inductive run: set --config.init_from=WORKDIR "
            "(or a model directory)"
        )
    if step and place and restore.is_model(place):
        raise ValueError(
            f"--config.init_step={step}: {place} is a model directory and holds one step; "
            "leave it 0"
        )
    # pseudo-labels start half-way
    wanted = str(step) if step else "half" if regime.unseen else "latest"
    return restore.find(place, wanted, flag="--config.init_step") if place else None


@together
def state(
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    origin: Record | Trained | None,
) -> tuple[State, int]:
    """The state that a run begins with, and the steps behind it."""
    trainable, whole = experiment.trainable, sharding.replicated(experiment.mesh)
    if isinstance(origin, Trained):
        compare.check_same_model(origin, experiment.record)
        LOGGER.info("Starting from %s", origin.where)
        trainable = origin.restore(trainable)
    fresh = State(trainable, jax.jit(optimizer.init, out_shardings=whole)(trainable))
    latest = checkpoints.latest_step()
    if latest is None or not isinstance(origin, Record):
        return fresh, 0
    where = str(Path(checkpoints.directory).parent)
    compare.check_same_run(origin, experiment.record, done=latest, where=where)
    checkpoints.keep(restore.half(origin.settings.train.steps))  # the run may be made longer
    LOGGER.info("Going on from step %d of %s", latest, where)
    return State(**checkpoints.restore(latest, fresh._asdict())), latest


def batches(options: Settings, split: Split, done: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's share of the batches of a run after the first `done`."""
    data = options.data
    transform = partial(
        transforms.for_train,
        crop=data.crop,
        scale=data.scale,
        ratio=data.ratio,
        max_class_fraction=data.max_class_fraction,
        hue=data.hue,
    )
    found = pipeline.train_batches(
        split,
        transform,
        batch_size=options.train.batch_size,
        seed=options.seed,
        start=done,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=data.threads,
        buffer=data.buffer,
    )
    if jax.process_count() > 1:  # the others would wait
        return found
    return inspect.tell_all(found, split, threads=data.threads)
