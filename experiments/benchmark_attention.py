"""A kernel for attention against all heads at once, on this accelerator.

    python -m experiments.benchmark_attention      # → benchmark_attention_DEVICE.json, a minute

bfloat16 factors, the sizes of the towers: a batch of 16 images of 512 × 512 in the vision tower,
two prompts in the text tower. Errors are the largest difference from float32 products, of the
result and of the gradients; memory is what the compiler plans for the gradients beside them.
"""

import json
import statistics
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.grid import result_of, table
from otseg_jax.models import attention, kernels

SIZES = {"vision": (16, 1035, False), "text": (2, 77, True)}  # images, tokens, causal
HEADS, CHANNELS = 12, 64
KERNELS = {"gpu": kernels.cudnn, "tpu": kernels.pallas}
CALLS, ROUNDS = 30, 5


def seconds(function: Any, arrays: Any) -> float:
    """Of a call, many of which are under way at once; median of rounds."""
    jax.block_until_ready(function(*arrays))
    found = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            result = function(*arrays)
        jax.block_until_ready(result)
        found.append((time.perf_counter() - start) / CALLS)
    return statistics.median(found)


def measure(attend: Any, exact: Any, arrays: tuple[jax.Array, ...]) -> dict[str, float]:
    """Time, memory and errors of a way to attend."""

    def gradients(attend: Any, query: Any, key: Any, value: Any, weight: Any) -> Any:
        return jax.vjp(attend, query, key, value)[1](weight)

    forward, backward = jax.jit(attend), jax.jit(partial(gradients, attend))
    compiled: Any = backward.lower(*arrays).compile().memory_analysis()

    def error(ours: Any, theirs: Any) -> float:
        both = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
        return max(float(jnp.abs(one - other).max()) for one, other in both)

    inputs = arrays[:3]
    return {
        "forward_us": round(1e6 * seconds(forward, inputs)),
        "with_gradient_us": round(1e6 * seconds(backward, arrays)),
        "planned_mb": round(compiled.temp_size_in_bytes / 1e6),
        "error": error(forward(*inputs), jax.jit(exact)(*inputs)),
        "error_of_gradient": error(backward(*arrays), jax.jit(partial(gradients, exact))(*arrays)),
    }


def main() -> None:
    """Measure, write and print."""
    rows: list[dict[str, Any]] = []
    for name, (images, tokens, causal) in SIZES.items():
        shape = 4, images, tokens, HEADS, CHANNELS
        drawn = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        arrays: Any = tuple(map(jnp.asarray, drawn))
        at_once = partial(attention.at_once, causal=causal)
        ways = {"at once": partial(at_once, dtype=jnp.bfloat16)}
        if kernel := KERNELS.get(jax.default_backend()):
            ways["kernel"] = partial(kernel, causal=causal)
        exact = partial(at_once, dtype=jnp.float32)
        rows += [{"sizes": name, "way": way} | measure(f, exact, arrays) for way, f in ways.items()]
    record = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "rows": rows}
    result_of(__file__).write_text(json.dumps(record, indent=1) + "\n")
    print(table([[str(x) for x in row.values()] for row in rows], *rows[0]))


if __name__ == "__main__":
    main()
