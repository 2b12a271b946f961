"""What the run behind weights scored: its last evaluation, and the command that repeats it.

Figures are percent, by output and measure, as `results.json` and `metrics.jsonl` have them.
"""

import hashlib
import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util

from otseg_jax import config_file, settings
from otseg_jax.checkpoints import manifest, restore
from otseg_jax.checkpoints.pretrained import Pretrained
from otseg_jax.checkpoints.spec import Record
from otseg_jax.settings import Settings

LOGGER = logging.getLogger(__name__)

RESULTS, PICTURE, LOG = "results.json", "predictions.png", "metrics.jsonl"  # of a workdir
# settings that decide what an evaluation finds, beside those that weights bring with them
ASKED = ("data.dataset", "data.raw_ids", "data.images.val")
NOT_ASKED = ("eval.batch_size", "eval.checkpoint", "eval.save_predictions")


class Evaluated(NamedTuple):
    """An evaluation of weights on the validation split that they were trained beside."""

    figures: Mapping[str, Mapping[str, float | None]]  # output → measure → percent
    images: int  # at most so many, evenly spaced; 0: all
    flags: tuple[str, ...]  # of `otseg_jax.main`, --config first
    picture: Path | None  # photos, truth and prediction of this evaluation


def of_run(model: Pretrained) -> Evaluated | None:
    """What its run scored at its step; None where weights are of no run, or of none that is here.

    The run is the one whose checkpoint has the checksum that the weights remember.
    """
    workdir, _, step = model.origin.name.rpartition(", step ")
    if model.origin.format != "otseg_jax run" or not step.isdecimal():
        return None
    place = Path(workdir)
    listing = place / restore.CHECKPOINTS / step / manifest.NAME
    if not listing.is_file() or hashlib.sha256(listing.read_bytes()).hexdigest() != (
        model.origin.sha256
    ):
        return None
    record = restore.read(place, step, lambda _, step, record: record)
    logged, results = _logged(place / LOG, int(step)), _results(place / RESULTS, record)
    means = {output: _means(summary) for output, summary in results.items()}
    options = record.settings
    if not logged:  # nothing tells which step, or which settings, `results.json` is of
        return None
    if logged == means:
        picture = place / PICTURE
        shown = picture if picture.is_file() else None
        return Evaluated(means, options.eval.images, _flags(options), shown)
    if results:
        LOGGER.info("%s is not of step %s: figures are those of %s", place / RESULTS, step, LOG)
    if int(step) != options.train.steps:
        options = replace(options, eval=replace(options.eval, images=options.train.eval_images))
    return Evaluated(logged, options.eval.images, _flags(options), None)


def _means(summary: Mapping[str, Any]) -> dict[str, float | None]:
    return {name: value for name, value in summary.items() if name != "iou"}


def _results(path: Path, record: Record) -> dict[str, Mapping[str, Any]]:
    """What an evaluation wrote, if it is of these outputs and classes."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        found = {output: results[output] for output in record.spec.outputs.mixtures}
        same = all(set(found[output]["iou"]) == set(record.spec.classes) for output in found)
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if same else {}


def _logged(path: Path, step: int) -> dict[str, dict[str, float | None]]:
    """What an evaluation at a step logged, as "output/measure"; the last one of several."""
    found = dict[str, dict[str, float | None]]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # an interrupted run may have cut it short
            continue
        if isinstance(entry, dict) and entry.get("step") == step:
            for name, value in entry.items():
                output, _, measure = name.partition("/")
                if measure:
                    found.setdefault(output, {})[measure] = value
    return found


def _flags(options: Settings) -> tuple[str, ...]:
    """The flags of `otseg_jax.main` that repeat an evaluation, but for those that name weights."""
    dataset = options.data.dataset
    name = "shapes" if dataset.startswith("shapes") else dataset
    configs = config_file.CONFIGS
    if configs is None or not (configs / f"{name}.py").is_file():
        return ("--config=FILE.py",)  # a configuration of one's own
    file = f"configs/{name}.py:{options.regime}"
    usual = traverse_util.flatten_dict(config_file.load(file).to_dict(), sep=".")
    flags = [
        shlex.quote(f"--config.{field}={value}")
        for field, value in settings.leaves(options).items()
        if (field.startswith("eval.") and field not in NOT_ASKED) or field in ASKED
        if value != usual[field]
    ]
    root = [] if name == "shapes" else ["--config.data.root=DIR"]
    return (f"--config={file}", *root, *flags)
