"""What a CLIP alone segments on the shapes world, nothing trained: training_free.json.

    python -m experiments.training_free

Every method that a tower of four blocks can run, on the validation split of `configs/shapes.py`
with the packaged CLIP: whole images, the templates averaged, argmax of the cosines. PAMR is tried
on top of the default.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from configs import shapes as shapes_config
from experiments import grid
from otseg_jax import build, sharding
from otseg_jax.data import transforms
from otseg_jax.evaluation import sliding
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.words import Words
from otseg_jax.models.training_free import EARLIER, METHODS, TrainingFreeConfig
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
    graphdef, state = nnx.split(model)
    runner = sliding.Runner(
        graphdef=graphdef, trainable=state, frozen={}, mesh=sharding.make_mesh()
    )
    how = Inference(
        method=choices,
        patch=clip.vision_config.patch_size,
        window=data.crop,
        stride=data.crop,
        batch_size=BATCH,
    )
    text = jnp.asarray(clip.embed(split.vocabulary.names, options.text.templates))
    photo = partial(transforms.for_eval, scale=options.eval.scale, mean=data.mean, std=data.std)
    (summary,) = sliding.evaluate(
        sliding.make_predict(runner, text, outputs=choices.outputs(), how=how),
        ({**e, "image": photo(e["image"])} for e in map(split.__getitem__, range(len(split)))),
        split.vocabulary,
        Words.of_classes(text, np.zeros(len(text), np.float32)),
        how,
        total=len(split),
    ).values()
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
