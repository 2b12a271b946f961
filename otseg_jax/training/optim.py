"""How fast what learns does, and by which rule. Steps are counted from 0."""

import jax
import jax.numpy as jnp
import optax


def learning_rate(
    steps: int,
    *,
    peak: float = 2e-4,
    end: float = 1e-6,
    power: float = 0.9,
    warmup: int = 1500,
    warmup_ratio: float = 1e-6,
) -> optax.Schedule:
    """Polynomial decay under a linear warm-up, both counted from step 0.

    lr(t) = [(peak - end) (1 - t/T)^power + end] · min(1, r + (1 - r) t/W)

    with T = steps ≥ 1, W = warmup in steps (0: none) and r = warmup_ratio in [0, 1]. The two
    factors run side by side, so the peak itself is never reached. Beyond the last step the rate
    stays at `end`. The default peak is the reference's 2e-5 with its factor of 10.

    Raises:
        ValueError: an argument is out of its range (all of them in one message).

    Example:
        >>> rate = learning_rate(20_000)
        >>> f"{rate(0):.3e} {rate(1500):.3e} {rate(20_000):.3e}"
        '2.000e-10 1.865e-04 1.000e-06'

    Source: OTSeg (arXiv 2403.14183); mmcv's `poly` policy with linear warm-up.
    """
    problems = [
        f"{name} is {value}, wanted {wanted}"
        for name, value, wanted, fine in (
            ("steps", steps, "at least 1", steps >= 1),
            ("peak", peak, "more than 0", peak > 0),
            ("end", end, f"between 0 and peak={peak}", 0 <= end <= peak),
            ("power", power, "more than 0", power > 0),
            ("warmup", warmup, "at least 0", warmup >= 0),
            ("warmup_ratio", warmup_ratio, "between 0 and 1", 0 <= warmup_ratio <= 1),
        )
        if not fine
    ]
    if problems:
        raise ValueError("learning_rate: " + "; ".join(problems))

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        # Steps left, counted in integers: 1 - t/T in float32 loses the last steps of a long
        # schedule, as 1 - (1 - t/W)(1 - r) loses the first ones.
        left = jnp.maximum(steps - jnp.asarray(step), 0) / steps
        rate = (peak - end) * left.astype(jnp.float32) ** power + end
        if not warmup:
            return rate
        return rate * jnp.minimum(warmup_ratio + (1 - warmup_ratio) * (step / warmup), 1.0)

    return schedule


def make_optimizer(
    schedule: optax.ScalarOrSchedule, *, weight_decay: float = 0.01
) -> optax.GradientTransformation:
    """AdamW with β = (0.9, 0.999) and ε = 1e-8, no gradient clipping; its first update uses lr(0).

    θ ← θ - lr(t) · ( m̂ / (√v̂ + ε) + weight_decay · θ )

    Example:
        >>> import jax.numpy as jnp, optax
        >>> optimizer, weight = make_optimizer(0.1, weight_decay=0.0), jnp.ones(2)
        >>> update, _ = optimizer.update(jnp.array([5.0, -5.0]), optimizer.init(weight), weight)
        >>> [round(w, 5) for w in optax.apply_updates(weight, update).tolist()]
        [0.9, 1.1]

    Source: OTSeg (arXiv 2403.14183); torch.optim.AdamW.
    """
    # No mask: biases, norms and prompts decay too, which is unusual, as in the reference's runs.
    return optax.adamw(schedule, b1=0.9, b2=0.999, eps=1e-8, weight_decay=weight_decay)
