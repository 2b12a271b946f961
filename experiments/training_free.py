"""What a CLIP alone segments on the shapes world, nothing trained: training_free.json.

    python -m experiments.training_free

Every method that a tower of four blocks can run, on the validation split of `configs/shapes.py`
with the packaged CLIP: whole images, the templates averaged, argmax of the cosines. PAMR is tried
on top of the default.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from configs import shapes as shapes_config
from experiments import grid
from otseg_jax import build
from otseg_jax.data import transforms
from otseg_jax.evaluation import metrics
from otseg_jax.models.otseg import upsample
from otseg_jax.models.training_free import EARLIER, METHODS, TrainingFreeConfig, average
from otseg_jax.settings import Settings
from otseg_jax.weights import names
from otseg_jax.weights.clip import Clip

RESULT = Path(__file__).with_suffix(".json")
BATCH = 10  # images at a time, which divides the split


def evaluate(choices: TrainingFreeConfig, clip: Clip, options: Settings) -> dict[str, Any]:
    """Segment the validation split: percent by measure."""
    split, data = build.open_split(options, "val"), options.data
    model = names.build(
        lambda: choices.build(clip.vision_config, rngs=nnx.Rngs(0)),
        names.under("vision/", clip.vision),
    )
    text = jnp.asarray(clip.embed(split.vocabulary.names, options.text.templates))
    graphdef, state = nnx.split(model)

    words = average(text)

    @jax.jit
    def predict(state, batch):
        return upsample(nnx.merge(graphdef, state)(batch, text)["cosine"], batch.shape[1:3])

    counts = np.zeros((len(split.vocabulary),) * 2, np.int64)
    for start in range(0, len(split), BATCH):
        examples = [split[i] for i in range(start, start + BATCH)]
        batch = np.stack(
            [
                transforms.for_eval(
                    e["image"], scale=options.eval.scale, mean=data.mean, std=data.std
                )
                for e in examples
            ]
        )
        for cosines, photo, example in zip(predict(state, batch), batch, examples, strict=True):
            refined = choices.refine(cosines, jnp.moveaxis(photo, -1, 0), words)
            found = np.asarray(jnp.argmax(refined, axis=0), np.int16)
            counts += metrics.confusion(example["label"], found, len(split.vocabulary))
    summary = metrics.summary(counts, split.vocabulary.names, split.vocabulary.unseen)
    return {m: round(summary[m], 2) for m in ("miou", *grid.MEASURES)}


def main() -> None:
    """Run all methods, print the table, write the result."""
    options = build.settings_of(shapes_config.get_config())
    # positions as stored: the methods resize them by their own kernel
    clip = build.load_clip(options.clip.source).clip
    runs = {name: TrainingFreeConfig(method=name) for name in METHODS if name not in EARLIER}
    runs |= {"naclip + pamr": TrainingFreeConfig(pamr=True)}
    results = {
        name: evaluate(choices, clip, options)
        for name, choices in tqdm(runs.items(), unit="method", leave=False)
    }
    print(
        grid.table(
            [[n, *map(str, r.values())] for n, r in results.items()],
            "method",
            "mIoU",
            *grid.HEADERS,
        )
    )
    RESULT.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
