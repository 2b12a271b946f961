"""The methods: every model that can be trained, saved, evaluated or used as it is.

A method is a file in this folder with a frozen dataclass of its choices that has `build`,
`outputs`, `one_prompt`, `scale`, `joint`, `window_size` and `margins` as `OTSegConfig` has
them, and whose model has `embed` and `match`; here its class joins the union.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from otseg_jax.fields import TAG
from otseg_jax.models.otseg import OTSeg, OTSegConfig
from otseg_jax.models.training_free import TrainingFree, TrainingFreeConfig

TAGS = {OTSegConfig: f"{TAG}otseg", TrainingFreeConfig: f"{TAG}training_free"}


def _tag(config: Any) -> str:
    """Which class fields are of: a CLIP alone names its method."""
    alone = "method" in config if isinstance(config, Mapping) else hasattr(config, "method")
    return TAGS[TrainingFreeConfig if alone else OTSegConfig]


MethodConfig: TypeAlias = Annotated[
    Annotated[OTSegConfig, Tag(TAGS[OTSegConfig])]
    | Annotated[TrainingFreeConfig, Tag(TAGS[TrainingFreeConfig])],
    Discriminator(_tag),
]

SegmentationModel: TypeAlias = OTSeg | TrainingFree


def trained(config: MethodConfig) -> OTSegConfig:
    """The choices of a model that is trained; a ValueError for a CLIP alone."""
    if isinstance(config, TrainingFreeConfig):
        raise ValueError(
            f"model.method={config.method!r} runs a CLIP as it is: there is nothing to train, and "
            "no checkpoint of it. Evaluate it with --mode=eval, or take a --config such as "
            "configs/voc12.py to train"
        )
    return config


def check_use(config: MethodConfig, *, window: int, words: Sequence[str], start: str) -> None:
    """Refuse, with a ValueError, what only a CLIP alone can do, or only a trained model.

    Args:
        window: `data.crop`.
        words: `text.words`.
        start: `init_from`.
    """
    problems = []
    if isinstance(config, TrainingFreeConfig):
        if start:
            problems.append(
                f"init_from={start}: a CLIP alone has no trained weights, --config.clip.source "
                "names the CLIP"
            )
    else:
        if not window:
            problems.append("data.crop=0: only a CLIP alone takes whole photos; wanted pixels")
        if words:
            problems.append(
                f"text.words={tuple(words)}: only a CLIP alone is asked by other words; a trained "
                "model is asked by the names of classes"
            )
    if problems:
        raise ValueError("; ".join(problems))
