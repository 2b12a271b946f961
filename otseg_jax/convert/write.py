"""From a loaded model to other programs' formats: mmsegmentation, transformers, StableHLO.

Names and layouts come from the tables that `weights` reads with, run backwards. Every file is
written beside its destination and renamed.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export as jax_export
from jaxtyping import Array, Bool, Float
from safetensors.numpy import save_file

from otseg_jax import paths, text
from otseg_jax.checkpoints import pretrained, spec
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.data import regimes
from otseg_jax.models import methods
from otseg_jax.models.clip import TextConfig, VisionConfig
from otseg_jax.models.outputs import mix, upsample
from otseg_jax.models.transformer import TowerConfig
from otseg_jax.weights import hugging_face, mmseg, names, normalisation, rules, torch_write
from otseg_jax.weights.clip import Clip

BUCKET = 32  # classes of a StableHLO artifact are padded to a multiple of it
ARTIFACT = "scores.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")
NEEDED = ": this format holds a trained OTSeg or ZegCLIP"
LOGIT_SCALE = np.float32(np.log(1 / 0.07))  # what CLIP's training starts from


def to_mmseg(dest: str | Path, model: Pretrained) -> None:
    """Write a .pth file with the names of the original OTSeg and ZegCLIP programs.

    Arrays that the original program stores and never uses are those the model came with; a model
    that was trained here gets that program's initial values, so that a strict load succeeds.

    Raises:
        ValueError: a CLIP alone, or a file of that name.
    """
    trained = pretrained.need_model(model, NEEDED)
    described = spec.to_json(trained.spec)
    meta = {
        "CLASSES": described.pop("classes"),
        "PALETTE": described.pop("palette"),
        "otseg_jax": {**described, "origin": asdict(model.origin)},
    }
    paths.check_free(dest, file=True)
    with paths.atomic(dest) as path:
        torch_write.write(path, {"meta": meta, "state_dict": mmseg_arrays(trained)})


def mmseg_arrays(model: Model) -> dict[str, np.ndarray]:
    """The state dict of `to_mmseg`: original name → f32 array, sorted by name."""
    clip, described = model.clip, model.spec
    layers, vision = methods.trained(described.model).decoder_layers, clip.vision_config
    table = mmseg.rules(
        blocks=vision.layers,
        layers=layers,
        text_blocks=clip.text_config.layers if clip.text_config else 0,
        deep="prompts/deep" in model.trained,
    )
    trained_on = regimes.resolve(
        described.regime, num_classes=len(described.classes), unseen=described.unseen
    ).classes
    stand_ins = mmseg.stand_ins(layers=layers, width=vision.embed_dim, classes=len(trained_on))
    leaves = {**clip.leaves(), **model.trained}
    return dict(sorted({**rules.invert(table, leaves), **stand_ins, **model.unused}.items()))


def to_hugging_face(dest: str | Path, model: Pretrained) -> None:
    """Write the CLIP part as the folder in which transformers saves a `CLIPModel`.

    Raises:
        ValueError: no text tower, or something of that name.
        FileNotFoundError: a tokenizer that cannot be had.

    Differs:
        OTSeg adds CLIP's class embedding twice; the weights written are CLIP's own, and
        transformers adds it once.
    """
    clip = model.clip
    if clip.text_config is None:
        raise ValueError(
            f"the model from {clip.name} holds no text tower, which a CLIPModel must have"
        )
    clip.check_tokenizer()
    # safetensors writes memory as it lies, so that a transposed view would come out wrong
    arrays = {name: np.asarray(x, order="C") for name, x in hugging_face_arrays(clip).items()}
    with paths.new_folder(dest) as folder:
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
        config = hugging_face_config(clip.vision_config, clip.text_config)
        (folder / hugging_face.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        # safetensors writes for its user alone
        shutil.copymode(folder / hugging_face.CONFIG, folder / "model.safetensors")
        if clip.tokenizer is not None:
            text.save_tokenizer(clip.tokenizer, folder)
        if clip.normalisation is not None:
            size = clip.vision_config.image_size
            normalisation.write(folder, clip.normalisation, image_size=size)


def hugging_face_arrays(clip: Clip) -> dict[str, np.ndarray]:
    """The state dict of `to_hugging_face`: transformers' name → f32 array."""
    assert clip.text_config is not None
    table = hugging_face.rules(clip.vision_config.layers, clip.text_config.layers)
    scale = LOGIT_SCALE if clip.logit_scale is None else clip.logit_scale
    return {"logit_scale": np.asarray(scale, np.float32), **rules.invert(table, clip.leaves())}


def hugging_face_config(vision: VisionConfig, sizes: TextConfig) -> dict[str, Any]:
    """The `config.json` of `to_hugging_face`."""

    def common(config: TowerConfig) -> dict[str, Any]:
        return {
            "hidden_size": config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "intermediate_size": config.mlp_width,
            "projection_dim": config.embed_dim,
            "hidden_act": config.activation,
            "layer_norm_eps": config.eps,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": vision.embed_dim,
        "vision_config": {
            **common(vision),
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        },
        "text_config": {
            **common(sizes),
            "model_type": "clip_text_model",
            "vocab_size": sizes.vocab_size,
            "max_position_embeddings": sizes.context_length,
            "bos_token_id": sizes.vocab_size - 2,
            "eos_token_id": sizes.vocab_size - 1,
        },
    }


def to_stablehlo(dest: str | Path, model: Pretrained) -> None:
    """Write a model directory with a compiled-once scoring function beside the weights.

    The artifact of `jax.export` takes (weights by leaf name, windows f32[b, s, s, 3] normalised,
    text f32[K, n, c], present bool[K], offset f32[K]) and gives scores f32[b, K, s, s] of the main
    output, 0 where a class is not present. b is free; K is the number of classes, rounded up to a
    multiple of 32: other classes need no new artifact.

    Raises:
        ValueError: a CLIP alone, or something of that name.
    """
    artifact = _export(pretrained.need_model(model, NEEDED))
    with paths.new_folder(dest) as folder:
        pretrained.write_into(folder, model)
        (folder / ARTIFACT).write_bytes(artifact.serialize())


def load_stablehlo(source: str | Path) -> Callable[..., np.ndarray]:
    """Load what `to_stablehlo` wrote.

    The function goes from windows f32[b, s, s, 3] (normalised), text f32[k, n, c] and offset f32[k]
    to scores f32[b, k, s, s]; k is at most the artifact's number of classes.

    Raises:
        FileNotFoundError: the folder holds no artifact.
        ValueError: a damaged artifact.
    """
    path = paths.local(source) / ARTIFACT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: make it with --format=stablehlo")
    try:
        artifact = jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers raises whatever the damage leads to
        raise ValueError(f"{path} is damaged: {error}") from error
    leaves = pretrained.need_model(pretrained.read(source), "").model_leaves()
    slots = artifact.in_avals[-1].shape[0]

    def scores(windows: np.ndarray, embeddings: np.ndarray, offset: np.ndarray) -> np.ndarray:
        classes = len(embeddings)
        if classes > slots:
            raise ValueError(f"{classes} classes: this artifact takes at most {slots}")
        fill = (0, slots - classes)
        found = artifact.call(
            leaves,
            windows,
            np.pad(embeddings, [fill, (0, 0), (0, 0)]),
            np.arange(slots) < classes,
            np.pad(offset.astype(np.float32), [fill]),
        )
        return np.asarray(found)[:, :classes]

    return scores


def _export(model: Model) -> jax_export.Exported:
    described, vision = model.spec, model.clip.vision_config
    window, outputs = described.window, described.outputs

    def scores(
        leaves: dict[str, Array],
        windows: Float[Array, "b s s 3"],
        embeddings: Float[Array, "k n c"],
        present: Bool[Array, " k"],
        offset: Float[Array, " k"],
    ) -> Float[Array, "b k s s"]:
        otseg = names.build(lambda: described.model.build(vision, rngs=nnx.Rngs(0)), leaves)
        maps = otseg(windows, embeddings)
        mixed = upsample(mix(maps, outputs.mixtures[outputs.main]), (window, window))
        found = jax.nn.sigmoid(mixed) - offset[None, :, None, None]
        return jnp.where(present[None, :, None, None], found, 0.0)

    slots = -(-len(described.classes) // BUCKET) * BUCKET
    (batch,) = jax_export.symbolic_shape("b")
    f32 = jnp.float32
    return jax_export.export(jax.jit(scores), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(x.shape, f32) for name, x in model.model_leaves().items()},
        jax.ShapeDtypeStruct((batch, window, window, 3), f32),
        jax.ShapeDtypeStruct((slots, len(described.templates), vision.embed_dim), f32),
        jax.ShapeDtypeStruct((slots,), jnp.bool_),
        jax.ShapeDtypeStruct((slots,), f32),
    )
