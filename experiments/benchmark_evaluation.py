"""What bounds an evaluation: reading, the host's Python, or the device; benchmark_evaluation.json.

    python -m experiments.benchmark_evaluation --root=VOC2012        # 5 minutes, two CPU cores

The full-size model of `benchmark_model`'s VOC, with random weights, in float32 and bfloat16, on
photos of the validation split, in the batches of `configs/voc12.py`, with as many readers as cores;
the offset of seen classes is swept, as for a report. On a fast device the photos want `--passes`:
until the first batch is full it waits. Photos a second, medians with quartiles:

- `read`: decoded, resized and cut, while nothing else works;
- `host`: what the thread that gives the device its work could do alone, by its own CPU seconds;
- `predict`: batches of windows through the model alone, by the windows that these photos have;
- `whole`: the evaluation. Where it is near `predict`, the device is the bottleneck.

On a GPU or TPU the file bears its name.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import voc12
from experiments import benchmark_model
from experiments.cost import machine
from experiments.grid import result_of
from otseg_jax import build, sharding
from otseg_jax.data import pipeline, transforms
from otseg_jax.data.splits import Split
from otseg_jax.evaluation import sliding, stream
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.sliding import Predict
from otseg_jax.evaluation.tally import Tally
from otseg_jax.evaluation.words import Words
from otseg_jax.models.otseg import OTSegConfig
from otseg_jax.settings import Settings


@dataclass(frozen=True)
class Photos:
    """The first photos of a split, again and again."""

    split: Split
    count: int
    passes: int

    def __len__(self) -> int:
        return self.count * self.passes

    def __getitem__(self, i: int, /) -> Any:
        return self.split[i % self.count]


def examples(options: Settings, photos: Photos, how: Inference) -> Iterator[Mapping[str, Any]]:
    """As `report.evaluate_split` reads them."""
    shown, data, classes = options.eval, options.data, len(photos.split.vocabulary)
    look = partial(transforms.views, scales=shown.scales, flip=shown.flip, scale=shown.scale)
    return pipeline.eval_examples(
        photos,
        lambda example: stream.cut(example, look(example["image"]), how, classes=classes),
        threads=data.threads,
        buffer=data.buffer,
    )


def model(options: Settings, dtype: str) -> tuple[Predict, Words, Inference]:
    """The model, bound to words."""
    case = benchmark_model.Case("VOC", "forward", 1, dtype)
    graphdef, trainable, frozen = benchmark_model.model(case)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    runner = sliding.Runner(graphdef=graphdef, trainable=trainable, frozen=frozen, mesh=mesh)
    text = jnp.asarray(benchmark_model.inputs(case)[1])
    config = OTSegConfig(prompt_tokens=10)
    how = Inference(
        method=config,
        patch=16,
        window=options.data.crop,
        stride=options.eval.stride,
        batch_size=options.eval.batch_size,
        mean=options.data.mean,
        std=options.data.std,
    )
    predict = sliding.Predict(runner=runner, text=text, outputs=config.outputs(), how=how)
    return predict, Words.of_classes(text, np.zeros(len(text), np.float32)), how


def quartiles(work: Callable[[], float], rounds: int) -> list[float]:
    """Of the rates of some rounds, after one that compiles."""
    work()
    return [
        round(float(q), 2) for q in np.quantile([work() for _ in range(rounds)], [0.25, 0.5, 0.75])
    ]


def measure(options: Settings, source: Photos, dtype: str, rounds: int) -> dict[str, Any]:
    """All that bounds an evaluation with products in this type."""
    predict, asked, how = model(options, dtype)
    vocabulary, photos = source.split.vocabulary, len(source)
    labelled = ~np.isin(np.arange(len(vocabulary)), vocabulary.unseen)
    windows = 0
    host: list[float] = []

    def read() -> float:
        nonlocal windows
        began = time.perf_counter()
        windows = sum(len(x["windows"]) for x in examples(options, source, how))
        return photos / (time.perf_counter() - began)

    def alone() -> float:
        batch = np.zeros((how.batch_size, how.window, how.window, 4), np.uint8)
        began = time.perf_counter()
        for _ in range(count := -(-windows // how.batch_size)):
            found = predict(batch)
        jax.block_until_ready(found)
        return photos * count * how.batch_size / windows / (time.perf_counter() - began)

    def whole() -> float:
        tally = Tally(vocabulary, [*how.method.outputs().mixtures], labelled=labelled)
        began, own = time.perf_counter(), time.thread_time()
        given = examples(options, source, how)
        stream.evaluate(predict, given, asked, how, tally, total=photos)
        host.append(photos / (time.thread_time() - own))
        return photos / (time.perf_counter() - began)

    found = {name: quartiles(work, rounds) for name, work in (("read", read), ("predict", alone))}
    found["whole"] = quartiles(whole, rounds)
    found["host"] = [round(float(q), 2) for q in np.quantile(host[1:], [0.25, 0.5, 0.75])]
    return {"dtype": dtype, "windows": windows, "photos_per_second": found}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of PASCAL VOC 2012, or its records")
    parser.add_argument("--photos", type=int, default=8, help="of the validation split")
    parser.add_argument("--passes", type=int, default=1, help="over these photos in a round")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    config = voc12.get_config("inductive")
    config.data.root, config.data.threads = chosen.root, os.cpu_count() or 1
    options = build.settings_of(config)
    split = build.open_split(options, "val")
    source = Photos(split, min(chosen.photos, len(split)), chosen.passes)
    record = {
        "machine": machine(),
        "readers": options.data.threads,
        "photos": source.count,
        "passes": source.passes,
        "rows": [
            measure(options, source, dtype, chosen.rounds) for dtype in ("float32", "bfloat16")
        ],
    }
    print(json.dumps(record, indent=1))
    result_of(__file__).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
