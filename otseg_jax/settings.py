"""The settings of a run as plain values: what a configuration becomes before anything is read.

One class for each group of `configs/common.py`, with its field names; what they mean stands there.
Every field is checked in type, length and range, by its type of `fields`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pydantic
from flax import traverse_util
from pydantic import AfterValidator, Field

from otseg_jax.data import regimes, splits, templates
from otseg_jax.fields import (
    Channels,
    CheckpointName,
    Count,
    Devices,
    Factors,
    Few,
    Fraction,
    LocalPlace,
    Pixels,
    Place,
    Positive,
    Rate,
    Scales,
    Sides,
    Spread,
    Switch,
    Templates,
    Weight,
    Width,
    Window,
    Words,
    name_of,
    problems_of,
    within,
)
from otseg_jax.models import methods
from otseg_jax.models.methods import MethodConfig

_ONLY_THESE = pydantic.with_config(pydantic.ConfigDict(extra="forbid"))


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How devices are arranged."""

    data: Devices
    model: Few


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class TowerSizes:
    """Sizes of an untrained tower."""

    width: Width
    layers: Few
    heads: Few
    mlp_width: Width


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class ClipSizes:
    """Sizes of an untrained CLIP."""

    patch_size: Pixels
    embed_dim: Width
    vision: TowerSizes
    text: TowerSizes


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Which CLIP; `random` holds the sizes of untrained towers, the rest is as in `Stated`."""

    source: Annotated[LocalPlace, Field(min_length=1)]
    vision_heads: Annotated[int, within(0, 4096)] = 0  # runs of before have none of these four
    text_heads: Annotated[int, within(0, 4096)] = 0
    activation: Literal["", "quick_gelu", "gelu"] = ""
    tokenizer: LocalPlace = ""
    random: ClipSizes


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Text:
    """What the text tower is asked."""

    templates: Templates
    words: Words = ()  # runs of before have none
    embeddings: LocalPlace
    cache: LocalPlace


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Images:
    """How many pictures to draw."""

    train: Positive
    val: Positive


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Data:
    """Which photos, and how they are prepared."""

    dataset: Annotated[str, AfterValidator(splits.check_name)]
    root: Place
    augmented: Switch
    raw_ids: Switch
    images: Images
    crop: Window
    scale: Sides
    ratio: Factors
    max_class_fraction: Annotated[Fraction, Field(gt=0)]
    hue: Annotated[int, within(0, 90)]
    mean: Channels
    std: tuple[Spread, Spread, Spread]
    threads: Annotated[int, within(1, 256)]
    buffer: Annotated[int, within(1, 65536)]


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how fast, and how often it is looked at."""

    steps: Positive
    batch_size: Annotated[int, within(1, 65536)]
    accumulate: Annotated[int, within(1, 65536)]
    learning_rate: Annotated[Rate, Field(gt=0)]
    end_learning_rate: Rate
    power: Annotated[float, within(0, 100)]
    warmup: Count
    warmup_ratio: Fraction
    weight_decay: Fraction
    focal_weight: Weight
    dice_weight: Weight
    log_every: Positive
    eval_every: Count
    eval_images: Count
    checkpoint_every: Positive


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Eval:
    """How trained weights are run on photos."""

    batch_size: Annotated[int, within(1, 65536)]
    scale: Sides
    stride: Pixels
    seen_offset: Fraction | None
    mps_weight: Fraction
    threshold: Fraction | None = None  # runs of before have neither
    least_share: Fraction = 0.0
    scales: Scales = (1.0,)  # nor these
    flip: Switch = False
    checkpoint: CheckpointName
    images: Count
    save_predictions: Switch


@_ONLY_THESE
@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of them, as `check` makes them."""

    regime: Literal[regimes.NAMES]  # type: ignore[valid-type]
    seed: Annotated[int, within(0, 2**32 - 1)]
    dtype: Literal["float32", "tensorfloat32", "bfloat16"]
    init_from: Place
    init_step: Count
    mesh: Mesh
    clip: ClipSource
    text: Text
    model: MethodConfig
    data: Data
    train: Train
    eval: Eval
    compile_cache: LocalPlace = ""  # runs of before have neither
    log: Literal["", "tensorboard", "wandb", "tensorboard,wandb", "wandb,tensorboard"] = ""
    profile: Count = 0  # nor this

    def __post_init__(self) -> None:
        methods.check_use(
            self.model, window=self.data.crop, words=self.text.words, start=self.init_from
        )

    @property
    def templates(self) -> tuple[str, ...]:
        """Those that describe a class: all of them, or ZegCLIP's one."""
        return (self.text.templates or templates.IMAGENET)[: 1 if self.model.one_prompt else None]

    def check_devices(self, devices: int) -> None:
        """Refuse, with a ValueError, batches that so many devices cannot share equally."""
        train, problems = self.train, []
        if train.batch_size % (train.accumulate * devices):
            problems.append(
                f"train.batch_size={train.batch_size} is not a multiple of train.accumulate × "
                f"mesh.data = {train.accumulate} × {devices}"
            )
        if self.eval.batch_size % devices:
            problems.append(
                f"eval.batch_size={self.eval.batch_size} is not a multiple of mesh.data = {devices}"
            )
        if problems:
            raise ValueError("config: " + "; ".join(problems))


def doubts(settings: Settings) -> list[str]:
    """What is allowed and seldom meant, one line each."""
    train, found = settings.train, []
    if train.warmup > train.steps:
        found.append(
            f"train.warmup={train.warmup} is longer than train.steps={train.steps}: the learning "
            f"rate never reaches its peak, {train.learning_rate:g}"
        )
    return found


_FIT: Sequence[tuple[Sequence[str], Callable[..., bool], str]] = (
    (
        ("eval.stride", "data.crop"),
        lambda stride, crop: not crop or stride <= crop,
        "eval.stride={} leaves gaps between windows of data.crop={}",
    ),
    (
        ("train.batch_size", "train.accumulate"),
        lambda size, parts: size % parts == 0,
        "train.batch_size={} is not a multiple of train.accumulate={}",
    ),
    (
        ("train.end_learning_rate", "train.learning_rate"),
        lambda end, peak: end <= peak,
        "train.end_learning_rate={} is above train.learning_rate={}",
    ),
    (
        ("train.focal_weight", "train.dice_weight"),
        lambda focal, dice: focal + dice > 0,
        "train.focal_weight={} and train.dice_weight={}: nothing would be learned",
    ),
    (
        ("data.mean", "data.std"),
        lambda mean, std: (max(mean) > 1 or max(mean) == 0) and max(std) >= 1,
        "data.mean={}, data.std={} are for values in 0..1: wanted those for 0..255, 255 times each",
    ),
    *(
        (
            (f"clip.random.{tower}.width", f"clip.random.{tower}.heads"),
            lambda width, heads: width % heads == 0,
            f"clip.random.{tower}.width={{}} is not a multiple of clip.random.{tower}.heads={{}}",
        )
        for tower in ("vision", "text")
    ),
)
"""Fields that must fit together: their names, whether they do, and what is said if not."""

_ADAPTER = pydantic.TypeAdapter(Settings)


def check(fields: Mapping[str, Any]) -> Settings:
    """Settings of nested plain fields, checked before anything is read or compiled.

    Raises:
        ValueError: every problem, named by its field, in one message.
    """
    problems, wrong, found = [], [], None
    try:
        found = _ADAPTER.validate_python(fields)
    except pydantic.ValidationError as error:
        problems = problems_of(error)
        wrong = [name_of(problem) for problem in error.errors()]
    given = traverse_util.flatten_dict(fields, sep=".")
    for names, fit, words in _FIT:
        # what is wrong by itself is told already
        if not any(bad.startswith(name) or name.startswith(bad) for bad in wrong for name in names):
            values = [given[name] for name in names]
            problems += [] if fit(*values) else [words.format(*values)]
    if problems or found is None:
        raise ValueError(f"config: {'; '.join(problems)}")
    return found


def leaves(settings: Settings) -> dict[str, Any]:
    """Every field by its dotted name."""
    return traverse_util.flatten_dict(asdict(settings), sep=".")
