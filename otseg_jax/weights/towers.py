"""What a weight file does not tell of its towers: known by their sizes, stated, or asked for.

Heads and activation do not show in any shape, and a wrong one gives wrong features without a word.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

LOGGER = logging.getLogger(__name__)

# Heads of the published towers: by (width, layers, MLP width, embedding, patch), and without the
# patch for text. Images of another size (L/14@336, H/14@378) are the same tower.
# Source: OpenAI's clip/model.py and open_clip's model_configs/*.json.
PUBLISHED: dict[str, dict[tuple[int, ...], int]] = {
    "vision": {
        (768, 12, 3072, 512, 32): 12,  # ViT-B/32
        (768, 12, 3072, 512, 16): 12,  # ViT-B/16
        (1024, 24, 4096, 768, 14): 16,  # ViT-L/14
        (1280, 32, 5120, 1024, 14): 16,  # ViT-H/14: 80 channels a head
        (1408, 40, 6144, 1024, 14): 16,  # ViT-g/14: 88
        (1664, 48, 8192, 1280, 14): 16,  # ViT-bigG/14: 104
    },
    "text": {
        (512, 12, 2048, 512): 8,  # of ViT-B
        (768, 12, 3072, 768): 12,  # of ViT-L
        (1024, 24, 4096, 1024): 16,  # of ViT-H and ViT-g
        (1280, 32, 5120, 1280): 20,  # of ViT-bigG
    },
}
USUAL = 64  # channels of a head where nothing else is known, offered and never assumed
OPENAI_WIDEST = 1024  # of the vision towers that OpenAI published


class Stated(NamedTuple):
    """What is said of a CLIP whose file does not tell it; 0 and "" say nothing."""

    vision_heads: int = 0
    text_heads: int = 0
    activation: str = ""  # of `transformer.ACTIVATIONS`
    tokenizer: str = ""  # folder or hub name

    @classmethod
    def first_told(cls, *givers: "Stated | None") -> "Stated":
        """Each field as the first says that says something."""
        said = [giver._asdict() for giver in reversed(givers) if giver]
        return cls(**{name: value for giver in said for name, value in giver.items() if value})

    def over(self, told: "Stated", where: str) -> "Stated":
        """What is stated, else what a file tells; one line where the two differ."""
        for name, ours, theirs in zip(self._fields, self, told, strict=True):
            if ours and theirs and ours != theirs:
                LOGGER.warning("%s=%s as stated, where %s tells %s", name, ours, where, theirs)
        return Stated.first_told(self, told)


def heads(towers: Mapping[str, Mapping[str, Any]], stated: Stated, where: str) -> dict[str, int]:
    """Heads of each tower of these sizes, stated or else of the published tower that it is.

    Raises:
        ValueError: heads that do not fit, or that nobody tells; with the flags that do.
    """
    found, problems, flags = dict[str, int](), list[str](), list[str]()
    for tower, sizes in towers.items():
        name, width = f"{tower}_heads", sizes["width"]
        key = [sizes[n] for n in ("width", "layers", "mlp_width", "embed_dim")]
        key += [sizes["patch_size"]] if tower == "vision" else []
        said = getattr(stated, name)
        found[tower] = said or PUBLISHED[tower].get(tuple(key), 0)
        if said < 0 or (said and width % said):
            problems.append(f"{name}={said} does not divide the {width} channels of that tower")
        elif not found[tower]:
            flags.append(f"{name}={'N' if width % USUAL else width // USUAL}")
    if flags:
        problems.append(
            f"its number of attention heads is not in the file, and it has the sizes of no "
            f"published CLIP: give {' '.join(f'--{flag}' for flag in flags)} to otseg_jax.convert, "
            f"or {' '.join(f'--config.clip.{flag}' for flag in flags)} to a training (a number "
            f"here is one per {USUAL} channels, as most have)"
        )
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    return found


def activation(width: int, stated: Stated, where: str) -> str:
    """The activation that is stated, else the usual one of this width, said in one line."""
    if stated.activation:
        return stated.activation
    # OpenAI published nothing wider, and LAION, who did, trained with the exact GELU
    mine, whose, other, others = "quick_gelu", "OpenAI's", "gelu", "LAION's"
    if width > OPENAI_WIDEST:
        mine, whose, other, others = "gelu", "LAION's", "quick_gelu", "DFN's and MetaCLIP's"
    LOGGER.warning(
        "%s does not tell its activation: assumed %s, as in %s weights; --activation=%s "
        "(in a configuration --config.clip.activation=%s) for %s",
        where,
        mine,
        whose,
        other,
        other,
        others,
    )
    return mine
