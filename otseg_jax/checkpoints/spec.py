"""The description of a trained model: all that must be known to run its weights as trained.

Runs (in every checkpoint) and model directories (in `config.json`) store the same `Spec`, written
and read here as JSON, and compared here.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Float

from otseg_jax import settings
from otseg_jax.data import regimes
from otseg_jax.data.classes import Vocabulary
from otseg_jax.models.methods import MethodConfig
from otseg_jax.models.outputs import Outputs
from otseg_jax.settings import Settings

LOGGER = logging.getLogger(__name__)

# Settings that do not change what is learned: a run may be resumed with other values. Of the files
# CLIP and of `text.embeddings` the content counts: their fingerprints are compared instead.
FREE = (
    "compile_cache",
    "mesh.",
    "eval.",
    "clip.source",
    "clip.vision_heads",
    "clip.text_heads",
    "clip.activation",
    "text.embeddings",
    "text.cache",
    "init_",
    "model.remat",
    "data.root",
    "data.threads",
    "data.buffer",
    "train.accumulate",  # the gradient is the same
    "train.log_every",
    "train.eval_every",
    "train.eval_images",
    "train.checkpoint_every",
)


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights came from; `sha256` of the files, "" where they are ours."""

    name: str
    format: str
    sha256: str = ""


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Spec:
    """A trained model, apart from its weights."""

    dataset: str
    classes: tuple[str, ...]  # names, in the order of the ids
    unseen: tuple[int, ...]  # ids that had no labelled pixel
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)
    templates: tuple[str, ...]  # one prompt per class each
    regime: str
    model: MethodConfig
    outputs: Outputs  # mixtures of logit maps; `outputs.main` is the method
    mean: tuple[float, float, float]  # of the photos, per channel, 0..255; and so `std`
    std: tuple[float, float, float]
    scale: tuple[float, float]  # (long, short) side that a photo is fitted into, pixels
    window: int  # side, pixels
    stride: int  # pixels between windows
    seen_offset: float  # subtracted from the scores of classes that were trained with labels
    clip_source: str  # what the CLIP was called
    clip_fingerprint: str = ""  # of both towers
    text_fingerprint: str = ""  # of what made the text embeddings: the tower, or they themselves
    vocabulary_hash: str = ""  # of class names, templates and text fingerprint

    @property
    def vocabulary(self) -> Vocabulary:
        """Its classes as data sets describe theirs."""
        return Vocabulary(self.classes, self.unseen, self.palette)

    @property
    def labelled(self) -> frozenset[str]:
        """Names of the classes that were trained with labels."""
        vocabulary = self.vocabulary
        ids = range(len(vocabulary)) if self.regime == "supervised" else vocabulary.seen
        return frozenset(self.classes[k] for k in ids)

    def knows(self, names: Sequence[str]) -> bool:
        """Whether names are those of its classes, in any order; others are a foreign vocabulary."""
        return set(names) == set(self.classes)

    def offsets(self, names: Sequence[str], asked: float | None = None) -> Float[np.ndarray, " k"]:
        """What is subtracted from the scores of classes: an offset of names trained with labels.

        Args:
            asked: the offset; None: as trained, and none for a foreign vocabulary.

        Differs: the original's configurations across data sets subtract it from every class, which
            changes no prediction.
        """
        offset = asked
        if offset is None:
            offset = self.seen_offset if self.knows(names) else 0.0
        labelled = self.labelled
        return np.array([offset * (name in labelled) for name in names], np.float32)


def describe(options: Settings, vocabulary: Vocabulary) -> Spec:
    """What settings say of the model that they train; fingerprints come from its CLIP and text."""
    regime = regimes.resolve(options.regime, num_classes=len(vocabulary), unseen=vocabulary.unseen)
    offset = options.eval.seen_offset
    return Spec(
        dataset=options.data.dataset,
        classes=vocabulary.names,
        unseen=vocabulary.unseen,
        palette=vocabulary.palette,
        templates=options.templates,
        regime=options.regime,
        model=options.model,
        outputs=options.model.outputs(mps_weight=options.eval.mps_weight),
        mean=options.data.mean,
        std=options.data.std,
        scale=options.eval.scale,
        window=options.data.crop,
        stride=options.eval.stride,
        seen_offset=regime.seen_offset if offset is None else offset,
        clip_source=options.clip.source,
    )


def adopt(options: Settings, spec: Spec) -> Settings:
    """Settings of an evaluation with what decides how trained weights are to be run.

    Every change is announced; a ValueError tells settings that do not fit what is adopted.
    """
    data = replace(options.data, crop=spec.window, mean=spec.mean, std=spec.std)
    text = replace(options.text, templates=spec.templates)
    adopted = replace(options, regime=spec.regime, model=spec.model, data=data, text=text)
    asked = settings.leaves(options)
    for name, value in settings.leaves(adopted).items():
        if value != asked[name]:
            LOGGER.info("%s=%r, as the weights were trained with", name, value)
    return settings.check(asdict(adopted))


_ADAPTER = pydantic.TypeAdapter(Spec)


def to_json(spec: Spec) -> dict[str, Any]:
    """The description as plain JSON."""
    return _ADAPTER.dump_python(spec, mode="json")


def from_json(data: Any, where: str) -> Spec:
    """What `to_json` wrote; a ValueError of all fields that are missing, unknown or wrong."""
    try:
        return _ADAPTER.validate_python(data)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {'; '.join(settings.problems_of(error))}") from None


class Record(NamedTuple):
    """What a checkpoint says of its run: the model's description, and the run's settings."""

    spec: Spec
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return {"spec": to_json(self.spec), "settings": asdict(self.settings)}


def read_record(meta: Mapping[str, Any], where: str) -> Record:
    """What `Record.to_json` wrote; a ValueError if an earlier version did, or it is damaged."""
    if "spec" not in meta or "settings" not in meta:
        raise ValueError(
            f"{where} was written by an earlier otseg_jax, whose runs were described otherwise: "
            "use that version for it, or train again in another --workdir"
        )
    return Record(from_json(meta["spec"], where), settings.check(meta["settings"]))


def differences(saved: Spec, here: Spec) -> list[str]:
    """What keeps weights of one description from being used under another.

    On another data set the class names are others, and their embeddings no concern here.
    """
    problems = []
    if saved.clip_fingerprint != here.clip_fingerprint:
        problems.append(
            f"its CLIP weights are not those of --config.clip.source={here.clip_source} (it was "
            f"trained with {saved.clip_source})"
        )
    # folders of one's own have one name and may be different data sets
    same_data = saved.classes == here.classes or saved.dataset == here.dataset != "folder"
    if same_data and saved.unseen != here.unseen:
        problems.append(f"its unseen classes were {list(saved.unseen)} and are {list(here.unseen)}")
    if same_data and saved.vocabulary_hash != here.vocabulary_hash:
        problems.append(
            "its text embeddings are not these: the vocabulary hash is "
            f"{saved.vocabulary_hash[:12]} there and {here.vocabulary_hash[:12]} here; check "
            "the class list, --config.text.templates, --config.text.embeddings and "
            "--config.clip.source"
        )
    return problems


def check_same_model(saved: Spec, here: Spec, *, where: str) -> None:
    """Refuse, with all differences, weights trained with another CLIP or text embeddings."""
    if problems := differences(saved, here):
        raise ValueError(f"{where} does not fit: {'; '.join(problems)}")


def check_same_run(saved: Record, here: Record, *, done: int, where: str) -> None:
    """Refuse, with all differences but those of `FREE`, a run that other settings began.

    Args:
        done: steps of it; another length from there on is announced.
    """
    theirs, ours = settings.leaves(saved.settings), settings.leaves(here.settings)
    problems = [
        f"{name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name) and not name.startswith((*FREE, "train.steps"))
    ]
    if saved.spec.classes != here.spec.classes:
        problems.append(
            f"the classes were {list(saved.spec.classes)} and are {list(here.spec.classes)}"
        )
    planned, steps = saved.settings.train.steps, here.settings.train.steps
    if steps < done:
        problems.append(f"train.steps={steps}, and {done} are done")
    unfit = differences(saved.spec, here.spec)
    if problems := problems + unfit:
        other = not unfit and saved.spec.model == here.spec.model
        raise ValueError(
            f"{where} holds a run of another configuration: {'; '.join(problems)}. Repeat its "
            "flags to resume it, or "
            + (
                f"start a run from its weights: --config.init_from={where} --workdir=NEW"
                if other
                else "choose another --workdir"
            )
        )
    if steps != planned:
        LOGGER.warning(
            "train.steps was %d and is %d: the learning rate follows the new length from step %d "
            "on, which is not what one run of %d steps gives",
            planned,
            steps,
            done,
            steps,
        )
