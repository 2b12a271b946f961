r"""The whole model against plain PyTorch on this machine: benchmark_model.json and .png.

    python -m experiments.benchmark_model            # all cases, 25 to 50 minutes on two cores
    python -m experiments.benchmark_model --only=VOC --rounds=3

On a GPU or TPU the files bear its name (benchmark_model_nvidia_h100_80gb_hbm3.json) and batches are
larger. The operations of matrix products a second are told beside the device's best: on a CPU those
of one large product alone, in the same process, by the faster of both libraries. A share near 1
leaves nothing to gain; with bfloat16 the decoder stays in float32. What keeps ours from it on a CPU
is in `profile_ms`, of the shortest of three more calls (`timeline.py`).

The rival is the same network in `torch_model.py`, with the same weights; for bfloat16 both store
the tower's matrices in it. Logits, and the loss of a step without dropout, must agree before
anything is timed; the tower alone is timed against `transformers`. As its authors' program does,
the rival puts visual prompts through the blocks, which is not in the operations that are told, and
computes queries that nothing reads after the last layer. Ours and theirs take turns in one process,
each case in its own; figures are medians with quartiles. Peak memory on a CPU is that of a further
process, which has read the weights from a file; its library is in it, and what both begin with (the
imports of this script) is taken off. Compiling is in ours, as in a first run; a training step is
started again and finds its program in the cache, as every later run does (`peak_again_gb`, which
the table shows). On a GPU it is what torch's allocator held at most, and of ours what the compiler
planned. On a TPU there is no rival.
Similarities are CLIP-like: a class's prompts lie close together. A step with "remat" computes the
tower's activations again in the backward pass.
"""

import argparse
import json
import math
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the rival its share

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from flax import nnx
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from experiments import cost
from experiments.grid import result_of, table
from experiments.timeline import profile_ms
from experiments.torch_model import TorchOTSeg
from otseg_jax import devices, sharding
from otseg_jax.data import regimes
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import labelling, sliding
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.words import Words
from otseg_jax.models import linear
from otseg_jax.models.clip import VisionConfig, VisionTower
from otseg_jax.models.otseg import TRAINABLE, OTSegConfig
from otseg_jax.models.outputs import Outputs
from otseg_jax.training import memory, optim
from otseg_jax.training.step import State, loss_sums, make_train_step
from otseg_jax.weights import mmseg, names, rules

BACKEND = jax.default_backend()
DEVICE = jax.devices()[0]
VISION = VisionConfig(
    image_size=512, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072, embed_dim=512
)
SIZES = {"VOC": (20, 6, 10), "COCO": (171, 8, 100)}  # classes, templates, visual prompts
RIVALS = ("ours",) if BACKEND == "tpu" else ("ours", "torch")
PHOTO, FITTED = (375, 500), (512, 683)  # (height, width) of a VOC photo, and as it is run
STRIDE = 426  # pixels between its two windows


class Case(NamedTuple):
    """What is timed."""

    sizes: str  # of `SIZES`, or "tower": the vision tower alone
    work: str  # forward, step, step with remat, or evaluate: from a photo to its label map
    batch: int
    dtype: str  # of matrix products in the tower

    def __str__(self) -> str:
        return f"{self.sizes} {self.work}, batch {self.batch}, {self.dtype}"


def cases() -> list[Case]:
    """What suits this backend."""
    both = "float32", "bfloat16"
    small, large = (1, 4) if BACKEND == "cpu" else (1, 16)
    narrow = (*both, "tensorfloat32") if BACKEND == "gpu" else both
    train = (1,) if BACKEND == "cpu" else (small, large)
    return [
        *(Case("tower", "forward", 1 if BACKEND == "cpu" else large, dtype) for dtype in both),
        *(
            Case(sizes, "forward", batch, dtype)
            for sizes in SIZES
            for batch in (small, large)
            for dtype in both
        ),
        *(Case("VOC", "evaluate", 1, dtype) for dtype in both),
        *(
            Case(sizes, "step", batch, dtype)
            for sizes in SIZES
            for batch in train
            for dtype in narrow
        ),
        *(Case(sizes, "step with remat", train[-1], "float32") for sizes in SIZES),
    ]


class Work(NamedTuple):
    """What is timed: a function without arguments, whose result may still be under way."""

    call: Callable[[], Any]
    planned: float | None = None  # memory, 1e9 bytes, where the compiler tells


def wait(result: Any) -> None:
    """Until it is there."""
    jax.block_until_ready(result)
    if BACKEND == "gpu":
        torch.cuda.synchronize()


def operations(case: Case) -> int:
    """Of matrix products and convolutions, two a multiply-add, as `cost` counts them.

    A product that a gradient passes through is done again backwards, and again if its kernel
    learns. Sinkhorn's and the losses' are not counted, nor what is done twice to save memory.
    """
    image, text, _ = (jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in inputs(case))
    if case.sizes == "tower":
        graphdef, state = nnx.split(nnx.eval_shape(lambda: VisionTower(VISION, rngs=nnx.Rngs(0))))
        found = cost.products(lambda s, image: nnx.merge(graphdef, s).encode(image), state, image)
    else:
        # Newton's steps hold products, and how many depends on the data
        config = OTSegConfig(prompt_tokens=SIZES[case.sizes][2], sinkhorn="unrolled")
        made = nnx.eval_shape(lambda: config.build(VISION, rngs=nnx.Rngs(0)))
        graphdef, *states = nnx.split(made, TRAINABLE, ...)
        found = cost.products(lambda x, *rest: nnx.merge(graphdef, *x)(*rest), states, image, text)
    if case.work == "evaluate":
        return 4 * sum(product.multiply_adds for product in found)  # two windows
    if case.work == "forward":
        return 2 * sum(product.multiply_adds for product in found)
    frozen = "1/"  # of `states`; a product of two activations has no name
    times = (2 if product.kernel.startswith(frozen) else 3 for product in found)
    return 2 * sum(n * product.multiply_adds for n, product in zip(times, found, strict=True))


def best_rate(dtype: str) -> float | None:
    """Operations a second of matrix products that this device can do; None: not known."""
    if BACKEND != "cpu":
        sheet = devices.peak(DEVICE)
        return sheet and sheet.rate(dtype)
    tokens, narrow, wide = (VISION.image_size // VISION.patch_size) ** 2, 768, 3072  # of the MLP
    x, w = jnp.ones((tokens, narrow), dtype), jnp.ones((narrow, wide), dtype)
    product = jax.jit(partial(jnp.matmul, preferred_element_type=jnp.float32))
    y, v = (torch.ones(z.shape, dtype=getattr(torch, dtype)) for z in (x, w))
    least = math.inf
    for call in (lambda: product(x, w), lambda: y @ v):
        for _ in range(20):  # not in turn: a library's threads wait awake for its next product
            start = time.perf_counter()
            wait(call())
            least = min(least, time.perf_counter() - start)
    return 2 * tokens * narrow * wide / least


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, text embeddings and labels."""
    rng = np.random.default_rng(0)
    classes, templates, _ = SIZES.get(case.sizes, (1, 1, 1))
    shared = rng.standard_normal((classes, 1, VISION.embed_dim))
    text = shared + 0.3 * rng.standard_normal((classes, templates, VISION.embed_dim))
    text /= np.linalg.norm(text, axis=-1, keepdims=True)
    image = rng.standard_normal((case.batch, 512, 512, 3))
    label = rng.integers(0, classes, (case.batch, 8, 8)).repeat(64, 1).repeat(64, 2)
    return image.astype(np.float32), text.astype(np.float32), label.astype(np.int16)


def model(case: Case, stored: dict[str, np.ndarray] | None = None) -> tuple[Any, Any, Any]:
    """Our model, as (graph, trainable, frozen), with these weights, which it takes, or random."""
    remat = case.work.endswith("remat")
    config = OTSegConfig(prompt_tokens=SIZES[case.sizes][2], remat=remat)

    def make() -> nnx.Module:
        return config.build(VISION, dtype=case.dtype, rngs=nnx.Rngs(0))

    graphdef, *states = nnx.split(nnx.eval_shape(make), TRAINABLE, ...)
    if stored is None:
        return graphdef, *nnx.split(make(), TRAINABLE, ...)[1:]  # to compile it takes longer
    trainable, frozen = (
        names.assign(state, {name: stored.pop(name) for name in names.flatten(state)})
        for state in states
    )
    return graphdef, trainable, frozen


def ours(case: Case, stored: dict[str, np.ndarray] | None = None) -> Work:
    """What is timed of ours."""
    image, text, label = (jnp.asarray(x) for x in inputs(case))
    if case.sizes == "tower":

        def make() -> VisionTower:
            return VisionTower(VISION, dtype=case.dtype, rngs=nnx.Rngs(0))

        tower = names.build(make, stored) if stored else make()
        linear.narrow(tower)
        graphdef, state = nnx.split(tower)
        return compiled(lambda state, image: nnx.merge(graphdef, state).encode(image), state, image)
    graphdef, trainable, frozen = model(case, stored)
    if case.work == "forward":
        return compiled(
            lambda t, f, image, text: nnx.merge(graphdef, t, f)(image, text),
            *(trainable, frozen, image, text),
        )
    if case.work == "evaluate":
        return Work(evaluation(case, graphdef, trainable, frozen))
    config, optimizer = OTSegConfig(), optim.make_optimizer(lambda _: 2e-4, weight_decay=0.01)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step = make_train_step(
        graphdef,
        optimizer,
        regimes.resolve("supervised", num_classes=len(text), unseen=()),
        mesh=mesh,
        outputs=config.outputs(),
        mean=(0.0,) * 3,  # images are normalised
        std=(1.0,) * 3,
    )
    state = [State(trainable, jax.jit(optimizer.init)(trainable))]
    batch = {"image": image, "label": label}
    with jax.set_mesh(mesh):
        program = memory.compile_and_trim(step.lower(state[0], frozen, text, batch, jnp.int32(0)))
    planned = sum(memory.needed(program)) / 1e9

    def train() -> Any:
        state[0], scalars = program(state[0], frozen, text, batch, jnp.int32(0))
        return scalars

    return Work(train, planned)


def compiled(function: Callable[..., Any], *arrays: Any) -> Work:
    """A function bound to its arrays."""
    program = memory.compile_and_trim(jax.jit(function).lower(*arrays))
    return Work(lambda: program(*arrays), sum(memory.needed(program)) / 1e9)


def evaluation(case: Case, graphdef: Any, trainable: Any, frozen: Any) -> Callable[[], np.ndarray]:
    """Label map of a photo that is fitted and normalised already, as our evaluation makes it."""
    config, (_, text, _) = OTSegConfig(), inputs(case)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    runner = sliding.Runner(graphdef=graphdef, trainable=trainable, frozen=frozen, mesh=mesh)
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # photos are normalised
    how = Inference(method=config, patch=16, window=512, stride=STRIDE, batch_size=4, **plain)
    outputs = Outputs({"otseg_plus": config.outputs().mixtures["otseg_plus"]}, main="otseg_plus")
    asked = Words.of_classes(jnp.asarray(text), np.zeros(len(text), np.float32))
    views = [View(photo())]

    def label() -> np.ndarray:
        embedded = sliding.photo_embedded(runner, views, how=how)
        logits = sliding.photo_logits(runner, embedded, views, asked.text, outputs=outputs, how=how)
        return labelling.label_maps(logits, views, asked, how, size=PHOTO)["otseg_plus"]

    return label


def photo() -> np.ndarray:
    """Normalised, f32[h, w, 3]."""
    return np.random.default_rng(1).standard_normal((*FITTED, 3)).astype(np.float32)


def theirs(case: Case, stored: dict[str, np.ndarray] | None = None) -> Work:
    """The same of PyTorch."""
    torch.set_float32_matmul_precision("high" if case.dtype == "tensorfloat32" else "highest")
    torch.backends.cudnn.allow_tf32 = case.dtype == "tensorfloat32"
    picture, words, target = tensors(case)
    if case.sizes == "tower":
        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        config = CLIPVisionConfig(image_size=512, patch_size=16, num_hidden_layers=12, **sizes)
        tower, narrow = CLIPVisionModel(config).eval(), case.dtype == "bfloat16"
        for layer in tower.modules():
            if narrow and isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                layer.to(torch.bfloat16)

        @torch.inference_mode()
        def encode() -> Any:
            with torch.autocast(picture.device.type, torch.bfloat16, enabled=narrow):
                return tower(picture)[0]

        return Work(encode)
    rival = torch_otseg(case, stored)
    if case.work == "forward":
        return Work(torch.inference_mode()(lambda: rival(picture, words)))
    if case.work == "evaluate":
        whole = torch.tensor(photo()).permute(2, 0, 1)[None].contiguous()
        label_map = torch.inference_mode()(rival.label)
        return Work(lambda: label_map(whole, words, PHOTO, stride=STRIDE).cpu())
    optimizer = torch.optim.AdamW([x for x in rival.w.values() if x.requires_grad], lr=2e-4)

    def train() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = rival.loss(picture, words, target, dropout=OTSegConfig().dropout)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Work(train)


def tensors(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`inputs`, images as torch likes them."""
    image, text, label = inputs(case)
    picture = torch.tensor(image).permute(0, 3, 1, 2).contiguous()
    return picture, torch.tensor(text), torch.tensor(label.astype(np.int64))


def torch_otseg(case: Case, stored: dict[str, np.ndarray] | None = None) -> TorchOTSeg:
    """The rival with these weights, or random ones."""
    arrays = stored or original_arrays(case)
    return TorchOTSeg(arrays, heads=VISION.heads, narrow=case.dtype == "bfloat16")


def original_arrays(case: Case) -> dict[str, np.ndarray]:
    """The weights of `model` by the original program's names."""
    # before a narrow tower's kernels are stored as such
    _, trainable, frozen = model(case._replace(dtype="float32"))
    leaves = {**names.flatten(trainable), **names.flatten(frozen)}
    found = rules.invert(
        mmseg.otseg_rules(blocks=VISION.layers, layers=3),
        {name: np.asarray(leaf) for name, leaf in leaves.items()},
    )
    return {name: np.ascontiguousarray(array) for name, array in found.items()}


def check(case: Case) -> float:
    """Largest difference of the logits; an AssertionError above what the dtype explains.

    That of a step's loss, or of a photo's labels, is looked at, too.
    """
    maps = ours(case._replace(work="forward")).call()
    found = theirs(case._replace(work="forward")).call()
    worst = max(
        float(np.abs(np.asarray(one) - other.cpu().numpy()).max())
        for one, other in zip(maps.values(), found, strict=True)
    )
    assert worst < (1e-3 if case.dtype == "float32" else 5e-2), f"{case}: logits differ by {worst}"
    if case.work.startswith("step"):
        outputs, (_, text, label) = OTSegConfig().outputs(), inputs(case)
        supervised = regimes.resolve("supervised", num_classes=len(text), unseen=())
        loss, (_, pairs, _) = loss_sums(
            maps, jnp.asarray(label), supervised, outputs.mixtures[outputs.main]
        )
        with torch.no_grad():
            wanted = torch_otseg(case).loss(*tensors(case), dropout=0.0).item()
        # of all pixels and classes the error averages out, also that of narrow products
        found_loss = float(loss / pairs)
        assert abs(found_loss / wanted - 1) < 1e-3, f"{case}: losses {found_loss}, {wanted}"
    if case.work == "evaluate":
        same = float(np.mean(ours(case).call() == theirs(case).call().numpy()))
        assert same > (0.999 if case.dtype == "float32" else 0.9), f"{case}: {same} of the labels"
    return worst


def quartiles(seconds: list[float]) -> list[float]:
    """First quartile, median, third."""
    return [round(float(q), 6) for q in np.quantile(seconds, [0.25, 0.5, 0.75])]


def weights(case: Case, who: str) -> dict[str, np.ndarray]:
    """What a process of its own reads."""
    if case.sizes == "tower":  # the rival's draws its own
        return names.flatten(nnx.state(VisionTower(VISION, rngs=nnx.Rngs(0))))
    if who == "torch":
        return original_arrays(case)
    _, trainable, frozen = model(case)
    return {**names.flatten(trainable), **names.flatten(frozen)}


def peaks(case: Case, who: str) -> dict[str, float]:
    """Memory that a process takes to do this alone, over what it begins with, 1e9 bytes.

    Our training step is started again, too, as a run is that finds its program compiled.
    """
    command = [sys.executable, "-m", "experiments.benchmark_model", f"--alone={who}"]
    starts = ["peak_gb"]
    if who == "ours" and case.work.startswith("step"):
        starts.append("peak_again_gb")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npz"
        np.savez(
            file, **{name: np.asarray(x, np.float32) for name, x in weights(case, who).items()}
        )
        command += [f"--only={case}", f"--weights={file}"]
        cached = {**os.environ, "JAX_COMPILATION_CACHE_DIR": folder}
        found = {}
        for start in starts:
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=cached)
            found[start] = float(done.stdout.split()[-1])
    return found


def alone(case: Case, who: str, file: Path) -> float:
    """In the process of `peaks`."""
    began = resident("VmRSS")
    with np.load(file) as stored:
        work = {"ours": ours, "torch": theirs}[who](case, dict(stored))
    for _ in range(2):
        wait(work.call())
    return (resident("VmHWM") - began) / 1e9


def resident(field: str) -> int:
    """Bytes of this process; not of `ru_maxrss`, which begins with what the parent held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def timed(work: Work, calls: int) -> float:
    """Seconds of one of so many calls, which are waited for together."""
    start = time.perf_counter()
    for _ in range(calls):
        found = work.call()
    wait(found)
    return (time.perf_counter() - start) / calls


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Times in turn, peaks, the ratio theirs / ours, and how much of the device is used."""
    made = {"ours": ours, "torch": theirs}
    paired = len(RIVALS) > 1 and case.sizes != "tower"
    differ = check(case) if paired else None
    result: dict[str, Any] = {"case": case._asdict(), "logits_differ_by": differ}
    work = {who: made[who](case) for who in RIVALS}
    if BACKEND == "gpu":
        torch.cuda.reset_peak_memory_stats()
    for who in RIVALS:
        timed(work[who], 1)  # compiles
    # under way at once: a launch is not waited for, where it is not the work itself
    calls = {who: min(10, 1 + int(0.2 / timed(work[who], 1))) for who in RIVALS}
    seconds: dict[str, list[float]] = {who: [] for who in RIVALS}
    for _ in range(rounds):
        for who in RIVALS:
            seconds[who].append(timed(work[who], calls[who]))
    for who in RIVALS:
        result[who] = {"quartiles_s": quartiles(seconds[who])}
    if BACKEND == "cpu":
        result["ours"]["profile_ms"] = profile_ms(work["ours"].call)
    else:
        result["ours"]["peak_gb"] = work["ours"].planned
    best, count = best_rate(case.dtype), operations(case)
    if BACKEND == "cpu":
        result["peak_tera_operations_s"] = round(best / 1e12, 3)
    for who in RIVALS:
        rate = count / float(np.median(seconds[who]))
        result[who]["tera_operations_s"] = round(rate / 1e12, 2)
        if best:
            result[who]["of_peak"] = round(rate / best, 3)
        if BACKEND == "cpu":
            result[who].update(peaks(case, who))
    if BACKEND == "gpu":
        result["torch"]["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    if len(RIVALS) > 1:
        medians = (float(np.median(seconds[who])) for who in ("torch", "ours"))
        result["ratio"] = round(operator.truediv(*medians), 2)
    return result


def apart(case: Case, rounds: int) -> dict[str, Any]:
    """`measure` in a process of its own: what other cases leave in one makes ours slower."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "case.json"
        command = [sys.executable, "-m", "experiments.benchmark_model", f"--only={case}"]
        command += [f"--rounds={rounds}", f"--output={file}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (row,) = json.loads(file.read_text())["rows"]
        return row


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as text."""

    def cell(row: Mapping[str, Any]) -> str:
        memory, share = row.get("peak_again_gb", row["peak_gb"]), row.get("of_peak")
        taken = "" if memory is None else f" ({memory:.2f})"
        return f"{row['quartiles_s'][1]:.3g}{taken}" + (f", {share:.0%}" if share else "")

    cells = [
        (
            str(Case(**row["case"])),
            *(cell(row[who]) for who in RIVALS),
            f"{row.get('ratio', math.nan):.2f}×",
        )
        for row in rows
    ]
    heads = (f"{who}, s (GB), of the device's peak" for who in RIVALS)
    return table(cells, "case", *heads, "faster by")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the medians with quartiles, and the ratio beside each pair."""
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(rows) + 1), layout="constrained")
    for shift, colour, who in zip((-0.2, 0.2), ("tab:blue", "tab:orange"), RIVALS, strict=False):
        low, middle, high = np.array([row[who]["quartiles_s"] for row in rows]).T
        places = np.arange(len(rows)) + shift
        axis.barh(places, middle, 0.38, xerr=(middle - low, high - middle), color=colour, label=who)
    for place, row in enumerate(rows):
        end = max(row[who]["quartiles_s"][2] for who in RIVALS)
        if "ratio" in row:
            axis.annotate(f" {row['ratio']:.2f}×", (end, place), va="center")
    axis.set_yticks(np.arange(len(rows)), [str(Case(**row["case"])) for row in rows])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="seconds")
    axis.margins(x=0.1)
    axis.legend()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Measure every case, write, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append", help="cases whose name begins so")
    parser.add_argument(
        "--output", type=Path, help="JSON; without it, of all cases, beside this file"
    )
    parser.add_argument("--alone", choices=RIVALS, help="run one case, print the peak memory")
    parser.add_argument("--weights", type=Path, help="of --alone")
    options = parser.parse_args()
    torch.set_default_device("cuda" if BACKEND == "gpu" else "cpu")
    chosen = [case for case in cases() if str(case).startswith(tuple(options.only or [""]))]
    if options.alone:
        (case,) = [case for case in chosen if [str(case)] == options.only]
        print(alone(case, options.alone, options.weights))
        return
    record: dict[str, Any] = {
        "machine": {**cost.machine(), "torch": torch.__version__},
        "rounds": options.rounds,
        "rows": [],
    }
    result = options.output or (None if options.only else result_of(__file__))
    for case in tqdm(chosen, disable=len(chosen) == 1):
        how = measure if len(chosen) == 1 else apart
        record["rows"].append(how(case, options.rounds))
        print(markdown(record["rows"][-1:]), flush=True)
        if result:  # what there is, should it be cut off
            result.write_text(json.dumps(record, indent=1) + "\n")
            draw(record["rows"], result.with_suffix(".png"))
    print(markdown(record["rows"]))


if __name__ == "__main__":
    main()
