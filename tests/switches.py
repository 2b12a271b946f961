"""Train, evaluate, convert, load and segment, on whatever JAX is switched to; prints numbers.

A process of its own for `test_jax_switches`: JAX reads its switches once.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import small

import otseg_jax
from otseg_jax.convert import convert
from otseg_jax.data import shapes
from otseg_jax.training import loop


def main(folder: Path) -> dict[str, list[float]]:
    """Everything people run, small."""
    fields = {"train.steps": 2, "train.warmup": 1, "train.batch_size": 8, "eval.batch_size": 8}
    loop.train(small.settings(**fields), folder / "run")
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    convert(str(folder / "run"), folder / "model")
    segmenter = otseg_jax.load(folder / "model")
    photo = shapes.Shapes("val", size=1, image_size=40)[0]["image"]
    scores = segmenter.scores(segmenter.prepare(photo), ["a red circle", "the sky"])
    similarity = jnp.cos(jnp.arange(96, dtype=jnp.float32)).reshape(2, 12, 4)
    weights = np.arange(12) > 2

    def total(similarity, epsilon):
        return jnp.sum(otseg_jax.mps(similarity, epsilon=epsilon, pixel_weights=weights) ** 2)

    epsilon = jnp.full(2, 0.05, jnp.float32)
    value, gradient = jax.value_and_grad(total)(similarity, epsilon)
    return {
        "devices": [float(jax.device_count())],
        "loss": [line["loss"] for line in lines if "loss" in line],
        "scores": np.ravel(scores)[::7].tolist(),
        "mps": [float(value), *np.ravel(gradient).tolist()],
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
