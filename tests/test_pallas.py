"""The kernel, interpreted, against `newton`; and that it is lowered for GPU and TPU."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import relative_error, x64

from otseg_jax.ot import newton, pallas
from otseg_jax.ot.sinkhorn import mps, sinkhorn

KERNELS = {device: pallas.Newton(interpret=device) for device in ("cuda", "tpu")}
each_device = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)


def regimes(m: int, n: int) -> np.ndarray:
    """Cosines like a CLIP's, uniform ones, and of few pixels that most prompts compete for."""
    rng = np.random.default_rng(0)
    clip = 0.2 + 0.06 * rng.normal(size=(m, 1)) + 0.05 * rng.normal(size=(m, n))
    uniform = rng.uniform(-1, 1, (m, n))
    first = np.arange(m)[:, None] < 0.9 * m
    hard = np.where(first == (np.arange(n) == 0), 0.9, -0.9) + rng.uniform(-0.1, 0.1, (m, n))
    return np.float32([clip, uniform, hard])


def marginals(problems: int, m: int, n: int):
    """Weights, uniform for the first problem; of the second some are 0."""
    rng = np.random.default_rng(1)
    weights = [rng.uniform(0.5, 1.5, (problems, size)) for size in (m, n)]
    for x in weights:
        x[0] = 1.0
        x[1, 1::3] = 0.0
        x /= x.sum(-1, keepdims=True)
    return [jnp.asarray(x, jnp.float32) for x in weights]


@functools.partial(jax.jit, static_argnames=("solver", "epsilon"))
def align(similarity, a, b, *, solver, epsilon):
    """What `mps` is made of, and the plan."""
    options = {"epsilon": epsilon, "tolerance": 1e-6}
    aligned = solver.align(similarity, similarity, a, b, **options)
    return aligned, solver.solve(similarity, a, b, **options)


@pytest.mark.parametrize(
    ("device", "m", "n", "epsilon"),
    [(device, 1035, 6, 0.05) for device in KERNELS]
    + [(device, 37, 5, 0.01) for device in KERNELS]  # in the log domain
    + [("cuda", m, n, 0.05) for m, n in ((1, 1), (5, 3))],
)
def test_results_equal_those_of_newton(device, m, n, epsilon):
    similarity = jnp.asarray(np.swapaxes(regimes(m, n), -1, -2))
    arrays = similarity, *marginals(3, m, n)
    expected, solved = align(*arrays, solver=newton, epsilon=epsilon)
    actual, solved_on_chip = align(*arrays, solver=KERNELS[device], epsilon=epsilon)
    np.testing.assert_array_equal(actual.steps, solved_on_chip.steps)
    # 0.01: rounding decides when a hard problem is within the tolerance, which 1/ε enlarges
    error, steps = (1e-6, 0) if epsilon == 0.05 else (1e-5, 1)
    assert np.abs(actual.steps - expected.steps).max() <= steps
    share = np.where(arrays[1] == 0, 1.0, arrays[1])  # of a pixel, as `mps` scales it
    np.testing.assert_allclose(actual.aligned / share, expected.aligned / share, atol=error)
    assert relative_error(solved_on_chip.plan, solved.plan) < error
    np.testing.assert_array_equal(solved_on_chip.potentials == -np.inf, arrays[2] == 0)


@each_device
def test_scores_plans_and_gradients_by_the_public_doors(kernel):
    similarity = jnp.asarray(regimes(37, 5))
    pixels, prompts = jnp.arange(37.0) % 3, jnp.ones(5)

    def loss(similarity, pixels, prompts, **options):
        weights = {"pixel_weights": pixels, "prompt_weights": prompts}
        scores = mps(similarity, **weights, **options)
        return jnp.sum(scores * jnp.cos(jnp.arange(111.0)).reshape(3, 37)), scores

    def all_of(**options):
        gradient = jax.grad(functools.partial(loss, **options), argnums=(0, 1, 2), has_aux=True)
        return jax.jit(gradient)(similarity, pixels, prompts)

    expected, actual = all_of(), all_of(solver=kernel)
    # the residual of the tolerance and rounding, both over ε
    for one, other, error in zip(
        jax.tree.leaves(actual), jax.tree.leaves(expected), (5e-6, 5e-6, 5e-6, 1e-6), strict=True
    ):
        assert relative_error(one, other) < error
    mapped = jax.jit(jax.vmap(functools.partial(sinkhorn, solver=kernel)))
    np.testing.assert_allclose(mapped(similarity), sinkhorn(similarity), atol=1e-6 / 37)


@each_device
def test_a_problem_stops_on_its_own(kernel):
    """Its steps and bits are those it has alone, whatever is in the batch, NaN included."""
    easy, _, hard = np.swapaxes(regimes(37, 5), -1, -2)
    similarity = jnp.asarray([easy, hard, np.full_like(easy, np.nan), easy])
    a, b = jnp.full((4, 37), 1 / 37), jnp.full((4, 5), 1 / 5)
    solve = functools.partial(align, a=a, b=b, solver=kernel, epsilon=0.01)
    _, together = solve(similarity)
    assert together.steps[0] + 5 < together.steps[1]
    assert np.all(np.isnan(together.plan[2]))
    # one shape and hence one program: interpreted, XLA rounds a grid of 1 in its own way
    for i in range(4):
        _, alone = solve(jnp.broadcast_to(similarity[i], similarity.shape))
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], other[i])


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("device", "call"), [("cuda", "__gpu$xla.gpu.triton"), ("tpu", "tpu_custom_call")]
)
def test_it_is_lowered_for_devices_that_are_not_here(device, call):
    context = contextlib.nullcontext()
    if device == "cuda" and jax.__version_info__ >= (0, 12):  # which asks what GPU it is
        h100 = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", None, "gpu")
        mesh = jax.sharding.AbstractMesh((), (), abstract_device=h100)
        context = jax.sharding.use_abstract_mesh(mesh)

    def lowered(m, n, dtype=jnp.float32, epsilon=0.05, **options):
        function = functools.partial(mps, epsilon=epsilon, on_error="ignore", **options)
        traced = jax.jit(function).trace(jax.ShapeDtypeStruct((4, m, n), dtype))
        return traced.lower(lowering_platforms=(device,)).as_text()

    kernel = {"solver": pallas.Newton()}
    with context:
        assert call in lowered(1024, 8, **kernel)
        assert call in lowered(1035, 6, epsilon=0.01, **kernel)
        assert call not in lowered(1024, 8)  # it is a choice
        assert call not in lowered(4096, 16, **kernel)  # too large for a chip
        with x64(True):
            assert call not in lowered(64, 8, jnp.float64, **kernel)
