"""What the parts of OTSeg are worth on the shapes world, and controls that must fail.

    python -m experiments.ablations                  # → experiments/ablations.{json,md,png}
    python -m experiments.ablations --seeds 0 --jobs=2

Inductive runs of `configs/shapes.py` that differ from the base in one thing each: prompts per
class, ε, decoder layers, the plan itself (softmax over prompts, or the plain mean), and the two
controls: text embeddings dealt to other classes, and a vision tower that was never trained. The
base is also evaluated with its classes in other words, and with colours as the only classes. On the
base, the weight of the MPS path (0: decoder alone, 1: MPS alone) and the offset that is taken off
the scores of seen classes are swept. Runs that are done are kept, also those of `table1.py`.
"""

import itertools
import json
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np

from configs import common
from experiments import shapes_cells, table1
from experiments.shapes_cells import CLIP, Cell

HERE = Path(__file__).parent
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
OFFSETS = tuple(round(0.02 * i - 0.2, 2) for i in range(31))  # -0.2 .. 0.4
BASE = "base (6 prompts, ε 0.05, 3 layers)"


def variants(seed: int, runs: Path) -> dict[str, dict[str, Cell]]:
    """Question → answer → run."""

    def cell(name: str, *flags: str, **options) -> Cell:
        return Cell(
            f"{name}-{seed}", flags=(*flags, *table1.FLAGS, f"--config.seed={seed}"), **options
        )

    base = {BASE: table1.cell("inductive", "otseg", seed)}
    script = ("-m", "experiments.ablations", "--plan")
    return {
        "prompts per class": {
            f"{n}": cell(f"prompts{n}", f"--config.text.templates={common.TEMPLATES_8[:n]!r}")
            for n in (1, 2, 4, 8)
        }
        | base,
        "ε": {f"{e}": cell(f"epsilon{e}", f"--config.model.epsilon={e}") for e in (0.01, 0.2, 1.0)}
        | base,
        "decoder layers": {
            f"{n}": cell(f"layers{n}", f"--config.model.decoder_layers={n}") for n in (1, 2)
        }
        | base,
        "plan": {
            plan: cell(f"plan-{plan}", program=(*script, plan)) for plan in ("softmax", "mean")
        }
        | base,
        "words": {
            words: Cell(
                f"{words}-{seed}",
                flags=("--mode=eval", f"--config.data.dataset={words}", f"--config.seed={seed}"),
                start=base[BASE],
            )
            for words in ("shapes_synonyms", "shapes_colours")
        }
        | base,
        "control": {
            "text dealt to other classes": cell(
                "text-shuffled", f"--config.text.embeddings={runs / 'shuffled_text.npy'}"
            ),
            "vision tower never trained": cell(
                "vision-random", f"--config.clip.source={runs / 'clip_random_vision'}"
            ),
        }
        | base,
    }


def prepare_controls(runs: Path) -> None:
    """The shuffled text embeddings, and the packaged CLIP with a vision tower as drawn."""
    from flax import nnx
    from safetensors.numpy import load_file, save_file

    from configs import shapes
    from otseg_jax import text
    from otseg_jax.data.classes import VOCABULARIES
    from otseg_jax.models.clip import VisionTower
    from otseg_jax.towers import pretrained
    from otseg_jax.weights import hugging_face, table

    config = shapes.get_config()
    towers = pretrained(str(CLIP), image_size=config.data.crop)
    names = VOCABULARIES["shapes"].names
    embeddings = text.load_or_embed(
        names,
        tuple(config.text.templates),
        towers.make_text_tower(),
        towers.tokenizer,
        text_fingerprint=towers.text_fingerprint,
    )
    # at random: what is systematic, such as every colour to the next, could be learned
    dealt = np.arange(len(names))
    rng = np.random.default_rng(0)
    while (dealt == np.arange(len(names))).any():
        dealt = rng.permutation(len(names))
    runs.mkdir(parents=True, exist_ok=True)
    np.save(runs / "shuffled_text.npy", embeddings[dealt])
    folder = runs / "clip_random_vision"
    shutil.copytree(CLIP, folder, dirs_exist_ok=True)
    arrays = load_file(CLIP / "model.safetensors")
    vision, sizes = hugging_face.read_config(folder)
    drawn = nnx.state(VisionTower(vision, rngs=nnx.Rngs(0)))
    leaves = {f"vision/{name}": np.asarray(x) for name, x in table.flatten(drawn).items()}
    rules = hugging_face.rules(vision.layers, sizes.layers)
    rules = [rule for rule in rules if rule.target.startswith("vision/")]
    fresh = {n: np.ascontiguousarray(x) for n, x in table.invert(rules, leaves).items()}
    save_file({**arrays, **fresh}, folder / "model.safetensors", metadata={"format": "pt"})


def run_with(plan: str) -> None:
    """`otseg_jax.main` with another plan in place of the transport plan, in model and decoder."""
    import jax
    import jax.numpy as jnp

    from otseg_jax import main
    from otseg_jax.models import decoder, otseg

    def rows(similarity, *, epsilon, **_):
        """Rows that sum to 1/m, as those of a transport plan; columns as they come."""
        logits = similarity / epsilon if plan == "softmax" else jnp.zeros_like(similarity)
        return jax.nn.softmax(logits, axis=-1) / similarity.shape[-2]

    def score(similarity, **options):
        m, n = similarity.shape[-2:]
        return m * n * jnp.sum(rows(similarity, **options) * similarity, axis=-1)

    decoder.sinkhorn, otseg.mps = rows, score
    main.run()


def sweep(cell: Cell, runs: Path) -> dict:
    """Scores of the base once per photo; from them every weight and every offset."""
    from configs import shapes
    from otseg_jax import importing, metrics
    from otseg_jax.data.shapes import Shapes
    from otseg_jax.predict import Segmenter

    config = shapes.get_config()
    segmenter = Segmenter(importing.load(cell.folder(runs)).model, batch_size=8)
    segmenter.config["seen_offset"] = 0.0
    seed = int(cell.flags[-1].rsplit("=", 1)[1])
    photos = list(Shapes("val", size=config.data.images.val, seed=seed))
    vocabulary = segmenter.vocabulary
    seen = np.zeros((len(vocabulary), 1, 1), np.float32)
    seen[list(vocabulary.seen)] = 1.0

    def summary(scores, offset: float) -> list[float]:
        counts = sum(
            metrics.confusion(photo["label"], (s - offset * seen).argmax(0), len(vocabulary))
            for photo, s in zip(photos, scores, strict=True)
        )
        found = metrics.summary(counts, vocabulary.names, vocabulary.unseen)
        return [round(found[measure], 2) for measure in shapes_cells.MEASURES]

    result: dict = {"weight": {}, "offset": {}}
    for weight in WEIGHTS:
        segmenter.config["mps_weight"] = weight
        scores = [segmenter.scores(segmenter.prepare(photo["image"])) for photo in photos]
        result["weight"][str(weight)] = summary(scores, 0.0)
        if weight in (0.0, 0.5):
            method = "otseg" if weight == 0.0 else "otseg_plus"
            curve = {str(offset): summary(scores, offset) for offset in OFFSETS}
            result["offset"][method] = {"curve": curve, "area": area(list(curve.values()))}
    return result


def area(curve: list[list[float]]) -> float:
    """Area in percent under mIoU(S) over mIoU(U), of the offsets that none beats in both."""
    front: list[tuple[float, float]] = []
    for unseen, seen, _ in sorted(curve, reverse=True):
        if not front or seen > front[-1][1]:
            front.append((unseen, seen))
    (unseen, seen), *_ = front[::-1]
    corners = sum((a[0] - b[0]) * (a[1] + b[1]) / 2 for a, b in itertools.pairwise(front))
    return round((unseen * seen + corners) / 100.0, 2)


def markdown(result: dict) -> str:
    """The figures as text."""
    seeds = len(result["seeds"])
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    lines = [f"Inductive runs, percent, {over}."]
    for question, answers in result["variants"].items():
        lines += [
            "",
            f"| {question} | method | mIoU(U) | mIoU(S) | hIoU |",
            "|---|---|---|---|---|",
        ]
        for answer, methods in answers.items():
            for method, figures in methods.items():
                row = " | ".join(shapes_cells.show(figures[m]) for m in shapes_cells.MEASURES)
                lines.append(f"| {answer} | {table1.METHODS[method]} | {row} |")
    lines += [
        "",
        f"The base at seed {result['seeds'][0]}, the weight of the MPS path swept:",
        "",
        "| weight | mIoU(U) | mIoU(S) | hIoU |",
        "|---|---|---|---|",
    ]
    for weight, row in result["sweep"]["weight"].items():
        lines.append(f"| {weight} | " + " | ".join(f"{x:.1f}" for x in row) + " |")
    lines += ["", "The offset of seen classes swept, same run:", ""]
    lines += [
        "| method | best offset | hIoU there | hIoU at 0 | hIoU at 0.1 | area under S over U |",
        "|---|---|---|---|---|---|",
    ]
    for method, found in result["sweep"]["offset"].items():
        curve = found["curve"]
        best = max(curve, key=lambda offset: curve[offset][2])
        row = (best, *(f"{curve[o][2]:.1f}" for o in (best, "0.0", "0.1")), f"{found['area']:.1f}")
        lines.append(f"| {table1.METHODS[method]} | " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def plot(result: dict, path: Path) -> None:
    """mIoU(U) and mIoU(S) of every variant, and the curve of the offset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    questions = result["variants"]
    figure, axes = plt.subplots(2, 4, figsize=(17, 7))
    for axis, (question, answers) in zip(axes.flat, questions.items(), strict=False):
        labels = [textwrap.fill(answer, 18) for answer in answers]
        for measure, name, marker in (("miou_unseen", "unseen", "o"), ("miou_seen", "seen", "s")):
            figures = [methods["otseg"][measure] for methods in answers.values()]
            known = [(x, f) for x, f in zip(labels, figures, strict=True) if f["mean"] is not None]
            means, deviations = ([f[key] or 0.0 for _, f in known] for key in ("mean", "std"))
            axis.errorbar([x for x, _ in known], means, deviations, fmt=marker, label=name)
        axis.set(title=question, ylim=(0, 100))
        axis.tick_params(axis="x", labelsize=7)
        axis.grid(axis="y", alpha=0.3)
    axes.flat[0].set_ylabel("mIoU of OTSeg, percent")
    axes.flat[0].legend()
    weights = [float(weight) for weight in result["sweep"]["weight"]]
    for column, name, marker in ((0, "unseen", "o"), (1, "seen", "s")):
        swept = [row[column] for row in result["sweep"]["weight"].values()]
        axes.flat[-2].plot(weights, swept, marker=marker, label=name)
    axes.flat[-2].set(title="weight of the MPS path", xlabel="weight", ylim=(0, 100))
    axes.flat[-2].grid(axis="y", alpha=0.3)
    for method, found in result["sweep"]["offset"].items():
        offsets = [float(offset) for offset in found["curve"]]
        hiou = [row[2] for row in found["curve"].values()]
        label = f"{table1.METHODS[method]}, area {found['area']:.0f}"
        axes.flat[-1].plot(offsets, hiou, label=label)
    axes.flat[-1].set(title="offset of seen classes", xlabel="offset", ylabel="hIoU, percent")
    axes.flat[-1].grid(alpha=0.3)
    axes.flat[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run what is missing, then write figures, table and plot."""
    options = shapes_cells.parse(__doc__.splitlines()[0])
    runs = options.runs
    prepare_controls(runs)
    asked = {seed: variants(seed, runs) for seed in options.seeds}
    cells = [c for questions in asked.values() for a in questions.values() for c in a.values()]
    shapes_cells.run(cells, runs, jobs=options.jobs)
    first = asked[options.seeds[0]]
    result = {
        "seeds": options.seeds,
        "variants": {
            question: {
                answer: shapes_cells.gather(
                    {seed: asked[seed][question][answer] for seed in options.seeds}, runs
                )
                for answer in answers
            }
            for question, answers in first.items()
        },
        "sweep": sweep(first["plan"][BASE], runs),
    }
    (HERE / "ablations.json").write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    (HERE / "ablations.md").write_text(text)
    plot(result, HERE / "ablations.png")
    print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plan"]:
        name = sys.argv.pop(2)
        sys.argv.pop(1)
        run_with(name)
    else:
        main()
