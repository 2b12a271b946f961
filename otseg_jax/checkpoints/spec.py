"""The description of a trained model: all that must be known to run its weights as trained.

Runs (in every checkpoint) and model directories (in `config.json`) store the same `Spec`, written
and read here as JSON; `compare` tells what two differ in.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pydantic
from jaxtyping import Bool, Float

from otseg_jax import fields, settings
from otseg_jax.data import regimes
from otseg_jax.data.classes import Vocabulary, spelt
from otseg_jax.models.methods import MethodConfig
from otseg_jax.models.outputs import Outputs
from otseg_jax.settings import Settings

LOGGER = logging.getLogger(__name__)

# What is stated of a CLIP whose files do not tell it; "" and 0 state nothing.
STATED = ("vision_heads", "text_heads", "activation", "tokenizer")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where weights came from; `sha256` of the files, "" where they are ours."""

    name: str
    format: str
    sha256: str = ""


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Spec:
    """A trained model, or a CLIP alone, apart from its weights."""

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
    # of the tokenizer; "": of embeddings that were given, or from before it was stored
    tokenizer_fingerprint: str = ""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its classes as data sets describe theirs."""
        return Vocabulary(self.classes, self.unseen, self.palette)

    @property
    def labelled(self) -> frozenset[str]:
        """Names of the classes that were trained with labels, as `classes.spelt`."""
        if not self.classes:
            return frozenset()
        vocabulary = self.vocabulary
        ids = range(len(vocabulary)) if self.regime == "supervised" else vocabulary.seen
        return frozenset(spelt(self.classes[k]) for k in ids)

    def knows(self, names: Sequence[str]) -> bool:
        """Whether names are those of its classes, in any order; others are a foreign vocabulary."""
        return {*map(spelt, names)} == {*map(spelt, self.classes)}

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
        return (offset * self.were_labelled(names)).astype(np.float32)

    def were_labelled(self, names: Sequence[str]) -> Bool[np.ndarray, " k"]:
        """Which classes carry the name of one that was trained with labels."""
        labelled = self.labelled
        return np.array([spelt(name) in labelled for name in names], bool)


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


def adopt(options: Settings, spec: Spec, run: Settings | None) -> Settings:
    """Settings of an evaluation with what decides how trained weights are to be run.

    Every change is announced; a ValueError tells settings that do not fit what is adopted.

    Args:
        run: as of `adopt_clip`.
    """
    data = replace(options.data, crop=spec.window, mean=spec.mean, std=spec.std)
    text = replace(options.text, templates=spec.templates)
    adopted = replace(options, regime=spec.regime, model=spec.model, data=data, text=text)
    return settings.check(asdict(adopt_clip(_announced(options, adopted), run)))


def adopt_clip(options: Settings, run: Settings | None) -> Settings:
    """Settings with what a run stated of its CLIP, where they state nothing; announced.

    Args:
        run: the settings of the run; None: there is none, or it is a model directory, which holds
            its CLIP and tells all itself.
    """
    if run is None:
        return options
    said = {name: getattr(options.clip, name) or getattr(run.clip, name) for name in STATED}
    return _announced(options, replace(options, clip=replace(options.clip, **said)))


def _announced(options: Settings, adopted: Settings) -> Settings:
    asked = settings.leaves(options)
    for name, value in settings.leaves(adopted).items():
        if value != asked[name]:
            LOGGER.info("%s=%r, as the weights were trained with", name, value)
    return adopted


_ADAPTER = pydantic.TypeAdapter(Spec)


def to_json(spec: Spec) -> dict[str, Any]:
    """The description as plain JSON."""
    return _ADAPTER.dump_python(spec, mode="json")


def from_json(data: Any, where: str) -> Spec:
    """What `to_json` wrote; a ValueError of all fields that are missing, unknown or wrong."""
    try:
        return _ADAPTER.validate_python(data)
    except pydantic.ValidationError as error:
        raise ValueError(f"{where}: {'; '.join(fields.problems_of(error))}") from None


class Record(NamedTuple):
    """What a checkpoint says of its run: the model's description, and the run's settings."""

    spec: Spec
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        return {"spec": to_json(self.spec), "settings": asdict(self.settings)}


_OTHERWISE = (
    "was written by another version of otseg_jax, whose runs are described otherwise: use that "
    "version for it, or train again in another --workdir"
)


def read_record(meta: Mapping[str, Any], where: str) -> Record:
    """What `Record.to_json` wrote; a ValueError if an earlier version did, or it is damaged."""
    if "spec" not in meta or "settings" not in meta:
        raise ValueError(f"{where} {_OTHERWISE}")
    try:
        return Record(from_json(meta["spec"], "description"), settings.check(meta["settings"]))
    except ValueError as error:
        raise ValueError(f"{where} {_OTHERWISE} ({error})") from error
