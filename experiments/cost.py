"""What one image costs: parameters, multiply-adds, XLA's own count, images per second.

    python experiments/cost.py                        # writes experiments/cost.json, two minutes
    python experiments/cost.py --runs=20 --output=my_machine.json
    python experiments/cost.py --runs=0 --output=counts.json      # counts only, nothing is timed

OTSeg (6 prompts a class) and ZegCLIP (1 prompt) at the sizes of PASCAL VOC 2012: ViT-B/16, one
512×512 image, 20 classes, 10 visual prompt tokens, float32. Counts are read off the traced forward
pass of the model, from pixels and text embeddings to both logit maps on the patch grid: the text
tower runs once a vocabulary, and the upsampling is not the model's. Published for OTSeg / ZegCLIP:
61.9 / 61.1 GFLOPS (multiply-adds), 0.6 of them for prompts in the blocks' MLPs, whose outcome is
dropped and which ours does not compute; on an RTX 3090, 23.6 / 25.6 images/s. The published 13.8 M
trainable parameters include a self-attention and a norm in every decoder layer that are never used;
ours has none of them.

Conventions:
    modules alone  Multiply-adds of convolution and Linear modules, by the counter that the papers
                   used. It does not see the tower's attention, its last projection, or products of
                   two activations (attention, cosines).
    everything     Multiply-adds of every convolution and matrix product.
    XLA flops      The compiler's estimate: two flops a multiply-add, and additions, but no
                   exponentials or logarithms; one round of a loop: 1 of Sinkhorn's 100 updates,
                   1 of a block's 12 heads.
Sinkhorn's updates are sums, maxima, exponentials and logarithms of elements, not multiply-adds of a
matrix product: neither of the first two conventions holds them. Their time is in images/s. Counted
and timed is `model.sinkhorn=unrolled`, as published; the default solves faster.
"""

import argparse
import functools
import json
import math
import operator
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from otseg_jax.models.clip import VisionConfig
from otseg_jax.models.otseg import TRAINABLE, OTSeg, OTSegConfig

VIT_B16 = VisionConfig(
    image_size=512, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072, embed_dim=512
)
CLASSES, PROMPT_TOKENS = 20, 10
MODELS = {"OTSeg": ("mpsa", 6), "ZegCLIP": ("cross_attention", 1)}  # decoder, prompts a class


PRODUCTS = ("dot_general", "conv_general_dilated")


class Product(NamedTuple):
    """Multiply-adds of one matrix product or convolution, repetitions in a loop included."""

    kernel: str  # leaf name of the parameter that it multiplies by; "" for two activations
    multiply_adds: int


class Part(NamedTuple):
    """Parts of the model, by the names of their kernels."""

    label: str
    kernels: str  # regular expression
    module: bool  # does the counter of "modules alone" see it?


# That counter hooks the forward pass of PyTorch's Conv2d and Linear. `nn.MultiheadAttention` hands
# its weights to a function and never runs its Linear as a module, and CLIP's last projection is a
# bare matrix: what is a Linear of ours there was invisible to it.
PARTS = (
    Part("tower: MLPs", r"vision/blocks/\d+/mlp/", True),
    Part("tower: attention projections", r"vision/blocks/\d+/attention/", False),
    Part("tower: patch embedding", r"vision/patch_embedding/", True),
    Part("tower: last projection", r"vision/projection/", False),
    Part("prompt projection", r"prompts/proj/", True),
    Part("relationship descriptor", r"q_proj/", True),
    Part("decoder: keys, values", r"decoder/layers/\d+/attention/(key|value)/", True),
    Part("decoder: queries, out", r"decoder/layers/\d+/attention/(query|out)/", True),
    Part("decoder: MLPs", r"decoder/layers/\d+/linear[12]/", True),
    Part("attention, cosines (two activations)", r"$", False),
)


class Run(NamedTuple):
    """An equation of a program, and how often it runs."""

    equation: core.JaxprEqn
    times: int
    kernel: str  # as of `Product`


def products(function: Callable[..., Any], parameters: Any, *inputs: Any) -> list[Product]:
    """Find every matrix product and convolution of a function by tracing it, computing nothing.

    Args:
        function: called as function(parameters, *inputs).
        parameters: tree of arrays or `jax.ShapeDtypeStruct`.
        inputs: likewise.

    Returns:
        One entry for each place in the program.

    Raises:
        ValueError: a product within `while` or `cond`, whose number of runs is not in the program.
    """
    jaxpr = jax.make_jaxpr(function)(parameters, *inputs).jaxpr
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(parameters)]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]
    # Leaves of the first argument come first; what is left over are inputs, which have no name.
    named = dict(zip(jaxpr.invars, names, strict=False))
    return [
        Product(run.kernel, run.times * multiply_adds(run.equation))
        for run in walk(jaxpr, named)
        if run.equation.primitive.name in PRODUCTS
    ]


def walk(
    jaxpr: core.Jaxpr, names: Mapping[core.Var, str], *, needed: bool = False
) -> Iterator[Run]:
    """Find every equation but those that hold programs of their own; errors as of `products`.

    Args:
        names: of kernels.
        needed: leave out what no result needs, as XLA does.
    """
    names = dict(names)

    def name(variable: core.Var | core.Literal) -> str:
        return "" if isinstance(variable, core.Literal) else names.get(variable, "")

    platforms = {e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "platform_index"}
    for equation in _needed(jaxpr) if needed else jaxpr.eqns:
        primitive, operands = equation.primitive.name, equation.invars
        if primitive in ("convert_element_type", "reshape"):
            # a kernel in bf16, or with its axes put together, is still that kernel
            names[equation.outvars[0]] = name(operands[0])
        chosen = primitive == "cond" and operands[0] in platforms
        if chosen:
            operands = operands[1:]
        programs = list(_subprograms(equation, platform=chosen))
        if primitive in PRODUCTS or not programs:
            yield Run(equation, 1, next(filter(None, map(name, operands)), ""))
        for inner in programs:
            # jit, checkpoint, custom derivatives and scan: operands in the order of inner variables
            same = len(inner.invars) == len(operands)
            known = dict(zip(inner.invars, map(name, operands), strict=True)) if same else {}
            found = list(walk(inner, known, needed=needed))
            lost = [run for run in found if run.equation.primitive.name in PRODUCTS]
            if lost and primitive in ("while", "cond") and not chosen:
                raise ValueError(f"{len(lost)} products within `{primitive}`: runs unknown")
            repeats = equation.params["length"] if primitive == "scan" else 1
            yield from (run._replace(times=repeats * run.times) for run in found)


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Equations that results need: the gradients of frozen weights are not among them."""
    used, found = {x for x in jaxpr.outvars if isinstance(x, core.Var)}, []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not used.isdisjoint(equation.outvars):
            used |= {x for x in equation.invars if isinstance(x, core.Var)}
            found.append(equation)
    return found[::-1]


def _subprograms(equation: core.JaxprEqn, *, platform: bool) -> Iterator[core.Jaxpr]:
    kinds = (core.Jaxpr, core.ClosedJaxpr)
    # of the ways in which platforms compute one result, the last is the plain one
    within = equation.params["branches"][-1] if platform else equation.params
    for value in jax.tree.leaves(within, is_leaf=lambda x: isinstance(x, kinds)):
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value


def multiply_adds(equation: core.JaxprEqn) -> int:
    """Of one product or convolution."""
    arrays: list[Any] = [x.aval for x in (*equation.invars, *equation.outvars)]
    left, right, result = arrays
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return result.size * math.prod(left.shape[i] for i in contracted)
    features = equation.params["dimension_numbers"].rhs_spec[0]
    return result.size * (right.size // right.shape[features])


def build(name: str) -> OTSeg:
    """Make a model of `MODELS` with its initial weights."""
    decoder, _ = MODELS[name]
    # the paper's updates: Newton's steps hold products, and their number depends on the data
    config = OTSegConfig(decoder=decoder, prompt_tokens=PROMPT_TOKENS, sinkhorn="unrolled")
    return OTSeg(VIT_B16, config, rngs=nnx.Rngs(0))


@functools.cache
def forward(name: str) -> tuple[Callable[..., Any], Any, Any, Any]:
    """Forward pass of a model, and the shapes of what it takes: state, image, text."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(name)))
    image = jax.ShapeDtypeStruct((1, VIT_B16.image_size, VIT_B16.image_size, 3), jnp.float32)
    text = jax.ShapeDtypeStruct((CLASSES, MODELS[name][1], VIT_B16.embed_dim), jnp.float32)
    return lambda state, *inputs: nnx.merge(graphdef, state)(*inputs), state, image, text


def count_parameters(name: str) -> dict[str, Any]:
    """Count parameters: {"trainable": {part: number}, "frozen": number}."""
    state = forward(name)[1]
    trainable, frozen = nnx.split_state(state, TRAINABLE, ...)

    def size(tree: Any) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    parts = {part: size(tree) for part, tree in trainable.items()}
    return {"trainable": {**parts, "all": sum(parts.values())}, "frozen": size(frozen)}


def count_multiply_adds(name: str) -> dict[str, Any]:
    """Count multiply-adds of one image: "modules_alone", "everything" and {label: number}."""
    found = products(*forward(name))
    counts = {
        part: sum(count for kernel, count in found if re.match(part.kernels, kernel))
        for part in PARTS
    }
    everything = sum(count for _, count in found)
    if sum(counts.values()) != everything:
        raise ValueError(f"PARTS must cover each kernel once: {sorted({x.kernel for x in found})}")
    return {
        "parts": {part.label: count for part, count in counts.items()},
        "modules_alone": sum(count for part, count in counts.items() if part.module),
        "everything": everything,
    }


def measure(runs: int) -> dict[str, dict[str, Any]]:
    """Compile and time both models: XLA's count and the seconds of every run."""
    results: dict[str, dict[str, Any]] = {}
    calls = {}
    for name in MODELS:
        function, state, image, text = forward(name)
        compiled = jax.jit(function).lower(state, image, text).compile()
        results[name] = {"xla_flops": (compiled.cost_analysis() or {}).get("flops"), "seconds": []}
        if runs:
            with jax.default_prng_impl("unsafe_rbg"):  # which numbers is all the same here: fast
                values = jax.jit(lambda name=name: nnx.state(build(name)))()
            inputs = [
                jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate((image, text))
            ]
            calls[name] = (compiled, values, *inputs)
    # In turn, so that a disturbance of the machine falls on both; the first two rounds warm up.
    for run in range(-2, runs) if runs else ():
        for name, (compiled, *arguments) in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(compiled(*arguments))
            if run >= 0:
                results[name]["seconds"].append(round(time.perf_counter() - start, 4))
    for result in results.values():
        seconds = result["seconds"]
        result["images_per_second"] = round(1 / statistics.median(seconds), 3) if seconds else None
    return results


def machine() -> dict[str, Any]:
    """Describe what it ran on; `load` is the average of the minute before, 0 when idle."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def table(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Lay the results out as text, a column a model."""
    lines = [f"{'':46}" + "".join(f"{name:>10}" for name in models)]

    def row(label: str, *path: str, unit: float = 1.0, digits: int = 2) -> None:
        values: list[Any] = [
            functools.reduce(operator.getitem, path, model) for model in models.values()
        ]
        cells = ["-" if value is None else f"{value / unit:.{digits}f}" for value in values]
        lines.append(f"{label:46}" + "".join(f"{cell:>10}" for cell in cells))

    for name in next(iter(models.values()))["parameters"]["trainable"]:
        row(f"trainable parameters, M: {name}", "parameters", "trainable", name, unit=1e6)
    row("frozen parameters, M", "parameters", "frozen", unit=1e6)
    row(
        "multiply-adds, G: modules alone (no *)",
        "multiply_adds",
        "modules_alone",
        unit=1e9,
        digits=1,
    )
    row("multiply-adds, G: everything", "multiply_adds", "everything", unit=1e9, digits=1)
    for part in PARTS:
        label = f"    {part.label}" + ("" if part.module else " *")
        row(label, "multiply_adds", "parts", part.label, unit=1e9)
    row("XLA flops, G", "xla_flops", unit=1e9, digits=1)
    row("images/s", "images_per_second")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).with_suffix(".json")
    parser.add_argument("--output", type=Path, default=default, help="JSON file to write")
    parser.add_argument("--runs", type=int, default=7, help="timed runs a model; 0 times nothing")
    options = parser.parse_args()
    if options.runs < 0:
        parser.error(f"--runs={options.runs}: wanted 0 or more")
    # Asked for now, not after minutes of work
    if not options.output.resolve().parent.is_dir():
        parser.error(f"--output={options.output}: its folder does not exist; make it first")
    return options


def main() -> None:
    """Count, measure, print, write."""
    options = arguments()
    results = {"machine": machine(), "models": measure(options.runs)}
    for name, model in results["models"].items():
        model["parameters"] = count_parameters(name)
        model["multiply_adds"] = count_multiply_adds(name)
    print(table(results["models"]))
    print("\n" + ", ".join(f"{key} {value}" for key, value in results["machine"].items()))
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
