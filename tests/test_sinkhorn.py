"""Sinkhorn and MPS against the authors' numbers, ott-jax, linear programming and mathematics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import numbers, reference_sinkhorn, relative_error
from scipy.optimize import linprog

from otseg_jax.sinkhorn import mps, sinkhorn

# Updates after which the authors' program left its loop, found by fitting its float64 plans.
STOPPED_AFTER = {"easy": 48, "hard": 55, "single": 2}


def similarity_of(name: str) -> jax.Array:
    return jnp.asarray(numbers("otseg_tiny_io")[f"mps_{name}_similarity"])


def random_similarity(seed: int, *shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0, maxval=1.0)


@pytest.mark.parametrize("name", STOPPED_AFTER)
def test_plan_and_scores_equal_the_authors(name):
    expected, similarity = numbers("otseg_tiny_io"), similarity_of(name)
    options = {"iterations": STOPPED_AFTER[name]}
    assert relative_error(sinkhorn(similarity, **options), expected[f"mps_{name}_plan_f64"]) < 3e-6
    assert relative_error(mps(similarity, **options), expected[f"mps_{name}_out_f64"]) < 3e-6


@pytest.mark.parametrize("name", STOPPED_AFTER)
def test_gradient_equals_the_authors(name):
    similarity = similarity_of(name)
    p, m, _ = similarity.shape
    weights = jnp.cos(jnp.arange(p * m)).reshape(p, m)

    def loss(similarity):
        return jnp.sum(mps(similarity, iterations=STOPPED_AFTER[name]) * weights)

    expected = numbers("otseg_tiny_io")[f"mps_{name}_grad_f64"]
    assert relative_error(jax.grad(loss)(similarity), expected) < 1e-5


@pytest.mark.parametrize("name", STOPPED_AFTER)
def test_converged_plan_is_near_the_authors_and_meets_its_marginals(name):
    plan = sinkhorn(similarity_of(name))
    # 1e-3: the authors stop while rows are off by 1e-4 (easy) and 2e-4 (hard); ours do not stop.
    assert relative_error(plan, numbers("otseg_tiny_io")[f"mps_{name}_plan"]) < 1e-3
    m, n = plan.shape[-2:]
    # 1e-5 and not 1e-6 for rows: 20 units of kernel, each rounded at 6e-8, over ε
    np.testing.assert_allclose(plan.sum(-1) * m, 1.0, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(-2) * n, 1.0, rtol=2e-6)
    assert float(plan.min()) >= 0.0


def test_reference_oracle_reproduces_the_authors():
    for name in STOPPED_AFTER:
        expected = numbers("otseg_tiny_io")[f"mps_{name}_plan"]
        assert relative_error(reference_sinkhorn(similarity_of(name)), expected) < 3e-6


@pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")
def test_plan_equals_ott():
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    similarity = random_similarity(0, 96, 8)
    solver = ott_sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=2000)
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=1.0 - similarity, epsilon=0.05)
    )
    with jax.numpy_rank_promotion("allow"):  # ott-jax relies on it
        expected = solver(problem).matrix
    assert relative_error(sinkhorn(similarity, iterations=500), expected) < 2e-5


def test_small_epsilon_approaches_linear_programming():
    similarity = random_similarity(1, 12, 4)
    m, n = similarity.shape
    rows = np.kron(np.eye(m), np.ones(n))
    columns = np.kron(np.ones(m), np.eye(n))
    marginals = np.concatenate([np.full(m, 1 / m), np.full(n, 1 / n)])
    cost = 1.0 - np.asarray(similarity, np.float64)
    optimum = linprog(cost.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=marginals).fun
    plan = sinkhorn(similarity, epsilon=0.002, iterations=20000)
    value = float(np.sum(np.asarray(plan) * cost))
    # the entropic plan costs more than the optimum, by at most ε·log(m·n)
    assert optimum - 1e-6 <= value <= optimum + 0.002 * np.log(m * n)


def test_batch_mates_do_not_matter():
    easy, hard = random_similarity(2, 64, 6) * 0.1, random_similarity(3, 64, 6)
    together = sinkhorn(jnp.stack([easy, hard]))
    for i, alone in enumerate((easy, hard)):
        # one float32 rounding of the kernel over ε, not a dependence: vector code may sum in
        # another order for another shape
        np.testing.assert_allclose(together[i], sinkhorn(alone), rtol=5e-6, atol=1e-12)
    neighbour = sinkhorn(jnp.stack([easy, -hard]))
    np.testing.assert_array_equal(together[0], neighbour[0])


def test_leading_axes_and_jit_change_nothing():
    similarity = random_similarity(4, 2, 3, 20, 5)
    loop = jnp.stack([jnp.stack([mps(s) for s in row]) for row in similarity])
    np.testing.assert_allclose(mps(similarity), loop, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(mps)(similarity), loop, rtol=2e-5, atol=1e-6)


def test_permuting_pixels_or_prompts_permutes_the_plan():
    similarity = random_similarity(5, 30, 6)
    rows, columns = np.random.default_rng(0).permutation(30), [3, 0, 5, 1, 4, 2]
    permuted = sinkhorn(similarity[rows][:, jnp.array(columns)])
    np.testing.assert_allclose(permuted, sinkhorn(similarity)[rows][:, columns], rtol=2e-5)


def test_one_prompt_returns_the_similarity():
    similarity = random_similarity(6, 50, 1)
    np.testing.assert_allclose(mps(similarity), similarity[:, 0], rtol=5e-6)


def test_half_precision_is_solved_in_float32():
    similarity = random_similarity(7, 40, 4).astype(jnp.bfloat16)
    plan = sinkhorn(similarity)
    assert plan.dtype == jnp.float32
    np.testing.assert_array_equal(plan, sinkhorn(similarity.astype(jnp.float32)))


def test_gradient_equals_central_differences():
    with jax.enable_x64(True):
        similarity = random_similarity(8, 10, 3).astype(jnp.float32)
        direction = random_similarity(9, 10, 3).astype(jnp.float32)

        def loss(x):
            return jnp.sum(mps(x, iterations=300) ** 2)

        step = 1e-2  # float32 inside: a smaller step would measure rounding
        numeric = (loss(similarity + step * direction) - loss(similarity - step * direction)) / (
            2 * step
        )
        analytic = jnp.sum(jax.grad(loss)(similarity) * direction)
        np.testing.assert_allclose(analytic, numeric, rtol=1e-2)


@pytest.mark.parametrize(
    "options", [{"epsilon": 0.0}, {"epsilon": -1.0}, {"iterations": 0}], ids=str
)
def test_bad_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        sinkhorn(jnp.zeros((3, 2)), **options)


def test_an_empty_problem_is_refused():
    with pytest.raises(ValueError, match="m=0"):
        mps(jnp.zeros((0, 2)))
