r"""The whole model against plain PyTorch on this machine: benchmark_model.json and .png.

    python -m experiments.benchmark_model            # all cases, 35 minutes on two cores
    python -m experiments.benchmark_model --only=VOC --rounds=3

The rival is the same network in `torch_model.py`, with the same weights, and its logits must agree
before anything is timed; the tower alone is timed against `transformers`. Ours and theirs take
turns in one process; figures are medians with quartiles. Peak memory is that of a process of its
own, which has read the weights from a file; its library is in it, and what both begin with (the
imports of this script) is taken off. Similarities are CLIP-like: a class's prompts lie close
together. A step with "remat" computes the tower's activations again in the backward pass.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import torch
from flax import nnx
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModel

from experiments.grid import table
from experiments.torch_model import TorchOTSeg
from otseg_jax import sharding
from otseg_jax.data import regimes
from otseg_jax.data.transforms import View
from otseg_jax.evaluation import labelling, sliding
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.words import Words
from otseg_jax.models.clip import VisionConfig, VisionTower
from otseg_jax.models.otseg import TRAINABLE, OTSegConfig
from otseg_jax.models.outputs import Outputs
from otseg_jax.training import memory, optim
from otseg_jax.training.step import State, make_train_step
from otseg_jax.weights import mmseg, names, rules

RESULT = Path(__file__).with_suffix(".json")
VISION = VisionConfig(
    image_size=512, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072, embed_dim=512
)
SIZES = {"VOC": (20, 6, 10), "COCO": (171, 8, 100)}  # classes, templates, visual prompts
RIVALS = ("ours", "torch")
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


CASES = [
    Case("tower", "forward", 1, "float32"),
    Case("tower", "forward", 1, "bfloat16"),
    *(
        Case(sizes, "forward", batch, dtype)
        for sizes in SIZES
        for batch in (1, 4)
        for dtype in ("float32", "bfloat16")
    ),
    *(Case("VOC", "evaluate", 1, dtype) for dtype in ("float32", "bfloat16")),
    *(Case(sizes, "step", 1, dtype) for sizes in SIZES for dtype in ("float32", "bfloat16")),
    *(Case(sizes, "step with remat", 1, "float32") for sizes in SIZES),
]


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


def model(case: Case, stored: Mapping[str, np.ndarray] | None = None) -> tuple[Any, Any, Any]:
    """Our model, as (graph, trainable, frozen), with these weights or random ones."""
    remat = case.work.endswith("remat")
    config = OTSegConfig(prompt_tokens=SIZES[case.sizes][2], remat=remat)

    def make() -> nnx.Module:
        return config.build(VISION, dtype=jnp.dtype(case.dtype), rngs=nnx.Rngs(0))

    graphdef, *states = nnx.split(nnx.eval_shape(make), TRAINABLE, ...)
    if stored is None:
        return graphdef, *jax.jit(lambda: nnx.split(make(), TRAINABLE, ...)[1:])()
    trainable, frozen = (
        names.assign(state, {name: stored[name] for name in names.flatten(state)})
        for state in states
    )
    return graphdef, trainable, frozen


def ours(case: Case, stored: Mapping[str, np.ndarray] | None = None) -> Callable[[], Any]:
    """What is timed of ours: a function without arguments that waits for its result."""
    image, text, label = (jnp.asarray(x) for x in inputs(case))
    if case.sizes == "tower":

        def make() -> VisionTower:
            return VisionTower(VISION, dtype=jnp.dtype(case.dtype), rngs=nnx.Rngs(0))

        graphdef, state = nnx.split(names.build(make, stored) if stored else make())
        encode = jax.jit(lambda state, image: nnx.merge(graphdef, state).encode(image))
        return lambda: jax.block_until_ready(encode(state, image))
    graphdef, trainable, frozen = model(case, stored)
    if case.work == "forward":
        run = jax.jit(lambda t, f, image, text: nnx.merge(graphdef, t, f)(image, text))
        return lambda: jax.block_until_ready(run(trainable, frozen, image, text))
    if case.work == "evaluate":
        return lambda: evaluate(case, graphdef, trainable, frozen)
    config, optimizer = OTSegConfig(), optim.make_optimizer(lambda _: 2e-4, weight_decay=0.01)
    step = make_train_step(
        graphdef,
        optimizer,
        regimes.resolve("supervised", num_classes=len(text), unseen=()),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        outputs=config.outputs(),
        mean=(0.0,) * 3,  # images are normalised
        std=(1.0,) * 3,
    )
    state = [State(trainable, jax.jit(optimizer.init)(trainable))]
    batch = {"image": image, "label": label}
    compiled = step.lower(state[0], frozen, text, batch, jnp.int32(0)).compile()
    memory.give_back()  # as `loop` does

    def train() -> Any:
        state[0], scalars = compiled(state[0], frozen, text, batch, jnp.int32(0))
        return jax.block_until_ready(scalars)

    return train


def evaluate(case: Case, graphdef: Any, trainable: Any, frozen: Any) -> np.ndarray:
    """Label map of a photo that is fitted and normalised already, as our evaluation makes it."""
    config, (_, text, _) = OTSegConfig(), inputs(case)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    runner = sliding.Runner(graphdef=graphdef, trainable=trainable, frozen=frozen, mesh=mesh)
    plain: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1.0,) * 3}  # photos are normalised
    how = Inference(method=config, patch=16, window=512, stride=STRIDE, batch_size=4, **plain)
    outputs = Outputs({"otseg_plus": config.outputs().mixtures["otseg_plus"]}, main="otseg_plus")
    asked = Words.of_classes(jnp.asarray(text), np.zeros(len(text), np.float32))
    views = [View(photo())]
    embedded = sliding.photo_embedded(runner, views, how=how)
    logits = sliding.photo_logits(runner, embedded, views, asked.text, outputs=outputs, how=how)
    return labelling.label_maps(logits, views, asked, how, size=PHOTO)["otseg_plus"]


def photo() -> np.ndarray:
    """Normalised, f32[h, w, 3]."""
    return np.random.default_rng(1).standard_normal((*FITTED, 3)).astype(np.float32)


def theirs(case: Case, stored: Mapping[str, np.ndarray] | None = None) -> Callable[[], Any]:
    """The same of PyTorch."""
    image, text, label = inputs(case)
    picture = torch.tensor(image).permute(0, 3, 1, 2).contiguous()
    narrow = case.dtype == "bfloat16"
    if case.sizes == "tower":
        sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
        config = CLIPVisionConfig(image_size=512, patch_size=16, num_hidden_layers=12, **sizes)
        tower = CLIPVisionModel(config).eval()

        @torch.inference_mode()
        def encode() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
                return tower(picture)

        return encode
    rival = TorchOTSeg(stored or original_arrays(case), heads=VISION.heads, narrow=narrow)
    words, target = torch.tensor(text), torch.tensor(label.astype(np.int64))
    if case.work == "forward":
        return torch.inference_mode()(lambda: rival(picture, words))
    if case.work == "evaluate":
        whole = torch.tensor(photo()).permute(2, 0, 1)[None].contiguous()
        return torch.inference_mode()(lambda: rival.label(whole, words, PHOTO, stride=STRIDE))
    optimizer = torch.optim.AdamW([x for x in rival.w.values() if x.requires_grad], lr=2e-4)

    def train() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = rival.loss(picture, words, target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


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
    """Largest difference of the logits; an AssertionError above what the dtype explains."""
    maps = ours(case._replace(work="forward"))()
    found = theirs(case._replace(work="forward"))()
    worst = max(
        float(np.abs(np.asarray(one) - other.numpy()).max())
        for one, other in zip(maps.values(), found, strict=True)
    )
    assert worst < (1e-3 if case.dtype == "float32" else 5e-2), f"{case}: logits differ by {worst}"
    if case.work == "evaluate":
        same = float(np.mean(ours(case)() == theirs(case)().numpy()))
        assert same > (0.999 if case.dtype == "float32" else 0.9), f"{case}: {same} of the labels"
    return worst


def quartiles(seconds: list[float]) -> list[float]:
    """First quartile, median, third."""
    return [round(float(q), 4) for q in np.quantile(seconds, [0.25, 0.5, 0.75])]


def weights(case: Case, who: str) -> dict[str, np.ndarray]:
    """What a process of its own reads."""
    if case.sizes == "tower":  # the rival's draws its own
        return names.flatten(nnx.state(VisionTower(VISION, rngs=nnx.Rngs(0))))
    if who == "torch":
        return original_arrays(case)
    _, trainable, frozen = model(case)
    return {**names.flatten(trainable), **names.flatten(frozen)}


def peak(case: Case, who: str) -> float:
    """Memory that a process takes to do this alone, over what it begins with, 1e9 bytes."""
    command = [sys.executable, "-m", "experiments.benchmark_model", f"--alone={who}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.npz"
        np.savez(
            file, **{name: np.asarray(x, np.float32) for name, x in weights(case, who).items()}
        )
        command += [f"--only={case}", f"--weights={file}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def alone(case: Case, who: str, file: Path) -> float:
    """In the process of `peak`."""
    began = resident("VmRSS")
    with np.load(file) as stored:
        work = {"ours": ours, "torch": theirs}[who](case, dict(stored))
    work(), work()
    return (resident("VmHWM") - began) / 1e9


def resident(field: str) -> int:
    """Bytes of this process; not of `ru_maxrss`, which begins with what the parent held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Times in turn, peaks, and the ratio theirs / ours."""
    difference = None if case.sizes == "tower" else check(case)
    work = {"ours": ours(case), "torch": theirs(case)}
    seconds: dict[str, list[float]] = {who: [] for who in RIVALS}
    for number in range(rounds + 1):
        for who in RIVALS:
            start = time.perf_counter()
            work[who]()
            if number:  # the first compiles
                seconds[who].append(time.perf_counter() - start)
    result: dict[str, Any] = {
        who: {"quartiles_s": quartiles(seconds[who]), "peak_gb": peak(case, who)} for who in RIVALS
    }
    result["ratio"] = round(float(np.median(seconds["torch"]) / np.median(seconds["ours"])), 2)
    return {"case": case._asdict(), "logits_differ_by": difference, **result}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as text."""
    cells = [
        (
            str(Case(**row["case"])),
            *(f"{row[who]['quartiles_s'][1]:.2f} ({row[who]['peak_gb']:.1f})" for who in RIVALS),
            f"{row['ratio']:.2f}×",
        )
        for row in rows
    ]
    return table(cells, "case", "ours, s (GB)", "torch, s (GB)", "faster by")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the medians with quartiles, and the ratio beside each pair."""
    figure, axis = plt.subplots(figsize=(9, 0.45 * len(rows) + 1), layout="constrained")
    for shift, colour, who in zip((-0.2, 0.2), ("tab:blue", "tab:orange"), RIVALS, strict=True):
        low, middle, high = np.array([row[who]["quartiles_s"] for row in rows]).T
        places = np.arange(len(rows)) + shift
        axis.barh(places, middle, 0.38, xerr=(middle - low, high - middle), color=colour, label=who)
    for place, row in enumerate(rows):
        end = max(row[who]["quartiles_s"][2] for who in RIVALS)
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
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--alone", choices=RIVALS, help="run one case, print the peak memory")
    parser.add_argument("--weights", type=Path, help="of --alone")
    options = parser.parse_args()
    cases = [case for case in CASES if str(case).startswith(options.only)]
    if options.alone:
        (case,) = [case for case in cases if str(case) == options.only]
        print(alone(case, options.alone, options.weights))
        return
    before = os.getloadavg()[0]
    rows = [measure(case, options.rounds) for case in tqdm(cases)]
    record = {
        "machine": f"{os.cpu_count()} CPU cores, {platform.processor() or platform.machine()}, "
        f"jax {jax.__version__}, torch {torch.__version__}",
        "load_before": round(before, 2),
        "rounds": options.rounds,
        "rows": rows,
    }
    if not options.only:
        RESULT.write_text(json.dumps(record, indent=1) + "\n")
        draw(rows, RESULT.with_suffix(".png"))
    print(markdown(rows))


if __name__ == "__main__":
    main()
