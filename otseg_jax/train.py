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
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.experimental import multihost_utils
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
    workdir = evaluate.open_workdir(workdir)
    experiment.check(config)
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
        run = _Run(config, workdir, parts, validation, checkpoints, schedule, saved=start)
        if start < config.train.steps:
            run(step, state, start, _batches(config, source, start))
        else:
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
        hue=data.hue,
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
    saved: int  # the last step that is in a checkpoint

    def __call__(
        self, step: Step, state: State, start: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> None:
        """Run from `start` to the end; whatever stops it, the finished steps are saved."""
        self.done, self.state = start, state
        try:
            self._loop(step, batches)
        except BaseException:
            # a broken photo or an impatient Ctrl-C must not cost the steps since the last save
            alive = not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))
            if jax.process_count() == 1 and alive and self.done > self.saved and self._finite():
                self._save(metrics=None)
            raise
        finally:
            self.checkpoints.wait()

    def _loop(self, step: Step, batches: Iterator[dict[str, np.ndarray]]) -> None:
        train, by_image = self.config.train, sharding.by_image(self.parts.mesh)
        start = self.done
        progress = tqdm(
            total=train.steps, initial=start, unit="step", disable=jax.process_index() != 0
        )
        with progress, _StopOnSignal() as stop:
            # the first step compiles and is no part of the speed
            began, timed_from = time.perf_counter(), start + 1
            for done in range(start + 1, train.steps + 1):
                batch = pipeline.put(next(batches), by_image)
                self.state, scalars = step(
                    self.state, self.parts.frozen, self.parts.text, batch, np.int32(done - 1)
                )
                self.done = done
                progress.update()
                if done == start + 1:
                    jax.block_until_ready(scalars)
                    began = time.perf_counter()
                if done % train.log_every == 0 or done == train.steps:
                    scalars = jax.device_get(scalars)
                    images = (done - timed_from) * train.batch_size
                    speed = images / (time.perf_counter() - began) if images else None
                    progress.set_postfix(self._log(scalars, speed))
                    began, timed_from = time.perf_counter(), done
                stopping = self._all_stop(stop.asked)
                if self._validate_and_save(stopping):
                    began, timed_from = time.perf_counter(), done
                if stopping and done < train.steps:
                    raise KeyboardInterrupt(
                        f"stopped after step {done}, which is saved: the same command goes on"
                    )

    def _all_stop(self, asked: bool) -> bool:
        """Whether to stop; several processes must agree on the step, and meet at each log."""
        if jax.process_count() == 1:
            return asked
        if self.done % self.config.train.log_every:
            return False
        return bool(np.any(multihost_utils.process_allgather(np.array(asked))))

    def _validate_and_save(self, stopping: bool) -> bool:
        """Validate and save where it is time to; returns whether that took time."""
        train, done = self.config.train, self.done
        metrics = None
        if done == train.steps:
            if jax.process_index() == 0:
                figures.curves(self.workdir / "curves.png", self.workdir / LOG)
            results = evaluate.report(
                self.config, self.workdir, self.parts, self.validation, self.state.trainable
            )
            metrics = self._record(results)
        elif train.eval_every and done % train.eval_every == 0 and not stopping:
            metrics = self._record(
                evaluate.evaluate_split(
                    self.config,
                    self.parts,
                    self.validation,
                    self.state.trainable,
                    images=train.eval_images,
                )
            )
        half_or_end = done in (train.steps, train.steps // 2)
        save = stopping or half_or_end or metrics or done % train.checkpoint_every == 0
        if save:
            if not self._finite():
                raise ValueError(self._diverged())
            self._save(metrics)
        return bool(save)

    def _save(self, metrics: dict[str, Any] | None) -> None:
        self.checkpoints.save(
            self.done,
            self.state._asdict(),
            self.parts.meta,
            text=np.asarray(self.parts.text),
            metrics=metrics,
        )
        self.saved = self.done

    def _finite(self) -> bool:
        leaves = jax.tree.leaves(self.state.trainable)
        return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)

    def _diverged(self) -> str:
        return (
            f"training diverged: weights or loss are not finite at step {self.done}. Start a new "
            f"--workdir with a lower --config.train.learning_rate or --config.dtype=float32; "
            f"checkpoints up to step {self.saved} are untouched"
        )

    def _record(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Log the figures of an evaluation; return those of its main method."""
        scores: dict[str, dict[str, Any]] = {
            method: {name: value for name, value in summary.items() if name != "iou"}
            for method, summary in results.items()
        }
        self._write({f"{m}/{name}": v for m, named in scores.items() for name, v in named.items()})
        best = scores[list(scores)[-1]]
        seen, unseen = best["miou_seen"], best["miou_unseen"]
        if seen is not None and unseen is not None and unseen < 1.0 < 20.0 < seen:
            LOGGER.warning(
                "step %d: seen classes reach %.1f mIoU, unseen ones %.1f: the text embeddings may "
                "not fit the tower (--config.text.embeddings, --config.clip.source)",
                *(self.done, seen, unseen),
            )
        return best

    def _log(self, scalars: dict[str, np.ndarray], speed: float | None) -> dict[str, str]:
        if not np.isfinite(scalars["loss"]):
            raise ValueError(self._diverged())
        numbers = {name: float(value) for name, value in scalars.items()}
        rate = float(self.schedule(self.done - 1))
        measured = {} if speed is None else {"images_per_second": speed}
        self._write({**numbers, "learning_rate": rate, **measured})
        shown = {name: f"{value:.3g}" for name, value in numbers.items() if "accuracy" not in name}
        return shown if speed is None else {**shown, "images/s": f"{speed:.3g}"}

    def _write(self, numbers: Mapping[str, float | None]) -> None:
        if jax.process_index() == 0:
            self.workdir.mkdir(parents=True, exist_ok=True)
            path = self.workdir / LOG
            # a killed run may have left a line without its end
            cut = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
            with path.open("a") as file:
                file.write("\n" * cut + json.dumps({"step": self.done, **numbers}) + "\n")


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
