"""The pictures of the site's concept pages, drawn from numbers of the packaged model.

    python -m experiments.concepts        # → experiments/concepts.json, experiments/concepts/*.png

`transport`: the patches of one picture dealt out to four prompts, by softmax and by the transport
plan. `regimes`: what a label map becomes in each regime. `offset`: the sweep of `ablations.json`.
`windows`: a wide picture cut, scored and stitched. Figures that the pages state are in the JSON.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from otseg_jax.checkpoints import pretrained
from otseg_jax.data import regimes
from otseg_jax.data.shapes import SHAPES, Shapes
from otseg_jax.evaluation import figures, windows
from otseg_jax.models.decoder import cosine
from otseg_jax.models.pixels import normalised
from otseg_jax.ot.sinkhorn import mps, sinkhorn
from otseg_jax.predict import Segmenter, load
from otseg_jax.predict.loading import SHIPPED, SHIPPED_AT
from otseg_jax.training.pseudo_labels import pseudo_label, relabel

HERE = Path(__file__).parent
FOLDER = HERE / "concepts"
PICTURE = 3  # of the validation pictures: it holds seen and unseen classes
EPSILON = 0.05
HIDDEN_COLOUR, IGNORED_COLOUR = (255, 120, 0), (225, 225, 225)


def main() -> None:
    """Draw all, and write down what the pages say of them."""
    mpl.use("Agg")
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "image.interpolation": "nearest"})
    FOLDER.mkdir(exist_ok=True)
    segmenter = load(SHIPPED)
    result = {
        "transport": draw_transport(segmenter),
        "regimes": draw_regimes(segmenter),
        "offset": draw_offset(),
        "windows": draw_windows(),
    }
    (HERE / "concepts.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def save(figure: Any, name: str) -> None:
    """Write a picture of few colours, so that it stays small."""
    figure.savefig(FOLDER / f"{name}.png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def embedded(segmenter: Segmenter, image: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """What the tower makes of a picture: one vector of the whole, one of each patch."""
    (window,) = windows.cut(
        segmenter.prepare(image), np.array([[0, 0]], np.int32), window=segmenter.spec.window
    )
    pixels = normalised(jnp.asarray(window), mean=segmenter.spec.mean, std=segmenter.spec.std)
    return segmenter.model.embed(pixels[None])


def draw_transport(segmenter: Segmenter) -> dict[str, Any]:
    """Cosines of one picture with four prompts; shares by softmax; the plan."""
    example = Shapes("val", size=100)[PICTURE]
    present = [SHAPES.names[k] for k in np.unique(example["label"]) if k >= 0]
    words = [*present, *(name for name in SHAPES.names if name not in present)][:4]
    whole, pixels = embedded(segmenter, example["image"])
    # one prompt of each word, together the prompts of one class
    queries = segmenter.model.describe(whole, segmenter.embed(words)[:, :1])
    similarity = cosine(jnp.swapaxes(queries, 1, 2), pixels)[0, 0]
    softmax = jax.nn.softmax(similarity / EPSILON, axis=-1) / len(similarity)
    plan = sinkhorn(similarity, epsilon=EPSILON)
    side = round(len(similarity) ** 0.5)
    figure, axes = plt.subplots(3, 5, figsize=(10, 6), layout="constrained")
    rows = [
        ("cosine", np.asarray(similarity), None),
        ("softmax over prompts", np.asarray(softmax), 1.0 / len(similarity)),
        ("transport plan", np.asarray(plan), 1.0 / len(similarity)),
    ]
    for line, (name, values, most) in zip(axes, rows, strict=True):
        for axis, word, column in zip(line[1:], words, values.T, strict=True):
            low = float(values.min()) if most is None else 0.0
            high = most or float(values.max())
            axis.imshow(column.reshape(side, side), vmin=low, vmax=high, cmap="magma")
            taken = f"\ntakes {100 * column.sum():.0f} %" if most else f"\n“{word}”"
            axis.set_title(taken.strip())
        line[0].set_title(name, loc="left", fontweight="bold")
    axes[0, 0].imshow(example["image"])
    scores = np.asarray(mps(similarity, epsilon=EPSILON)).reshape(side, side)
    axes[2, 0].imshow(scores, cmap="magma")
    axes[2, 0].set_xlabel("S*, from the plan")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    axes[1, 0].axis("off")
    save(figure, "transport")
    return {
        "picture": example["name"],
        "patches": len(similarity),
        "words": words,
        "percent_by_softmax": _percent(softmax),
        "percent_by_plan": _percent(plan),
    }


def _percent(shares: jax.Array) -> list[float]:
    """What part of the picture each prompt takes."""
    return [round(100 * share, 1) for share in shares.sum(axis=0).tolist()]


def draw_regimes(segmenter: Segmenter) -> dict[str, Any]:
    """A label map as each regime sees it, and the pseudo-labels of the hidden pixels."""
    example = Shapes("val", size=100)[PICTURE]
    label, unseen = example["label"], SHAPES.unseen
    whole, pixels = embedded(segmenter, example["image"])
    side = round(pixels.shape[1] ** 0.5)
    maps = {
        name: found.reshape(*found.shape[:2], side, side)
        for name, found in segmenter.model.match(whole, pixels, segmenter.text).items()
    }
    shown, counts = [("labels of the data set", label)], {}
    for name in regimes.NAMES:
        regime = regimes.resolve(name, num_classes=len(SHAPES), unseen=unseen)
        table = np.asarray(relabel(jnp.asarray(label), regime.label_table))
        ids = np.array([*regime.classes])
        known = np.where(table >= 0, ids[np.maximum(table, 0)], table)
        shown.append((name, known))
        counts[name] = {
            "texts": len(regime.classes),
            "labelled": int((table >= 0).sum()),
            "hidden": int((table == regimes.HIDDEN).sum()),
            "ignored": int((table < 0).sum() - (table == regimes.HIDDEN).sum()),
        }
        if regime.unseen:
            mixture = segmenter.spec.outputs.mixtures[segmenter.spec.outputs.main]
            filled = pseudo_label(maps, jnp.asarray(table)[None], regime.unseen, mixture=mixture)
            filled = np.asarray(filled[0])
            hidden = table == regimes.HIDDEN
            truth = label[hidden]
            counts[name]["pseudo_labels_right"] = int((filled[hidden] == truth).sum())
            counts[name]["hidden_of_a_class"] = int((truth >= 0).sum())
            shown.append(("… with pseudo-labels", filled))
    figure, axes = plt.subplots(1, len(shown) + 1, figsize=(12, 2.6), layout="constrained")
    axes[0].imshow(example["image"])
    axes[0].set_title("picture")
    palette = np.array(SHAPES.palette, np.uint8)
    for axis, (name, ids) in zip(axes[1:], shown, strict=True):
        colours = palette[np.maximum(ids, 0)]
        colours[ids < 0] = IGNORED_COLOUR
        colours[ids == regimes.HIDDEN] = HIDDEN_COLOUR
        axis.imshow(colours)
        axis.set_title(name)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    save(figure, "regimes")
    names = [SHAPES.names[k] for k in np.unique(label) if k >= 0]
    return {
        "picture": example["name"],
        "classes": {n: "unseen" if SHAPES.names.index(n) in unseen else "seen" for n in names},
        "pixels": counts,
    }


def draw_offset() -> dict[str, Any]:
    """The means of seen and unseen classes against the offset, from `ablations.json`."""
    sweep = json.loads((HERE / "ablations.json").read_text())["sweep"]["offset"]["otseg_plus"]
    offsets = np.array([float(offset) for offset in sweep["curve"]])
    unseen, seen, hiou = np.array(list(sweep["curve"].values())).T
    best = int(hiou.argmax())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for name, values in (("mIoU(S)", seen), ("mIoU(U)", unseen), ("hIoU", hiou)):
        left.plot(offsets, values, label=name)
    left.axvline(offsets[best], color="grey", linestyle=":")
    left.set(xlabel="offset taken off the scores of seen classes", ylabel="percent")
    left.legend()
    right.plot(unseen, seen, ".-", markersize=4)
    right.plot(unseen[best], seen[best], "o", label=f"best hIoU, at {offsets[best]:g}")
    at_0 = int(np.abs(offsets).argmin())
    right.plot(unseen[at_0], seen[at_0], "s", label="no offset")
    right.set(xlabel="mIoU(U), percent", ylabel="mIoU(S), percent")
    right.legend()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save(figure, "offset")
    rows = {"no offset": at_0, "best": best, "published": int(np.abs(offsets - 0.1).argmin())}
    return {
        name: {
            "offset": float(offsets[i]),
            "miou_unseen": float(unseen[i]),
            "miou_seen": float(seen[i]),
            "hiou": float(hiou[i]),
        }
        for name, i in rows.items()
    } | {"area": sweep["area"]}


def draw_windows() -> dict[str, Any]:
    """A picture wider than the window: the windows, how often each pixel is seen, what is found."""
    model = pretrained.read(SHIPPED_AT)
    # short side 96, so that a wide picture stays wide
    spec = dataclasses.replace(model.spec, scale=(2048.0, 96.0))
    segmenter = Segmenter(dataclasses.replace(model, spec=spec))
    pictures = Shapes("val", size=100)
    image = np.concatenate([pictures[i]["image"] for i in (PICTURE, PICTURE + 1)], axis=1)[:, :176]
    height, width = image.shape[:2]
    origins = windows.grid(height, width, window=spec.window, stride=spec.stride)
    seen = np.zeros((height, width), int)
    for y, x in origins.tolist():
        seen[y : y + spec.window, x : x + spec.window] += 1
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.4), layout="constrained")
    axes[0].imshow(image)
    axes[1].imshow(seen, cmap="Blues", vmin=0)
    found = segmenter(image)
    axes[2].imshow(figures.overlay(image, found.labels, found.palette, alpha=0.6))
    for i, (y, x) in enumerate(origins.tolist()):
        for axis in axes[:2]:
            inset = 1.5 * i  # edges would lie upon one another
            box = (x + inset, y + inset), spec.window - 2 * inset, spec.window - 2 * inset
            axis.add_patch(Rectangle(*box, fill=False, edgecolor=f"C{i}", linewidth=2))
    names = ("windows", "windows that see a pixel", "scores averaged, best class")
    for axis, name in zip(axes, names, strict=True):
        axis.set(xticks=[], yticks=[], title=name)
    save(figure, "windows")
    return {
        "size": [height, width],
        "window": spec.window,
        "stride": spec.stride,
        "origins": origins.tolist(),
    }


if __name__ == "__main__":
    main()
