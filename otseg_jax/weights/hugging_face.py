"""Read a CLIP that Hugging Face's transformers saved, without torch.

The weights are safetensors, torch's zip or flax's msgpack, whole or in shards.
"""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig

from otseg_jax import paths, text
from otseg_jax.data.lists import some
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.weights import files, hub, normalisation, towers
from otseg_jax.weights.clip import Clip, assemble
from otseg_jax.weights.rules import Rule, linear, norm
from otseg_jax.weights.towers import Stated

LOGGER = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = tuple(
    f"{name}{index}"
    for name in ("model.safetensors", "pytorch_model.bin", "flax_model.msgpack")
    for index in ("", ".index.json")
)
# What to fetch from the hub with each: an index has shards, and none is read without the sizes.
CHOICES = tuple((n, re.sub(r"(\.\w+)\.index\.json$", r"-*\1", n), CONFIG) for n in WEIGHTS)
PATTERNS = (CONFIG, *hub.TOKENIZER, *normalisation.FILES)

IDS = "embeddings.position_ids"  # 0, 1, 2, …, which old versions of transformers saved
UNUSED = ("logit_scale", f"text_model.{IDS}", f"vision_model.{IDS}")


def load(source: str | Path, *, image_size: int | None = None) -> Clip:
    """Read a CLIP from a folder or from the Hugging Face hub.

    Args:
        source: folder that `CLIPModel.save_pretrained` wrote, or a hub name "owner/name".
        image_size: side in pixels that its positions are resized to; None keeps the stored one.

    Raises:
        FileNotFoundError: no such folder or hub name, or one without the two files.
        ValueError: another architecture, a damaged file, weights that do not cover the towers.
    """
    clip, _, _ = load_stored(hub.find(source, PATTERNS, CHOICES), str(source))
    return clip.resized(image_size)


def load_stored(
    folder: Path,
    source: str,
    *,
    path: Path | None = None,
    stated: Stated = Stated(),  # noqa: B008 (a named tuple is immutable)
) -> tuple[Clip, files.Stored, list[Rule]]:
    """As `load`: a CLIP at its stored size, what its file holds, and the table between the two.

    Args:
        path: weight file of the folder; None: the first of `WEIGHTS` that is there.
    """
    vision, words = read_config(folder, stated=stated)
    path = path or next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        found = ", ".join(sorted(p.name for p in folder.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{source} holds no weights that are read ({', '.join(WEIGHTS)}), only {found}"
        )
    stored = files.unwrap(files.read(path), path)
    table = rules(vision.layers, words.layers)
    if any("/" in name for name in stored.arrays):
        table = [flax_rule(rule) for rule in table]
    clip = assemble(
        table,
        stored.arrays,
        vision,
        words,
        unused=UNUSED,
        where=f"{path} does not fit {folder / CONFIG}",
        name=source,
        tokenizer=stated.tokenizer or (folder if text.holds_tokenizer(folder) else None),
    )
    return clip, stored, table


def read_config(
    path: str | Path,
    *,
    stated: Stated = Stated(),  # noqa: B008 (a named tuple is immutable)
) -> tuple[VisionConfig, TextConfig]:
    """Sizes of both towers from a `config.json`, named itself or by its folder.

    What it leaves out has transformers' defaults; of heads and activation a line says so.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, another architecture, or a CLIP that the towers cannot express.
    """
    path = paths.local(path)
    path = path / CONFIG if path.is_dir() else path
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("model_type") != "clip":
            kind = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
            raise ValueError(f"model_type is {kind!r}, wanted 'clip'")
        config: Any = CLIPConfig.from_dict(raw)
        words, vision = config.text_config, config.vision_config
        _refuse(words, vision)
        dim, length = config.projection_dim, words.max_position_embeddings
        seen = VisionConfig(
            image_size=vision.image_size, patch_size=vision.patch_size, **_sizes(vision, dim)
        )
        read = TextConfig(vocab_size=words.vocab_size, context_length=length, **_sizes(words, dim))
        told = _told(raw)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is not there; a CLIP folder needs it") from error
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise ValueError(f"{path} does not describe a CLIP that can be read: {error}") from error
    return _as_stated(seen, read, told, stated, str(path))


def _told(raw: dict[str, Any]) -> Stated:
    """What a `config.json` itself tells of heads and activation."""
    # files of before call them vision_config_dict and text_config_dict, and the new names win
    vision, words = (
        {**(raw.get(f"{name}_dict") or {}), **(raw.get(name) or {})}
        for name in ("vision_config", "text_config")
    )
    heads, act = "num_attention_heads", "hidden_act"
    both = vision.get(act, "") if words.get(act) else ""
    return Stated(vision.get(heads, 0), words.get(heads, 0), both)


def _as_stated(
    vision: VisionConfig, words: TextConfig, told: Stated, stated: Stated, where: str
) -> tuple[VisionConfig, TextConfig]:
    taken = Stated(vision.heads, words.heads, vision.activation)
    said = stated.over(told, where)
    # what neither says
    if untold := [name for name, value in zip(said._fields[:3], said, strict=False) if not value]:
        LOGGER.info(
            "%s does not tell %s: taken as transformers' own default; --%s (in a configuration "
            "--config.clip.%s) states another",
            where,
            some([f"{name}={getattr(taken, name)}" for name in untold]),
            untold[0],
            untold[0],
        )
    heads = {"vision": vars(vision), "text": vars(words)}
    found = towers.heads(heads, Stated.first_told(said, taken), where)
    act = stated.activation
    return (
        replace(vision, heads=found["vision"], activation=act or vision.activation),
        replace(words, heads=found["text"], activation=act or words.activation),
    )


def _sizes(config: Any, embed_dim: int) -> dict[str, Any]:
    return {
        "embed_dim": embed_dim,
        "width": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "activation": config.hidden_act,
        "eps": config.layer_norm_eps,
    }


def _refuse(text: Any, vision: Any) -> None:
    problems = []
    # 2 is the wrong id that old files carry; transformers then pools at the largest id, as we do
    if text.eos_token_id not in (2, text.vocab_size - 1):
        problems.append(
            f"text_config.eos_token_id is {text.eos_token_id}, wanted the largest token id "
            f"{text.vocab_size - 1}, at which texts are pooled; if tokens were added behind it, "
            "set it to 2 in that file (the largest of a text), and give a tokenizer without them: "
            "--tokenizer=openai/clip-vit-base-patch16"
        )
    if vision.num_channels != 3:
        problems.append(f"vision_config.num_channels is {vision.num_channels}, wanted 3")
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(vision, name), int):
            problems.append(f"vision_config.{name} is {getattr(vision, name)}, wanted one integer")
    if problems:
        raise ValueError("; ".join(problems))


def rules(vision_layers: int, text_layers: int) -> list[Rule]:
    """The table of names: "vision/…" and "text/…" leaves from transformers' `CLIPModel`.

    Example:
        >>> rules(1, 1)[0].source, rules(1, 1)[0].target
        ('vision_model.embeddings.class_embedding', 'vision/class_embedding')
    """
    vision, words = "vision_model.embeddings.", "text_model.embeddings."
    table = [
        Rule(vision + "class_embedding", "vision/class_embedding"),
        Rule(vision + "position_embedding.weight", "vision/position_embedding"),
        Rule(vision + "patch_embedding.weight", "vision/patch_embedding/kernel", (2, 3, 1, 0)),
        *norm("vision_model.pre_layrnorm", "vision/ln_pre"),
        *norm("vision_model.post_layernorm", "vision/ln_post"),
        Rule("visual_projection.weight", "vision/projection/kernel", (1, 0)),
        Rule(words + "token_embedding.weight", "text/token_embedding"),
        Rule(words + "position_embedding.weight", "text/position_embedding"),
        *norm("text_model.final_layer_norm", "text/ln_final"),
        Rule("text_projection.weight", "text/projection/kernel", (1, 0)),
    ]
    for tower, layers in (("vision", vision_layers), ("text", text_layers)):
        for i in range(layers):
            theirs, ours = f"{tower}_model.encoder.layers.{i}", f"{tower}/blocks/{i}"
            table += norm(f"{theirs}.layer_norm1", f"{ours}/ln_1")
            table += norm(f"{theirs}.layer_norm2", f"{ours}/ln_2")
            table += linear(f"{theirs}.self_attn.q_proj", f"{ours}/attention/query")
            table += linear(f"{theirs}.self_attn.k_proj", f"{ours}/attention/key")
            table += linear(f"{theirs}.self_attn.v_proj", f"{ours}/attention/value")
            table += linear(f"{theirs}.self_attn.out_proj", f"{ours}/attention/out")
            table += linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/up")
            table += linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/down")
    return table


def flax_rule(rule: Rule) -> Rule:
    """The same rule for transformers' former Flax models: other names, arrays laid out as ours.

    Example:
        >>> flax_rule(Rule("visual_projection.weight", "vision/projection/kernel", (1, 0))).source
        'visual_projection/kernel'
    """
    *path, last = rule.source.split(".")
    # a LayerNorm's weight is "scale" there, and that of a table "embedding"
    if last == "weight":
        leaf = rule.target.rsplit("/", 1)[1]
        last = leaf if leaf in ("kernel", "scale") else "embedding"
    return replace(rule, source="/".join([*path, last]), transpose=None)
