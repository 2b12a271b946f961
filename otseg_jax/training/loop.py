"""The loop that feeds the step, logs, validates, saves, stops when asked, and resumes.

A run is determined by its settings: the batch and the random key of a step are functions of
(seed, step) alone, so an interrupted run ends where an uninterrupted one does.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

from otseg_jax import build, processes, settings, sharding
from otseg_jax.build import Experiment, Split
from otseg_jax.checkpoints import lock, restore, spec
from otseg_jax.checkpoints.failure import SaveError
from otseg_jax.checkpoints.run import Checkpoints
from otseg_jax.data import pipeline
from otseg_jax.evaluation import charts, figures, report
from otseg_jax.models import methods
from otseg_jax.models.decoder import Transport
from otseg_jax.settings import Settings
from otseg_jax.training import memory, metric_writers, optim, start
from otseg_jax.training.log import Log
from otseg_jax.training.metric_writers import Writers
from otseg_jax.training.step import State, Step, make_train_step
from otseg_jax.training.watch import Trace, Watch

LOGGER = logging.getLogger(__name__)


def train(options: Settings, workdir: str | Path, *, transport: Transport | None = None) -> None:
    """Train, or go on training, then evaluate and write the table.

    Args:
        workdir: gets `checkpoints/`, `metrics.jsonl`, `curves.png` and what `report` writes. With
            checkpoints in it, the run goes on from the latest.
        transport: solver of transport plans; None: as `options.model` says.

    Raises:
        FileNotFoundError, ValueError: one message for whoever started it; nothing saved is touched.
        KeyboardInterrupt: the user or the system asked to stop; a checkpoint was written.
    """
    methods.trained(options.model)
    metric_writers.check(options.log)
    with lock.hold(workdir) as held:
        _train(options, held, transport)


def _train(options: Settings, workdir: Path, transport: Transport | None) -> None:
    source, validation = build.open_split(options, "train"), build.open_split(options, "val")
    build.check_labels(options, train=source, val=validation)
    schedule = optim.learning_rate(
        options.train.steps,
        peak=options.train.learning_rate,
        end=options.train.end_learning_rate,
        power=options.train.power,
        warmup=options.train.warmup,
        warmup_ratio=options.train.warmup_ratio,
    )
    optimizer = optim.make_optimizer(schedule, weight_decay=options.train.weight_decay)
    with start.checkpoints_of(workdir, options, source.vocabulary) as checkpoints:
        origin = start.origin(options, source.vocabulary, checkpoints)
        options = spec.adopt_clip(options, origin.settings if origin else None)
        experiment = build.assemble(options, source.vocabulary, transport=transport)
        state, done = start.state(experiment, optimizer, checkpoints, origin)
        step = make_train_step(
            experiment.graphdef,
            optimizer,
            experiment.regime,
            mesh=experiment.mesh,
            outputs=options.model.outputs(),
            mean=options.data.mean,
            std=options.data.std,
            accumulate=options.train.accumulate,
            focal_weight=options.train.focal_weight,
            dice_weight=options.train.dice_weight,
            seed=options.seed,
        )
        judged, told = checkpoints.judged(done), settings.leaves(options)
        log = metric_writers.opened(options.log, workdir, done=done, judged=judged, settings=told)
        with log as writers:
            run = _Run(experiment, workdir, validation, checkpoints, schedule, writers, saved=done)
            run(step, state, done, start.batches(options, source, done))


@dataclass
class _Run:
    """The loop: feed, log, validate, save, stop when asked."""

    experiment: Experiment
    workdir: Path
    validation: Split
    checkpoints: Checkpoints
    schedule: optax.Schedule
    writers: Writers
    saved: int  # the last step that is in a checkpoint
    last: tuple[jax.Array, Mapping[str, jax.Array]] | None = None  # loss and batch of the last step

    def __post_init__(self) -> None:
        self.options, self.log = self.experiment.settings, Log(self.workdir, self.writers)
        self.watch = Watch(self.options, self.experiment.mesh)

    def __call__(
        self, step: Step, state: State, start: int, batches: Iterator[dict[str, np.ndarray]]
    ) -> None:
        """Run from `start` to the end; whatever stops it, the finished steps are saved."""
        self.done, self.state = start, state
        self._tell_kept()
        with processes.StopTogether() as self.stop:
            try:
                self._loop(step, batches)
            except BaseException as error:
                processes.end_if_lost(error)
                if not isinstance(error, KeyboardInterrupt):  # in which all agree
                    processes.end_soon(error)
                # a broken photo must not cost the steps since the last save
                alive = not any(leaf.is_deleted() for leaf in jax.tree.leaves(self.state))
                again = jax.process_count() == 1 and not isinstance(error, SaveError)
                if again and alive and self.done > self.saved:
                    self._check_finite()
                    self._save()
                raise
            finally:
                self.checkpoints.close()

    def _loop(self, step: Step, batches: Iterator[dict[str, np.ndarray]]) -> None:
        start, train, mesh, watch = self.done, self.options.train, self.experiment.mesh, self.watch
        bar = tqdm(total=train.steps, initial=start, unit="step", disable=jax.process_index() != 0)
        with bar, Trace(self.workdir / "profile", self.options.profile) as trace:
            # killed after it was saved and before it was evaluated, or complete: it shows its table
            if start == train.steps or (start and not self.checkpoints.judged(start)):
                self._evaluate()
            for done in range(start + 1, train.steps + 1):
                with trace.step(done):
                    with watch.waiting("data"):
                        images = next(batches)
                    batch = pipeline.put(images, sharding.by_image(mesh))
                    with watch.waiting("device"):  # it worked while this batch was read
                        self._check_finite()
                    given = self.experiment.frozen, self.experiment.text, batch, np.int32(done - 1)
                    with jax.set_mesh(mesh):
                        if done == start + 1:
                            program = memory.compile_step(step, (self.state, *given), train, mesh)
                            watch.compiled(program)
                        with watch.dispatching():
                            self.state, scalars = step(self.state, *given)
                self.done, self.last = done, (scalars["loss"], batch)
                bar.update()
                if trace.ends(scalars) or done == start + 1:  # the first compiles
                    jax.block_until_ready(scalars)
                    watch.restart()
                if done % train.log_every == 0 or done == train.steps:
                    with watch.waiting("device"):
                        self._check_finite()
                        scalars = jax.device_get(scalars)
                    bar.set_postfix(self._tell(scalars))
                if self._save_and_validate(self.stop.reached()):
                    watch.restart()
        watch.tell()

    def _save_and_validate(self, stopping: bool) -> bool:
        """Save and validate where it is time to; returns whether that took time."""
        train, done = self.options.train, self.done
        planned = done % train.checkpoint_every == 0 or done == restore.half(train.steps)
        save = stopping or planned or self._is_evaluated()
        if not save:
            if not self.checkpoints.saving():
                self._tell_kept()
            return False
        self._check_finite()
        self._save()
        if stopping:
            self.checkpoints.wait()
            raise self._stopped()
        self._evaluate()
        return True

    def _tell_kept(self, unless: str = "") -> None:
        """Where several processes would go on, if one of them ended now."""
        there = f"goes on from step {self.saved}" if self.saved else "begins again"
        processes.if_one_ends(f"the same command, in every process, {there}{unless}")

    def _stopped(self) -> KeyboardInterrupt:
        return KeyboardInterrupt(
            f"stopped after step {self.done}, which is saved: the same command goes on"
        )

    def _is_evaluated(self) -> bool:
        every, done = self.options.train.eval_every, self.done
        return done == self.options.train.steps or bool(every and done % every == 0)

    def _evaluate(self) -> None:
        """Evaluate the step that was saved last, where one is due, and keep it if it is best."""
        if not self._is_evaluated():
            return
        self.checkpoints.wait()  # a kill in the evaluation must not cost the steps before it
        self._tell_kept()

        def before_photo(number: int) -> None:
            if self.stop.reached():
                raise self._stopped()

        judged = (self.experiment, self.validation, self.state.trainable)
        train, images = self.options.train, self.options.train.eval_images
        last = self.done == train.steps
        known = self.checkpoints.judged(self.done)
        rows = list[Any]()
        draw: Callable[[Path], object]

        def on_photo(number: int, example: Mapping[str, Any], maps: Mapping[str, Any]) -> None:
            if number < report.SHOWN:
                main = maps[self.experiment.spec.outputs.main]
                rows.append((example["image"], example["label"], main))

        if last:
            images = self.options.eval.images
            results = report.report(
                *judged,
                self.workdir,
                where=f"{self.workdir}, step {self.done}",
                log=self.workdir / charts.LOG,
                before_photo=before_photo,
                on_results=(lambda results: None) if known else self._tell_results,
            )
            draw = partial(shutil.copyfile, self.workdir / "predictions.png")
        else:
            found = report.evaluate_split(
                *judged, images=images, on_photo=on_photo, before_photo=before_photo
            )
            results = found.results
            if not known:
                self._tell_results(results)
            draw = partial(figures.panel, rows=rows, vocabulary=self.experiment.vocabulary)
        if known:
            return
        self.log.write_picture(self.done, draw)
        metrics = self._figures(results, images)
        if last:
            # the best of a run is found by the photos of all its evaluations
            same = self._figures(results, train.eval_images)
            if 0 < train.eval_every < train.steps and same["images"] != metrics["images"]:
                images = train.eval_images
                found = report.evaluate_split(*judged, images=images, before_photo=before_photo)
                metrics = self._figures(found.results, images)
        # it comes last: it says that this step needs no evaluation
        self.checkpoints.judge(self.done, metrics)

    def _tell_results(self, results: Mapping[str, Any]) -> None:
        """Log an evaluation; draw the last."""
        self.log.write_results(self.done, results, main=self.experiment.spec.outputs.main)
        if self.done == self.options.train.steps:
            self.log.draw()

    def _save(self) -> None:
        self.checkpoints.save(
            self.done,
            self.state._asdict(),
            self.experiment.record.to_json(),
            text=np.asarray(self.experiment.text),
        )
        self.saved = self.done
        self._tell_kept(", or from the save before it, if this one was still under way")

    def _check_finite(self) -> None:
        """End the run if the last step could not be taken: save the state before it, its batch."""
        if self.last is None or np.isfinite(jax.block_until_ready(self.last[0])):
            return
        batch, self.done = self.log.write_batch(self.done, self.last[1]), self.done - 1
        if self.done > self.saved:
            self._save()
        self.checkpoints.wait()
        raise ValueError(
            f"training diverged: no finite loss or gradient in step {self.done + 1}, whose batch "
            f"is in {batch}; step {self.done} is {'saved' if self.done else 'the start'}. Start a "
            "new --workdir with a lower --config.train.learning_rate or --config.dtype=float32"
        )

    def _figures(self, results: Mapping[str, Any], images: int) -> dict[str, Any]:
        """What is saved of an evaluation: figures of the main output, and of how many photos."""
        main = results[self.experiment.spec.outputs.main]
        kept = {name: value for name, value in main.items() if name != "iou"}
        return {**kept, "images": len(report.photos(len(self.validation), images))}

    def _tell(self, scalars: Mapping[str, np.ndarray]) -> dict[str, str]:
        """Log the figures of a step; return what the progress bar shows of them."""
        numbers = {name: float(value) for name, value in scalars.items()}
        rate = float(self.schedule(self.done - 1))
        measured = self.watch.figures(last=self.done == self.options.train.steps)
        self.log.write(self.done, {**numbers, "learning_rate": rate, **measured})
        shown = {name: f"{value:.3g}" for name, value in numbers.items() if "accuracy" not in name}
        speed = measured.get("images_per_second")
        return shown if speed is None else {**shown, "images/s": f"{speed:.3g}"}
