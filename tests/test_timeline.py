"""The clock of `benchmark_model`: what of a call is a product."""

import jax
import jax.numpy as jnp
import pytest

from experiments import timeline


def test_what_overlaps_counts_once():
    assert timeline.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert timeline.covered([]) == 0


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("products", lambda x: x @ x @ x),
        ("else", lambda x: jax.lax.fori_loop(0, 30, lambda _, x: jnp.exp(-x), x)),
    ],
)
def test_products_are_told_from_all_else(kind, function):
    x = jnp.full((1024, 1024), 1e-3)
    program = jax.jit(function).lower(x).compile()
    found = timeline.profile_ms(lambda: program(x))
    assert set(found) == {"products", "else", "untraced"}
    assert found[kind] > 0.9 * (found["products"] + found["else"]) > 0
