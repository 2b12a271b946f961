"""What a source of weights is, told by its content: a folder, a file, or a name on the hub."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from otseg_jax import paths
from otseg_jax.data.lists import some
from otseg_jax.weights import files, hub, hugging_face, normalisation, openai
from otseg_jax.weights.clip import Clip
from otseg_jax.weights.rules import Rule
from otseg_jax.weights.towers import USUAL, Stated

LOGGER = logging.getLogger(__name__)

FORMAT = "otseg_jax"  # value of "format" in the config.json of a model directory
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
PATTERNS = (*hugging_face.PATTERNS, "tokenizer/*")
# the order in `find`; of both, what safetensors hold is read faster, and never executed
CHOICES = sorted(
    (*((name, OPEN_CLIP_CONFIG) for name in OPEN_CLIP), *hugging_face.CHOICES),
    key=lambda choice: ".safetensors" not in choice[0],
)

# what open_clip's towers may be told to do otherwise than CLIP's, and what of it changes nothing
OTHERWISE = {
    "timm_model_name": (),
    "hf_model_name": (),
    "ls_init_value": (),
    "attentional_pool": (),
    "no_causal_mask": (),
    "embed_cls": (),
    "no_ln_pre": (),
    "final_ln_after_pool": (),
    "global_average_pool": (),
    "norm_kwargs": (),
    "act_kwargs": (),
    "qk_norm": (),
    "block_type": (),
    "pool_type": ("tok", "argmax"),
}


class Source(NamedTuple):
    """What a source turned out to be; a run is one of ours, "mmseg" one of the original program."""

    kind: Literal["model", "run", "mmseg", "clip"]
    format: str  # whose naming the file follows
    path: Path  # the folder or file here
    stored: files.Stored | None = None  # what the file holds; None for a model or a run
    clip: Clip | None = None
    rules: tuple[Rule, ...] = ()  # the table that gave `clip`


def find(
    source: str | Path,
    *,
    stated: Stated = Stated(),  # noqa: B008 (a named tuple is immutable)
) -> Source:
    """Recognise a source, and read it if it is a CLIP or a checkpoint of the original program.

    A source is a file, a folder, or a hub name "owner/name".

    Args:
        stated: what the file does not tell; where it does, this wins, and a line says so.

    Raises:
        FileNotFoundError: nothing of that name, or a folder without weights.
        ValueError: damaged, refused, of another architecture, or not telling what is needed.
    """
    if stated.tokenizer:
        stated = stated._replace(tokenizer=hub.tokenizer(stated.tokenizer))
    found = _find(source, stated)
    if found.clip is None:
        return found
    folder = found.path if found.path.is_dir() else found.path.parent
    return found._replace(clip=replace(found.clip, normalisation=normalisation.read(folder)))


def _find(source: str | Path, stated: Stated) -> Source:
    path = paths.local(source)
    if path.is_file():
        return _file(path, stated)
    folder = hub.find(source, PATTERNS, CHOICES)
    if is_model(folder):
        return Source("model", FORMAT, folder)
    if (folder / "checkpoints").is_dir():
        return Source("run", "otseg_jax run", folder)
    lone = next((folder / name for name in OPEN_CLIP if (folder / name).is_file()), None)
    if lone is not None and (folder / OPEN_CLIP_CONFIG).is_file():
        config = folder / OPEN_CLIP_CONFIG
        return _file(lone, stated.over(_open_clip_options(config), str(config)))
    return _hugging_face(folder, str(source), stated)


def is_model(path: str | Path) -> bool:
    """Whether a path is a model directory, as `checkpoints.pretrained` writes it."""
    try:
        config = json.loads((paths.resolve(path) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def _file(path: Path, stated: Stated) -> Source:
    stored = files.unwrap(files.read(path), path)
    names = stored.arrays
    if any(name.startswith(("backbone.", "decode_head.")) for name in names):
        return Source("mmseg", "mmseg", path, stored)
    if any(name.startswith("visual.") for name in names):
        clip, rules = openai.load(names, path, stated=stated)
        return Source("clip", "openai", path, stored, clip, tuple(rules))
    if any(name.startswith(("vision_model", "text_model")) for name in names):
        if not (path.parent / hugging_face.CONFIG).is_file():
            raise FileNotFoundError(
                f"{path} has transformers' names, and no {hugging_face.CONFIG} beside it that "
                "would tell its number of heads: fetch that too, and name the folder"
            )
        return _hugging_face(path.parent, str(path), stated, path)
    raise ValueError(
        f"{path} holds no CLIP and no OTSeg or ZegCLIP checkpoint; its {len(names)} arrays are "
        f"named like {', '.join(list(names)[:4])}"
    )


def _hugging_face(folder: Path, source: str, stated: Stated, path: Path | None = None) -> Source:
    clip, stored, rules = hugging_face.load_stored(folder, source, path=path, stated=stated)
    return Source("clip", "hugging_face", folder, stored, clip, tuple(rules))


def _open_clip_options(path: Path) -> Stated:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))["model_cfg"]
        vision, text = config["vision_cfg"], config["text_cfg"]
        other = [
            f"{tower}.{name}={value!r}"
            for tower, sizes in (("vision_cfg", vision), ("text_cfg", text))
            for name, value in sizes.items()
            if value and name in OTHERWISE and value not in OTHERWISE[name]
        ]
        if not other:
            untold = {"vision_cfg.head_width": USUAL} if "head_width" not in vision else {}
            untold |= {"text_cfg.heads": 8} if "heads" not in text else {}
            untold |= {"quick_gelu": False} if "quick_gelu" not in config else {}
            if untold:
                said = some([f"{name}={value}" for name, value in untold.items()])
                LOGGER.info("%s does not tell %s: taken as open_clip's own default", path, said)
            return Stated(
                # what it leaves out has open_clip's defaults
                vision_heads=vision.get("width", 768) // vision.get("head_width", USUAL),
                text_heads=text.get("heads", 8),
                activation="quick_gelu" if config.get("quick_gelu") else "gelu",
            )
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} does not describe a ViT CLIP of open_clip: {error!r}") from error
    raise ValueError(
        f"{path} describes other towers than CLIP's two transformers ({', '.join(other)}), as "
        "SigLIP's and timm's are: they cannot be used; take a CLIP such as "
        "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    )
