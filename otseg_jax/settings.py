"""The settings of a run as plain values: what a configuration becomes before anything is read.

One class for each group of `configs/common.py`, with its field names; what they mean stands there.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pydantic
from flax import traverse_util
from pydantic import Field

from otseg_jax.data import regimes
from otseg_jax.models.methods import MethodConfig

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Sides = tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]]
Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How devices are arranged."""

    data: int
    model: int


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """Which CLIP; `random` holds the sizes of untrained towers."""

    source: str
    random: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Text:
    """What the text tower is asked."""

    templates: Annotated[tuple[str, ...], Field(min_length=1)]
    embeddings: str
    cache: str


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which photos, and how they are prepared."""

    dataset: str
    root: str
    augmented: bool
    raw_ids: bool
    images: Mapping[str, int]
    crop: Positive
    scale: Sides
    ratio: tuple[float, float]
    max_class_fraction: float
    hue: int
    mean: Channels
    std: Channels
    threads: Positive
    buffer: Positive


@dataclass(frozen=True, kw_only=True)
class Train:
    """How long, how fast, and how often it is looked at."""

    steps: Positive
    batch_size: Positive
    accumulate: Positive
    learning_rate: float
    end_learning_rate: float
    power: float
    warmup: int
    warmup_ratio: float
    weight_decay: float
    focal_weight: float
    dice_weight: float
    log_every: Positive
    eval_every: Count
    eval_images: Count
    checkpoint_every: Positive


@dataclass(frozen=True, kw_only=True)
class Eval:
    """How trained weights are run on photos."""

    batch_size: Positive
    scale: Sides
    stride: Positive
    seen_offset: float | None
    mps_weight: float
    checkpoint: str
    images: Count
    save_predictions: bool


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Settings:
    """All of them; those that do not fit together are one ValueError."""

    regime: str
    seed: int
    dtype: Literal["float32", "bfloat16"]
    init_from: str
    init_step: int
    mesh: Mesh
    clip: ClipSource
    text: Text
    model: MethodConfig
    data: Data
    train: Train
    eval: Eval

    def __post_init__(self) -> None:
        data, problems = self.data, []
        if self.regime not in regimes.NAMES:
            problems.append(f"regime={self.regime!r}: choose one of {', '.join(regimes.NAMES)}")
        if self.eval.stride > data.crop:
            problems.append(
                f"eval.stride={self.eval.stride} leaves gaps between windows of "
                f"data.crop={data.crop}"
            )
        train = self.train
        if train.batch_size % train.accumulate:
            problems.append(
                f"train.batch_size={train.batch_size} is not a multiple of "
                f"train.accumulate={train.accumulate}"
            )
        if not 0 <= self.model.dropout < 1:
            problems.append(f"model.dropout={self.model.dropout}: wanted a rate in [0, 1)")
        if not 0 < data.ratio[0] <= data.ratio[1]:
            problems.append(f"data.ratio={data.ratio}: wanted 0 < low ≤ high")
        if min(data.std) <= 0:
            problems.append(f"data.std={data.std}: wanted more than 0")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def templates(self) -> tuple[str, ...]:
        """Those that describe a class: all of them, or ZegCLIP's one."""
        templates = self.text.templates
        return templates[:1] if self.model.one_prompt else templates

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


_ADAPTER = pydantic.TypeAdapter(Settings)


def check(fields: Mapping[str, Any]) -> Settings:
    """Settings of nested plain fields, checked before anything is read or compiled.

    Raises:
        ValueError: every problem, named by its field, in one message.
    """
    try:
        return _ADAPTER.validate_python(fields)
    except pydantic.ValidationError as error:
        raise ValueError(f"config: {'; '.join(problems_of(error))}") from None


def problems_of(error: pydantic.ValidationError) -> list[str]:
    """What pydantic found, one line a field: "train.steps=0: wanted …"."""
    found = []
    for problem in error.errors():
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "value_error":  # our own words, from a __post_init__
            found.append(str(problem["ctx"]["error"]))
        elif problem["type"] == "missing":
            found.append(f"{name} is missing")
        else:
            wanted = problem["msg"].removeprefix("Input should be ")
            found.append(f"{name}={problem['input']!r}: wanted {wanted}")
    return found


def leaves(settings: Settings) -> dict[str, Any]:
    """Every field by its dotted name."""
    return traverse_util.flatten_dict(asdict(settings), sep=".")
