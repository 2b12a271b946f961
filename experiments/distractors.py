"""How much of a picture is painted with words for things that it does not hold: distractors.json.

    python -m experiments.distractors       # half a minute, two CPU cores

Three of the shapes world's classes are asked for on each validation picture that holds none of
them. Painted is the share of pixels that are given to one of the three: all of them without a
background, and fewer where words for other things compete.
"""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

import otseg_jax
from experiments.grid import table
from otseg_jax.data.shapes import Shapes

RESULT = Path(__file__).with_suffix(".json")
PICTURES = 100
MODELS = {"shapes": "", "shapes-clip": "naclip"}
BACKGROUNDS = {
    "the world's other 17 classes": None,  # filled in for each picture
    "26 usual words (background='words')": "words",
    "threshold": "threshold",
}


def painted(source: str, method: str) -> dict[str, float]:
    """Percent by background, means over pictures."""
    segmenter = otseg_jax.load(source, method=method)
    pictures = Shapes("val", size=PICTURES)
    names = pictures.vocabulary.names
    shares: dict[str, list[float]] = {name: [] for name in BACKGROUNDS}
    for i in tqdm(range(PICTURES), source, unit="picture", leave=False):
        example = pictures[i]
        absent = sorted(set(range(len(names))) - set(np.unique(example["label"]).tolist()))
        chosen = np.random.default_rng(i).choice(absent, 3, replace=False).tolist()
        words = [names[k] for k in chosen]
        others = [name for name in names if name not in words]
        for name, background in BACKGROUNDS.items():
            found = segmenter(example["image"], words, background=background or others)
            shares[name].append(float((found.labels > 0).mean()))
    return {name: round(100 * float(np.mean(found)), 1) for name, found in shares.items()}


def main() -> None:
    """Measure, print, write."""
    results = {f"{source} {how}".strip(): painted(source, how) for source, how in MODELS.items()}
    rows = [[name, *map(str, found.values())] for name, found in results.items()]
    print(table(rows, "painted, %", *BACKGROUNDS))
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
