"""How many training images a second the input makes, and where its time goes: benchmark_input.json.

    python -m experiments.benchmark_input --root=VOC2012        # a minute, two CPU cores

Batches of 16 crops of 512 pixels, as `configs/voc12.py` has them, read by as many threads as there
are cores; nothing else runs. Then one thread: milliseconds of each step of an image, medians.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from configs import voc12
from experiments.cost import machine
from otseg_jax import build
from otseg_jax.data import transforms
from otseg_jax.data.splits import Split
from otseg_jax.settings import Settings
from otseg_jax.training import start

RESULT = Path(__file__).with_suffix(".json")
ROUND = 20  # batches


def steps(folder: Any, data: Any, images: int) -> dict[str, float]:
    """Milliseconds of each step, one after the other on one thread."""
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        result = work(*args, **options)
        seconds.setdefault(name, []).append(time.perf_counter() - began)
        return result

    for i in range(images):
        rng = np.random.default_rng(i)
        example = timed("decode", folder.__getitem__, i % len(folder))
        scale = tuple(int(side * rng.uniform(*data.ratio)) for side in data.scale)
        pair = timed("resize", transforms.resize, example["image"], example["label"], scale=scale)
        share = data.max_class_fraction
        pair = timed(
            "crop", transforms.random_crop, *pair, rng, size=data.crop, max_class_fraction=share
        )
        image, label = timed("flip", transforms.flip, *pair, rng)
        image = timed("colours", transforms.photometric, image, rng, hue=data.hue)
        timed("pad", transforms.pad, image, label, size=data.crop)
    return {name: round(1e3 * float(np.median(found)), 3) for name, found in seconds.items()}


def rates(options: Settings, split: Split, rounds: int) -> Iterator[float]:
    """Images a second of each round of batches, after a first batch."""
    batches = start.batches(options, split, 0)
    next(batches)
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(ROUND):
            next(batches)
        yield ROUND * options.train.batch_size / (time.perf_counter() - began)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="folder of PASCAL VOC 2012, or its records")
    parser.add_argument("--rounds", type=int, default=5, help=f"of {ROUND} batches")
    chosen = parser.parse_args()
    config = voc12.get_config("inductive")
    config.data.root, config.data.threads = chosen.root, os.cpu_count() or 1
    options = build.settings_of(config)
    folder = build.open_split(options, "train")
    measured = rates(options, folder, chosen.rounds)
    found = [*tqdm(measured, total=chosen.rounds, unit="round", leave=False)]
    record = {
        "machine": machine(),
        "threads": options.data.threads,
        "images_per_second": [round(float(q), 1) for q in np.quantile(found, [0.25, 0.5, 0.75])],
        "milliseconds": steps(folder, options.data, 200),
    }
    print(json.dumps(record, indent=1))
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
