"""The solver of `newton` as one kernel for GPU and TPU: a problem is read once, and stops alone.

XLA takes a batch of problems through each step together: similarities are read again every time,
until the slowest problem is done. Here a program loads one problem, keeps it on the chip until it
is solved, and writes its result. The arithmetic is that of `newton`, and so is the gradient.

    mps(similarity, solver=pallas.Newton())

An H200 takes half of the time that it takes for `newton`, with the same errors
(experiments/benchmark_mps_nvidia_h200.json). No TPU has run it yet: it was compiled for a v5e
(libtpu 0.0.42), and tests lower it for both and compare its interpreted form with `newton`. It is
not the default: a kernel sees one device, and problems that are sharded over several need a
`jax.shard_map` around it. On GPUs it is built on Pallas's Triton backend, which jax 0.12 warns will
be removed.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from otseg_jax.ot import newton
from otseg_jax.ot.newton import Aligned, Matrix, Pixels, Products, Prompts, Solved

LARGEST = 2**15  # entries of a problem that a chip's registers hold
ENTRIES = 32  # of a problem in a GPU's thread


@dataclasses.dataclass(frozen=True)
class Newton:
    """A solver to hand to `mps`, `sinkhorn` and `solve`.

    Problems of more than 32,768 entries (sides rounded up to powers of 2), those in float64, and
    other devices are left to `newton`.

    Args:
        interpret: "cuda" or "tpu": that kernel is run wherever this is, slowly, to test it.
    """

    interpret: str | None = None

    def __post_init__(self) -> None:
        if self.interpret not in (None, "cuda", "tpu"):
            raise ValueError(f"interpret must be 'cuda', 'tpu' or None, got {self.interpret!r}")

    def solve(self, similarity: Matrix, a: Pixels, b: Prompts, **options) -> Solved:
        """Solve as `newton.solve`."""
        return self._apply(functools.partial(newton.solve, **options), similarity, a, b)

    def align(
        self, similarity: Matrix, values: Matrix, a: Pixels, b: Prompts, **options
    ) -> Aligned:
        """Solve and add up as `newton.align`; no plan leaves the chip."""
        return self._apply(functools.partial(newton.align, **options), similarity, values, a, b)

    def _apply(self, function, *arrays):
        *batch, n, m = arrays[0].shape
        large = _power(n) * _power(m) > LARGEST
        if large or arrays[0].dtype != jnp.float32 or math.prod(batch) == 0:
            return function(*arrays)
        on_chip = functools.partial(function, products=ON_CHIP)
        kernels = {
            device: functools.partial(_launch, on_chip, device, self.interpret is not None)
            for device in ("cuda", "tpu")
        }
        if self.interpret is not None:
            return kernels[self.interpret](*arrays)
        return jax.lax.platform_dependent(*arrays, default=function, **kernels)


def _launch(function, device: str, interpret: bool, *arrays):
    """Apply a function of one problem's arrays to problems [..., n, m], a program each."""
    *batch, n, m = arrays[0].shape
    count = math.prod(batch)
    inputs = [jax.ShapeDtypeStruct(x.shape[len(batch) :], x.dtype) for x in arrays]
    outputs, tree = jax.tree.flatten(jax.eval_shape(function, *inputs))
    load, store, size = (_load, _store, _power) if device == "cuda" else (_read, _write, int)
    warps = _power(n) * _power(m) // (32 * ENTRIES)
    parameters: dict[str, pl.CompilerParams] = {
        "cuda": triton.CompilerParams(num_warps=min(max(warps, 4), 16), num_stages=1),
        "tpu": tpu.CompilerParams(dimension_semantics=("parallel",)),
    }

    def program(*references):
        given, wanted = references[: len(inputs)], references[len(inputs) :]
        found = function(*(load(*pair) for pair in zip(given, inputs, strict=True)))
        for reference, x, value in zip(wanted, outputs, jax.tree.leaves(found), strict=True):
            store(reference, x, jnp.atleast_1d(value))

    def blocks(arrays):
        return [
            pl.BlockSpec((None,) * (3 - max(x.ndim, 1)) + tuple(map(size, _vector(x))), _at)
            for x in arrays
        ]

    found = pl.pallas_call(
        program,
        grid=(count,),
        in_specs=blocks(inputs),
        out_specs=blocks(outputs),
        out_shape=[jax.ShapeDtypeStruct((count, *_matrix(x)), x.dtype) for x in outputs],
        interpret=interpret,
        name=f"sinkhorn_{n}x{m}",
        compiler_params=parameters[device],
    )(*(x.reshape(count, *_matrix(one)) for x, one in zip(arrays, inputs, strict=True)))
    found = [x.reshape(*batch, *one.shape) for x, one in zip(found, outputs, strict=True)]
    return jax.tree.unflatten(tree, found)


def _at(problem):
    return problem, 0, 0


def _vector(x) -> tuple[int, ...]:
    return x.shape or (1,)  # a TPU does not store a lone number


def _matrix(x) -> tuple[int, ...]:
    return (1,) * (2 - x.ndim) + x.shape  # whose axes a TPU lays tiles over


def _read(reference, x):
    del x
    return reference[...]


def _write(reference, x, value):
    del x
    reference[...] = value


# Triton knows sizes that are powers of 2. What is added weighs 0, as what a mask leaves out.
_power = pl.next_power_of_2


def _load(reference, x):
    return triton.load(reference, mask=_inside(reference, x), other=0.0)


def _store(reference, x, value):
    triton.store(reference, value, mask=_inside(reference, x))


def _inside(reference, x):
    axes = range(len(reference.shape))
    index = [jax.lax.broadcasted_iota(jnp.int32, reference.shape, axis) for axis in axes]
    return functools.reduce(jnp.logical_and, map(jnp.less, index, _vector(x)))


def _gram(x):
    """x·xᵀ, a row at a time: matrix units would round it, or want 16 rows."""
    rows = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0],) * 2, 1)

    def add(k, gram):
        row = jnp.sum(jnp.where(rows == k, x, 0.0), axis=0)
        column = jnp.sum(x * row[None, :], axis=1)  # as it is symmetric
        return jnp.where(columns == k, column[:, None], gram)

    return jax.lax.fori_loop(0, x.shape[0], add, jnp.zeros(columns.shape, x.dtype))


ON_CHIP = Products(
    rows=lambda matrix, weights: jnp.sum(matrix * weights[:, None], axis=0),
    columns=lambda matrix, weights: jnp.sum(matrix * weights[None, :], axis=1),
    gram=_gram,
    hold=lambda x: x,
)
