"""Learning rate against the authors' schedule, AdamW against torch, and what is frozen."""

import csv
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from oracles import DATA, torch

from otseg_jax.models.modules import Modules
from otseg_jax.models.otseg import TRAINABLE
from otseg_jax.training import optim


def recorded() -> dict[int, list[tuple[int, float]]]:
    rates = defaultdict(list)
    with (DATA / "learning_rate.csv").open() as file:
        for row in csv.DictReader(file):
            total, step = int(row["total_iterations"]), int(row["iteration"])
            rates[total].append((step, float(row["learning_rate"])))
    return rates


def in_float64(t: int, steps: int, warmup: int = 1500, peak: float = 2e-4) -> float:
    rate = (peak - 1e-6) * (1 - t / steps) ** 0.9 + 1e-6
    return rate * (1 - (1 - t / warmup) * (1 - 1e-6)) if t < warmup else rate


@pytest.mark.parametrize("steps", [20_000, 40_000, 80_000])
@pytest.mark.parametrize("jitted", [False, True])
def test_learning_rate_equals_the_authors(steps: int, jitted: bool) -> None:
    schedule = optim.learning_rate(steps)
    schedule = jax.jit(schedule) if jitted else schedule
    at, wanted = zip(*recorded()[steps], strict=True)
    assert len(at) == 12
    # 4 rounding errors of float32: what is left after the cancellations are gone
    np.testing.assert_allclose([schedule(t) for t in at], wanted, rtol=4 * 2**-24)


@pytest.mark.parametrize(("steps", "warmup"), [(10_000, 1500), (80_000, 1500), (100, 10)])
def test_learning_rate_at_every_step(steps: int, warmup: int) -> None:
    rates = jax.jit(jax.vmap(optim.learning_rate(steps, warmup=warmup)))(jnp.arange(steps))
    assert rates.dtype == jnp.float32
    wanted = [in_float64(t, steps, warmup) for t in range(steps)]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)  # a power in float32


def test_learning_rate_ends_and_begins() -> None:
    schedule = optim.learning_rate(50, peak=0.5, end=0.25, warmup=0)
    assert schedule(0) == 0.5
    assert schedule(50) == schedule(51) == schedule(10**9) == 0.25
    assert optim.learning_rate(50, peak=0.5, warmup=10, warmup_ratio=0.5)(0) == 0.25


def test_learning_rate_is_linear_on_request() -> None:
    schedule = optim.learning_rate(8, peak=1.0, end=0.0, power=1.0, warmup=0)
    assert [float(schedule(t)) for t in range(9)] == [1 - t / 8 for t in range(9)]


def test_learning_rate_names_every_bad_argument() -> None:
    with pytest.raises(ValueError, match="learning_rate") as error:
        optim.learning_rate(0, peak=0.0, end=-1.0, power=0.0, warmup=-1, warmup_ratio=2.0)
    for name in ("steps is 0", "peak is 0", "end is -1", "power is 0", "warmup is -1", "_ratio is"):
        assert name in str(error.value)
    with pytest.raises(ValueError, match=r"end is 0\.3, wanted between 0 and peak=0\.2"):
        optim.learning_rate(10, peak=0.2, end=0.3)


def run_torch(
    weights: list[np.ndarray], gradients: list[list[np.ndarray]], steps: int, decay: float
):
    """The oracle, in float64, its rate set before every step as a training loop does."""
    parameters = [torch.nn.Parameter(torch.tensor(w, dtype=torch.float64)) for w in weights]
    oracle = torch.optim.AdamW(parameters, lr=1.0, weight_decay=decay)
    for t, step_gradients in enumerate(gradients):
        for group in oracle.param_groups:
            group["lr"] = in_float64(t, steps, warmup=5, peak=0.1)
        for parameter, gradient in zip(parameters, step_gradients, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        oracle.step()
    return [p.detach().numpy() for p in parameters]


@pytest.mark.parametrize("decay", [0.01, 0.5])
def test_optimizer_equals_torch(decay: float) -> None:
    rng = np.random.default_rng(0)
    shapes, steps = [(3, 4), (4,), ()], 20
    weights = [rng.normal(size=s).astype(np.float32) for s in shapes]
    # from 1e-9, where epsilon rules, to 1e3
    gradients = [
        [(rng.normal(size=s) * 10 ** rng.uniform(-9, 3, s)).astype(np.float32) for s in shapes]
        for _ in range(steps)
    ]
    schedule = optim.learning_rate(steps, warmup=5, peak=0.1)
    optimizer = optim.make_optimizer(schedule, weight_decay=decay)
    ours = [jnp.asarray(w) for w in weights]
    state = optimizer.init(ours)
    for step_gradients in gradients:
        updates, state = optimizer.update([jnp.asarray(g) for g in step_gradients], state, ours)
        ours = optax.apply_updates(ours, updates)
    theirs = run_torch(weights, gradients, steps, decay)
    for mine, wanted, start in zip(ours, theirs, weights, strict=True):
        assert mine.dtype == jnp.float32
        # 1 - 0.999^t in float32 is off by up to 6e-5, its root by 3e-5, in updates of up to 0.1,
        # while a weight moves by 0.25
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=5e-6)
        assert np.median(np.abs(wanted - start)) > 0.05


def test_everything_decays() -> None:
    """Biases, norms and prompts too, unlike the custom of most optimisers."""
    weights = {"norm": {"scale": jnp.ones(3)}, "prompts": jnp.ones((1, 2, 3)), "bias": jnp.ones(())}
    optimizer = optim.make_optimizer(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, weights), optimizer.init(weights), weights
    )
    for update in jax.tree.leaves(updates):
        np.testing.assert_allclose(update, -0.05, rtol=1e-6)


class Attention(nnx.Module):
    """A part of the decoder that happens to bear the name of the frozen tower."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.vision = nnx.Linear(2, 2, rngs=rngs)


class StandIn(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.vision = Attention(rngs)
        self.visionary = nnx.LayerNorm(2, rngs=rngs)
        self.prompts = nnx.Param(jnp.ones((1, 2)))
        self.layers = Modules([Attention(rngs)])
        self.seen = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.vision.vision(x) + self.prompts[...]
        return self.layers[0].vision(self.visionary(x)).sum()


def names(state: nnx.State) -> set[str]:
    return {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}


@pytest.mark.parametrize("abstract", [False, True])
def test_trainable_is_all_but_the_tower(abstract: bool) -> None:
    def build() -> StandIn:
        return StandIn(nnx.Rngs(0))

    model = nnx.eval_shape(build) if abstract else build()
    _, trainable, rest = nnx.split(model, TRAINABLE, ...)
    assert names(trainable) == {
        "visionary/scale",
        "visionary/bias",
        "prompts",
        "layers/0/vision/kernel",
        "layers/0/vision/bias",
    }
    assert names(rest) == {"vision/vision/kernel", "vision/vision/bias", "seen"}


def test_only_trainable_leaves_move_and_have_moments() -> None:
    graphdef, trainable, frozen = nnx.split(StandIn(nnx.Rngs(0)), TRAINABLE, ...)
    optimizer = optim.make_optimizer(1e-2)
    state = optimizer.init(trainable)
    size = sum(x.size for x in jax.tree.leaves(trainable))
    counters = sum(x.ndim == 0 for x in jax.tree.leaves(state))
    assert sum(x.size for x in jax.tree.leaves(state)) == 2 * size + counters

    def loss(weights: nnx.State, x: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, weights, frozen)(x)

    gradients = jax.jit(jax.grad(loss))(trainable, jnp.array([[1.0, -2.0]]))
    updates, _ = optimizer.update(gradients, state, trainable)
    after = optax.apply_updates(trainable, updates)
    for old, new in zip(jax.tree.leaves(trainable), jax.tree.leaves(after), strict=True):
        assert not np.array_equal(old, new)
