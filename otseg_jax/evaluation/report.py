"""Evaluation of trained weights: from a split of a data set to the mIoU table and the report.

The classes are those of the data set that is evaluated; all of them compete for every pixel
(generalised zero-shot segmentation). Figures are percent.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from otseg_jax import buckets, build, paths
from otseg_jax.build import Experiment, Split
from otseg_jax.checkpoints import compare, lock, restore, spec
from otseg_jax.checkpoints.spec import Spec
from otseg_jax.data import inspect, pipeline, transforms
from otseg_jax.data.classes import Vocabulary, spelt
from otseg_jax.evaluation import (
    about,
    charts,
    confusions,
    figures,
    html,
    metrics,
    offsets,
    sliding,
    stream,
)
from otseg_jax.evaluation.gallery import Gallery
from otseg_jax.evaluation.inference import Inference
from otseg_jax.evaluation.predictions import Predictions
from otseg_jax.evaluation.tally import Evaluation, Tally
from otseg_jax.evaluation.words import Words
from otseg_jax.models.training_free import TrainingFreeConfig
from otseg_jax.processes import StopTogether, by_first, together
from otseg_jax.settings import Settings

RESULTS = "results.json"
SHOWN = 4  # photos in predictions.png

LOGGER = logging.getLogger(__name__)


def evaluate(options: Settings, workdir: str | Path) -> None:
    """Evaluate trained weights, or a CLIP alone, on the validation split of a data set.

    How weights were trained (model, regime, crop, normalisation) is taken from their description;
    the vocabulary is that of the data set, which may be another. `init_from` names the run, if it
    is not `workdir`, or a model directory. A workdir in which a run trains is refused; `init_from`
    reads it all the same. A CLIP alone is run as the settings say, in a workdir without a run.

    Raises:
        FileNotFoundError, ValueError: one message for whoever started it.
        KeyboardInterrupt: the user or the system asked to stop; no results were written.
    """
    with lock.hold(workdir) as held:
        alone = isinstance(options.model, TrainingFreeConfig)
        found = (_alone if alone else _trained)(options, held)
        with StopTogether() as stop:

            def before_photo(number: int) -> None:
                if stop.reached():
                    raise KeyboardInterrupt(
                        f"stopped before photo {number + 1}, without results: the same command "
                        "begins again"
                    )

            report(
                found.experiment,
                found.source,
                found.weights,
                held,
                where=found.where,
                log=found.log,
                trained=found.trained,
                before_photo=before_photo,
            )


class Evaluated(NamedTuple):
    """What is evaluated on what; `trained` as in `evaluate_split`."""

    experiment: Experiment
    source: Split
    weights: Any
    where: str  # the weights are
    log: Path | None  # of the run that they come from
    trained: Spec | None


@by_first
def _check_no_run(workdir: Path) -> None:
    if (workdir / restore.CHECKPOINTS).exists():
        raise ValueError(
            f"{workdir} holds a run, whose {RESULTS} would be replaced by that of a CLIP alone: "
            "choose another --workdir"
        )


def _alone(options: Settings, workdir: Path) -> Evaluated:
    _check_no_run(workdir)
    source = build.open_split(options, "val")
    build.check_labels(options, train=None, val=source)
    experiment = build.assemble(options, source.vocabulary)
    described = experiment.spec
    LOGGER.info("Evaluating %s of %s alone", described.outputs.main, described.clip_source)
    if (threshold := options.eval.threshold) is not None:
        name = described.classes[0]
        LOGGER.info("Pixels of a probability below %s are of class 0, %r", threshold, name)
    where = f"none but those of {described.clip_source}"
    return Evaluated(experiment, source, experiment.trainable, where, None, None)


def _trained(options: Settings, workdir: Path) -> Evaluated:
    place, flag = options.init_from or workdir, "--config.eval.checkpoint"
    found = restore.find(place, options.eval.checkpoint, flag=flag)
    adopted = spec.adopt(options, found.spec, found.settings)
    source = build.open_split(adopted, "val")
    build.check_labels(adopted, train=None, val=source)
    experiment = build.assemble(adopted, source.vocabulary, trained=True)
    compare.check_same_model(found, experiment.record)
    LOGGER.info("Evaluating %s on %s", found.where, options.data.dataset)
    weights = found.restore(experiment.trainable)
    if found.spec.classes != source.vocabulary.names:
        experiment = replace(experiment, vocabulary=_resplit(found.spec, source.vocabulary))
    log = buckets.here(place, buckets.READ) / charts.LOG
    return Evaluated(experiment, source, weights, found.where, log, found.spec)


def report(
    experiment: Experiment,
    source: Split,
    weights: Any,
    workdir: Path,
    *,
    where: str,
    log: Path | None = None,
    trained: Spec | None = None,
    before_photo: Callable[[int], None] = lambda number: None,
    on_results: Callable[[dict[str, metrics.Summary]], None] = lambda results: None,
) -> dict[str, metrics.Summary]:
    """Evaluate trained weights; print and return the summary per output, write it and the report.

    Args:
        workdir: gets `results.json`, `confusions.npz`, `report.html`, `predictions.png` and, on
            request, label maps as PNGs in `predictions/<output>/`.
        where: the weights are, for the report.
        log: of the run that they come from, whose curves it shows.
        trained: as in `evaluate_split`, and so `before_photo`.
        on_results: called with the summaries before anything is written.
    """
    vocabulary, main, rows = experiment.vocabulary, experiment.spec.outputs.main, []
    images, asked = experiment.settings.eval.images, experiment.settings.eval.save_predictions
    gallery = Gallery(len(photos(len(source), images)))
    predictions = Predictions(workdir, vocabulary.palette, wanted=asked)

    def on_photo(number: int, example: Mapping[str, Any], maps: Mapping[str, np.ndarray]) -> None:
        gallery.see(number, example, maps[main])
        if number < SHOWN:
            rows.append((example["image"], example["label"], maps[main]))
        predictions.add(example["name"], maps)

    found = evaluate_split(
        experiment,
        source,
        weights,
        images=images,
        sweep=True,
        on_photo=on_photo,
        trained=trained,
        before_photo=before_photo,
    )
    predictions.finish()
    results = found.results
    on_results(results)

    @together
    def write() -> None:
        if jax.process_index():
            return
        with paths.writing(workdir):
            metrics.write_json(workdir / RESULTS, results)
            confusions.write(workdir / confusions.FILE, found.confusions)
            figures.panel(workdir / "predictions.png", rows, vocabulary)
        unseen = [vocabulary.names[k] for k in vocabulary.unseen]
        tqdm.write(metrics.table(results, unseen))  # above the bar of a training run
        told = about.of(experiment, len(found.confusions.photos), where=where, trained=trained)
        run = charts.of_run(log) if log and log.is_file() else []
        with paths.writing(workdir):
            html.write(workdir / html.FILE, found, gallery.chosen(), vocabulary, told, run)
        tqdm.write(f"written: {workdir / RESULTS}, {workdir / html.FILE}")

    write()
    return results


def evaluate_split(
    experiment: Experiment,
    source: Split,
    weights: Any,
    *,
    images: int = 0,
    sweep: bool = False,
    on_photo: stream.OnPhoto | None = None,
    trained: Spec | None = None,
    before_photo: Callable[[int], None] = lambda number: None,
) -> Evaluation:
    """Evaluate trained weights on a split: what is counted for every output.

    Args:
        images: at most so many, evenly spaced over the split; 0 for all.
        sweep: count at every offset of seen classes as well, for the report.
        on_photo: as in `stream.evaluate`.
        trained: what the weights were trained as, where that is not this experiment.
        before_photo: called with the number of each photo; what it raises ends the evaluation.
    """
    options, data = experiment.settings, experiment.settings.data
    described, classes = experiment.spec, experiment.vocabulary.names
    of = trained or described
    offset, labelled = of.offsets(classes, options.eval.seen_offset), of.were_labelled(classes)
    class_of = np.array(experiment.class_of, np.int32)
    asked = Words(experiment.text, class_of, offset[class_of], len(classes))
    how = Inference(
        method=described.model,
        patch=experiment.patch_size,
        window=data.crop,
        stride=options.eval.stride,
        # whole photos are of many sizes, so that batches of them would be filled up
        batch_size=options.eval.batch_size if data.crop else experiment.mesh.shape["data"],
        mean=data.mean,
        std=data.std,
        threshold=options.eval.threshold,
        least_share=options.eval.least_share,
    )
    runner = sliding.Runner(
        graphdef=experiment.graphdef,
        trainable=weights,
        frozen=experiment.frozen,
        mesh=experiment.mesh,
    )
    predict = sliding.Predict(runner=runner, text=asked.text, outputs=described.outputs, how=how)

    scales, flip = options.eval.scales, options.eval.flip
    look = partial(transforms.views, scales=scales, flip=flip, scale=options.eval.scale)
    # Every n-th photo is what the first of n processes would read.
    chosen = photos(len(source), images)
    examples = pipeline.eval_examples(
        source,
        lambda example: stream.cut(example, look(example["image"]), how, classes=len(classes)),
        process_count=chosen.step,
        threads=data.threads,
        buffer=data.buffer,
    )
    if jax.process_count() == 1:  # of several the others would wait
        examples = inspect.tell_all(examples, source, threads=data.threads)

    def watched() -> Iterator[Mapping[str, Any]]:
        for number, example in enumerate(examples):
            before_photo(number)
            yield example

    unswept = offsets.reason_against(how, labelled) if sweep else "It was not asked for."
    tally = Tally(
        experiment.vocabulary,
        [*described.outputs.mixtures],
        labelled=None if unswept else labelled,
        offset=float(offset.max()),
    )
    stream.evaluate(predict, watched(), asked, how, tally, total=len(chosen), on_photo=on_photo)
    return tally.finished(dataset=data.dataset, main=described.outputs.main, unswept=unswept)


def photos(total: int, images: int) -> range:
    """Which photos of a split are evaluated: evenly spaced, at most `images`; 0 for all."""
    return range(0, total, -(-total // images) if images else 1)


def _resplit(trained: Spec, vocabulary: Vocabulary) -> Vocabulary:
    """Another list of classes, whose unseen ones are those that were unseen in training, by name.

    Of a foreign vocabulary they are all that were not trained with labels.
    """
    names = vocabulary.names
    if trained.knows(names):
        hidden = {spelt(trained.classes[k]) for k in trained.unseen}
    else:
        hidden = {*map(spelt, names)} - trained.labelled
        shared = [name for name in names if spelt(name) not in hidden]
        tqdm.write(
            f"cross-dataset: {len(shared)} of {len(names)} classes carry the name of a class that "
            f"was trained with labels: {', '.join(shared) or 'none'}"
        )
    unseen = tuple(k for k, name in enumerate(names) if spelt(name) in hidden)
    return replace(vocabulary, unseen=unseen)
