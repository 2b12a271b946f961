"""Times `sinkhorn` and `mps` against ott-jax, POT and a plain scan, at equal marginal error.

    python -m experiments.benchmark_mps            # → experiments/benchmark_mps.{json,png}
    python -m experiments.benchmark_mps --quick    # one small case, to see that it runs
    python -m experiments.benchmark_mps --more     # go on after a stop
    python -m experiments.benchmark_mps --plot     # the picture alone, from the JSON
    python -m experiments.benchmark_mps --regimes  # `mps` in three regimes alone, minutes

Every method solves the same problems until its marginals are right to 1e-6 (L1, each problem), the
scan by as many updates as the slowest problem needs. Rows and columns together and rounding may
double that. What does not get there in float32 (ott-jax in 1,000 updates, POT in 600) is not timed;
where that befalls any of them, all are compared once more at 5e-6. How many updates Sinkhorn needs
depends on the similarities, so that `mps` is timed in three regimes: cosines of random directions,
cosines as of a CLIP (a class's prompts differ by 0.05 at a pixel), and those of the trained model
that comes with the package, on pictures of its world. Methods take turns within a round, so that
whatever else the machine does hits all of them; compared are medians over rounds. Runs on CPU, GPU
and TPU (POT through PyTorch, left out on a TPU; `ot.pallas` on these two alone), whose files bear
the device's name; needs the `bench` extra.
"""

import argparse
import ctypes
import functools
import json
import math
import os
import platform
import statistics
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's threads leave the others alone

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from tqdm import tqdm

import otseg_jax
from experiments import grid
from otseg_jax import mps, sinkhorn
from otseg_jax.data import shapes
from otseg_jax.models import decoder
from otseg_jax.ot import pallas
from otseg_jax.ot.sinkhorn import solve

TOLERANCE = 1e-6
LOOSER = 5e-6  # where not every method reaches the other
ACCEPTED = 2.0  # tolerances: of rows and columns together, and what rounding adds
PIXELS = 1024
CASES = [(b, n, e) for e in (0.05, 0.01) for n in (6, 8, 16) for b in (20, 171, 684)]
HEADLINE = (684, 8, 0.05)
LABELS = {
    "ours": "otseg_jax, converged",
    "scan": "our log-domain scan",
    "unrolled_100": "unrolled 100",
    "ott_log": "ott-jax, log mode",
    "ott_kernel": "ott-jax, kernel mode",
    "pot": "POT ot.batch, log",
    "kernel": "otseg_jax, a kernel",
}


def draw(batch: int, prompts: int) -> jax.Array:
    """Cosines f32[batch, 1024, prompts] of random directions in 16 dimensions."""
    keys = jax.random.split(jax.random.key(0))
    f, g = (
        x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        for x in (
            jax.random.normal(keys[0], (batch, PIXELS, 16)),
            jax.random.normal(keys[1], (batch, prompts, 16)),
        )
    )
    return jnp.einsum("bmc,bnc->bmn", f, g, precision=jax.lax.Precision.HIGHEST)


def draw_like_clip(batch: int, prompts: int) -> jax.Array:
    """Cosines f32[batch, 1024, prompts] around 0.2, whose prompts differ by 0.05 at a pixel."""
    shape, keys = (batch, PIXELS, prompts), jax.random.split(jax.random.key(1))
    pixels = 0.2 + 0.06 * jax.random.normal(keys[0], (batch, PIXELS, 1))
    return pixels + 0.05 * jax.random.normal(keys[1], shape)


def draw_trained(batch: int) -> jax.Array:
    """Cosines f32[batch, 1024, n] of the packaged model's n prompts a class, on its pictures."""
    segmenter = otseg_jax.load("shapes")
    model, text, spec = segmenter.model, segmenter.text, segmenter.spec
    count = -(-batch // len(text))
    pictures = shapes.Shapes("val", size=count, image_size=8 * 32, seed=0, words=spec.dataset)
    photos = [pictures[i]["image"] for i in range(count)]
    image = jnp.asarray((np.stack(photos) - np.array(spec.mean)) / np.array(spec.std), jnp.float32)

    @jax.jit
    def compare(image):
        whole, pixels = model.embed(image)
        return decoder.cosine(model.describe(whole, text), pixels)

    return compare(image).reshape(-1, PIXELS, text.shape[1])[:batch]


def updates_needed(similarity, epsilon: float, tolerance: float) -> int:
    """Sinkhorn updates until all of the first 20 problems have row sums right to `tolerance`."""
    kernel = (np.asarray(similarity[:20], np.float64) - 1.0) / epsilon
    _, m, n = kernel.shape
    v = np.zeros((len(kernel), 1, n))
    for count in range(10000):
        rows = scipy.special.logsumexp(kernel + v, axis=2, keepdims=True) + np.log(m)
        if count and np.abs(np.exp(rows + old_u) - 1).mean(1).max() <= tolerance:
            return count
        old_u = -rows
        v = -np.log(n) - scipy.special.logsumexp(kernel + old_u, axis=1, keepdims=True)
    raise RuntimeError("Sinkhorn does not converge")


def ott_plan(similarity, epsilon: float, lse_mode: bool, tolerance: float = TOLERANCE):
    from ott.geometry import geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    solver = ott_sinkhorn.Sinkhorn(threshold=tolerance, max_iterations=1000, lse_mode=lse_mode)

    def one(similarity):
        cost = geometry.Geometry(cost_matrix=1.0 - similarity, epsilon=epsilon)
        return solver(linear_problem.LinearProblem(cost)).matrix

    return jax.vmap(one)(similarity)


def make_pot(similarity, epsilon: float, tolerance: float):
    import torch
    from ot.batch import solve_batch

    device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
    cost = 1.0 - torch.from_numpy(np.array(similarity)).to(device)
    limit = 600
    options = {"reg": epsilon, "max_iter": limit, "method": "log_sinkhorn", "grad": "detach"}

    def run(stop: float):
        plan = solve_batch(cost, tol=stop, **options).plan
        return plan.cpu() if device == "cuda" else plan

    # Its tolerance is on another quantity: the loosest of these that does the task.
    for stop in (tolerance, tolerance / 5, tolerance / 20, tolerance / 100):
        solved = solve_batch(cost, tol=stop, **options)
        reached = marginal_error(solved.plan.cpu()) < ACCEPTED * tolerance
        if reached or int(np.max(solved.log["n_iter"])) >= limit - 1:
            break
    return functools.partial(run, stop)


def marginal_error(plan) -> float:
    """Largest L1 error of rows and columns together, over problems."""
    plan = np.asarray(plan, np.float64)
    rows = np.abs(plan.sum(-1) - 1 / plan.shape[-2]).sum(-1)
    return float((rows + np.abs(plan.sum(-2) - 1 / plan.shape[-1]).sum(-1)).max())


def compile_all(functions: dict, similarity):
    """Calls of the compiled functions, and what each allocates beside its input, in inputs."""
    runs, report = {}, {}
    for name, function in functions.items():
        program = jax.jit(function).lower(similarity).compile()
        memory = program.memory_analysis()
        allocated = memory.temp_size_in_bytes + memory.output_size_in_bytes
        runs[name] = functools.partial(call, program, similarity)
        report[name] = {"memory_in_inputs": round(allocated / similarity.nbytes, 2)}
    return runs, report


def call(program, similarity):
    return jax.block_until_ready(program(similarity))


def resident_growth(run, size: int) -> float | None:
    """How far the process grew while `run` ran, in units of `size` bytes (Linux only)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = int(status.read_text().split("VmRSS:")[1].split()[0])
    run()
    peak = int(status.read_text().split("VmHWM:")[1].split()[0])
    return max(0, peak - before) * 1024 / size


def time_in_turn(runs: dict, budget: float) -> dict[str, list[float]]:
    """Seconds of each run, a round at a time: 25 rounds, or 5 (slow ones 3) beyond the budget."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    start = time.perf_counter()
    for round_ in range(25):
        names = list(runs)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            time.sleep(0.02)
            begin = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - begin)
        elapsed = time.perf_counter() - start
        if elapsed > budget and round_ >= (4 if elapsed < 20 * budget else 2):
            break
    return seconds


def describe(seconds: list[float]) -> dict:
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {
        "median_ms": round(1e3 * middle, 2),
        "quartiles_ms": [round(1e3 * low, 2), round(1e3 * high, 2)],
        "rounds": len(seconds),
    }


def scan_count(similarity, epsilon: float, tolerance: float) -> int:
    """Updates of the plain scan: what 20 problems need, or up to a quarter more if others do."""
    first = updates_needed(similarity, epsilon, tolerance)
    for count in (first, math.ceil(1.05 * first), math.ceil(1.1 * first), math.ceil(1.25 * first)):
        error = marginal_error(sinkhorn(similarity, epsilon=epsilon, iterations=count))
        if error < ACCEPTED * tolerance:
            break
    return count


def forward(similarity, epsilon: float, tolerance: float, budget: float) -> dict:
    """Time, memory and error of every method's plan."""
    count = scan_count(similarity, epsilon, tolerance)
    functions = {
        "ours": lambda s: sinkhorn(s, epsilon=epsilon, tolerance=tolerance),
        "scan": lambda s: sinkhorn(s, epsilon=epsilon, iterations=count),
        "ott_log": lambda s: ott_plan(s, epsilon, lse_mode=True, tolerance=tolerance),
        "ott_kernel": lambda s: ott_plan(s, epsilon, lse_mode=False, tolerance=tolerance),
    }
    if jax.default_backend() != "cpu":
        options = {"epsilon": epsilon, "tolerance": tolerance, "solver": pallas.Newton()}
        functions["kernel"] = lambda s: sinkhorn(s, **options)
    runs, report = compile_all(functions, similarity)
    if jax.default_backend() != "tpu":
        runs["pot"] = make_pot(similarity, epsilon, tolerance)
        growth = resident_growth(runs["pot"], similarity.nbytes)
        report["pot"] = {"memory_in_inputs": growth and round(growth, 2)}
    for name, run in list(runs.items()):
        error = marginal_error(run())
        report[name]["marginal_error"] = error
        if not error < ACCEPTED * tolerance:  # not the same task: no time for it
            report[name]["failed"] = "did not reach the marginals"
            del runs[name]
    for name, seconds in time_in_turn(runs, budget).items():
        report[name] |= describe(seconds)
    report["scan"]["updates"] = count
    solved = solve(similarity, epsilon=epsilon, tolerance=tolerance)
    report["ours"]["steps"] = int(solved.steps.max())
    return report


def scores(similarity, epsilon: float, budget: float) -> dict:
    """Time of every method's alignment of pixels with classes, `mps`, and what Sinkhorn needs."""
    count = scan_count(similarity, epsilon, TOLERANCE)

    plans = {
        "ours": lambda s: sinkhorn(s, epsilon=epsilon),
        "scan": lambda s: sinkhorn(s, epsilon=epsilon, iterations=count),
        "ott_log": lambda s: ott_plan(s, epsilon, lse_mode=True),
        "ott_kernel": lambda s: ott_plan(s, epsilon, lse_mode=False),
    }

    def of_plan(plan_of):
        return lambda s: s.shape[-2] * s.shape[-1] * jnp.sum(plan_of(s) * s, axis=-1)

    functions = {
        "ours": lambda s: mps(s, epsilon=epsilon),
        "scan": lambda s: mps(s, epsilon=epsilon, iterations=count),
        "ott_log": of_plan(plans["ott_log"]),
        "ott_kernel": of_plan(plans["ott_kernel"]),
    }
    if jax.default_backend() != "cpu":
        options = {"epsilon": epsilon, "solver": pallas.Newton()}
        plans["kernel"] = lambda s: sinkhorn(s, **options)
        functions["kernel"] = lambda s: mps(s, **options)
    runs, report = compile_all(functions, similarity)
    with jax.enable_x64(True):
        exact = mps(similarity[:20].astype(jnp.float64), epsilon=epsilon, tolerance=1e-12)
    for name, run in runs.items():
        error = np.abs(np.asarray(run()[:20], np.float64) - np.asarray(exact)).max()
        report[name]["error"] = float(error)
        report[name]["marginal_error"] = marginal_error(plans[name](similarity))
    for name, seconds in time_in_turn(runs, budget).items():
        report[name] |= describe(seconds)
    report["scan"]["updates"] = count
    report["ours"]["steps"] = int(solve(similarity, epsilon=epsilon).steps.max())
    return report


def backward(similarity, epsilon: float, budget: float) -> dict:
    """Time and memory of plan and gradient: ours, the reference's unrolled 100, ott-jax's."""
    weights = jnp.cos(jnp.arange(similarity.size, dtype=jnp.float32)).reshape(similarity.shape)

    def gradient_of(plan_of):
        return jax.grad(lambda s: jnp.sum(weights * plan_of(s)))

    functions = {
        "ours": gradient_of(lambda s: sinkhorn(s, epsilon=epsilon)),
        "unrolled_100": gradient_of(lambda s: sinkhorn(s, epsilon=epsilon, iterations=100)),
        "ott_log": gradient_of(lambda s: ott_plan(s, epsilon, lse_mode=True)),
    }
    runs, report = compile_all(functions, similarity)
    with jax.enable_x64(True):
        few, some = similarity[:4].astype(jnp.float64), weights[:4].astype(jnp.float64)
        exact = jax.grad(lambda s: jnp.sum(some * sinkhorn(s, epsilon=epsilon, tolerance=1e-12)))(
            few
        )
        exact = np.asarray(exact)
    for name, run in list(runs.items()):
        try:
            error = np.abs(np.asarray(run()[:4], np.float64) - exact).max()
            report[name]["relative_error_of_gradient"] = float(error / np.abs(exact).max())
        except Exception as failure:
            text = str(failure)
            report[name]["failed"] = next(
                (x.strip() for x in text.splitlines() if "linear solver" in x), text[:200]
            )
            del runs[name]
    for name, seconds in time_in_turn(runs, budget).items():
        report[name] |= describe(seconds)
    return report


def machine() -> dict:
    return {
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "jax": jax.__version__,
        "load_average_at_start": round(os.getloadavg()[0], 2),
    }


def plot(results: dict, path: Path) -> None:
    """Times of plans, times with the gradient, and memory; a colour per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    by_epsilon = {
        epsilon: [case for case in results["cases"] if case["epsilon"] == epsilon]
        for epsilon in sorted({case["epsilon"] for case in results["cases"]}, reverse=True)
    }
    plans = [
        (f"Plan, ε = {epsilon}, marginals to {results[tolerance]:.0e}", key, found)
        for epsilon, cases in by_epsilon.items()
        for tolerance, key in (("tolerance", "forward"), ("looser_tolerance", "forward_looser"))
        if (found := [case for case in cases if key in case])
    ]
    gradients = [
        (f"Plan and gradient, ε = {epsilon}", "forward_and_backward", cases)
        for epsilon, cases in by_epsilon.items()
    ]
    columns = max(len(plans), len(gradients) + 1)
    figure, axes = plt.subplots(
        2, columns, figsize=(5 * columns, 8.5), squeeze=False, layout="constrained"
    )
    for row, panels in zip(axes, (plans, gradients), strict=True):
        row[0].set_ylabel("milliseconds a batch, median and quartiles")
        for axis, (title, key, cases) in zip(row, panels, strict=False):
            if axis is not axes[0][0]:
                axis.sharey(axes[0][0])
            plot_times(axis, cases, key)
            axis.set_title(title)
        for axis in row[len(panels) :]:
            axis.set_axis_off()
    plot_memory(axes[1][-1], results["cases"])
    handles = {}
    for axis in axes.flat:
        handles |= dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    device = f"{results['machine']['device']}, {results['machine']['platform']}"
    figure.suptitle(f"What misses the marginals, or has no gradient, is left out ({device})")
    figure.savefig(path, dpi=110)


def plot_times(axis, cases: list, key: str) -> None:
    for colour, (name, label) in enumerate(LABELS.items()):
        for prompts in sorted({case["prompts"] for case in cases}):
            timed = [
                (i, case[key][name])
                for i, case in enumerate(cases)
                if case["prompts"] == prompts and "median_ms" in case[key].get(name, {})
            ]
            if not timed:
                continue
            y = [report["median_ms"] for _, report in timed]
            low, high = zip(*(report["quartiles_ms"] for _, report in timed), strict=True)
            axis.errorbar(
                [i for i, _ in timed],
                y,
                yerr=[np.subtract(y, low), np.subtract(high, y)],
                color=f"C{colour}",
                label=label,
                marker="o",
                ms=4,
                capsize=3,
                lw=2.5 if name == "ours" else 1.2,
            )
    axis.set_yscale("log")
    axis.set_xticks(range(len(cases)))
    names = [f"{case['problems']}×1024×{case['prompts']}" for case in cases]
    axis.set_xticklabels(names, rotation=60, ha="right", fontsize=8)
    axis.grid(axis="y", which="both", alpha=0.25)


def plot_memory(axis, cases: list) -> None:
    """Bars of what the headline's case allocates beside its input: XLA's plan, POT as it ran."""
    found = [c for c in cases if (c["problems"], c["prompts"], c["epsilon"]) == HEADLINE]
    if not found:
        axis.set_axis_off()
        return
    names, values, colours = [], [], []
    for colour, name in enumerate(LABELS):
        for key, what in (("forward", "plan"), ("forward_and_backward", "with gradient")):
            if memory := found[0][key].get(name, {}).get("memory_in_inputs"):
                names.append(f"{LABELS[name]}, {'as it ran' if name == 'pot' else what}")
                values.append(memory)
                colours.append(f"C{colour}")
    axis.set_axis_on()
    axis.invert_yaxis()
    axis.bar_label(axis.barh(names, values, color=colours), padding=3, fontsize=8)
    axis.margins(x=0.12)
    axis.tick_params(axis="y", labelsize=8)
    problems, prompts, epsilon = HEADLINE
    axis.set_title(f"Memory, {problems}×1024×{prompts}, ε = {epsilon}")
    axis.set_xlabel("allocated beside the input, in inputs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small case, nothing written")
    parser.add_argument("--regimes", action="store_true", help="`mps` alone, in three regimes")
    parser.add_argument("--plot", action="store_true", help="draw the picture from the JSON")
    parser.add_argument("--more", action="store_true", help="keep the cases that the JSON holds")
    parser.add_argument("--budget", type=float, default=5.0, help="seconds per comparison")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    path = grid.result_of(__file__)
    if arguments.plot:
        plot(json.loads(path.read_text()), path.with_suffix(".png"))
        return
    results: dict = {
        "machine": machine(),
        "tolerance": TOLERANCE,
        "looser_tolerance": LOOSER,
        "pixels": PIXELS,
        "regimes": {},
        "cases": [],
    }
    if arguments.more:
        results |= json.loads(path.read_text())
    problems, prompts, epsilon = HEADLINE
    draws = {
        "random": lambda: draw(problems, prompts),
        "clip": lambda: draw_like_clip(problems, prompts),
        "trained": lambda: draw_trained(problems),
    }
    for regime, similarities in draws.items():
        if arguments.quick or regime in results["regimes"]:
            continue
        found = scores(similarities(), epsilon, arguments.budget)
        results["regimes"][regime] = {"machine": machine(), **found}
        tqdm.write(json.dumps({regime: results["regimes"][regime]}, indent=1))
        path.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.regimes:
        return
    done = [(c["problems"], c["prompts"], c["epsilon"]) for c in results["cases"]]
    cases = [(20, 6, 0.05)] if arguments.quick else [c for c in CASES if c not in done]
    for problems, prompts, epsilon in tqdm(cases, unit="case"):
        similarity = draw(problems, prompts)
        case: dict = {"problems": problems, "prompts": prompts, "epsilon": epsilon}
        case["load_average"] = round(os.getloadavg()[0], 2)
        case["forward"] = forward(similarity, epsilon, TOLERANCE, arguments.budget)
        if any("failed" in report for report in case["forward"].values()):
            case["forward_looser"] = forward(similarity, epsilon, LOOSER, arguments.budget)
        case["forward_and_backward"] = backward(similarity, epsilon, arguments.budget)
        results["cases"].append(case)
        tqdm.write(json.dumps(case, indent=1))
        if not arguments.quick:
            path.write_text(json.dumps(results, indent=1) + "\n")
    if not arguments.quick:
        plot(results, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
