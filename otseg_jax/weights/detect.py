"""What a source of weights is, told by its content: a folder, a file, or a name on the hub."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from otseg_jax.weights import files, hub, hugging_face, openai
from otseg_jax.weights.clip import Clip
from otseg_jax.weights.table import Rule

FORMAT = "otseg_jax"  # value of "format" in the config.json of a model directory
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PATTERNS = (*hugging_face.PATTERNS, OPEN_CLIP_CONFIG, *OPEN_CLIP, "tokenizer/*")


class Found(NamedTuple):
    """What a source turned out to be.

    Attributes:
        kind: "model" (a model directory), "run" (a workdir of training), "mmseg" (a training
            checkpoint of the original program) or "clip".
        format: whose naming the file follows.
        path: the folder or file here.
        stored: the arrays of the file; None for a model or a run.
        clip: both towers, where the kind is "clip".
        table: the rules that gave `clip`.
        tokenizer: folder that holds a tokenizer, if there is one beside the weights.
    """

    kind: Literal["model", "run", "mmseg", "clip"]
    format: str
    path: Path
    stored: files.Stored | None = None
    clip: Clip | None = None
    table: tuple[Rule, ...] = ()
    tokenizer: Path | None = None


def find(
    source: str | Path,
    *,
    vision_heads: int = 0,
    text_heads: int = 0,
    activation: str = "",
) -> Found:
    """Recognise a source, and read it if it is a CLIP or a checkpoint of the original program.

    Args:
        source: file, folder, or hub name "owner/name".
        vision_heads: where the file does not tell; 0: one per 64 channels.
        text_heads: where the file does not tell; 0: one per 64 channels.
        activation: where the file does not tell; "": "quick_gelu".

    Returns:
        What it is.

    Raises:
        FileNotFoundError: nothing of that name, or a folder without weights.
        ValueError: damaged, refused, or of another architecture.
    """
    options = {"vision_heads": vision_heads, "text_heads": text_heads, "activation": activation}
    path = Path(source)
    if path.is_file():
        return _file(path, path.parent, options)
    folder = hub.find(source, PATTERNS)
    if is_model(folder):
        return Found("model", FORMAT, folder)
    if (folder / "checkpoints").is_dir():
        return Found("run", "otseg_jax run", folder)
    lone = next((folder / name for name in OPEN_CLIP if (folder / name).is_file()), None)
    if lone is not None and (folder / OPEN_CLIP_CONFIG).is_file():
        stated = _open_clip_options(folder / OPEN_CLIP_CONFIG)
        return _file(lone, folder, {**stated, **{k: v for k, v in options.items() if v}})
    clip, stored, table = hugging_face.load_stored(folder, str(source))
    tokenizer = _tokenizer(folder)
    return Found("clip", "hugging_face", folder, stored, clip, tuple(table), tokenizer)


def is_model(path: str | Path) -> bool:
    """Whether a path is a model directory, as `model_dir.write` makes it."""
    try:
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def _file(path: Path, folder: Path, options: Mapping[str, Any]) -> Found:
    stored = files.read(path)
    names = stored.arrays
    if any(name.startswith(("backbone.", "decode_head.")) for name in names):
        return Found("mmseg", "mmseg", path, stored)
    if any(name.startswith("visual.") for name in names):
        set_options = {key: value for key, value in options.items() if value}
        clip = openai.load(names, str(path), **set_options)
        prefix = "text." if "text.token_embedding.weight" in names else ""
        table = openai.rules(clip.vision_config.layers, clip.text_config.layers, text_prefix=prefix)
        return Found("clip", "openai", path, stored, clip, tuple(table), _tokenizer(folder))
    if any(name.startswith(("vision_model", "text_model")) for name in names):
        if not (folder / hugging_face.CONFIG).is_file():
            raise FileNotFoundError(
                f"{path} has transformers' names, and no {hugging_face.CONFIG} beside it that "
                "would tell its number of heads: fetch that too, and name the folder"
            )
        clip, stored, table = hugging_face.load_stored(folder, str(folder))
        return Found("clip", "hugging_face", folder, stored, clip, tuple(table), _tokenizer(folder))
    raise ValueError(
        f"{path} holds no CLIP and no OTSeg or ZegCLIP checkpoint; its {len(names)} arrays are "
        f"named like {', '.join(list(names)[:4])}"
    )


def _tokenizer(folder: Path) -> Path | None:
    whole, halves = folder / "tokenizer.json", [folder / "vocab.json", folder / "merges.txt"]
    return folder if whole.is_file() or all(path.is_file() for path in halves) else None


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
