"""Rows: what people pass to `mps` and `sinkhorn`."""

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np

import otseg_jax
from messages import Row
from otseg_jax.ot import pallas
from otseg_jax.ot import sinkhorn as module

# as users have them: only this session insists on JAX's arrays
MPS, SINKHORN, SOLVE = map(inspect.unwrap, (otseg_jax.mps, otseg_jax.sinkhorn, module.solve))
JITTED = jax.jit(lambda similarity: MPS(similarity, on_error="raise"))
FORWARD = jax.jacfwd(lambda similarity: MPS(similarity))
COSINES = np.cos(np.arange(18.0)).astype(np.float32).reshape(6, 3)
COSINE = r"epsilon=0\.05 is for cosines in \[-1, 1\]: divide it by its scale .*"
SHAPE = r"similarity must be \[\.\.\., m, n\], pixels and prompts, m > 0 and n > 0, got "
NUMBERS = "must be an array of real numbers with rows of one length, got "


def warned(similarity):
    """The answer, with the warning printed: in this session it would be an error."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        MPS(similarity, iterations=1)
    print(*(warning.message for warning in told))


def odd(typed, line, similarity):
    """A row of what is answered with a warning."""
    return row(typed, line, similarity, refused=False, of=warned)


def row(typed, line, *given, refused=True, of=MPS, **options):
    """`mps(COSINES)`, unless something else is given, with options."""
    return Row(typed, lambda folder: of(*(given or (COSINES,)), **options), line, refused)


ROWS = [
    row("mps(100 * cosines)", f"100, and {COSINE}epsilon=5 would", 100 * COSINES, iterations=1),
    row("sinkhorn(100 * cosines)", COSINE, 100 * COSINES, of=SINKHORN, iterations=1),
    row("solve(raw products)", f"reaches 73, and {COSINE}", 73 * COSINES, of=SOLVE, iterations=1),
    row("mps(raw, epsilon=0.01)", "epsilon=0.01 is for", 20 * COSINES, epsilon=0.01, iterations=1),
    row("mps(photo as integers)", "reaches 255", np.full((6, 3), 255, np.uint8), iterations=1),
    odd("mps(5 * cosines)", f"5, and {COSINE}epsilon=0.25 would", 5 * COSINES),
    odd("mps(counts from 0 to 3)", f"3, and {COSINE}", np.arange(6).reshape(3, 2) % 4),
    row("mps(5 * cosines), to raise", COSINE, 5 * COSINES, iterations=1, on_error="raise"),
    row("jacfwd(mps)", r"no forward-mode derivative .*: take grad.* or iterations=", of=FORWARD),
    row("mps(-inf for a masked pixel)", "by pixel_weights=mask", COSINES - np.inf, iterations=1),
    row("mps(solver='pallas')", r"solver must .* otseg_jax.ot.pallas.Newton\(\)", solver="pallas"),
    row("mps(solver=Newton)", r"solver must .*\.Newton\(\), got <class", solver=pallas.Newton),
    row("both", "leave out iterations=9", iterations=9, solver=pallas.Newton()),
    row("Newton('gpu')", "interpret must be .* got 'gpu'", "gpu", of=pallas.Newton),
    row("mps of a vector", SHAPE + r"m=3 \(of one prompt it is", COSINES[0]),
    row("mps of a number", SHAPE, 0.5),
    row("mps of no pixels", SHAPE + "m=0, n=3", COSINES[:0]),
    row("mps of no prompts", SHAPE + "m=6, n=0", COSINES[:, :0]),
    row("mps of an empty list", SHAPE + "m=0", []),
    row("mps of a ragged list", f"similarity {NUMBERS}list", [[0.1, 0.2], [0.3]]),
    row("mps of words", f"similarity {NUMBERS}<U3", np.array([["sky", "red"]])),
    row("mps of a list of words", f"similarity {NUMBERS}list", [["sky", "red"]]),
    row("mps of None", f"similarity {NUMBERS}NoneType", None),
    row("mps of complex numbers", f"similarity {NUMBERS}complex64", COSINES.astype(np.complex64)),
    row("epsilon=0", r"epsilon must be > 0 and finite, got epsilon=0\.0", epsilon=0),
    row("epsilon=-1.0", "epsilon must be > 0 and finite, got epsilon=-1", epsilon=-1.0),
    row("epsilon=nan", "epsilon must be > 0 and finite, got epsilon=nan", epsilon=float("nan")),
    row("epsilon=inf", "epsilon must be > 0 and finite, got epsilon=inf", epsilon=float("inf")),
    row("epsilon='small'", "epsilon must be > 0 and finite, got epsilon='small'", epsilon="small"),
    row("epsilon=None", "epsilon must be > 0 and finite, got epsilon=None", epsilon=None),
    row("epsilon=an array with a 0", "epsilon must be > 0", epsilon=jnp.zeros(())),
    row("epsilon=[0.05, 0.1] of one problem", r"does not fit .* jax\.vmap", epsilon=[0.05, 0.1]),
    row("tolerance=0", "tolerance must be a number > 0, got tolerance=0", tolerance=0),
    row("tolerance='low'", "tolerance must be a number > 0, got tolerance='low'", tolerance="low"),
    row("iterations=0", "iterations must be an integer > 0 or None, got", iterations=0),
    row("iterations=2.5", "iterations must be an integer > 0 or None, got", iterations=2.5),
    row("iterations=inf", "iterations must be an integer > 0 or None, got", iterations=np.inf),
    row("iterations in an array", "iterations must be an integer", iterations=jnp.array(5)),
    row("tolerance in an array", "tolerance must be a number > 0", tolerance=jnp.array(1e-6)),
    row("iterations='all'", "iterations must be an integer > 0 or None, got", iterations="all"),
    row("on_error='stop'", r"on_error must be one of \('warn', 'raise', .*'stop'", on_error="stop"),
    row("two at once", "epsilon must be > 0 .*; tolerance must be", epsilon=0, tolerance=-1),
    row("2 weights of 3 prompts", r"prompt_weights .* \(2,\) .* \(3,\)", prompt_weights=[1, 2]),
    row("weights of a batch", r"pixel_weights of shape \(2, 6\)", pixel_weights=np.ones((2, 6))),
    row("weights of words", f"pixel_weights {NUMBERS}list", pixel_weights=["sky"] * 6),
    row("on_error='raise', NaN", "1 of 1 .* hold a NaN", COSINES * np.nan, on_error="raise"),
    row("on_error='raise' under jit", "not possible under jit", of=JITTED),
]  # fmt: skip
