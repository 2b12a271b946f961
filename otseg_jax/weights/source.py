"""What a source of weights is, told by its content: a folder, a file, or a name on the hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from otseg_jax import paths
from otseg_jax.weights import files, hub, hugging_face, openai
from otseg_jax.weights.clip import Clip
from otseg_jax.weights.rules import Rule

FORMAT = "otseg_jax"  # value of "format" in the config.json of a model directory
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PATTERNS = (*hugging_face.PATTERNS, OPEN_CLIP_CONFIG, *OPEN_CLIP, "tokenizer/*")


class Source(NamedTuple):
    """What a source turned out to be; a run is one of ours, "mmseg" one of the original program."""

    kind: Literal["model", "run", "mmseg", "clip"]
    format: str  # whose naming the file follows
    path: Path  # the folder or file here
    stored: files.Stored | None = None  # what the file holds; None for a model or a run
    clip: Clip | None = None
    rules: tuple[Rule, ...] = ()  # the table that gave `clip`


def find(
    source: str | Path, *, vision_heads: int = 0, text_heads: int = 0, activation: str = ""
) -> Source:
    """Recognise a source, and read it if it is a CLIP or a checkpoint of the original program.

    A source is a file, a folder, or a hub name "owner/name". The options stand in for what a file
    does not tell, as in `openai.load`; 0 and "" are the defaults there.

    Raises:
        FileNotFoundError: nothing of that name, or a folder without weights.
        ValueError: damaged, refused, or of another architecture.
    """
    stated = {"vision_heads": vision_heads, "text_heads": text_heads, "activation": activation}
    stated = {name: value for name, value in stated.items() if value}
    path = paths.local(source)
    if path.is_file():
        return _file(path, stated)
    folder = hub.find(source, PATTERNS)
    if is_model(folder):
        return Source("model", FORMAT, folder)
    if (folder / "checkpoints").is_dir():
        return Source("run", "otseg_jax run", folder)
    lone = next((folder / name for name in OPEN_CLIP if (folder / name).is_file()), None)
    if lone is not None and (folder / OPEN_CLIP_CONFIG).is_file():
        return _file(lone, {**_open_clip_options(folder / OPEN_CLIP_CONFIG), **stated})
    return _hugging_face(folder, str(source))


def is_model(path: str | Path) -> bool:
    """Whether a path is a model directory, as `checkpoints.pretrained` writes it."""
    try:
        config = json.loads((paths.resolve(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def _file(path: Path, stated: Mapping[str, Any]) -> Source:
    stored = files.read(path)
    names = stored.arrays
    if any(name.startswith(("backbone.", "decode_head.")) for name in names):
        return Source("mmseg", "mmseg", path, stored)
    if any(name.startswith("visual.") for name in names):
        clip, rules = openai.load(names, path, **stated)
        return Source("clip", "openai", path, stored, clip, tuple(rules))
    if any(name.startswith(("vision_model", "text_model")) for name in names):
        if not (path.parent / hugging_face.CONFIG).is_file():
            raise FileNotFoundError(
                f"{path} has transformers' names, and no {hugging_face.CONFIG} beside it that "
                "would tell its number of heads: fetch that too, and name the folder"
            )
        return _hugging_face(path.parent, str(path), path)
    raise ValueError(
        f"{path} holds no CLIP and no OTSeg or ZegCLIP checkpoint; its {len(names)} arrays are "
        f"named like {', '.join(list(names)[:4])}"
    )


def _hugging_face(folder: Path, source: str, path: Path | None = None) -> Source:
    clip, stored, rules = hugging_face.load_stored(folder, source, path=path)
    return Source("clip", "hugging_face", folder, stored, clip, tuple(rules))


def _open_clip_options(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision, text = config["vision_cfg"], config["text_cfg"]
        return {
            "vision_heads": vision["width"] // vision.get("head_width", openai.HEAD),
            "text_heads": text["heads"],
            "activation": "quick_gelu" if config.get("quick_gelu") else "gelu",
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not describe a ViT CLIP of open_clip: {error!r}") from error
