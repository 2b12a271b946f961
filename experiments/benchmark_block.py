"""Where a block of the tower spends its time: its parts alone, ours and plain PyTorch's.

    python -m experiments.benchmark_block      # → benchmark_block.json, 2 minutes on two cores

For a CPU.

One image of 512 × 512 in ViT-B/16 with VOC's ten visual prompts. Weights are frozen: "and back" is
a part's forward pass and its gradients with respect to what goes in. Beside each part stands what
its matrix products would take at the rate of one large product alone, in the faster of both
libraries (`benchmark_model.best_rate`): the least that this device allows. Backwards, attention's
logits are computed again, as both libraries do. PyTorch's prompts go through the block, ours do
not; whole blocks must agree before anything is timed. Ours and theirs take turns, medians.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import Tensor

from experiments import cost
from experiments.benchmark_model import SIZES, VISION, Case, best_rate, model, torch_otseg, wait
from experiments.grid import table
from experiments.torch_model import TorchOTSeg, attend
from otseg_jax.models.attention import attention
from otseg_jax.models.transformer import Block

WIDTH, TOKENS = VISION.width, 1 + (VISION.image_size // VISION.patch_size) ** 2
PROMPTS = SIZES["VOC"][2]
SEEN = TOKENS + PROMPTS
# Multiply-adds of a part: forward, and of its gradients.
PRODUCTS = {
    "q, k, v, out": (2 * (TOKENS + SEEN) * WIDTH**2,) * 2,
    "attention": (2 * TOKENS * SEEN * WIDTH, 5 * TOKENS * SEEN * WIDTH),
    "MLP": (2 * TOKENS * WIDTH * VISION.mlp_width,) * 2,
    "LayerNorms": (0, 0),
}
PRODUCTS["whole block"] = tuple(map(sum, zip(*PRODUCTS.values(), strict=True)))


class Part(NamedTuple):
    """What is timed: a forward pass, and that with its gradients."""

    forward: Callable[[], Any]
    back: Callable[[], Any]


def ours(block: Block, x: jax.Array, prompts: jax.Array, dtype: str) -> dict[str, Part]:
    """Of our block."""
    seen = jnp.concatenate([x, prompts], axis=1)
    graphdef, state = nnx.split(block)
    runs: dict[str, tuple[Callable[..., Any], Sequence[jax.Array]]] = {
        "q, k, v, out": (
            lambda block, x, seen: (*block.attention.split(x, seen), block.attention.out(x)),
            (x, seen),
        ),
        "attention": (
            lambda _, q, k, v: attention(q, k, v, dtype=jnp.dtype(dtype)),
            block.attention.split(x, seen),
        ),
        "MLP": (lambda block, x: block.mlp(x), (x,)),
        "LayerNorms": (lambda block, x: (block.ln_1(x), block.ln_2(x)), (x,)),
        "whole block": (lambda block, x, prompts: block(x, prompts), (x, prompts)),
    }

    def part(run: Callable[..., Any], arrays: Sequence[jax.Array]) -> Part:
        def forward(state: Any, *arrays: jax.Array) -> Any:
            return run(nnx.merge(graphdef, state), *arrays)

        def back(state: Any, *arrays: jax.Array) -> Any:
            results, pull = jax.vjp(lambda *arrays: forward(state, *arrays), *arrays)
            return results, pull(results)

        programs = (jax.jit(f).lower(state, *arrays).compile() for f in (forward, back))
        return Part(*(lambda f=f: f(state, *arrays) for f in programs))

    return {name: part(*run) for name, run in runs.items()}


def theirs(rival: TorchOTSeg, x: jax.Array, prompts: jax.Array, dtype: str) -> dict[str, Part]:
    """The same of PyTorch, its products under autocast."""
    tokens = torch.tensor(np.asarray(jnp.concatenate([x[:, :1], prompts, x[:, 1:]], axis=1)))
    name = "backbone.transformer.resblocks.0"
    cast = torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
    with cast:
        heads = rival.split(tokens, name)
    runs: dict[str, tuple[Callable[..., Any], Sequence[Tensor]]] = {
        "q, k, v, out": (
            lambda x: (rival.split(x, name), rival.linear(x, f"{name}.attn.out_proj")),
            (tokens,),
        ),
        "attention": (attend, heads),
        "MLP": (lambda x: rival.mlp(x, name), (tokens,)),
        "LayerNorms": (
            lambda x: (rival.norm(x, f"{name}.ln_1"), rival.norm(x, f"{name}.ln_2")),
            (tokens,),
        ),
        "whole block": (lambda x: rival.block(x, name), (tokens,)),
    }

    def part(run: Callable[..., Any], arrays: Sequence[Tensor]) -> Part:
        @torch.inference_mode()
        def forward() -> Any:
            with cast:
                return run(*arrays)

        learned = [array.clone().requires_grad_() for array in arrays]

        def back() -> Any:
            with cast:
                results = run(*learned)
            results = results if isinstance(results, tuple) else (results,)
            return torch.autograd.grad(results, learned, [x.detach() for x in results])

        return Part(forward, back)

    return {name: part(*run) for name, run in runs.items()}


def milliseconds(calls: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Medians of calls that take turns, the first round not counted."""
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, times in zip(calls, found, strict=True):
            start = time.perf_counter()
            wait(call())
            times.append(1e3 * (time.perf_counter() - start))
    return [round(float(np.median(times[1:])), 2) for times in found]


def measure(dtype: str, rounds: int) -> list[dict[str, Any]]:
    """All parts with products of one type."""
    rng = np.random.default_rng(0)
    x, prompts = (
        jnp.asarray(rng.standard_normal((1, count, WIDTH)), jnp.float32)
        for count in (TOKENS, PROMPTS)
    )
    case = Case("VOC", "forward", 1, dtype)
    mine = ours(nnx.merge(*model(case)).vision.blocks[0], x, prompts, dtype)
    rival = theirs(torch_otseg(case), x, prompts, dtype)
    found, wanted = (np.asarray(each["whole block"].forward()) for each in (mine, rival))
    wanted = np.delete(wanted, range(1, 1 + PROMPTS), axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-4 if dtype == "float32" else 0.1)
    rate = best_rate(dtype)
    assert rate is not None
    rows = []
    for name, (forward, backward) in PRODUCTS.items():
        took = milliseconds([*mine[name], *rival[name]], rounds)
        row: dict[str, Any] = {"part": name, "dtype": dtype}
        for i, (way, count) in enumerate((("ms", forward), ("and_back_ms", forward + backward))):
            least = round(2e3 * count / rate, 2)
            row[way] = {"products": least, "ours": took[i], "torch": took[2 + i]}
        rows.append(row)
    return rows


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    rows = [row for dtype in ("float32", "bfloat16") for row in measure(dtype, options.rounds)]
    machine = {**cost.machine(), "torch": torch.__version__}
    record = {"machine": machine, "rounds": options.rounds, "rows": rows}
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    ways, whose = ("ms", "and_back_ms"), ("products", "ours", "torch")
    cells = [
        [row["part"], row["dtype"], *(f"{row[way][who]:.1f}" for way in ways for who in whose)]
        for row in rows
    ]
    print(table(cells, "part", "type", *(f"{way}: {who}" for way in ways for who in whose)))


if __name__ == "__main__":
    main()
