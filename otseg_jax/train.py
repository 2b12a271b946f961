"""Training: the loop that feeds the step, logs, validates, saves, stops when asked, and resumes.

A run is determined by its configuration: the batch and the random key of a step are functions of
(seed, step) alone, so an interrupted run ends where an uninterrupted one does.
"""

import json
import logging
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from tqdm import tqdm

from otseg_jax import agreement, evaluate, experiment, figures, model_dir, optim, sharding
from otseg_jax.checkpoint import Checkpoints
from otseg_jax.data import pipeline, transforms
from otseg_jax.data.classes import Vocabulary
from otseg_jax.train_step import State, Step, make_train_step
from otseg_jax.weights import detect

LOGGER = logging.getLogger(__name__)

LOG = "metrics.jsonl"


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Train, or go on training, then evaluate and write the table.

    Args:
        config: as in `configs/common.py`.
        workdir: gets `checkpoints/`, `metrics.jsonl`, `curves.png` and what `evaluate.report`
            writes. With checkpoints in it, the run goes on from the latest.

    Raises:
        FileNotFoundError, ValueError: one message for whoever started it; nothing saved is touched.
        KeyboardInterrupt: the user or the system asked to stop; a checkpoint was written.
    """
    workdir = Path(workdir)
    source = experiment.open_split(config, "train")
    validation = experiment.open_split(config, "val")
    parts = experiment.assemble(config, source.vocabulary)
    schedule = optim.learning_rate(
        config.train.steps,
        peak=config.train.learning_rate,
        end=config.train.end_learning_rate,
        power=config.train.power,
        warmup=config.train.warmup,
        warmup_ratio=config.train.warmup_ratio,
    )
    optimizer = optim.make_optimizer(schedule, weight_decay=config.train.weight_decay)
    with checkpoints_of(workdir, config, parts.vocabulary) as checkpoints:
        state, start = _initial_state(config, workdir, parts, optimizer, checkpoints)
        step = make_train_step(
            parts.graphdef,
            optimizer,
            parts.regime,
            mesh=parts.mesh,
            accumulate=config.train.accumulate,
            focal_weight=config.train.focal_weight,
            dice_weight=config.train.dice_weight,
            seed=config.seed,
        )
        run = _Run(config, workdir, parts, validation, checkpoints, schedule)
        state = run(step, state, start, _batches(config, source, start))
    if jax.process_index() == 0 and (workdir / LOG).is_file():
        figures.curves(workdir / "curves.png", workdir / LOG)
    evaluate.report(config, workdir, parts, validation, state.trainable)


def checkpoints_of(
    workdir: Path, config: ml_collections.ConfigDict, vocabulary: Vocabulary
) -> Checkpoints:
    """The checkpoints of a run: latest, best on validation, and the half of the schedule.

    A transductive run starts from the half of an inductive one, so that is kept.
    """
    return Checkpoints(
        workdir / evaluate.CHECKPOINTS,
        milestones=[config.train.steps // 2],
        metric="hiou" if vocabulary.unseen else "miou",
    )


def _initial_state(
    config: ml_collections.ConfigDict,
    workdir: Path,
    parts: experiment.Experiment,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
) -> tuple[State, int]:
    """Fresh, taken over from another run, or where this run left off; and the steps behind it."""
    latest = checkpoints.latest_step()
    trainable = parts.trainable
    if latest is None and config.init_from:
        trainable = _start_from(config, parts)
    elif latest is None and parts.regime.unseen:
        raise ValueError(
            "transductive training starts from an inductive run: set --config.init_from=WORKDIR "
            "(or a model directory)"
        )
    whole = sharding.replicated(parts.mesh)
    state = State(trainable, jax.jit(optimizer.init, out_shardings=whole)(trainable))
    if latest is None:
        return state, 0
    agreement.check_same_run(checkpoints.read_meta(latest), parts.meta, where=str(workdir))
    LOGGER.info("Going on from step %d of %s", latest, workdir)
    return State(**checkpoints.restore(latest, state._asdict())), latest


def _start_from(config: ml_collections.ConfigDict, parts: experiment.Experiment) -> Any:
    """Trained weights of another run: by default half-way for pseudo-labels, else its latest."""
    if detect.is_model(config.init_from):
        if config.init_step:
            raise ValueError(
                f"--config.init_step={config.init_step}: {config.init_from} is a model directory "
                "and holds one step; leave it 0"
            )
        model = model_dir.read(config.init_from)
        saved = model_dir.as_meta(model.config)
        agreement.check_same_model(saved, parts.meta, where=config.init_from)
        return experiment.start_from_model(model, parts, where=config.init_from)
    with Checkpoints(Path(config.init_from) / evaluate.CHECKPOINTS) as source:
        latest = source.latest_step()
        if latest is None:
            raise FileNotFoundError(
                f"--config.init_from={config.init_from} holds no checkpoints/: name the workdir of "
                "a finished run"
            )
        meta = source.read_meta(latest)
        half = meta["config"]["train"]["steps"] // 2
        step = config.init_step or (half if parts.regime.unseen else latest)
        agreement.check_same_model(meta, parts.meta, where=config.init_from)
        LOGGER.info("Starting from step %d of %s", step, config.init_from)
        return source.restore(step, {"trainable": parts.trainable})["trainable"]


def _batches(
    config: ml_collections.ConfigDict, source: experiment.Source, start: int
) -> Iterator[dict[str, np.ndarray]]:
    data = config.data
    transform = partial(
        transforms.for_train,
        crop=data.crop,
        scale=tuple(data.scale),
        ratio=tuple(data.ratio),
        max_class_fraction=data.max_class_fraction,
        mean=tuple(data.mean),
        std=tuple(data.std),
    )
    return pipeline.train_batches(
        source,
        transform,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        threads=data.threads,
        buffer=data.buffer,
    )


@dataclass
class _Run:
    """The loop: feed, log, validate, save, stop when asked."""

    config: ml_collections.ConfigDict
    workdir: Path
    parts: experiment.Experiment
    validation: experiment.Source
    checkpoints: Checkpoints
    schedule: optax.Schedule

    def __call__(
        self, step: Step, state: State, start: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> State:
        train, by_image = self.config.train, sharding.by_image(self.parts.mesh)
        progress = tqdm(
            total=train.steps, initial=start, unit="step", disable=jax.process_index() != 0
        )
        with progress, _StopOnSignal() as stop:
            # the first step compiles and is no part of the speed
            began, timed_from = time.perf_counter(), start + 1
            for done in range(start + 1, train.steps + 1):
                batch = pipeline.put(next(batches), by_image)
                state, scalars = step(
                    state, self.parts.frozen, self.parts.text, batch, np.int32(done - 1)
                )
                progress.update()
                if done == start + 1:
                    jax.block_until_ready(scalars)
                    began = time.perf_counter()
                if done % train.log_every == 0 or done == train.steps:
                    scalars = jax.device_get(scalars)
                    seconds = time.perf_counter() - began
                    images = (done - timed_from) * train.batch_size
                    progress.set_postfix(self._log(done, scalars, images / max(seconds, 1e-9)))
                    began, timed_from = time.perf_counter(), done
                if self._after(done, state, stop.asked):
                    began, timed_from = time.perf_counter(), done
                if stop.asked and done < train.steps:
                    self.checkpoints.wait()
                    raise KeyboardInterrupt(
                        f"stopped after step {done}, which is saved: the same command goes on"
                    )
        return state

    def _after(self, done: int, state: State, stopping: bool) -> bool:
        """Validate and save where it is time to; returns whether that took time."""
        train = self.config.train
        validate = bool(train.eval_every) and done % train.eval_every == 0 and not stopping
        last_or_half = done in (train.steps, train.steps // 2)
        save = stopping or last_or_half or done % train.checkpoint_every == 0
        summary = self._validate(done, state) if validate else None
        if save:
            self.checkpoints.save(
                done,
                state._asdict(),
                self.parts.meta,
                text=np.asarray(self.parts.text),
                metrics=summary,
            )
        return validate or save

    def _validate(self, done: int, state: State) -> dict[str, Any]:
        results = evaluate.evaluate_split(
            self.config,
            self.parts,
            self.validation,
            state.trainable,
            images=self.config.train.eval_images,
        )
        scores: dict[str, dict[str, Any]] = {
            method: {name: value for name, value in summary.items() if name != "iou"}
            for method, summary in results.items()
        }
        self._write(
            done, {f"{m}/{name}": v for m, named in scores.items() for name, v in named.items()}
        )
        best = scores[list(scores)[-1]]
        seen, unseen = best["miou_seen"], best["miou_unseen"]
        if seen is not None and unseen is not None and unseen < 1.0 < 20.0 < seen:
            LOGGER.warning(
                "step %d: seen classes reach %.1f mIoU, unseen ones %.1f: the text embeddings may "
                "not fit the tower (--config.text.embeddings, --config.clip.source)",
                *(done, seen, unseen),
            )
        return best

    def _log(
        self, done: int, scalars: dict[str, np.ndarray], images_per_second: float
    ) -> dict[str, str]:
        if not np.isfinite(scalars["loss"]):
            raise ValueError(
                f"loss {scalars['loss']} at step {done}: lower --config.train.learning_rate, or "
                "use --config.dtype=float32; the last checkpoint is untouched"
            )
        numbers = {name: float(value) for name, value in scalars.items()}
        rate = float(self.schedule(done - 1))
        self._write(
            done, {**numbers, "learning_rate": rate, "images_per_second": images_per_second}
        )
        shown = {name: f"{value:.3g}" for name, value in numbers.items() if "accuracy" not in name}
        return {**shown, "images/s": f"{images_per_second:.3g}"}

    def _write(self, done: int, numbers: Mapping[str, float | None]) -> None:
        if jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            with (self.workdir / LOG).open("a") as file:
                file.write(json.dumps({"step": done, **numbers}) + "\n")


class _StopOnSignal:
    """Turns the first Ctrl-C or SIGTERM into a wish that the loop fulfils; the second one acts."""

    asked = False

    def __enter__(self) -> "_StopOnSignal":
        self._handlers = {}
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        self.__exit__()
        tqdm.write("Stopping after this step; once more to stop at once, without saving.")
