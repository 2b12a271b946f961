"""What a step takes is told before it is taken, and the mend holds."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np

from otseg_jax.training import memory


def _compiled(parts, images=8):
    """Images that are worked through in parts, each of which takes 4 MB an image."""

    def whole(images, weights):
        def part(images):
            return (jnp.tanh(images @ weights) @ weights.T).sum()

        return jax.lax.map(part, images.reshape(parts, -1, 4)).sum()

    return jax.jit(whole).lower(jnp.zeros((images, 4)), jnp.zeros((4, 1_000_000))).compile()


def test_the_suggested_parts_fit():
    held, own = memory.needed(_compiled(1))
    available = held + own // 3
    told = memory.doubt(_compiled(1), images=8, accumulate=1, available=available)
    assert "--config.train.accumulate=4 takes about" in told
    assert sum(memory.needed(_compiled(4))) <= available < sum(memory.needed(_compiled(2)))


def test_what_fits_and_what_nothing_mends():
    compiled = _compiled(1)
    need = sum(memory.needed(compiled))
    assert memory.doubt(compiled, images=8, accumulate=1, available=need) == ""
    assert memory.doubt(compiled, images=8, accumulate=1, available=0) == ""
    told = memory.doubt(compiled, images=8, accumulate=1, available=need // 100)
    assert "one image at a time (--config.train.accumulate=8): take that and a smaller" in told


def test_the_limit_of_this_machine():
    assert 2**28 < memory.limit(jax.devices()[0]) < 2**50


def test_a_device_that_is_full_is_one_line():
    code = "from otseg_jax import cli; import jax; cli.run(lambda: jax.numpy.zeros(2**50) + 1)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: out of memory")
    assert "--config.train.accumulate" in line


def test_an_order_of_work_that_holds_less():
    """XLA knows the option, and the results have the same bits."""
    x = jnp.ones((64, 64)) / 64
    make = jax.jit(lambda x: jnp.tanh(x @ x) @ x)
    frugal = make.lower(x).compile(compiler_options=memory.frugal("cpu"))
    np.testing.assert_array_equal(frugal(x), make(x))
    assert memory.frugal("tpu") == {}
    np.testing.assert_array_equal(memory.compile_and_trim(make.lower(x))(x), make(x))
