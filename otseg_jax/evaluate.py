"""Evaluation of trained weights: from a split of a data set to the mIoU table and its pictures.

The classes are those of the data set that is evaluated; all of them compete for every pixel
(generalised zero-shot segmentation). Figures are percent.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from otseg_jax import agreement, experiment, figures, inference, metrics, model_dir
from otseg_jax.checkpoint import Checkpoints
from otseg_jax.data import pipeline, transforms
from otseg_jax.data.classes import Vocabulary
from otseg_jax.weights import detect

CHECKPOINTS = "checkpoints"
RESULTS = "results.json"
SHOWN = 4  # photos in predictions.png

LOGGER = logging.getLogger(__name__)


def evaluate_split(
    config: ml_collections.ConfigDict,
    parts: experiment.Experiment,
    source: experiment.Source,
    trainable: Any,
    *,
    images: int = 0,
    on_photo: inference.OnPhoto | None = None,
) -> dict[str, metrics.Summary]:
    """Evaluate trained weights on a split as the configuration says.

    Args:
        config: `eval` and `data`.
        parts: the model around the weights.
        source: the split.
        trainable: state of what was trained.
        images: at most so many, evenly spaced over the split; 0 for all.
        on_photo: as in `inference.evaluate`.

    Returns:
        Summary per method.
    """
    data, options = config.data, config.eval
    predict = inference.make_predict(
        parts.graphdef,
        trainable,
        parts.frozen,
        parts.text,
        mesh=parts.mesh,
        mps_weight=options.mps_weight,
    )

    def prepare(example: Mapping[str, Any]) -> dict[str, Any]:
        fitted = transforms.for_eval(
            example["image"], scale=tuple(options.scale), mean=tuple(data.mean), std=tuple(data.std)
        )
        return {**example, "image": fitted, "photo": example["image"]}

    every = -(-len(source) // images) if images else 1
    examples = pipeline.eval_examples(
        source, prepare, process_count=every, threads=data.threads, buffer=data.buffer
    )
    offset = options.seen_offset
    return inference.evaluate(
        predict,
        examples,
        parts.vocabulary,
        total=-(-len(source) // every),
        window=data.crop,
        stride=options.stride,
        batch_size=options.batch_size,
        seen_offset=parts.regime.seen_offset if offset is None else offset,
        on_photo=on_photo,
    )


def report(
    config: ml_collections.ConfigDict,
    workdir: Path,
    parts: experiment.Experiment,
    source: experiment.Source,
    trainable: Any,
) -> dict[str, metrics.Summary]:
    """Evaluate, print the table, and write figures and pictures.

    Args:
        config: `eval` and `data`.
        workdir: gets `results.json`, `predictions.png` and, on request, label maps as palette PNGs
            in `predictions/<method>/`.
        parts: the model around the weights.
        source: the split.
        trainable: state of what was trained.

    Returns:
        Summary per method, as in `results.json`.
    """
    rows = []

    def on_photo(number: int, example: Mapping[str, Any], maps: dict[str, np.ndarray]) -> None:
        method, prediction = list(maps.items())[-1]
        if number < SHOWN:
            rows.append((example["photo"], example["label"], prediction))
        if config.eval.save_predictions:
            for method, prediction in maps.items():
                path = workdir / "predictions" / method / f"{example['name']}.png"
                figures.palette_png(path, prediction, parts.vocabulary.palette)

    results = evaluate_split(
        config, parts, source, trainable, images=config.eval.images, on_photo=on_photo
    )
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        metrics.write_json(workdir / RESULTS, results)
        figures.panel(workdir / "predictions.png", rows, parts.vocabulary)
        unseen = [parts.vocabulary.names[k] for k in parts.vocabulary.unseen]
        tqdm.write(metrics.table(results, unseen))  # above the bar of a training run
        tqdm.write(f"written: {workdir / RESULTS}, {workdir / 'predictions.png'}")
    return results


def evaluate_checkpoint(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Evaluate a trained run on the validation split of a data set, its own or another.

    What the checkpoint was trained with (model, regime, crop, normalisation) is taken from the
    checkpoint; the vocabulary is that of the configuration's data set.

    Args:
        config: as in `configs/common.py`; `init_from` names the run, if it is not `workdir`, or a
            model directory.
        workdir: gets the results.

    Raises:
        FileNotFoundError, ValueError: one message for whoever started it.
    """
    workdir = open_workdir(workdir)
    experiment.check(config)
    run = Path(config.init_from or workdir)
    if config.init_from and detect.is_model(config.init_from):
        model = model_dir.read(config.init_from)
        meta, where = model_dir.as_meta(model.config), str(run)
        source, parts = _assemble(config, meta, where)
        trainable = experiment.start_from_model(model, parts, where=where)
    else:
        with Checkpoints(run / CHECKPOINTS) as checkpoints:
            step = _choose(checkpoints, config.eval.checkpoint, run)
            meta, where = checkpoints.read_meta(step), f"{run}, step {step}"
            source, parts = _assemble(config, meta, where)
            restored = checkpoints.restore(step, {"trainable": parts.trainable})
            trainable = restored["trainable"]
    if meta["classes"] != list(source.vocabulary.names):
        _print_overlap(meta, source.vocabulary)
    LOGGER.info("Evaluating %s on %s", where, config.data.dataset)
    report(config, workdir, parts, source, trainable)


def _assemble(
    config: ml_collections.ConfigDict, meta: Mapping[str, Any], where: str
) -> tuple[experiment.Source, experiment.Experiment]:
    """The data and the model, run as `meta` says that it was trained."""
    agreement.adopt(config, meta)
    source = experiment.open_split(config, "val")
    parts = experiment.assemble(config, source.vocabulary)
    agreement.check_same_model(meta, parts.meta, where=where)
    return source, parts


def open_workdir(workdir: str | Path) -> Path:
    """The folder a run writes to, checked before anything is computed for it.

    Raises:
        ValueError: it is a file, or cannot be written to.
    """
    path = Path(workdir)
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(
            f"--workdir={workdir} cannot be written: {existing} is "
            f"{'not writable' if existing.is_dir() else 'a file'}; choose another folder"
        )
    return path


def _choose(checkpoints: Checkpoints, wanted: str | int, run: Path) -> int:
    chosen = {"latest": checkpoints.latest_step, "best": checkpoints.best_step}
    if wanted not in chosen and not str(wanted).isdecimal():
        raise ValueError(
            f"eval.checkpoint={wanted!r}: choose latest, best or a step of {checkpoints.steps()}"
        )
    step = chosen[wanted]() if wanted in chosen else int(wanted)
    if step is None:
        raise FileNotFoundError(
            f"{run} holds no {wanted} checkpoint: train there first, or name a trained run with "
            "--config.init_from"
        )
    return step


def _print_overlap(meta: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """A class of the same name was trained on (or not) under that name: not zero-shot in full."""
    seen = {name for k, name in enumerate(meta["classes"]) if k not in meta["unseen"]}
    shared = [name for name in vocabulary.names if name in seen]
    tqdm.write(
        f"cross-dataset: {len(shared)} of {len(vocabulary)} classes carry the name of a class that "
        f"was trained with labels: {', '.join(shared) or 'none'}"
    )
