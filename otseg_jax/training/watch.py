"""Where the time of training steps goes, what the device makes of it, and a trace to look into.

Nothing is waited for in order to measure. What the host waits for a step that is not done is the
device's time; so is what a dispatch takes beyond the shortest one, as the device's queue is full.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Compiled

from otseg_jax import devices
from otseg_jax.settings import Settings

LOGGER = logging.getLogger(__name__)

PARTS = ("data", "device", "host")  # of a step's time
# what a line of the log holds of it, which is another in every run
FIGURES = (
    *("images_per_second", "step_seconds", *(f"{part}_seconds" for part in PARTS)),
    *("flops_per_second", "peak_fraction", "bottleneck"),
)
ADVICE = {  # by the part that takes most
    "data": "photos come too slowly: more --config.data.threads, or smaller ones",
    "device": "as it should be",
    "host": "dispatch and logs: a larger --config.train.log_every or train.batch_size",
}


class Watch:
    """Splits the time of steps into waiting for data, the device's, and the host's own.

    Figures are this process's own; that one waits for another looks like waiting for its device.
    """

    def __init__(self, options: Settings, mesh: Mesh) -> None:
        self.images, peak = options.train.batch_size, devices.peak(mesh.local_devices[0])
        self.peak = peak.rate(options.dtype) if peak else None
        self.operations = 0.0  # of a device in a step
        self.total, self.steps = dict.fromkeys(PARTS, 0.0), 0
        self.restart()

    def compiled(self, step: Compiled) -> None:
        """Take XLA's count of a step's operations on each device; of a loop it counts one round."""
        self.operations = (step.cost_analysis() or {}).get("flops", 0.0)

    def restart(self) -> None:
        """Begin anew: what went before was no training."""
        self.began, self.spent = time.perf_counter(), dict.fromkeys(PARTS, 0.0)
        self.dispatches = list[float]()

    @contextlib.contextmanager
    def waiting(self, part: str) -> Iterator[None]:
        """Count the block as waiting, for "data" or the "device"."""
        start = time.perf_counter()
        yield
        self.spent[part] += time.perf_counter() - start

    @contextlib.contextmanager
    def dispatching(self) -> Iterator[None]:
        """The block dispatches a step."""
        start = time.perf_counter()
        yield
        self.dispatches.append(time.perf_counter() - start)

    def figures(self, *, last: bool = False) -> dict[str, Any]:
        """Means of the steps since the last time, which begin anew; nothing if there were none.

        The last ones have the bottleneck of all steps beside them.
        """
        steps, whole = len(self.dispatches), time.perf_counter() - self.began
        if not steps:
            return {}
        self.spent["device"] += sum(self.dispatches) - steps * min(self.dispatches)
        self.spent["host"] = whole - self.spent["data"] - self.spent["device"]
        self.steps += steps
        self.total = {part: self.total[part] + self.spent[part] for part in PARTS}
        found: dict[str, Any] = {f"{part}_seconds": self.spent[part] / steps for part in PARTS}
        self.restart()
        found |= {"images_per_second": self.images * steps / whole, "step_seconds": whole / steps}
        found |= self._rates(whole / steps)
        return found | ({"bottleneck": self.bottleneck} if last else {})

    def _rates(self, seconds: float) -> dict[str, float]:
        """Operations a second of a device, and their part of what it can do at best."""
        if not self.operations:
            return {}
        rate = self.operations / seconds
        return {"flops_per_second": rate} | (
            {"peak_fraction": rate / self.peak} if self.peak else {}
        )

    @property
    def bottleneck(self) -> str:
        """The part that took most of all steps."""
        return max(PARTS, key=self.total.__getitem__)

    def tell(self) -> None:
        """Say where the time of all steps went."""
        if not self.steps or jax.process_index():
            return
        whole, most = sum(self.total.values()), self.bottleneck
        shares = ", ".join(f"{part} {self.total[part] / whole:.0%}" for part in PARTS)
        rates = self._rates(whole / self.steps)
        made = f"; {rates['flops_per_second'] / 1e12:.3g} TFLOP/s a device" if rates else ""
        made += f", {rates['peak_fraction']:.0%} of its peak" if "peak_fraction" in rates else ""
        told = "A step took %.3g s: %s%s. Bottleneck: %s (%s)"
        LOGGER.info(told, whole / self.steps, shares, made, most, ADVICE[most])


class Trace:
    """A trace of some steps, from the second on, which xprof and TensorBoard open.

    Of several processes the first is traced.

    Args:
        folder: gets `plugins/profile/`.
        steps: how many; 0: none, and nothing is written.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.left = 0 if jax.process_index() else steps
        self.folder, self.running, self.first = folder, False, True

    def __enter__(self) -> "Trace":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """The block reads, places and dispatches a step."""
        if self.left and not self.first and not self.running:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # of jax 0.7, it crashes while other threads work
            jax.profiler.start_trace(str(self.folder), profiler_options=options)
            self.running = True
        self.first = False  # it compiles
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def ends(self, results: object) -> bool:
        """End it where its steps are done, which waits for these results; whether it did."""
        if not self.running:
            return False
        self.left -= 1
        if not self.left:
            jax.block_until_ready(results)
            self._stop()
        return not self.left

    def _stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            LOGGER.info("Traced steps: pip install xprof, then xprof --logdir=%s", self.folder)
