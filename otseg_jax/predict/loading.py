"""From what people have (a model, a run, a CLIP) to a `Segmenter`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from otseg_jax import build, paths
from otseg_jax.checkpoints import pretrained, restore
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.convert import read
from otseg_jax.convert.hints import Hints
from otseg_jax.models import sc_clip
from otseg_jax.models.decoder import Transport
from otseg_jax.models.training_free import METHODS, TrainingFreeConfig
from otseg_jax.predict.options import check_options
from otseg_jax.predict.segmenter import Segmenter
from otseg_jax.weights import source as sources
from otseg_jax.weights.towers import Stated

SHIPPED = "shapes"  # a small trained model that comes with the package
SHIPPED_AT = Path(__file__).parent.parent / "data" / "shapes_model"


def load(
    source: str | os.PathLike[str],
    *,
    method: str = "",
    pamr: bool = False,
    scales: Sequence[int | float] = (1.0,),
    flip: bool = False,
    checkpoint: str = "latest",
    transport: Transport | None = None,
    dtype: DTypeLike = jnp.float32,
    batch_size: int = 4,
    seen_offset: float | None = None,
    vision_heads: int = 0,
    text_heads: int = 0,
    activation: str = "",
    tokenizer: str = "",
) -> Segmenter:
    """Load a model, ready to segment photos: trained, or a CLIP alone with nothing trained.

    Args:
        source: folder that `python -m otseg_jax.convert` wrote, workdir of a run, CLIP (folder of
            Hugging Face's, file of OpenAI's or open_clip's), hub name "owner/name", or what comes
            with the package: "shapes", a small trained model, and "shapes-clip", its CLIP.
        method: of a CLIP alone: naclip (default), maskclip, maskclip_original, sclip, clearclip,
            resclip, sc_clip, pearl, itaclip, clip; of a trained model one of its outputs.
        pamr: refine what a CLIP alone finds by the colours around each pixel; takes time.
        scales: of a photo at which it is looked at, times the usual one, 0.1 to 4; scores are
            averaged (test-time augmentation), and each takes its square of the time.
        flip: the same mirrored left and right, too; takes twice the time.
        checkpoint: of a workdir: latest, best, half or a step.
        transport: solver of transport plans; None: the one it was trained with.
        dtype: of matrix products, float32, tensorfloat32 or bfloat16.
        batch_size: windows predicted together, at most.
        seen_offset: subtracted from the scores of names that were trained with labels; None: as
            trained, and nothing where you ask for other names.
        vision_heads: attention heads of a CLIP whose file does not tell; 0: as it tells.
        text_heads: the same of its text tower.
        activation: quick_gelu or gelu, where the file does not tell.
        tokenizer: folder, hub name or shapes-clip, where none lies beside it.

    Raises:
        FileNotFoundError: no such folder, file or hub name.
        ValueError: another kind of folder, a damaged one, or another option.
    """
    check_options(dtype, batch_size, seen_offset, scales, flip)  # before the reading
    stated = Stated(vision_heads, text_heads, activation, tokenizer)
    found = _read(source, checkpoint, stated)
    options: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "seen_offset": seen_offset}
    options |= {"scales": scales, "flip": flip}
    if isinstance(found, Model):
        if method in METHODS or pamr:
            given = "pamr=True" if pamr else f"method={method!r}"
            raise ValueError(
                f"{given} is of a CLIP alone, and {source} is a trained model with "
                f"{', '.join(found.spec.outputs.mixtures)}: leave it out, or load its CLIP, "
                f"{found.spec.clip_source}"
            )
        return Segmenter(found, method=method, transport=transport, **options)
    config = _training_free(found, method, pamr)
    return Segmenter(pretrained.untrained(found, config), transport=transport, **options)


def _training_free(found: Pretrained, method: str, pamr: bool) -> TrainingFreeConfig:
    """The method of a CLIP alone, if there is such a one and its tower can run it."""
    if method and method not in METHODS:
        raise ValueError(f"method={method!r}: of a CLIP alone, choose one of {', '.join(METHODS)}")
    if not found.clip.text:
        raise ValueError(
            f"{found.origin.name} holds no text tower, and words cannot be asked for without one"
        )
    vision = found.clip.vision_config
    if method == "sc_clip" and vision.grid**2 <= sc_clip.NEIGHBOURS:
        raise ValueError(
            f"method='sc_clip' compares a patch with {sc_clip.NEIGHBOURS} others, and an image of "
            f"this CLIP has {vision.grid**2}: naclip works with any"
        )
    return TrainingFreeConfig(method=method or "naclip", pamr=pamr)


def _read(source: Any, checkpoint: str, stated: Stated) -> Pretrained:
    """What a source holds; what cannot segment is refused with what to do about it."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source).strip():
        raise ValueError(
            f"load({source!r}): wanted a model directory, the workdir of a run, a CLIP (folder or "
            "file), or a hub name \"owner/name\"; 'shapes' and 'shapes-clip' come with the package"
        )
    local = paths.local(source)
    if not local.exists() and os.fspath(source) == SHIPPED:
        local = source = SHIPPED_AT
    place = local if local.exists() else os.fspath(source)
    if whole := restore.part_of(local):
        raise ValueError(f"{source} is a part of {whole}: give that, load({whole!r})")
    if place == local and local.is_dir() and not any(local.iterdir()):
        raise FileNotFoundError(f"{source} is an empty folder")
    if local.is_dir() and (local / restore.CHECKPOINTS).is_dir():
        hints = Hints(checkpoint=str(checkpoint), tokenizer=stated.tokenizer, flag="checkpoint")
        return read.load(place, hints=hints).model
    found = sources.find(place, stated=stated)
    if found.kind == "mmseg":
        raise ValueError(
            f"{source} is a checkpoint of the original program: python -m otseg_jax.convert "
            f"{source} DEST --config=configs/DATASET.py makes a model directory of it; load that"
        )
    # positions as stored: the tower resizes them itself
    return build.load_clip(place, stated=stated)
