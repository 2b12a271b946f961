"""What bounds an evaluation: reading, the host's Python, or the device; benchmark_evaluation.json.

    python -m experiments.benchmark_evaluation --root=VOC2012        # 3 minutes, two CPU cores

The full-size model of `benchmark_model`'s VOC, with random weights, in float32 and bfloat16, on
photos of the validation split, in the batches of `configs/voc12.py`, with as many readers as cores;
the offset of seen classes is swept, as for a report. On a fast device give `--passes`, so that the
time until the first batch is full does not count. Photos a second, medians with quartiles:

- `read`: decoded, resized and cut, while nothing else works;
- `host`: what the thread that gives the device its work could do alone, by its own CPU seconds in
  an evaluation whose logits are there already;
- `predict`: a batch of these windows through the model alone, as often as the photos need;
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
from itertools import islice
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
    shown = islice(
        (x for e in examples(options, source, how) for x in e["windows"]), how.batch_size
    )
    batch = sliding.filled([*shown], how.batch_size)
    logits = jax.block_until_ready(predict(batch))
    windows = sum(len(example["windows"]) for example in examples(options, source, how))

    class Ready(Predict):
        def embed(self, batch: np.ndarray) -> None:
            """Nothing."""

        def match(self, embedded: None, *, height: int) -> dict[str, jax.Array]:
            return logits

    def read() -> float:
        began = time.perf_counter()
        for _ in examples(options, source, how):
            pass
        return photos / (time.perf_counter() - began)

    def alone() -> float:
        began = time.perf_counter()
        for _ in range(count := -(-windows // how.batch_size)):
            found = predict(batch)
        jax.block_until_ready(found)
        return photos * count * how.batch_size / windows / (time.perf_counter() - began)

    def evaluated(predict: Predict, clock: Callable[[], float]) -> float:
        tally = Tally(vocabulary, [*how.method.outputs().mixtures], labelled=labelled)
        began, given = clock(), examples(options, source, how)
        stream.evaluate(predict, given, asked, how, tally, total=photos)
        return photos / (clock() - began)

    ready = Ready(**vars(predict))
    works = {
        "read": read,
        "predict": alone,
        "whole": partial(evaluated, predict, time.perf_counter),
        "host": partial(evaluated, ready, time.thread_time),
    }
    found = {name: quartiles(work, rounds) for name, work in works.items()}
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
