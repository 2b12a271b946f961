"""The paper's main table in miniature: three methods, three regimes, three seeds, on shapes.

    python -m experiments.table1                     # → experiments/table1.{json,md,png}
    python -m experiments.table1 --seeds 0 --jobs=2  # a quick look: one seed, two runs at a time

18 runs of `configs/shapes.py` (OTSeg and OTSeg+ are one run, evaluated twice) from the packaged
CLIP. A seed decides images, initial weights, dropout and order. Give the command again to go on
after a stop: runs that are done are kept in --runs. The published figures stand beside ours to
compare the order of methods and regimes, not the heights: another world, another CLIP.

Transductive runs start from the half of an inductive one, with the learning rate at its peak again;
supervised runs do not. So that labels are compared and not schedules, supervised OTSeg is also
trained as the transductive one is: from the same half, as many steps.
"""

import json
from pathlib import Path

from configs import shapes
from experiments import grid
from experiments.grid import Cell

HERE = Path(__file__).parent
REGIMES = ("inductive", "transductive", "supervised")
METHODS = {"zegclip": "ZegCLIP", "otseg": "OTSeg", "otseg_plus": "OTSeg+"}
DECODERS = {"zegclip": "cross_attention", "otseg": "mpsa"}
FLAGS = ("--config.train.eval_every=0",)  # validated once, at the end
# mIoU(U), mIoU(S), hIoU on PASCAL VOC 2012, arXiv 2403.14183, table 1
PUBLISHED = {
    "inductive": {
        "zegclip": (77.8, 91.9, 84.3),
        "otseg": (78.1, 92.1, 84.5),
        "otseg_plus": (81.6, 93.3, 87.1),
    },
    "transductive": {
        "zegclip": (89.9, 92.3, 91.1),
        "otseg": (94.3, 94.2, 94.2),
        "otseg_plus": (94.3, 94.3, 94.4),
    },
    "supervised": {
        "zegclip": (90.9, 92.4, 91.6),
        "otseg": (94.4, 94.0, 94.2),
        "otseg_plus": (95.0, 94.1, 94.6),
    },
}


def cell(regime: str, decoder: str, seed: int) -> Cell:
    """One run of the table."""
    flags = (f"--config.model.decoder={DECODERS[decoder]}", *FLAGS, f"--config.seed={seed}")
    start = cell("inductive", decoder, seed) if regime == "transductive" else None
    return Cell(f"{decoder}-{regime}-{seed}", regime, flags, start)


def continued(seed: int) -> Cell:
    """Supervised, on the schedule of the transductive run."""
    start = cell("inductive", "otseg", seed)
    half = shapes.get_config().train.steps // 2
    flags = (f"--config.init_step={half}", f"--config.train.steps={half}", *start.flags)
    return Cell(f"otseg-continued-{seed}", "supervised", flags, start)


def gather(seeds: list[int], runs: Path) -> dict:
    """Regime → method → measure → mean, standard deviation, values."""
    return {
        regime: {
            method: figures
            for decoder in DECODERS
            for method, figures in grid.gather(
                {seed: cell(regime, decoder, seed) for seed in seeds}, runs
            ).items()
        }
        for regime in REGIMES
    }


def markdown(table: dict, continuation: dict, seeds: list[int]) -> str:
    """The table as text."""
    rows = [
        (regime, METHODS[method], *grid.row(figures), " / ".join(map("{:.1f}".format, theirs)))
        for regime, methods in table.items()
        for method, figures in methods.items()
        for theirs in [PUBLISHED[regime][method]]
    ]
    continued = [(METHODS[method], *grid.row(figures)) for method, figures in continuation.items()]
    return (
        f"mIoU(U), mIoU(S), hIoU in percent, mean ± standard deviation over {len(seeds)} seeds; "
        "beside them the published figures on PASCAL VOC 2012.\n\n"
        f"{grid.table(rows, 'regime', 'method', *grid.HEADERS, 'published U / S / hIoU')}\n\n"
        "Supervised from the half of the inductive run, as many steps as transductive:\n\n"
        f"{grid.table(continued, 'method', *grid.HEADERS)}\n"
    )


def plot(table: dict, path: Path) -> None:
    """Bars of mIoU(U) and mIoU(S) with the value of every seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    pairs = zip(axes, (("miou_unseen", "unseen"), ("miou_seen", "seen")), strict=True)
    for axis, (measure, title) in pairs:
        for i, method in enumerate(METHODS):
            x = np.arange(len(table)) + 0.27 * (i - 1)
            figures = [methods[method][measure] for methods in table.values()]
            axis.bar(x, [f["mean"] for f in figures], 0.25, label=METHODS[method], alpha=0.75)
            for place, f in zip(x, figures, strict=True):
                axis.plot([place] * len(f["each"]), f["each"], "k.", ms=4)
        axis.set_xticks(range(len(table)), list(table))
        axis.set(title=f"{title} classes", ylim=(0, 100))
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("mIoU in percent, mean and each seed")
    axes[0].legend(loc="upper left", ncols=3)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Run what is missing, then write table, figures and plot."""
    options = grid.parse(__doc__.splitlines()[0])
    runs = options.runs
    cells = [cell(r, d, s) for r in REGIMES for d in DECODERS for s in options.seeds]
    after = {seed: continued(seed) for seed in options.seeds}
    grid.run([*cells, *after.values()], runs, jobs=options.jobs)
    table = gather(options.seeds, runs)
    continuation = grid.gather(after, runs)
    text = markdown(table, continuation, options.seeds)
    result = {"seeds": options.seeds, "table": table, "continued": continuation}
    (HERE / "table1.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "table1.md").write_text(text)
    plot(table, HERE / "table1.png")
    print(text)


if __name__ == "__main__":
    main()
