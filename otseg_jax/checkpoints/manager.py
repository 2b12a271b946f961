"""Orbax, as the first process alone has it: arrays by name and JSON into a folder per step."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Float32

from otseg_jax.checkpoints.retention import Retention
from otseg_jax.weights import names


class Manager(ocp.CheckpointManager):
    """Orbax's manager, of one process; what it raises comes from its threads and has any type."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        retention: Retention,
        on_written: Callable[[], None],
    ) -> None:
        """`on_written` is called when all of a step is written, just before the rename."""
        super().__init__(
            directory,
            options=ocp.CheckpointManagerOptions(
                create=False,
                # Orbax would stop at the first step with unreadable metrics
                lightweight_initialize=True,
                preservation_policy=retention,
                async_options=ocp.AsyncOptions(post_finalization_callback=on_written),
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    active_processes={0}, barrier_sync_key_prefix="first"
                ),
            ),
        )

    def reached_preemption(self, step: int) -> bool:
        """Never: JAX counts who asks it, and `processes.StopTogether` counts otherwise."""
        return False

    def begin(
        self,
        step: int,
        leaves: Mapping[str, Any],
        meta: Mapping[str, Any],
        text: Float32[np.ndarray, "k n c"] | None,
    ) -> None:
        """Begin to save; returns once the arrays are copied off the device."""
        if jax.process_count() > 1:  # all have all of them: Orbax would look for the others' parts
            leaves = jax.device_get(leaves)
        items = {"state": ocp.args.PyTreeSave(names.nest(leaves)), "meta": ocp.args.JsonSave(meta)}
        if text is not None:
            items["text"] = ocp.args.PyTreeSave({"embeddings": text})
        # force: when to save is the caller's decision, not that of Orbax's interval
        self.save(step, args=ocp.args.Composite(**items), force=True)

    def read(self, step: int, item: str, leaves: Iterable[str] = ()) -> Any:
        """The arrays of an item by name, those that are named; its JSON where none is."""
        tree = names.nest(dict.fromkeys(leaves, 0))
        wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arrays = ocp.args.PyTreeRestore(tree, restore_args=wanted, partial_restore=True)
        args = ocp.args.Composite(**{item: arrays if leaves else ocp.args.JsonRestore()})
        found = self.restore(step, args=args)[item]
        return names.flatten(found) if leaves else found
