"""Compiled programs survive the process that made them."""

import os
import subprocess
import sys

PROGRAM = """
import jax, jax.numpy as jnp
from otseg_jax import compile_cache
compile_cache.SLOW = 0.0
compile_cache.keep({folder!r})
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))
print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((7, 7)))[0, 0])
print("hit" if "/jax/compilation_cache/cache_hits" in hits else "compiled")
"""


def run(folder, **variables):
    outside = {n: v for n, v in os.environ.items() if not n.startswith("JAX_COMPILATION")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(folder=folder)],
        env={**outside, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_the_second_process_compiles_nothing(tmp_path):
    folder = str(tmp_path / "xla")
    first, second = run(folder), run(folder)
    assert (first[1], second[1]) == ("compiled", "hit")
    assert first[0] == second[0]
    (place,) = (tmp_path / "xla").iterdir()
    assert place.name.startswith("jaxlib-")


def test_the_variable_of_jax_comes_first(tmp_path):
    run(str(tmp_path / "xla"), JAX_COMPILATION_CACHE_DIR="")
    assert not (tmp_path / "xla").exists()
