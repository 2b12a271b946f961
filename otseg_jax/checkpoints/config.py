"""`config.json` of a model directory: what it holds besides arrays and the tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic

from otseg_jax import fields
from otseg_jax.checkpoints.spec import Origin, Spec
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.weights.normalisation import Normalisation
from otseg_jax.weights.source import FORMAT

NAME = "config.json"
VERSION = 2

ClipSource = Literal["", "shapes-clip"]


@dataclass(frozen=True, kw_only=True)
class ClipPart:
    """The CLIP, apart from its weights."""

    vision: VisionConfig
    text: TextConfig | None
    fingerprint: str
    text_fingerprint: str
    logit_scale: float | None
    normalisation: Normalisation | None = None
    source: ClipSource = ""  # where its leaves are, if not in this directory


@pydantic.with_config(pydantic.ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Config:
    """All of the file."""

    format: str
    version: int
    clip: ClipPart
    model: Spec | None
    origin: Origin


_ADAPTER = pydantic.TypeAdapter(Config)


def write(folder: Path, config: Config) -> None:
    """Write the file of a model directory."""
    plain = _ADAPTER.dump_python(config, mode="json")
    (folder / NAME).write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")


def read(folder: Path) -> Config:
    """Read it; a FileNotFoundError or ValueError of all that is wrong with it."""
    path = folder / NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there: {folder} is no model directory") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not that of a model directory: make one with "
            f"python -m otseg_jax.convert {folder} DEST"
        )
    if config.get("version") != VERSION:
        raise ValueError(
            f"{path}: version is {config.get('version')!r}, this program reads {VERSION}: convert "
            "the original weights again"
        )
    try:
        return _ADAPTER.validate_python(config)
    except pydantic.ValidationError as error:
        raise ValueError(f"{path}: {'; '.join(fields.problems_of(error))}") from None
