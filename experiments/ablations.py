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

import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from configs import common
from configs import shapes as shapes_config
from experiments import grid, table1
from experiments.grid import CLIP, Cell
from otseg_jax import build, cli
from otseg_jax import main as main_module
from otseg_jax.checkpoints.pretrained import Pretrained
from otseg_jax.checkpoints.spec import Origin
from otseg_jax.convert import read, write
from otseg_jax.data.classes import VOCABULARIES
from otseg_jax.data.shapes import Shapes
from otseg_jax.evaluation import metrics, offsets
from otseg_jax.models.clip import VisionTower
from otseg_jax.predict import Segmenter
from otseg_jax.training import loop
from otseg_jax.weights import names as weight_names

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
    config = shapes_config.get_config()
    clip = build.load_clip(CLIP).clip
    names = VOCABULARIES["shapes"].names
    embeddings = clip.embed(names, config.text.templates)
    # at random: what is systematic, such as every colour to the next, could be learned
    dealt = np.arange(len(names))
    rng = np.random.default_rng(0)
    while (dealt == np.arange(len(names))).any():
        dealt = rng.permutation(len(names))
    runs.mkdir(parents=True, exist_ok=True)
    np.save(runs / "shuffled_text.npy", embeddings[dealt])
    folder = runs / "clip_random_vision"
    drawn = nnx.state(VisionTower(clip.vision_config, rngs=nnx.Rngs(0)))
    vision = {name: np.asarray(x) for name, x in weight_names.flatten(drawn).items()}
    if not folder.exists():
        untrained = dataclasses.replace(clip, vision=vision)
        origin = Origin(name="packaged, vision tower as drawn", format="hugging_face")
        write.to_hugging_face(folder, Pretrained(clip=untrained, origin=origin))


@dataclasses.dataclass(frozen=True)
class Rows:
    """Plans whose rows sum to 1/m, as those of a transport plan; columns as they come."""

    plan: str
    epsilon: float

    def __call__(self, similarity):
        """Softmax over prompts, or the plain mean."""
        logits = similarity / self.epsilon if self.plan == "softmax" else 0.0 * similarity
        return jax.nn.softmax(logits, axis=-1) / similarity.shape[-2]


def run_with(plan: str, argv: list[str]) -> None:
    """`otseg_jax.main` with another plan in place of the transport plan, in model and decoder."""
    parsed = cli.parse(argv, main_module.FLAGS, required=["config", "workdir"])
    options = build.settings_of(parsed.config)
    rows = Rows(plan, options.model.epsilon)
    cli.run(lambda: loop.train(options, main_module.WORKDIR.value, transport=rows))


def sweep(cell: Cell, runs: Path) -> dict:
    """Scores of the base once per photo; from them every weight and every offset."""
    config = shapes_config.get_config()
    model = read.load(cell.folder(runs)).model
    photos = list(Shapes("val", size=config.data.images.val))  # the same for every seed
    vocabulary = model.spec.vocabulary
    seen = np.zeros((len(vocabulary), 1, 1), np.float32)
    seen[list(vocabulary.seen)] = 1.0

    def summary(scores, offset: float) -> list[float]:
        counts = sum(
            metrics.confusion(photo["label"], (s - offset * seen).argmax(0), len(vocabulary))
            for photo, s in zip(photos, scores, strict=True)
        )
        found = metrics.summary(counts, vocabulary.names, vocabulary.unseen)
        return [round(found[measure], 2) for measure in grid.MEASURES]

    result: dict = {"weight": {}, "offset": {}}
    for weight in WEIGHTS:
        spec = dataclasses.replace(
            model.spec, seen_offset=0.0, outputs=model.spec.model.outputs(mps_weight=weight)
        )
        segmenter = Segmenter(dataclasses.replace(model, spec=spec), batch_size=8)
        scores = [segmenter.scores(segmenter.prepare(photo["image"])) for photo in photos]
        result["weight"][str(weight)] = summary(scores, 0.0)
        if weight in (0.0, 0.5):
            method = "otseg" if weight == 0.0 else "otseg_plus"
            curve = {str(offset): summary(scores, offset) for offset in OFFSETS}
            result["offset"][method] = {
                "curve": curve,
                "area": offsets.area(offsets.front(list(curve.values()))),
            }
    return result


def markdown(result: dict) -> str:
    """The figures as text."""
    seeds = len(result["seeds"])
    over = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    parts = [f"Inductive runs, percent, {over}."]
    for question, answers in result["variants"].items():
        rows = [
            (answer, table1.METHODS[method], *grid.row(figures))
            for answer, methods in answers.items()
            for method, figures in methods.items()
        ]
        parts.append(grid.table(rows, question, "method", *grid.HEADERS))
    weights = result["sweep"]["weight"].items()
    parts += [
        f"The base at seed {result['seeds'][0]}, the weight of the MPS path swept:",
        grid.table(
            [(weight, *map("{:.1f}".format, row)) for weight, row in weights],
            "weight",
            *grid.HEADERS,
        ),
        "The offset of seen classes swept, same run:",
    ]
    rows = []
    for method, found in result["sweep"]["offset"].items():
        curve = found["curve"]
        best = max(curve, key=lambda offset: curve[offset][2])
        figures = [*(curve[offset][2] for offset in (best, "0.0", "0.1")), found["area"]]
        rows.append((table1.METHODS[method], best, *map("{:.1f}".format, figures)))
    names = ("best offset", "hIoU there", "hIoU at 0", "hIoU at 0.1", "area under S over U")
    return "\n\n".join([*parts, grid.table(rows, "method", *names)]) + "\n"


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
    options = grid.parse(__doc__.splitlines()[0])
    runs = options.runs
    prepare_controls(runs)
    asked = {seed: variants(seed, runs) for seed in options.seeds}
    cells = [c for questions in asked.values() for a in questions.values() for c in a.values()]
    grid.run(cells, runs, jobs=options.jobs)
    first = asked[options.seeds[0]]
    result = {
        "seeds": options.seeds,
        "variants": {
            question: {
                answer: grid.gather(
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
        sys.argv.pop(1)  # the configuration's flags look at what is left
        run_with(name, sys.argv)
    else:
        main()
