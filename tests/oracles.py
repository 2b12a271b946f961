"""What tests compare with: the authors' numbers, and their program's Sinkhorn with its own stop."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from otseg_jax.data.classes import IGNORE

DATA = Path(__file__).parent / "data"


@functools.cache
def numbers(name: str) -> dict[str, np.ndarray]:
    """Arrays of `tests/data/<name>.npz`."""
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def authors_labels() -> np.ndarray:
    """Their label maps, with our value for "no class" in place of 255."""
    labels = numbers("otseg_tiny_io")["labels"].astype(np.int16)
    return np.where(labels == 255, np.int16(IGNORE), labels)


def relative_error(actual, expected) -> float:
    """Largest difference, in units of the largest expected entry."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def reference_sinkhorn(similarity, *, epsilon=0.05, iterations=None):
    """Sinkhorn with the reference's stop, which looks at the mean update of the WHOLE batch.

    That is the one thing we do not copy, so it lives here: with it in place of ours everything else
    must agree with the authors' numbers to rounding. It stops early (row marginals still off by
    1e-4), which is why the authors' plans differ from converged ones by up to 4e-4.
    """
    m, n = similarity.shape[-2:]
    kernel = (similarity - 1.0) / epsilon
    batch = similarity.shape[:-2]

    def update(carry, _):
        u, v, done = carry
        new_u = jnp.log(1 / m + 1e-8) - logsumexp(kernel + v, axis=-1, keepdims=True)
        new_v = jnp.log(1 / n + 1e-8) - logsumexp(kernel + new_u, axis=-2, keepdims=True)
        mean_update = epsilon * jnp.mean(jnp.abs(new_u - u))
        u, v = jnp.where(done, u, new_u), jnp.where(done, v, new_v)
        return (u, v, done | (mean_update < 1e-6)), None

    start = (jnp.zeros((*batch, m, 1)), jnp.zeros((*batch, 1, n)), jnp.array(False))
    (u, v, _), _ = jax.lax.scan(update, start, length=iterations or 100)
    return jnp.exp(kernel + u + v)


@contextlib.contextmanager
def x64(on: bool = True) -> Iterator[None]:
    """JAX with float64, or without; `jax.enable_x64` is there from jax 0.8 on."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


class _Torch:
    """torch, imported by what first asks for it; a test that asks for it is skipped without it.

    It is not installed where the suite runs on the newest Python or on Colab's versions.
    """

    def __getattr__(self, name: str):
        if name.startswith(("_", "pytest")):  # by pytest, which looks through each module
            raise AttributeError(name)
        return getattr(pytest.importorskip("torch"), name)


torch = _Torch()
