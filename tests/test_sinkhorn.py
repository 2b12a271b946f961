"""Sinkhorn and MPS against the authors' numbers, ott-jax, linear programming and mathematics."""

import importlib
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracles import numbers, reference_sinkhorn, relative_error, x64

import otseg_jax
from otseg_jax.ot.sinkhorn import mps, sinkhorn, solve

# Updates after which the authors' program left its loop, found by fitting its float64 plans.
STOPPED_AFTER = {"easy": 48, "hard": 55, "single": 2}


def similarity_of(name: str) -> jax.Array:
    return jnp.asarray(numbers("otseg_tiny_io")[f"mps_{name}_similarity"])


def random_similarity(seed: int, *shape: int) -> jax.Array:
    return jax.random.uniform(jax.random.key(seed), shape, minval=-1.0, maxval=1.0)


@pytest.mark.core
@pytest.mark.parametrize("name", STOPPED_AFTER)
def test_plan_and_scores_equal_the_authors(name):
    expected, similarity = numbers("otseg_tiny_io"), similarity_of(name)
    options = {"iterations": STOPPED_AFTER[name]}
    assert relative_error(sinkhorn(similarity, **options), expected[f"mps_{name}_plan_f64"]) < 3e-6
    assert relative_error(mps(similarity, **options), expected[f"mps_{name}_out_f64"]) < 3e-6


@pytest.mark.core
@pytest.mark.parametrize("name", STOPPED_AFTER)
def test_gradient_equals_the_authors(name):
    similarity = similarity_of(name)
    p, m, _ = similarity.shape
    weights = jnp.cos(jnp.arange(p * m)).reshape(p, m)

    def loss(similarity):
        return jnp.sum(mps(similarity, iterations=STOPPED_AFTER[name]) * weights)

    expected = numbers("otseg_tiny_io")[f"mps_{name}_grad_f64"]
    assert relative_error(jax.grad(loss)(similarity), expected) < 1e-5


@pytest.mark.core
@pytest.mark.parametrize("name", STOPPED_AFTER)
def test_converged_plan_is_near_the_authors_and_meets_its_marginals(name):
    plan = sinkhorn(similarity_of(name))
    # 1e-3: the authors stop while rows are off by 1e-4 (easy) and 2e-4 (hard); ours do not stop.
    assert relative_error(plan, numbers("otseg_tiny_io")[f"mps_{name}_plan"]) < 1e-3
    m, n = plan.shape[-2:]
    assert np.abs(plan.sum(-2) - 1 / n).sum(-1).max() < 1.1e-6  # the tolerance, summed in f32
    np.testing.assert_allclose(plan.sum(-1) * m, 1.0, rtol=5e-7)
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

    @jax.jit
    def plan_of_ott(similarity):
        cost = geometry.Geometry(cost_matrix=1.0 - similarity, epsilon=0.05)
        solver = ott_sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=2000)
        return solver(linear_problem.LinearProblem(cost)).matrix

    similarity = random_similarity(0, 96, 8)
    with jax.numpy_rank_promotion("allow"):  # ott-jax relies on it
        expected = plan_of_ott(similarity)
    assert relative_error(sinkhorn(similarity), expected) < 2e-5
    assert relative_error(sinkhorn(similarity, iterations=500), expected) < 2e-5


def test_one_prompt_returns_the_similarity():
    similarity = random_similarity(6, 50, 1)
    np.testing.assert_allclose(mps(similarity), similarity[:, 0], rtol=5e-7)
    np.testing.assert_allclose(mps(similarity, iterations=3), similarity[:, 0], rtol=5e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_solved_in_float32(dtype):
    similarity = random_similarity(7, 40, 4).astype(dtype)
    plan = sinkhorn(similarity)
    assert plan.dtype == jnp.float32
    np.testing.assert_array_equal(plan, sinkhorn(similarity.astype(jnp.float32)))


def test_diagnostics_describe_the_plan():
    similarity = similarity_of("hard")
    solution = jax.jit(solve)(similarity)
    plan = np.asarray(solution.plan, np.float64)
    np.testing.assert_array_equal(solution.plan, jax.jit(sinkhorn)(similarity))
    m, n = plan.shape[-2:]
    error = np.abs(plan.sum(-1) - 1 / m).sum(-1) + np.abs(plan.sum(-2) - 1 / n).sum(-1)
    np.testing.assert_allclose(solution.marginal_error, error, atol=3e-7)
    assert solution.marginal_error.max() < 2e-6
    assert 1 <= solution.steps.min() <= solution.steps.max() <= 9
    entropy = -(plan * np.log(plan)).sum((-1, -2))
    np.testing.assert_allclose(solution.entropy, entropy, rtol=1e-6)
    primal = (plan * (1 - np.asarray(similarity, np.float64))).sum((-1, -2)) - 0.05 * entropy
    np.testing.assert_allclose(solution.dual_value, primal, atol=1e-6)


def test_dual_value_of_an_unfinished_plan_is_a_lower_bound():
    similarity = similarity_of("hard")
    values = [solve(similarity, iterations=count) for count in (1, 5, 50)]
    assert all(
        jnp.all(value.steps == count) for value, count in zip(values, (1, 5, 50), strict=True)
    )
    best = solve(similarity).dual_value
    bounds = np.stack([*(value.dual_value for value in values), best])
    assert np.all(np.diff(bounds, axis=0) > -1e-6)
    assert np.all(np.diff([value.marginal_error for value in values], axis=0) < 0)


@pytest.mark.parametrize(
    "options", [{}, {"epsilon": 0.01}, {"iterations": 300}], ids=["exponentiated", "log", "scan"]
)
def test_masked_pixels_and_prompts_are_as_if_they_were_not_there(options):
    def total(similarity, weights):
        return jnp.sum(mps(similarity, **options, **weights) ** 2)

    similarity = random_similarity(10, 2, 30, 6)
    pixels, prompts = np.arange(30) % 3 > 0, np.arange(6) != 2
    kept = np.outer(pixels, prompts)
    padded = jnp.where(kept[None], similarity, jnp.nan)
    weights = {"pixel_weights": pixels, "prompt_weights": prompts}
    weights = {name: jnp.stack([mask, np.ones_like(mask)]) for name, mask in weights.items()}
    padded = padded.at[1].set(similarity[1])
    plan = sinkhorn(padded, **options, **weights)
    bare = similarity[0][np.ix_(pixels, prompts)]
    expected = sinkhorn(bare, **options)
    # both within the tolerance of the marginals, which small entries feel the most (1.3e-8 there
    # on an H200)
    np.testing.assert_allclose(plan[0][np.ix_(pixels, prompts)], expected, rtol=2e-5, atol=5e-8)
    assert not np.any(np.asarray(plan[0])[~kept])
    value, gradients = jax.jit(jax.value_and_grad(total))(padded, weights)
    alone = sum(
        jnp.sum(jnp.square(s.size * jnp.sum(t * s, -1)))
        for s, t in ((bare, expected), (similarity[1], plan[1]))
    )
    np.testing.assert_allclose(value, alone, rtol=1e-5)
    assert not np.any(np.asarray(gradients[0])[~kept])
    assert np.all(np.isfinite(gradients))


@pytest.mark.parametrize("options", [{}, {"epsilon": 0.01}, {"iterations": 3}], ids=str)
def test_nothing_left_gives_a_plan_of_zeros(options):
    nothing = jnp.zeros((4, 3), bool)

    def total(similarity):
        return jnp.sum(mps(similarity, prompt_weights=nothing, **options))

    similarity = random_similarity(11, 4, 10, 3)
    value, gradient = jax.jit(jax.value_and_grad(total))(similarity)
    assert value == 0.0
    assert not np.any(gradient)
    solution = solve(similarity, prompt_weights=nothing, **options)
    assert not any(np.any(x) for x in (solution.plan, *solution[2:]))


@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_pixels_and_prompts_may_change_places(epsilon):
    # the same problem, but for what is a row: with m < n another side is eliminated
    similarity = random_similarity(14, 2, 30, 4)
    a, b = jnp.linspace(0.0, 1.0, 30), jnp.array([1.0, 0.0, 3.0, 2.0])
    target = jnp.cos(jnp.arange(240.0)).reshape(2, 30, 4)

    def upright(similarity, a, b):
        plan = sinkhorn(similarity, epsilon=epsilon, pixel_weights=a, prompt_weights=b)
        return jnp.sum(target * plan), plan

    def lying(similarity, a, b):
        turned = jnp.swapaxes(similarity, -1, -2)
        plan = sinkhorn(turned, epsilon=epsilon, pixel_weights=b, prompt_weights=a)
        plan = jnp.swapaxes(plan, -1, -2)
        return jnp.sum(target * plan), plan

    expected, actual = (
        jax.jit(jax.value_and_grad(function, (0, 1, 2), has_aux=True))(similarity, a, b)
        for function in (upright, lying)
    )
    values = [jax.tree.leaves(x) for x in (expected, actual)]
    for one, other in zip(*values, strict=True):
        # what 1e-6 of the marginals leaves open, times 1/ε in gradients
        assert relative_error(other, one) < 2e-5


def test_diagnostics_of_a_wide_problem():
    solution = solve(jnp.swapaxes(similarity_of("hard"), -1, -2))
    upright = solve(similarity_of("hard"))
    assert solution.marginal_error.max() < 2e-6
    np.testing.assert_allclose(solution.dual_value, upright.dual_value, atol=1e-6)
    np.testing.assert_allclose(solution.entropy, upright.entropy, atol=1e-5)


def test_only_the_plan_has_a_gradient():
    def total(similarity, a, field):
        return jnp.sum(getattr(solve(similarity, pixel_weights=a), field))

    for field in ("marginal_error", "entropy", "dual_value"):
        gradients = jax.grad(total, (0, 1))(
            random_similarity(15, 9, 3), jnp.linspace(1, 2, 9), field
        )
        assert not any(np.any(gradient) for gradient in gradients)


def test_weights_are_the_marginals():
    a, b = jnp.arange(20.0), jnp.array([3.0, 0.0, 1.0, 2.0])
    plan = sinkhorn(random_similarity(12, 3, 20, 4), pixel_weights=a, prompt_weights=b)
    np.testing.assert_allclose(plan.sum(-1), jnp.tile(a / a.sum(), (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(plan.sum(-2), jnp.tile(b / b.sum(), (3, 1)), atol=1e-6)


def test_a_nan_stays_in_its_problem():
    similarity = random_similarity(13, 3, 40, 5)
    for options in ({}, {"epsilon": 0.01}, {"iterations": 20}):
        plan = sinkhorn(similarity.at[1, 7, 2].set(jnp.nan), **options)
        assert np.all(np.isnan(plan[1]))
        whole = np.asarray(sinkhorn(similarity, **options))
        np.testing.assert_array_equal(plan[::2], whole[::2])
        for name, size in (("pixel_weights", 40), ("prompt_weights", 5)):
            weights = np.ones((3, size), np.float32)
            weights[1, 3] = np.nan
            plan = sinkhorn(similarity, **options, **{name: jnp.asarray(weights)})
            assert np.all(np.isnan(plan[1]))
            assert np.all(np.isfinite(plan[::2]))


def test_numpy_arrays_of_double_precision_are_solved_in_float32():
    similarity = np.asarray(random_similarity(16, 20, 3), np.float64)
    unchecked = inspect.unwrap(sinkhorn)  # only this session insists on JAX's arrays
    np.testing.assert_array_equal(unchecked(similarity), sinkhorn(jnp.asarray(similarity)))


@pytest.mark.parametrize(
    "options",
    [{"epsilon": 0.0}, {"epsilon": -1.0}, {"iterations": 0}, {"tolerance": 0.0}],
    ids=str,
)
def test_bad_options_are_named(options):
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=rf"got .*{name}={value}\b"):
        sinkhorn(jnp.zeros((3, 2)), **options)


def test_an_empty_problem_is_refused():
    with pytest.raises(ValueError, match="m=0"):
        mps(jnp.zeros((0, 2)))


@pytest.mark.parametrize("iterations", [None, 300])
def test_epsilon_may_be_an_array(iterations):
    similarity, epsilons = random_similarity(20, 3, 30, 4), jnp.array([0.05, 0.2, 0.01])
    options = {"iterations": iterations}
    expected = [
        mps(s, epsilon=float(e), **options) for s, e in zip(similarity, epsilons, strict=True)
    ]
    each = jax.jit(lambda s, e: mps(s, epsilon=e, **options))
    # another kernel, in another order: the rounding of S/ε, times what plans feel of it
    np.testing.assert_allclose(each(similarity, epsilons), jnp.stack(expected), rtol=3e-5)
    mapped = jax.jit(jax.vmap(lambda e: mps(similarity[0], epsilon=e, **options)))(epsilons)
    np.testing.assert_allclose(mapped[0], expected[0], rtol=3e-5)
    np.testing.assert_allclose(mapped[1], mps(similarity[0], epsilon=0.2, **options), rtol=3e-5)
    np.testing.assert_allclose(each(similarity[0], epsilons[0]), expected[0], rtol=3e-5)


def test_numbers_of_numpy_are_numbers():
    similarity, unchecked = random_similarity(21, 20, 3), inspect.unwrap(mps)
    expected = mps(similarity, epsilon=float(np.float32(0.05)))
    for epsilon in (np.float32(0.05), np.array(0.05, np.float32), np.float64(np.float32(0.05))):
        np.testing.assert_array_equal(unchecked(similarity, epsilon=epsilon), expected)
    np.testing.assert_array_equal(unchecked(similarity, epsilon=1), mps(similarity, epsilon=1.0))


def test_gradient_of_epsilon():
    with x64(True):
        similarity = jnp.asarray(random_similarity(22, 2, 7, 3), jnp.float64)

        def loss(epsilon, similarity, **options):
            options = options or {"tolerance": 1e-13}
            plan = sinkhorn(jnp.asarray(similarity), epsilon=jnp.asarray(epsilon), **options)
            return jnp.sum(jnp.sin(100.0 * plan))

        epsilon = jnp.array([0.2, 0.3])
        check_grads(
            jax.jit(loss), (epsilon, similarity), order=2, modes=["rev"], atol=1e-5, rtol=1e-5
        )
        gradient = jax.jit(jax.grad(loss))(epsilon, similarity)
        unrolled = jax.jit(jax.grad(lambda e: loss(e, similarity, iterations=1000)))(epsilon)
        np.testing.assert_allclose(gradient, unrolled, rtol=1e-9)
        single = similarity.astype(jnp.float32)
        shared = jax.grad(lambda e: jnp.sum(mps(single, epsilon=e) ** 2))(0.25)
        exact = jax.grad(lambda e: jnp.sum(mps(similarity, epsilon=e, tolerance=1e-12) ** 2))(0.25)
        np.testing.assert_allclose(shared, exact, rtol=1e-4)  # float32, and a sum that cancels


def test_diagnostics_for_each_epsilon():
    similarity, epsilons = random_similarity(23, 2, 20, 3), jnp.array([0.05, 0.2])
    together = jax.jit(lambda e: solve(similarity, epsilon=e))(epsilons)
    for i, epsilon in enumerate(epsilons):
        alone = solve(similarity[i], epsilon=float(epsilon))
        np.testing.assert_allclose(together.dual_value[i], alone.dual_value, atol=1e-6)
        np.testing.assert_allclose(together.entropy[i], alone.entropy, atol=1e-5)
    negative = jax.jit(lambda e: mps(similarity, epsilon=e))(jnp.array([-0.05, 0.05]))
    assert np.all(np.isnan(negative[0]))
    assert np.all(np.isfinite(negative[1]))


def test_what_was_given_up_on():
    similarity = jnp.stack([random_similarity(24, 64, 8)] * 2)
    epsilon = jnp.array([1e-6, 0.05])
    with pytest.warns(RuntimeWarning, match=r"gave up on 1 of 2 .*epsilon \(1e-06\)"):
        given_up = mps(similarity, epsilon=epsilon)
    np.testing.assert_array_equal(mps(similarity, epsilon=epsilon, on_error="ignore"), given_up)
    assert np.all(np.isfinite(given_up))
    marked = jax.jit(lambda s, e: mps(s, epsilon=e, on_error="nan"))
    scores, gradient = marked(similarity, epsilon), jax.grad(lambda s: marked(s, epsilon)[0].sum())
    assert np.all(np.isnan(scores[0]))
    np.testing.assert_allclose(scores[1], given_up[1], rtol=1e-5)
    assert np.any(np.isnan(gradient(similarity)))
    with pytest.raises(ValueError, match="gave up on 1 of 2"):
        sinkhorn(similarity, epsilon=epsilon, on_error="raise")
    with pytest.raises(ValueError, match="not possible under jit"):
        jax.jit(lambda s: mps(s, on_error="raise"))(similarity)
    with pytest.raises(ValueError, match="1 of 2 transport problems hold a NaN"):
        mps(similarity.at[1, 3, 2].set(jnp.nan), on_error="raise")


def test_no_cosines_are_answered_by_epsilon():
    directions = jax.random.normal(jax.random.key(25), (40, 16))
    raw = directions[:32] @ directions[32:].T
    cosines = random_similarity(26, 32, 8)
    for options in ({"epsilon": 0.01}, {"iterations": 20}):
        with pytest.raises(ValueError, match=r"multiply epsilon .*epsilon=[\d.]+ would fit"):
            sinkhorn(100.0 * cosines, **options)
    for similarity in (100.0 * cosines, raw * 30.0, jnp.stack([cosines, 100.0 * cosines])):
        with pytest.raises(ValueError, match="would fit") as error:
            mps(similarity)
        # in an array: one program for all of them
        fits = jnp.float32(str(error.value).split("epsilon=")[-1].split()[0])
        assert solve(similarity, epsilon=fits).marginal_error.max() < 2e-6
    scaled = mps(100.0 * cosines, epsilon=5.0) / 100.0
    np.testing.assert_allclose(scaled, mps(cosines), rtol=1e-4, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mps(3.0 * cosines, epsilon=0.1)  # no cosines either, but in range


def test_public_names_are_functions_and_the_module_is_a_module():
    assert inspect.isfunction(otseg_jax.sinkhorn)
    assert inspect.isfunction(otseg_jax.mps)
    assert inspect.ismodule(importlib.import_module("otseg_jax.ot.sinkhorn"))
    import otseg_jax.ot.sinkhorn as module

    assert inspect.ismodule(module)
    assert module.sinkhorn is otseg_jax.sinkhorn
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("otseg_jax.sinkhorn")
