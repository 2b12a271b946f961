"""Model directories: all that is needed to predict, in files that hold no code.

    config.json         sizes, classes, templates, normalisation, windows, regime, origin
    model.safetensors   leaves of OTSeg by name ("vision/…", "prompts/…", "q_proj/…", "decoder/…"),
                        of the text tower ("text/…"), "embeddings" f32[k, n, c], and "unused/…":
                        arrays of the original program that nothing reads, kept for the way back
    tokenizer/          of the text tower

A directory of kind "clip" holds the two towers alone and serves as `--config.clip.source`.
Arrays are numpy, float32.
"""

import contextlib
import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from otseg_jax import text
from otseg_jax.data.classes import Vocabulary
from otseg_jax.models.clip import TextConfig, TextTower, VisionConfig
from otseg_jax.models.otseg import OTSeg
from otseg_jax.weights import clip, detect, files, hub, table

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
PATTERNS = (CONFIG, WEIGHTS, f"{TOKENIZER}/*", "*.stablehlo")

COMMON = {"kind": str, "vision": dict, "clip_fingerprint": str, "text_fingerprint": str}
OTSEG = {
    "model": dict,
    "classes": list,
    "unseen": list,
    "palette": list,
    "templates": list,
    "dataset": str,
    "regime": str,
    "mean": list,
    "std": list,
    "scale": list,
    "window": int,
    "stride": int,
    "seen_offset": float,
    "mps_weight": float,
    "vocabulary_hash": str,
}


@dataclass(frozen=True)
class Model:
    """A model in memory, independent of the format it came in.

    Args:
        config: what `config.json` says; plain JSON.
        leaves: leaf name → f32 array of `OTSeg`, or of the vision tower ("vision/…") alone.
        text: leaf name → f32 array of `TextTower`; empty if it is not at hand.
        embeddings: f32[k, n, c], unit length; None for a CLIP alone.
        unused: arrays by their original names, which nothing here reads.
        tokenizer: folder of the tokenizer, or a hub name; None if there is none, or it is that of
            bytes (`config["tokenizer"]` says which).
    """

    config: dict[str, Any]
    leaves: dict[str, np.ndarray]
    text: dict[str, np.ndarray] = field(default_factory=dict)
    embeddings: np.ndarray | None = None
    unused: dict[str, np.ndarray] = field(default_factory=dict)
    tokenizer: str | Path | None = None

    @property
    def vision_config(self) -> VisionConfig:
        """Sizes of the vision tower."""
        return VisionConfig(**self.config["vision"])

    @property
    def text_config(self) -> TextConfig | None:
        """Sizes of the text tower, if it is here."""
        sizes = self.config.get("text")
        return TextConfig(**sizes) if sizes else None

    @property
    def vocabulary(self) -> Vocabulary:
        """Classes, unseen ones and colours."""
        colours = tuple((int(r), int(g), int(b)) for r, g, b in self.config["palette"])
        return Vocabulary(tuple(self.config["classes"]), tuple(self.config["unseen"]), colours)

    def build(self, *, dtype: DTypeLike = jnp.float32) -> OTSeg:
        """OTSeg with these weights; `dtype` is that of its matrix products."""
        config = self.vision_config
        options = self.config["model"]
        abstract = nnx.eval_shape(lambda: OTSeg(config, **options, dtype=dtype, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, table.assign(state, self.leaves))

    def build_text_tower(self) -> TextTower:
        """The text tower.

        Raises:
            ValueError: the model came without one.
        """
        config = self.text_config
        if config is None or not self.text:
            raise ValueError(
                f"the model from {self.config['source']['name']} holds no text tower, only the "
                "embeddings of its own classes: give those of other classes with "
                "--config.text.embeddings"
            )
        abstract = nnx.eval_shape(lambda: TextTower(config, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, table.assign(state, self.text))

    def tokenise(self, texts: list[str]) -> np.ndarray:
        """Token ids i32[t, l] of texts, by the tokenizer inside.

        Raises:
            ValueError: the model came without one.
        """
        config = self.text_config
        length = config.context_length if config else 77
        if self.config["tokenizer"] == "bytes":
            return text.tokenise_bytes(texts, context_length=length)
        if self.tokenizer is None:
            raise ValueError(
                f"the model from {self.config['source']['name']} holds no tokenizer: convert it "
                "again with --tokenizer=openai/clip-vit-base-patch16, or a folder that holds one"
            )
        return text.tokenise(texts, self.tokenizer, context_length=length)


def write(dest: str | Path, model: Model) -> None:
    """Write a model directory, whole or not at all.

    Args:
        dest: folder to be made.
        model: what goes in.

    Raises:
        ValueError: there is something of that name already.
        FileNotFoundError, ValueError: the tokenizer cannot be had.
    """
    with beside(dest) as folder:
        folder.mkdir()
        write_into(folder, model)


def write_into(folder: Path, model: Model) -> None:
    """Write the files of a model directory into an empty folder that the caller puts in place."""
    arrays = {**model.leaves, **{f"text/{name}": leaf for name, leaf in model.text.items()}}
    arrays |= {f"unused/{name}": array for name, array in model.unused.items()}
    if model.embeddings is not None:
        arrays["embeddings"] = model.embeddings
    # safetensors writes memory as it lies, so that a transposed view would come out wrong
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": detect.FORMAT})
    config = {"format": detect.FORMAT, "version": 1, **model.config}
    if model.tokenizer is not None:
        text.save_tokenizer(model.tokenizer, folder / TOKENIZER)
        config["tokenizer"] = TOKENIZER
    (folder / CONFIG).write_text(json.dumps(config, indent=1, allow_nan=False) + "\n")


def read(source: str | Path) -> Model:
    """Read a model directory.

    Args:
        source: the folder, or a hub name "owner/name".

    Returns:
        The model.

    Raises:
        FileNotFoundError: no such folder or name, or one without the files.
        ValueError: another kind of folder, or a damaged one; all problems of `config.json` at once.
    """
    folder = hub.find(source, PATTERNS)
    config = _read_config(folder)
    arrays = files.read(folder / WEIGHTS).arrays
    files.check_finite(arrays, folder / WEIGHTS)
    embeddings = arrays.pop("embeddings", None)
    towers = ("text/", "unused/")
    model = Model(
        config=config,
        leaves={name: leaf for name, leaf in arrays.items() if not name.startswith(towers)},
        text=clip.below("text/", arrays),
        embeddings=embeddings,
        unused=clip.below("unused/", arrays),
        tokenizer=folder / TOKENIZER if config["tokenizer"] == TOKENIZER else None,
    )
    if config["kind"] == "otseg":
        wanted = (len(config["classes"]), len(config["templates"]), model.vision_config.embed_dim)
        if embeddings is None or embeddings.shape != wanted:
            got = "absent" if embeddings is None else list(embeddings.shape)
            raise ValueError(f"{folder / WEIGHTS}: embeddings are {got}, wanted {list(wanted)}")
    return model


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there: {folder} is no model directory") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("format") != detect.FORMAT:
        raise ValueError(
            f"{path} is not that of a model directory: make one with "
            f"python -m otseg_jax.convert {folder} DEST"
        )
    wanted = {**COMMON, **(OTSEG if config.get("kind") == "otseg" else {})}
    problems = [
        f"{name} is {config.get(name)!r}, wanted a {kind.__name__}"
        for name, kind in wanted.items()
        if not isinstance(config.get(name), kind)
    ]
    if config.get("version") != 1:
        problems.append(f"version is {config.get('version')!r}, this program reads 1")
    try:
        if not problems:
            VisionConfig(**config["vision"])
            _ = TextConfig(**config["text"]) if config.get("text") else None
    except (TypeError, ValueError) as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return {"text": None, "tokenizer": None, "source": {"name": str(folder)}, **config}


@contextlib.contextmanager
def beside(dest: str | Path) -> Iterator[Path]:
    """A path next to `dest` to write to; it gets that name when all went well, else it is removed.

    Raises:
        ValueError: there is something of that name already.
        FileNotFoundError: the folder above is not there.
    """
    dest = Path(dest)
    check_free(dest)
    part = dest.absolute().parent / f".{dest.name}.{uuid.uuid4().hex}.part"
    try:
        yield part
        part.replace(dest)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def check_free(dest: Path) -> None:
    """Refuse a destination that is taken, or in a folder that is not there.

    Raises:
        ValueError, FileNotFoundError: which of the two.
    """
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise ValueError(f"{dest} is there already: remove it, or choose another name")
    if not dest.absolute().parent.is_dir():
        raise FileNotFoundError(f"{dest.absolute().parent} is not there: make the folder first")


def sizes(config: VisionConfig | TextConfig) -> dict[str, Any]:
    """A tower's sizes as JSON."""
    return dataclasses.asdict(config)


def as_meta(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model directory's configuration in the shape of a checkpoint's `meta`."""
    data = {"crop": config["window"], "mean": config["mean"], "std": config["std"]}
    data["dataset"] = config["dataset"]
    clip_options = {"source": config["source"]["name"]}
    return {
        "config": {
            "model": config["model"],
            "regime": config["regime"],
            "data": data,
            "clip": clip_options,
            "seed": 0,
        },
        **{name: config[name] for name in ("classes", "unseen", "templates", "vocabulary_hash")},
        "clip_fingerprint": config["clip_fingerprint"],
    }
