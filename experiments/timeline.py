"""How long a call of compiled programs takes for products, and how long for all else: for a CPU."""

import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

PRODUCTS = re.compile("ynn_fusion|dot|convolution")  # what XLA calls them
Span = tuple[float, float]  # (begin, end), ns


def profile_ms(call: Callable[[], Any]) -> dict[str, float]:
    """Milliseconds from a call's first operation to its last, by what is under way.

    A product; only something else; or neither, "untraced": between operations, and in products that
    the profiler does not follow, those of transposed factors. What XLA's library computes with a
    product (exponentials of its result, sums) counts as it, and so do that library's sums alone.
    Of three calls that of the shortest.
    """
    return min((_profile(call) for _ in range(3)), key=lambda found: sum(found.values()))


def _profile(call: Callable[[], Any]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(ProfileData.from_file(str(file)).planes)
    operations: list[tuple[str, Span]] = [
        (event.name, (event.start_ns, event.end_ns))
        for plane in planes
        for line in plane.lines
        for event in line.events
        if "hlo_op" in dict(event.stats)
    ]
    everything = [span for _, span in operations]
    whole = max(end for _, end in everything) - min(begin for begin, _ in everything)
    busy = covered(everything)
    products = covered(span for name, span in operations if PRODUCTS.match(name))
    found = {"products": products, "else": busy - products, "untraced": whole - busy}
    return {what: round(ns / 1e6, 1) for what, ns in found.items()}


def covered(spans: Iterable[Span]) -> float:
    """Length of what at least one of them covers."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0, end - max(begin, reached))
        reached = max(reached, end)
    return total
