"""The report of an evaluation: one HTML file that looks at nothing outside of itself."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jinja2
import numpy as np
from PIL import Image

from otseg_jax import paths
from otseg_jax.data.classes import IGNORE, Vocabulary
from otseg_jax.evaluation import charts, figures, metrics, offsets
from otseg_jax.evaluation.about import About
from otseg_jax.evaluation.gallery import Shot
from otseg_jax.evaluation.tally import Evaluation

FILE = "report.html"
TEMPLATE = "report.html.jinja"
WORST_PAIRS = 20
NAMED = 8  # classes under a photo
ENLARGED = 240  # pixels, the least longest side of a picture
_TITLES = ("photo", "truth", "prediction", "errors")


def write(
    path: Path,
    evaluation: Evaluation,
    shots: Mapping[str, Sequence[Shot]],
    vocabulary: Vocabulary,
    about: About,
    run: Sequence[charts.Chart] = (),
) -> None:
    """Write the page, whole or not at all.

    Args:
        shots: photos by kind.
        run: charts of the training that the weights come from.
    """
    main, results = evaluation.confusions.main, evaluation.results
    loader = jinja2.PackageLoader("otseg_jax.evaluation", "")
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": _percent, "svg": charts.svg, "hex": _hex}
    halves = {"seen": vocabulary.seen, "unseen": vocabulary.unseen}
    page = environment.get_template(TEMPLATE).render(
        dataset=evaluation.confusions.dataset,
        main=main,
        results=results,
        measures={k: v for k, v in metrics.ROWS.items() if vocabulary.unseen or k in metrics.WHOLE},
        halves={half: ids for half, ids in halves.items() if ids},
        vocabulary=vocabulary,
        pairs=_worst_pairs(evaluation, vocabulary),
        offsets=_offsets(evaluation),
        run=run,
        shots={kind: [_shown(shot, vocabulary) for shot in some] for kind, some in shots.items()},
        wrong=figures.WRONG,
        processes=jax.process_count(),
        about=about,
    )
    with paths.atomic(path) as part:
        # the name of a file may be no text
        part.write_bytes(page.encode("utf-8", "backslashreplace"))


def _percent(value: float | None) -> str:
    return "–" if value is None or np.isnan(value) else f"{value:.1f}"


def _hex(colour: Sequence[int]) -> str:
    return "#" + bytes(colour).hex()


def _worst_pairs(evaluation: Evaluation, vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The pairs of classes with the largest part of the true one, by the main method."""
    counts = evaluation.confusions.total(evaluation.confusions.main)
    truth = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    share = counts / np.maximum(truth, 1)[:, None]
    order = np.argsort(-share, axis=None, kind="stable")[:WORST_PAIRS]
    places = zip(*(i.tolist() for i in np.unravel_index(order, share.shape)), strict=True)
    return [
        {"truth": t, "found": p, "share": 100.0 * share[t, p], "pixels": int(counts[t, p])}
        for t, p in places
        if counts[t, p]
    ]


def _offsets(evaluation: Evaluation) -> dict[str, Any]:
    """What the page says of the offset of seen classes."""
    unseen = evaluation.confusions.unseen
    swept = {method: sweep.curve(unseen) for method, sweep in evaluation.sweeps.items()}
    why = evaluation.unswept
    if swept and all(np.isnan(curve.harmonic).all() for curve in swept.values()):
        swept, why = {}, "These photos hold no class of one of the halves."
    if not swept:
        return {"curves": {}, "why": why}
    rows = {
        "offset used": [f"{curve.base:g}" for curve in swept.values()],
        "hIoU": [_percent(evaluation.results[method]["hiou"]) for method in swept],
        "best offset": [f"{curve.offsets[curve.best]:g}" for curve in swept.values()],
        "hIoU there": [_percent(curve.harmonic[curve.best]) for curve in swept.values()],
        "area of S over U": [_percent(offsets.area(curve.front)) for curve in swept.values()],
    }
    return {"curves": swept, "rows": rows.items(), "charts": charts.of_offsets(swept)}


def _shown(shot: Shot, vocabulary: Vocabulary) -> dict[str, Any]:
    image, truth, prediction = row = shot.photo, shot.truth, shot.prediction
    tiles = (*figures.tiles(row, vocabulary.palette), figures.errors(image, truth, prediction))
    scored = np.where(truth == IGNORE, IGNORE, prediction)
    there, found = (set(np.unique(labels).tolist()) for labels in (truth, scored))
    return {
        "name": shot.name,
        "right": 100.0 * shot.right,
        "pictures": dict(zip(_TITLES, map(_data_uri, tiles), strict=True)),
        "size": image.shape[1::-1],
        "classes": [
            {"id": k, "missed": k not in found, "alarm": k not in there}
            for k in figures.shown([row])[:NAMED]
        ],
    }


def _data_uri(picture: np.ndarray) -> str:
    """A picture for an `src`; small ones are enlarged, so that a browser does not blur them."""
    factor = max(1, ENLARGED // max(picture.shape[:2]))
    picture = picture.repeat(factor, 0).repeat(factor, 1)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="JPEG", quality=85, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
