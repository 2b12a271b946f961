r"""Say how two evaluations differ, and how sure that is: a paired bootstrap over their photos.

    python -m otseg_jax.compare runs/base runs/mine
    python -m otseg_jax.compare runs/zegclip runs/otseg --methods=zegclip,otseg_plus
    python -m otseg_jax.compare runs/otseg runs/otseg --methods=otseg,otseg_plus
    python -m otseg_jax.compare runs/base/confusions.npz runs/mine --draws=10000 --json

A and B are workdirs, or the confusions.npz in them, that `otseg_jax.main` wrote when it evaluated
the same photos. Figures are percent, differences B - A in points, each with the interval that holds
95 % of what photos drawn again give; B or A is named better where 0 is outside of it. Of many
classes one in twenty is outside by chance alone. A class in few photos has an interval that is too
narrow: their number is given.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from otseg_jax import cli
from otseg_jax.data.lists import some
from otseg_jax.evaluation import bootstrap, confusions, metrics
from otseg_jax.evaluation.bootstrap import Difference
from otseg_jax.evaluation.confusions import Confusions
from otseg_jax.evaluation.metrics import Pixels

FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this help", flag_values=FLAGS)
flags.DEFINE_string(
    "methods",
    "",
    'Of A and of B, with a comma, or one of both; "": each that both have',
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "draws",
    2000,
    "How often photos are drawn",
    lower_bound=100,
    upper_bound=1_000_000,
    flag_values=FLAGS,
)
flags.DEFINE_integer("seed", 0, "Of the draws", lower_bound=0, flag_values=FLAGS)
flags.DEFINE_bool("json", False, "Print one JSON object", flag_values=FLAGS)


class Pair(NamedTuple):
    """Two evaluations of the same photos, photo by photo."""

    first: Confusions
    second: Confusions
    unseen: tuple[int, ...]  # of both; none where they differ
    order: list[int]  # the photos of the second as those of the first

    def pixels(self, methods: tuple[str, str]) -> tuple[Pixels, Pixels]:
        """Of a method of each."""
        second = self.second.by_photo(methods[1])
        return self.first.by_photo(methods[0]), Pixels(*(x[self.order] for x in second))


def main(argv: Sequence[str]) -> None:
    """Run what the command line says."""
    rest, config = cli.parse(argv, FLAGS, usage=__doc__)
    if config is not None:
        sys.exit("error: --config is of a training: name two evaluated workdirs")
    if len(rest) != 2:
        sys.exit(f"error: wanted two workdirs to compare, got {len(rest)}; --help shows how")
    cli.quiet_libraries()
    cli.run(lambda: work(*rest))


def work(first: str, second: str) -> None:
    """Compare two places, and print what was found."""
    pair = match(confusions.read(first), confusions.read(second), (first, second))
    found = {}
    for methods in chosen(pair, FLAGS.methods, (first, second)):
        one, other = pair.pixels(methods)
        seed = FLAGS.seed
        found[methods] = bootstrap.differences(
            one, other, pair.unseen, draws=FLAGS.draws, seed=seed
        )
        photos = np.count_nonzero(one.truth, axis=0)
    print((_json if FLAGS.json else _text)(found, pair, photos, (first, second)))


def match(first: Confusions, second: Confusions, places: tuple[str, str]) -> Pair:
    """Pair evaluations photo by photo; a ValueError where they are of different things."""
    problems = []
    for what, ours, theirs in (
        ("class", first.classes, second.classes),
        ("photo", first.photos, second.photos),
    ):
        for where, mine, others in ((places[0], ours, set(theirs)), (places[1], theirs, set(ours))):
            if only := [name for name in mine if name not in others]:
                problems.append(f"{len(only)} {what} names only in {where}: {some(only)}")
            if len(set(mine)) < len(mine):
                problems.append(f"{what} names repeat in {where}")
    if not problems and first.classes != second.classes:
        problems.append("the classes are in another order")
    if problems:
        raise ValueError(
            f"{'; '.join(problems)}: evaluate both with the same --config.data and "
            "--config.eval.images (python -m otseg_jax.main --mode=eval), then compare again"
        )
    place = {name: i for i, name in enumerate(second.photos)}
    order = [place[name] for name in first.photos]
    unseen = first.unseen if set(first.unseen) == set(second.unseen) else ()
    pair = Pair(first, second, unseen, order)
    one, other = pair.pixels((first.main, second.main))
    if (differ := np.flatnonzero((one.truth != other.truth).any(axis=1))).size:
        names = [first.photos[i] for i in differ]
        raise ValueError(
            f"the masks of {len(names)} of {len(order)} photos differ: {some(names)}: evaluate "
            "both on the same data set in the same folder, then compare again"
        )
    return pair


def chosen(pair: Pair, asked: str, places: tuple[str, str]) -> list[tuple[str, str]]:
    """The methods of both that are compared; a ValueError for one that is not there."""
    there = [[*side.entries] for side in (pair.first, pair.second)]
    if not asked:
        common = [(name, name) for name in there[0] if name in there[1]]
        return common or [(pair.first.main, pair.second.main)]
    names = asked.split(",")
    names = names * 2 if len(names) == 1 else names
    wanted = "wanted one of A and one of B, with a comma: --methods="
    if len(names) != 2 or any(n not in side for n, side in zip(names, there, strict=True)):
        have = "; ".join(f"{p} has {', '.join(s)}" for p, s in zip(places, there, strict=True))
        raise ValueError(
            f"--methods={asked}: {wanted}{pair.first.main},{pair.second.main} ({have})"
        )
    return [(names[0], names[1])]


Found = dict[tuple[str, str], dict[str, Difference]]


def _rows(pair: Pair) -> dict[str, str]:
    return {k: v for k, v in metrics.ROWS.items() if pair.unseen or k in metrics.WHOLE}


def _text(found: Found, pair: Pair, photos: np.ndarray, places: tuple[str, str]) -> str:
    parts = []
    if set(pair.first.unseen) != set(pair.second.unseen):
        parts.append("Other classes are unseen in A than in B: there are no means of halves.")
    names, unseen = pair.first.classes, set(pair.unseen)
    for methods, measures in found.items():
        first, second = (f"{p}, {m}" for p, m in zip(places, methods, strict=True))
        parts.append(f"A = {first}\nB = {second}\n{len(pair.order)} photos, {FLAGS.draws} draws")
        title = "IoU, * unseen" if unseen else "IoU"
        rows: list[list[str]] = [[title, "photos", "A", "B", "B - A", "95 % interval", "better"]]
        iou = measures["iou"]
        classes = [
            [names[k] + " *" * (k in unseen), str(photos[k]), *_cells(iou, k)]
            for k in sorted(range(len(names)), key=lambda k: k in unseen)
        ]
        means = [[label, "", *_cells(measures[k], ())] for k, label in _rows(pair).items()]
        parts.append(metrics.lay_out([rows, classes, means]))
    return "\n\n".join(parts)


def _cells(found: Difference, place: Any) -> list[str]:
    values = [float(x[place]) for x in (found.first, found.second, found.difference)]
    low, high = float(found.low[place]), float(found.high[place])
    both = ["-" if np.isnan(x) else f"{x:.2f}" for x in values[:2]]
    if np.isnan(values[2]):
        return [*both, "-", "-", ""]
    better = "B" if low > 0 else "A" if high < 0 else ""
    return [*both, f"{values[2]:+.2f}", f"{low:+.2f} .. {high:+.2f}", better]


def _json(found: Found, pair: Pair, photos: np.ndarray, places: tuple[str, str]) -> str:
    def numbers(each: Difference, place: Any) -> dict[str, float | None]:
        values = {
            "a": each.first,
            "b": each.second,
            "difference": each.difference,
            "low": each.low,
            "high": each.high,
        }
        return metrics.plain({name: x[place] for name, x in values.items()})

    compared = [
        {
            "methods": dict(zip("ab", methods, strict=True)),
            "measures": {key: numbers(measures[key], ()) for key in _rows(pair)},
            "iou": {
                name: numbers(measures["iou"], k) | {"photos": int(photos[k])}
                for k, name in enumerate(pair.first.classes)
            },
        }
        for methods, measures in found.items()
    ]
    whole = {
        **dict(zip("ab", places, strict=True)),
        "photos": len(pair.order),
        "draws": FLAGS.draws,
        "seed": FLAGS.seed,
        "level": bootstrap.LEVEL,
        "unseen": [pair.first.classes[k] for k in pair.unseen],
        "compared": compared,
    }
    return json.dumps(whole, indent=2)


if __name__ == "__main__":
    main(sys.argv)
