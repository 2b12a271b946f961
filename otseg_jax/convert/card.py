"""Models on the hub: the card that goes with them, and how they are published."""

import contextlib
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError
from tabulate import tabulate

from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.convert import evaluated
from otseg_jax.convert.evaluated import Evaluated
from otseg_jax.weights import hub

LOGGER = logging.getLogger(__name__)

FILE = "README.md"
MOST_NAMES = 200  # of classes in a card
PAPER = "https://arxiv.org/abs/2403.14183"
# how the hub calls each measure, and how a table does
MEASURES = {
    "miou_seen": ("mean_iou", "mIoU(S)"),
    "miou_unseen": ("mean_iou", "mIoU(U)"),
    "hiou": ("hiou", "hIoU"),
    "miou": ("mean_iou", "mIoU"),
    "pixel_accuracy": ("accuracy", "pixel accuracy"),
}


def publish(model: Pretrained, name: str, *, license: str = "", private: bool = False) -> str:
    """Publish a model with its card as "owner/name" on the hub; return the address of the commit.

    Raises:
        ValueError: it cannot be published, and why; the hub has all files or none.
    """
    license = check(name, license)
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        pretrained.write(folder, public(model))
        write(folder, model, name, license=license)
        return hub.upload(folder, name, private=private)


def public(model: Pretrained) -> Pretrained:
    """The same model, which does not tell where on this machine it came from."""
    told: dict[str, Any] = {"origin": replace(model.origin, name=_public(model.origin.name))}
    if isinstance(model, Model):
        told["spec"] = replace(model.spec, clip_source=_public(model.spec.clip_source))
    return replace(model, **told)


def _public(place: str) -> str:
    """A name of the hub as it is, of a path the last part."""
    of_hub = re.fullmatch(hub.OF_HUB, place) and not Path(place).exists()
    return place if of_hub else Path(place).name


def check(name: str, license: str = "") -> str:
    """Refuse, with a ValueError before the work, a name or a licence that the hub will not take.

    Returns the licence to state: where none is given, that of the card that is there.
    """
    hub.check_login(name)
    if not license:
        with contextlib.suppress(EntryNotFoundError, RepositoryNotFoundError):
            license = ModelCard.load(name).data.license or ""
        return license
    header = ModelCardData(license=license).to_yaml()
    try:
        ModelCard(f"---\n{header}\n---\n").validate()
    except Exception as error:  # any type, as above
        raise ValueError(
            f"license={license!r}: {hub.reason(error)}. The hub's names of licences are at "
            "https://huggingface.co/docs/hub/repositories-licenses"
        ) from error
    return license


def write(folder: Path, model: Pretrained, name: str, *, license: str = "") -> None:
    """Write the card of a model into its directory, and the picture of its evaluation.

    Args:
        name: "owner/name" on the hub.
        license: as the hub calls it, such as "apache-2.0"; "": the card says nothing of it.
    """
    found = evaluated.of_run(model)
    if not license:
        LOGGER.info(
            "the card of %s names no licence: --license=NAME (push_to_hub(license=NAME)) sets it, "
            "and that of the CLIP inside goes with it",
            name,
        )
    if found and found.picture:
        shutil.copyfile(found.picture, folder / found.picture.name)
    parts = [*_head(model, name), *_results(model, name, found)]
    header = _metadata(model, name, found, license).to_yaml()
    ModelCard(f"---\n{header}\n---\n" + "\n\n".join(parts) + "\n").save(folder / FILE)


def _metadata(model: Pretrained, name: str, found: Evaluated | None, license: str) -> ModelCardData:
    clip, trained = _clip(model), isinstance(model, Model)
    results = (
        list(_eval_results(model, name, found)) if found and isinstance(model, Model) else None
    )
    return ModelCardData(
        license=license or None,
        library_name="otseg_jax",
        pipeline_tag="image-segmentation" if trained else "zero-shot-image-classification",
        base_model=clip if re.fullmatch(hub.OF_HUB, clip) else None,
        tags=["jax", "clip", "zero-shot", "open-vocabulary", "semantic-segmentation"],
        model_name=name.partition("/")[2] if results else None,
        eval_results=results,
    )


def _eval_results(model: Model, name: str, found: Evaluated) -> Iterator[EvalResult]:
    described = model.spec
    for output, measure, value in _figures(found):
        metric, label = MEASURES[measure]
        yield EvalResult(
            task_type="image-segmentation",
            task_name=f"zero-shot semantic segmentation, {described.regime}",
            dataset_type=described.dataset,
            dataset_name=described.dataset,
            dataset_split="val",
            dataset_args={"images": found.images or "all", "command": _command(name, found)},
            metric_type=metric,
            metric_name=f"{label} of {output}, %",
            metric_value=value,
        )


def _figures(found: Evaluated) -> Iterator[tuple[str, str, float]]:
    for output, summary in found.figures.items():
        halves = summary.get("miou_unseen") is not None
        for measure in MEASURES:
            value = summary.get(measure)
            if value is not None and (halves or measure != "miou_seen"):
                yield output, measure, value


def _command(name: str, found: Evaluated) -> str:
    short = name.partition("/")[2]
    flags = " ".join(found.flags)
    return (
        f"python -m otseg_jax.main {flags} --mode=eval --config.init_from={short} "
        f"--workdir={short}_eval"
    )


def _clip(model: Pretrained) -> str:
    """What the CLIP is called; of one that lay in a folder the folder's name."""
    return _public(model.spec.clip_source if isinstance(model, Model) else model.origin.name)


def _head(model: Pretrained, name: str) -> list[str]:
    load = f'import otseg_jax\n\nsegmenter = otseg_jax.load("{name}")\n'
    words = 'found = segmenter("photo.jpg", ["cat", "sofa|couch"])  # words of your own\n'
    if not isinstance(model, Model):
        return [
            f"# {name.partition('/')[2]}",
            f"The weights of a CLIP ({_clip(model)}) as a model directory of otseg_jax, which "
            "segments photos by words with it. Nothing was trained.",
            f"```python\n{load}{words}```",
        ]
    described = model.spec
    names = [
        described.classes[k] + " ★" * (k in described.unseen)
        for k in range(min(len(described.classes), MOST_NAMES))
    ]
    more = len(described.classes) - len(names)
    own = f'found = segmenter("photo.jpg")  # its {len(described.classes)} classes\n'
    unseen = f", {len(described.unseen)} of them (★) without a labelled pixel" * bool(
        described.unseen
    )
    return [
        f"# {name.partition('/')[2]}",
        f"Segments photos into classes that are named by words. The method is "
        f"{described.outputs.main} ([OTSeg]({PAPER}) in JAX, package otseg_jax) on the CLIP "
        f"{_clip(model)}, trained on {described.dataset} ({described.regime}) with "
        f"{len(described.classes)} classes{unseen}.",
        f'```python\n{load}{own}{words}found.overlay().save("overlay.png")\n```',
        "## Classes",
        ", ".join(names) + f" and {more} more" * (more > 0),
    ]


def _results(model: Pretrained, name: str, found: Evaluated | None) -> list[str]:
    if not isinstance(model, Model):
        return []
    if found is None:
        return [
            "## Results",
            "None are stated: no evaluation of these weights came with them.",
        ]
    table: dict[str, dict[str, str]] = {}
    for output, measure, value in _figures(found):
        table.setdefault(output, {})[MEASURES[measure][1]] = f"{value:.2f}"
    rows = [{"": output, **row} for output, row in table.items()]
    photos = f"{found.images} photos" if found.images else "all photos"
    short = name.partition("/")[2]
    parts = [
        "## Results",
        f"Percent, on {photos} of the validation split of {model.spec.dataset}.",
        tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True),
        f"```bash\nhf download {name} --local-dir={short}\n{_command(name, found)}\n```",
    ]
    if found.picture:
        parts.append(f"![Photo, truth and prediction]({found.picture.name})")
    return parts
