"""The converged solver: its gradients, its properties, and that nothing in its range breaks it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from oracles import numbers, relative_error, x64
from scipy.optimize import linprog
from scipy.special import logsumexp, softmax

from otseg_jax.ot import laplacian
from otseg_jax.ot.sinkhorn import mps, sinkhorn, solve

# Few shapes, used again and again: each new one is compiled.
PROBLEMS, PIXELS, PROMPTS = 3, 40, 5
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=15, deadline=None, derandomize=True)


def random_similarity(seed: int, *shape: int) -> np.ndarray:
    """Cosines of random directions, in a space of few or many dimensions, sharp or all alike."""
    rng = np.random.default_rng(seed)
    shape = shape or (PROBLEMS, PIXELS, PROMPTS)
    dimensions = rng.integers(2, 30)
    pixels = rng.normal(size=(*shape[:-1], dimensions)) + rng.normal(size=dimensions)
    prompts = rng.normal(size=(*shape[:-2], shape[-1], dimensions))
    pixels /= np.linalg.norm(pixels, axis=-1, keepdims=True)
    prompts /= np.linalg.norm(prompts, axis=-1, keepdims=True)
    return np.float32(pixels @ np.swapaxes(prompts, -1, -2))


def exact_plan(similarity, epsilon: float) -> np.ndarray:
    """Float64 Sinkhorn of one problem with uniform marginals, run until nothing moves."""
    m, n = similarity.shape
    kernel = (np.float64(similarity) - 1.0) / epsilon
    v = np.zeros(n)
    for _ in range(20000):
        u = -np.log(m) - logsumexp(kernel + v, axis=1)
        step = -np.log(n) - logsumexp(kernel + u[:, None], axis=0) - v
        v += step
        if np.ptp(step) < 1e-13:
            return softmax(kernel + v, axis=1) / m
    raise AssertionError("the oracle did not converge")


def marginal_errors(plan) -> np.ndarray:
    plan = np.asarray(plan, np.float64)
    m, n = plan.shape[-2:]
    rows = np.abs(plan.sum(-1) - 1 / m).sum(-1)
    return rows + np.abs(plan.sum(-2) - 1 / n).sum(-1)


@pytest.mark.parametrize(("name", "epsilon"), [("easy", 0.05), ("hard", 0.05), ("hard", 0.01)])
def test_plan_is_the_limit_of_sinkhorn_in_few_steps(name, epsilon):
    similarity = numbers("otseg_tiny_io")[f"mps_{name}_similarity"]
    solution = solve(jnp.asarray(similarity), epsilon=epsilon)
    expected = np.stack([exact_plan(s, epsilon) for s in similarity])
    # kernel entries are exp(-x), x up to 40 (ε 0.05) or 200 (ε 0.01), each x rounded to 24 bits
    assert relative_error(solution.plan, expected) < (5e-6 if epsilon == 0.05 else 2e-5)
    assert marginal_errors(solution.plan).max() < 1.2e-6
    assert solution.steps.max() <= (5 if epsilon == 0.05 else 16)


def test_gradient_equals_the_unrolled_one_in_float64():
    with x64(True):
        similarity = jnp.asarray(random_similarity(1), jnp.float64)
        weights = jnp.cos(jnp.arange(PROBLEMS * PIXELS, dtype=jnp.float64))

        def loss(similarity, **options):
            scores = mps(similarity, **options).ravel()
            return jnp.sum(weights * scores**2)

        def gradient(similarity, **options):
            return jax.jit(functools.partial(jax.grad(loss), **options))(similarity)

        unrolled = gradient(similarity, iterations=1500)
        assert relative_error(gradient(similarity, tolerance=1e-12), unrolled) < 1e-8
        # at the default tolerance the plan is off by up to 1e-6, and so is its gradient
        assert relative_error(gradient(similarity), unrolled) < 2e-6
    with x64(False):
        single = jnp.asarray(random_similarity(1))
        weights = weights.astype(jnp.float32)
        assert relative_error(gradient(single), unrolled) < 2e-5  # float32, over ε


def test_gradients_of_both_orders_equal_central_differences():
    with x64(True):
        similarity = jnp.asarray(random_similarity(2, 2, 7, 3), jnp.float64)
        a, b = jnp.linspace(0.5, 1.0, 7), jnp.array([0.5, 1.0, 2.0])

        @jax.jit
        def loss(similarity, a, b):
            weights = {"pixel_weights": jnp.asarray(a), "prompt_weights": jnp.asarray(b)}
            similarity = jnp.asarray(similarity)  # check_grads passes numpy arrays
            plan = sinkhorn(similarity, epsilon=0.2, tolerance=1e-13, **weights)
            return jnp.sum(jnp.sin(100.0 * plan))

        check_grads(loss, (similarity, a, b), order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


@jax.jit
@jax.value_and_grad
def sine_and_gradient(similarity):
    return jnp.sum(jnp.sin(50.0 * sinkhorn(similarity, tolerance=1e-13)))


@few
@given(seeds)
def test_gradient_along_any_direction_is_a_central_difference(seed):
    with x64(True):
        direction = np.random.default_rng(seed).normal(size=(PROBLEMS, PIXELS, PROMPTS))
        similarity = 0.99 * np.float64(random_similarity(seed))
        step = 1e-5 * direction
        (above, _), (below, _), (_, gradient) = (
            sine_and_gradient(jnp.asarray(x))
            for x in (similarity + step, similarity - step, similarity)
        )
        difference = float(above - below) / 2e-5
        # relative to what it could be, as a sum over so many may cancel; h² of the difference
        size = float(np.linalg.norm(gradient) * np.linalg.norm(direction))
        assert abs(float(np.vdot(gradient, direction)) - difference) < 1e-6 * size + 1e-9


def test_gradient_of_a_zero_weight_is_zero():
    similarity = jnp.asarray(random_similarity(3))
    a = jnp.arange(float(PIXELS)) % 3
    b = jnp.arange(float(PROMPTS)) % 2

    def loss(a, b):
        return jnp.sum(mps(similarity, pixel_weights=a, prompt_weights=b) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(a, b)
    for weights, gradient in zip((a, b), gradients, strict=True):
        assert np.all(np.isfinite(gradient))
        assert np.all((np.asarray(gradient) == 0) == (np.asarray(weights) == 0))


@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_a_problem_has_the_same_bits_in_any_batch(epsilon):
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere all problems are solved at once, and sums may change their order")
    # more than fit one chunk, so that the loop over chunks and its overlap are in it
    similarity = np.stack([random_similarity(seed, PIXELS, PROMPTS) for seed in range(70)])
    solved = functools.partial(sinkhorn, epsilon=epsilon)
    # as users compile it: these tests leave LLVM's optimisation out
    optimised = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    gradient = jax.grad(lambda similarity: jnp.sum(jnp.sin(9.0 * solved(similarity))))
    for function in (solved, optimised(gradient)):
        together = function(jnp.asarray(similarity))
        np.testing.assert_array_equal(together[::-1], function(jnp.asarray(similarity[::-1])))
        np.testing.assert_array_equal(together[64:67], function(jnp.asarray(similarity[64:67])))
        np.testing.assert_array_equal(together[69:], function(jnp.asarray(similarity[69:])))
        np.testing.assert_array_equal(together[69], function(jnp.asarray(similarity[69])))


@few
@given(seeds)
def test_properties_of_a_plan(seed):
    rng = np.random.default_rng(seed)
    similarity = random_similarity(seed)
    plan = np.asarray(sinkhorn(jnp.asarray(similarity)))
    assert plan.min() >= 0.0
    np.testing.assert_allclose(plan.sum((-1, -2), dtype=np.float64), 1.0, atol=2e-7)
    assert marginal_errors(plan).max() < 1.2e-6
    rows, columns = rng.permutation(PIXELS), rng.permutation(PROMPTS)
    permuted = sinkhorn(jnp.asarray(similarity[:, rows][:, :, columns]))
    # two plans within the tolerance of the marginals, which potentials feel a few times over
    assert relative_error(permuted, plan[:, rows][:, :, columns]) < 1e-5
    constant = rng.uniform(-0.1, 0.1, (PROBLEMS, PIXELS, 1)).astype(np.float32)
    scaled = np.clip(similarity / 2 + constant, -1, 1)  # a constant per pixel moves no mass
    assert (
        relative_error(sinkhorn(jnp.asarray(scaled)), sinkhorn(jnp.asarray(similarity / 2))) < 2e-5
    )


@few
@given(seeds)
def test_small_epsilon_approaches_linear_programming(seed):
    similarity = random_similarity(seed, 12, 4)
    m, n = similarity.shape
    rows = np.kron(np.eye(m), np.ones(n))
    columns = np.kron(np.ones(m), np.eye(n))
    marginals = np.concatenate([np.full(m, 1 / m), np.full(n, 1 / n)])
    cost = 1.0 - np.asarray(similarity, np.float64)
    optimum = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=marginals).fun
    plan = sinkhorn(jnp.asarray(similarity), epsilon=0.002)
    value = float(np.sum(np.asarray(plan) * cost))
    # the entropic plan costs more than the optimum, by at most ε·log(m·n)
    assert optimum - 1e-6 <= value <= optimum + 0.002 * np.log(m * n)


@few
@given(seeds)
def test_jit_vmap_and_loops_agree(seed):
    similarity = jnp.asarray(random_similarity(seed))
    expected = sinkhorn(similarity)
    np.testing.assert_array_equal(JITTED(similarity), expected)
    np.testing.assert_array_equal(jnp.stack([sinkhorn(s) for s in similarity]), expected)
    np.testing.assert_array_equal(VMAPPED(similarity), expected)


JITTED = jax.jit(sinkhorn)
VMAPPED = jax.jit(jax.vmap(sinkhorn))


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.02])
@pytest.mark.parametrize("n", [2, 5])
def test_gradient_where_hardly_a_pixel_is_shared(n, epsilon):
    """Pixels that are alike one prompt each, by exp(1/ε): the Hessian is as good as singular."""
    q = np.exp(-1.0 / epsilon)  # of the plan, off the diagonal over on it: 5e-5 ... 2e-22
    target = np.random.default_rng(n).normal(size=(n, n))
    diagonal = np.diag(target)
    # by hand: prompts j and k share pixels j and k, and all others by a factor q less
    differences = diagonal[:, None] - target + target.T - diagonal
    for m in range(n):
        others = (np.arange(n) != m)[:, None] & (np.arange(n) != m)
        differences += q * others * (target[m][:, None] - target[m])
    beta = (differences / (2 + (n - 2) * q)).mean(1)

    def total(similarity, weights):
        plan = sinkhorn(similarity, epsilon=epsilon, prompt_weights=weights)
        return jnp.sum(jnp.asarray(target, jnp.float32) * plan)

    first = jax.grad(total, (0, 1))
    of_similarity, of_weights = first(jnp.eye(n), jnp.ones(n))
    np.testing.assert_allclose(of_weights, beta / n, atol=1e-6)
    plan = np.where(np.eye(n) == 1, 1.0, q) / (n * (1 + (n - 1) * q))
    row = target - (plan * target).sum(1, keepdims=True) * n
    row -= beta - (plan * beta).sum(1, keepdims=True) * n
    # float32 rounds the cotangents, of size 1, that the plan and 1/ε scale
    np.testing.assert_allclose(of_similarity, plan * row / epsilon, atol=5e-7 / n / epsilon)
    second = jax.grad(lambda s: jnp.sum(first(s, jnp.ones(n))[0] ** 2))(jnp.eye(n))
    assert np.all(np.isfinite(second))


def test_a_gradient_is_mapped_over_weights_alone():
    similarity = jnp.asarray(random_similarity(5, PIXELS, PROMPTS))
    weights = jnp.asarray(np.random.default_rng(5).uniform(size=(4, PROMPTS)), jnp.float32)

    def loss(similarity, weights):
        return jnp.sum(mps(similarity, prompt_weights=weights) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    mapped = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(similarity, weights)
    for i, row in enumerate(weights):
        for one, expected in zip(mapped, gradient(similarity, row), strict=True):
            assert relative_error(one[i], expected) < 1e-6


def extremes(m: int, n: int) -> np.ndarray:
    """Similarities at the edge of what is possible, [problems, m, n]."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (2, m, n))
    first = np.arange(m)[:, None] < max(1, round(0.98 * m))
    blocks = np.where(first == (np.arange(n) % 2 == 0), 1.0, -1.0)  # 2 % of pixels, half the mass
    clusters = np.eye(3)[rng.integers(0, 3, m)] @ np.eye(3)[rng.integers(0, 3, n)].T
    one_prompt = np.where(np.arange(n) == 0, 1.0, -1.0) + np.zeros((m, 1))
    constant = [np.full((m, n), value) for value in (-1.0, 0.0, 1.0)]
    rows = np.repeat(rng.uniform(-1, 1, (m, 1)), n, axis=1)
    near = 1.0 - 1e-7 * rng.integers(0, 10, (m, n))
    uniform = rng.uniform(-1, 1, (2, m, n))
    return np.float32([*signs, blocks, clusters, one_prompt, *constant, rows, near, *uniform])


SHAPES = [(1, 1), (9, 1), (1, 4), (3, 8), (8, 8), (64, 2), (64, 16), (1024, 6), (4096, 8)]
EPSILONS = [0.5, 0.05, 0.03, 0.005, 0.01, 0.05, 0.005, 0.02, 1 / 32]  # the last: just no log domain


@functools.partial(jax.jit, static_argnums=1)
@functools.partial(jax.value_and_grad, has_aux=True)
def total_and_gradient(similarity, epsilon):
    plan = sinkhorn(similarity, epsilon=epsilon)
    return jnp.sum(plan * similarity), plan


@pytest.mark.parametrize(("shape", "epsilon"), list(zip(SHAPES, EPSILONS, strict=True)), ids=str)
def test_nothing_in_range_breaks_it(shape, epsilon):
    (_, plan), gradient = total_and_gradient(jnp.asarray(extremes(*shape)), epsilon)
    assert np.all(np.isfinite(plan))
    assert np.all(np.isfinite(gradient))
    # float32 sums over 4096 rows, which XLA of jax 0.7 adds in another order than later ones
    assert marginal_errors(plan).max() < 2.2e-6


@settings(few, max_examples=40)
@given(seeds, st.sampled_from(SHAPES[3:6]), st.sampled_from([0.5, 0.05, 0.01, 0.005]))
def test_nothing_drawn_breaks_it(seed, shape, epsilon):
    rng = np.random.default_rng(seed)
    similarity = random_similarity(seed, PROBLEMS, *shape)
    sharpness = rng.choice([0.0, 1e-6, 0.1, 1.0, 10.0], (PROBLEMS, 1, shape[-1]))
    similarity = np.clip(similarity * sharpness + rng.choice([-1.0, 0.0, 1.0]), -1, 1)
    similarity[:, rng.integers(0, shape[0], 3)] = rng.choice([-1.0, 1.0], (3, shape[1]))
    (_, plan), gradient = total_and_gradient(jnp.asarray(similarity, jnp.float32), epsilon)
    assert np.all(np.isfinite(plan))
    assert plan.min() >= 0.0
    assert marginal_errors(plan).max() < 1.3e-6
    # ∂⟨S, T⟩/∂S = T + T∘(S − α − β)/ε, α and β means of differences in S along paths of n edges
    assert np.all(np.abs(gradient) <= (1 + 4 * shape[1] / epsilon) * plan + 1e-6)


def test_laplacian_keeps_its_precision_next_to_singular():
    # Two pairs of nodes, tied by an edge of 1e-12: 1 − 1e-12 is 1 in float32.
    edges = np.zeros((4, 4), np.float32)
    for i, j, weight in ((0, 1, 0.25), (2, 3, 0.5), (1, 2, 1e-12)):
        edges[i, j] = edges[j, i] = weight
    residual = np.float32([1e-6, 0.0, 0.0, -1e-6])
    x = LAPLACIAN(jnp.asarray(edges), jnp.zeros(4), jnp.asarray(residual))
    # currents of 1e-6 through three resistors in a row
    expected = np.cumsum([0.0, 1e-6 / 0.5, 1e-6 / 1e-12, 1e-6 / 0.25])[::-1]
    np.testing.assert_allclose(x, expected, rtol=5e-7)


@few
@given(seeds)
def test_laplacian_solves_its_equation(seed):
    rng = np.random.default_rng(seed)
    edges = np.exp(rng.normal(size=(5, 6, 6)))
    edges = np.float32(edges + np.swapaxes(edges, 1, 2))
    ground = np.float32(rng.uniform(size=(5, 1)) * rng.integers(0, 2, (5, 1)) * np.ones(6))
    residual = rng.normal(size=(5, 6))
    residual = np.float32(residual - residual.mean(-1, keepdims=True))
    x = LAPLACIAN(jnp.asarray(edges), jnp.asarray(ground), jnp.asarray(residual))
    matrix = np.float64(-edges)
    diagonal = np.arange(6)
    matrix[:, diagonal, diagonal] += edges.sum(-1) + ground
    product = np.einsum("bij,bj->bi", matrix, np.asarray(x, np.float64))
    np.testing.assert_allclose(product, residual, atol=2e-5)


LAPLACIAN = jax.jit(functools.partial(laplacian.solve_laplacian, apart=0.0))


@pytest.mark.filterwarnings("ignore:.*(JAXopt|NormalCG).*:DeprecationWarning")
def test_gradient_is_right_where_the_one_of_ott_fails():
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    similarity = jnp.asarray(numbers("otseg_tiny_io")["mps_hard_similarity"][0])
    weights = jnp.cos(jnp.arange(float(similarity.size))).reshape(similarity.shape)

    def loss_of_ott(similarity):
        cost = geometry.Geometry(cost_matrix=1.0 - similarity, epsilon=0.01)
        solver = ott_sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=5000)
        return jnp.sum(weights * solver(linear_problem.LinearProblem(cost)).matrix)

    def loss(similarity, **options):
        return jnp.sum(weights * sinkhorn(similarity, epsilon=0.01, **options))

    with jax.numpy_rank_promotion("allow"), pytest.raises(Exception, match="operator is singular"):
        jax.block_until_ready(jax.jit(jax.grad(loss_of_ott))(similarity))
    with x64(True):
        gradient = jax.jit(functools.partial(jax.grad(loss), tolerance=1e-12))
        exact = gradient(similarity.astype(jnp.float64))
    assert relative_error(jax.jit(jax.grad(loss))(similarity), exact) < 2e-5
