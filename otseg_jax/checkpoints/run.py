"""Checkpoints: what a run needs to go on, and what a stranger needs to use its model.

One folder per step under the directory of a run, written in the background by Orbax and put in
place by one rename, so that a folder named by a number is complete. It holds

- `state`: the arrays of the training state, each under its plain name ("trainable/q_proj/kernel");
- `meta`: JSON with the run's own description, and name, dtype and shape of every array;
- `text`: the text embeddings, where they were given;
- `metrics.json`: of its evaluation, once there was one: a run saves before it evaluates;
- `files.json`: the manifest, as Orbax itself restores flipped bits without a word.
"""

import contextlib
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from otseg_jax import paths, processes
from otseg_jax.checkpoints import manifest
from otseg_jax.checkpoints.failure import Deleted, SaveError, listing, reason, remove_unfinished
from otseg_jax.checkpoints.manager import Manager
from otseg_jax.checkpoints.retention import Retention
from otseg_jax.data.lists import some
from otseg_jax.weights import names

LOGGER = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: the newest, the best, and the named milestones are kept.

    Of several processes the first alone reads and writes, and tells the others: they need not see
    the folder. All call every method together, in the same order, but for `saving` and `close`.
    Reading never writes: no folder is created before the first `save`, and none is cleaned up.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> state = {"prompts": jnp.arange(3.0)}
        >>> with tempfile.TemporaryDirectory() as run, Checkpoints(run) as checkpoints:
        ...     checkpoints.save(10, state, {"classes": ["cat"]})
        ...     checkpoints.judge(10, {"hiou": 41.4})
        ...     checkpoints.best_step(), checkpoints.restore(10, state)["prompts"].tolist()
        (10, [0.0, 1.0, 2.0])
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        milestones: Collection[int] = (),
        metric: str = "hiou",
    ) -> None:
        """Open the checkpoints of a run, or get ready to write the first.

        Args:
            directory: a folder; need not exist, and may not be a file.
            milestones: steps never deleted, such as the one that a transductive run starts from.
            metric: key of `judge(metrics)` that decides which is best; higher is better.
        """
        self.directory = os.fspath(paths.resolve(directory))
        self._retention, self._saving = Retention(milestones=milestones, metric=metric), -1
        self._open()

    @processes.by_first
    def _open(self) -> None:
        folder = paths.resolve(self.directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{self.directory} is a file; wanted a folder of checkpoints")
        self._manager = Manager(folder, self._retention, self._write_manifest)
        for step in self._manager.all_steps():
            try:
                self._retention.judge(step, self._metrics(step))
            except Deleted:
                pass  # by a training that goes on here
            except ValueError as error:
                self._retention.keep(step)
                LOGGER.warning("%s; it is kept, and cannot be the best", error)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for a running save, then release Orbax's threads; others are not asked."""
        if processes.is_first():
            try:
                self._settle()
            finally:
                self._manager.close()

    @processes.by_first
    def wait(self) -> None:
        """Wait until a running save is complete on disk; a `SaveError` if it failed."""
        self._settle()

    def saving(self) -> bool:
        """Whether a save is running, which only the first process knows; others are not asked.

        Raises:
            SaveError: one has failed by now; of several processes `save` and `wait` tell all.
        """
        running = not processes.is_first() or self._manager.is_saving_in_progress()
        if not running and jax.process_count() == 1:
            self._settle()
        return running

    @processes.by_first
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending; waits for a running save."""
        self._settle()
        return sorted(self._manager.all_steps())

    @processes.by_first
    def latest_step(self) -> int | None:
        """The newest step, or None where there is no checkpoint."""
        return max(self.steps(), default=None)

    @processes.by_first
    def best_step(self) -> int | None:
        """The step with the highest metric, or None where none has it; as `Retention.best`."""
        return self._retention.best(self.steps())

    @processes.by_first
    def save(
        self,
        step: int,
        state: Any,
        meta: Mapping[str, Any],
        *,
        text: Float32[np.ndarray, "k n c"] | None = None,
    ) -> None:
        """Save a checkpoint in the background; returns once the arrays are copied off the device.

        When it is complete, older ones are deleted unless best, milestone or unreadable.

        Args:
            step: finished optimiser steps, above every step that is already there.
            state: pytree of arrays under names.
            meta: JSON object; tuples come back as lists.

        Raises:
            ValueError: another kind of step, state or meta; all problems at once, nothing written.
            SaveError: this save or the one before it failed.
        """
        problems: list[str] = []
        try:
            leaves = names.flatten(state)
        except ValueError as error:
            leaves, problems = {}, [str(error)]
        latest = self.latest_step()
        if latest is not None and step <= latest:
            problems.append(
                f"step {latest} is there already: resume from it, choose another --workdir, or "
                f"move {self.directory}/{latest} away"
            )
        record, strange = manifest.record(leaves, meta, has_text=text is not None)
        problems += strange
        if problems:
            raise ValueError(
                f"cannot save step {step} to {self.directory}: {some(problems, mark='; ')}"
            )

        self._saving = step
        try:
            self._manager.directory.mkdir(parents=True, exist_ok=True)
            remove_unfinished(self._manager.directory)
            self._manager.begin(step, leaves, record, text)
        except Exception as error:  # any type: Orbax writes a part of it at once
            raise self._failed(error) from error

    @processes.by_first
    def judge(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Put the metrics of an evaluation beside a step that was saved, and keep what is best.

        Args:
            metrics: JSON; null is stored for what is not finite.

        Raises:
            ValueError: there is no such step.
            OSError: they cannot be written.
        """
        self._check_present(step)
        found, folder = manifest.plain(metrics), self._manager.directory / str(step)
        manifest.write_metrics(folder, found)
        self._retention.judge(step, found)
        for old in sorted({*self.steps()} - self._retention.kept(self.steps())):
            with paths.writing(self.directory):
                self._manager.delete(old)

    def keep(self, step: int) -> None:
        """Make a step one of the milestones."""
        self._retention.keep(step)

    @processes.by_first
    def judged(self, step: int) -> bool:
        """Whether the metrics of a step are there."""
        return (self._manager.directory / str(step) / manifest.METRICS).exists()

    def restore(self, step: int, abstract_state: Any) -> Any:
        """Restore the state of a step into the shapes and shardings of `abstract_state`.

        Args:
            abstract_state: pytree of arrays or `jax.ShapeDtypeStruct`; a leaf without a sharding
                goes to the first local device. Whole entries of the top level may be left out,
                such as the optimiser state; else every name, shape and dtype must agree.

        Raises:
            ValueError: no such step, another model's (all differences told), or a damaged one.
        """
        return names.place(abstract_state, self.read_state(step, abstract_state))

    @processes.by_first
    def read_state(self, step: int, abstract_state: Any) -> dict[str, np.ndarray]:
        """The arrays of `restore` by name, in memory."""
        targets = names.flatten(abstract_state)
        problems = names.differences(self._record(step)["leaves"], names.describe(targets))
        if problems:
            raise ValueError(
                f"{self.directory}/{step} does not fit this model: {some(problems, mark='; ')}. "
                "Use the configuration that it was trained with (read_meta returns it)"
            )
        return self._read(step, "state", targets)

    @processes.by_first
    def read_meta(self, step: int) -> dict[str, Any]:
        """What was saved as `meta`; a ValueError where there is no such step, or a damaged one."""
        return self._record(step)["meta"]

    @processes.by_first
    def read_text(self, step: int) -> Float32[np.ndarray, "k n c"]:
        """The text embeddings that were saved with a step; a ValueError also where none were."""
        if not self._record(step)["has_text"]:
            raise ValueError(f"{self.directory}/{step} was saved without text embeddings")
        return self._read(step, "text", ["embeddings"])["embeddings"]

    def _settle(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # any type: it comes from Orbax's threads
            raise self._failed(error) from error

    def _check_present(self, step: int) -> None:
        if step not in (present := self.steps()):
            raise ValueError(
                f"no checkpoint of step {step} in {self.directory} (there: {listing(present)}). "
                "Choose one of these, or check --workdir"
            )

    def _read(self, step: int, item: str, leaves: Collection[str] = ()) -> Any:
        self._check_present(step)
        cause, folder = None, self._manager.directory / str(step)
        try:
            if not (problems := manifest.damage(folder, item)):
                return self._manager.read(step, item, leaves)
        except Exception as error:  # tensorstore has no type for damage
            problems, cause = [reason(error)], error
        if manifest.is_deleted(folder):
            self._manager.reload()
            raise Deleted(self.directory, step, self.steps())
        others = listing({*self.steps()} - {step})
        raise ValueError(
            f"{item} of {self.directory}/{step} is damaged: {some(problems, mark='; ')}. Put a "
            f"copy in its place, or use another step (there: {others}); nothing was changed"
        ) from cause

    def _record(self, step: int) -> dict[str, Any]:
        return self._read(step, "meta")

    def _metrics(self, step: int) -> Mapping[str, Any]:
        if self._record(step).get("metrics"):
            raise ValueError(f"{self.directory}/{step}: an earlier otseg_jax stored its metrics")
        return manifest.read_metrics(self._manager.directory / str(step)) or {}

    def _failed(self, error: Exception) -> SaveError:
        with contextlib.suppress(OSError):
            remove_unfinished(self._manager.directory)
            self._manager.reload()  # its list already lacks the steps that were to be deleted
        steps = [step for step in self._manager.all_steps() if step != self._saving]
        return SaveError(
            f"saving step {self._saving} to {self.directory} failed ({reason(error)}); "
            f"kept: {listing(steps)}. Check free space and permissions"
        )

    def _write_manifest(self) -> None:
        # Orbax calls this when all is written, just before the rename
        name = str(self._saving)
        for folder in self._manager.directory.iterdir():
            if folder.name == name or folder.name.startswith(f"{name}.orbax-checkpoint-tmp"):
                manifest.write(folder)
