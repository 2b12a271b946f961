"""The parity dossier of a conversion: every tensor after the round trip, every layer against torch.

The round trip is source → DEST as read back from disk → the source's names. The layers are computed
on a seeded image, by our modules and by torch from the source's own arrays (`torch_reference`, or
transformers for its own format).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from otseg_jax import exporting, model_dir
from otseg_jax.importing import Imported
from otseg_jax.model_dir import Model
from otseg_jax.models.clip import TextTower, VisionTower
from otseg_jax.models.otseg import OTSeg
from otseg_jax.weights import clip, files, table

TEXTS = 2  # token rows, and classes of a decoder, that the layers are compared on
CONVERGED = 500  # Sinkhorn updates after which nothing moves, at the usual ε


def make(
    imported: Imported, dest: str | Path, *, format: str, source: str, seed: int = 0
) -> dict[str, Any]:
    """Measure a conversion.

    Args:
        imported: what was read from the source.
        dest: what was written.
        format: of `dest`: "model", "mmseg", "hf" or "stablehlo".
        source: name of the source.
        seed: of image and tokens.

    Returns:
        JSON: {"source", "format", "sha256", "tensors": [{"name", "shape", "dtype", "delta",
        "note"}], "layers": [{"name", "delta", "scale"}], "note"}. delta is max |Δ|, null where a
        tensor has no counterpart; scale is the largest entry of torch's output.
    """
    layers, note = [], ""
    written, before, after = imported.model, *_round_trip(imported, Path(dest), format)
    try:
        layers = list(_layers(imported, written, seed))
    except ImportError:
        note = "torch is not installed: layers were not compared (pip install torch)"
    if not layers and not note:
        note = "the source is our own format: there is no torch program to compare layers with"
    return {
        "source": source,
        "format": imported.format,
        "sha256": written.config["source"].get("sha256", ""),
        "tensors": list(_tensors(before, after)),
        "layers": layers,
        "note": note,
    }


def to_markdown(dossier: Mapping[str, Any]) -> str:
    """The dossier as Markdown."""
    tensors, layers = dossier["tensors"], dossier["layers"]
    deltas = [row["delta"] for row in tensors if row["delta"] is not None]
    lines = [
        f"# Conversion of {dossier['source']}",
        "",
        f"Format {dossier['format']}, SHA-256 {dossier['sha256'] or 'unknown'}. "
        f"{len(tensors)} tensors, largest difference after the round trip "
        f"{max(deltas, default=0.0):g}.",
        "",
        "| tensor | shape | dtype | max abs Δ | |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['name']} | {row['shape']} | {row['dtype']} | "
        f"{'' if row['delta'] is None else format(row['delta'], 'g')} | {row['note']} |"
        for row in tensors
    ]
    if layers:
        lines += ["", "| layer | max abs Δ to torch | largest entry |", "|---|---|---|"]
        lines += [f"| {row['name']} | {row['delta']:.2g} | {row['scale']:.3g} |" for row in layers]
    if dossier["note"]:
        lines += ["", dossier["note"]]
    return "\n".join(lines) + "\n"


def write(path: str | Path, dossier: Mapping[str, Any]) -> list[Path]:
    """Write `path`.parity.md and `path`.parity.json; returns their paths."""
    path = Path(path)
    contents = {
        path.with_name(f"{path.name}.parity.md"): to_markdown(dossier),
        path.with_name(f"{path.name}.parity.json"): json.dumps(dossier, indent=1) + "\n",
    }
    for file, content in contents.items():
        file.write_text(content, encoding="utf-8")
    return list(contents)


def _round_trip(
    imported: Imported, dest: Path, format: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays of the source and of DEST as read back from disk, under the same names."""
    model = imported.model
    if format in ("mmseg", "hf"):
        path = dest if format == "mmseg" else dest / "model.safetensors"
        arrays_of = exporting.mmseg_arrays if format == "mmseg" else exporting.hugging_face_arrays
        same = imported.format == {"mmseg": "mmseg", "hf": "hugging_face"}[format]
        before = dict(imported.arrays) if same else arrays_of(model)
        return before, files.read(path).arrays
    written = model_dir.read(dest)
    after = _all_leaves(written)
    if imported.rules:
        back = table.invert(imported.rules, {n: x for n, x in after.items() if n != "embeddings"})
        return dict(imported.arrays), back | written.unused
    return _all_leaves(model), after


def _all_leaves(model: Model) -> dict[str, np.ndarray]:
    leaves = {**model.leaves, **{f"text/{name}": leaf for name, leaf in model.text.items()}}
    if model.embeddings is not None:
        leaves["embeddings"] = model.embeddings
    return leaves


def _tensors(
    before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    for name, array in before.items():
        note, delta = "", None
        if name not in after:
            note = "not used"
        elif after[name].shape != array.shape:
            note = f"resized to {list(after[name].shape)}"
        else:
            there, here = np.asarray(array, np.float64), np.asarray(after[name], np.float64)
            delta = float(np.abs(there - here).max(initial=0.0))
        yield {
            "name": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "delta": delta,
            "note": note,
        }


def _layers(imported: Imported, written: Model, seed: int) -> Iterator[dict[str, Any]]:
    if not imported.rules:
        return
    vision, sizes = written.vision_config, written.text_config
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(1, vision.image_size, vision.image_size, 3)).astype(np.float32)
    tokens: np.ndarray = np.zeros((0, 0), np.int64)
    if sizes is not None:
        tokens = rng.integers(1, sizes.vocab_size - 2, (TEXTS, sizes.context_length))
        tokens[:, -1] = sizes.vocab_size - 1
    theirs = _by_torch(imported, written, image, tokens)
    ours = _by_us(written, image, tokens)
    for name, want in theirs.items():
        got = np.asarray(ours[name])
        delta, scale = float(np.abs(got - want).max()), float(np.abs(want).max())
        yield {"name": name, "delta": delta, "scale": scale}


def _by_torch(
    imported: Imported, written: Model, image: np.ndarray, tokens: np.ndarray
) -> dict[str, np.ndarray]:
    from otseg_jax import torch_reference, transformers_reference

    config, arrays = written.config, imported.arrays
    vision, sizes = written.vision_config, written.text_config
    if imported.format == "hugging_face":
        return transformers_reference.layers(written, arrays, image, tokens)
    whole = imported.format == "mmseg"
    act = {"act": vision.activation}
    found = torch_reference.vision(
        arrays, "backbone." if whole else "visual.", image, heads=vision.heads, **act
    )
    if sizes is not None:
        prefix = "text_encoder." if whole else ""
        prefix = "text." if "text.token_embedding.weight" in arrays else prefix
        found |= torch_reference.text(arrays, prefix, tokens, heads=sizes.heads, **act)
    if whole and written.embeddings is not None:
        tokens_out = found["vision projection"]
        unit = tokens_out / np.linalg.norm(tokens_out, axis=-1, keepdims=True)
        options = config["model"]
        found |= torch_reference.decoder(
            arrays,
            unit[:, 0],
            unit[:, -(vision.grid**2) :],
            written.embeddings[:TEXTS],
            heads=options["decoder_heads"] if options["decoder"] == "cross_attention" else 0,
            epsilon=options["epsilon"],
            iterations=options["iterations"] if options["sinkhorn"] == "unrolled" else CONVERGED,
        )
    return found


def _by_us(model: Model, image: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    otseg = model.build() if model.config["kind"] == "otseg" else None
    tower = otseg.vision if otseg else _clip_vision(model)
    graphdef, state = nnx.split((tower, otseg))

    @jax.jit
    def image_layers(state, image, embeddings):
        tower, otseg = nnx.merge(graphdef, state)
        found = _vision_layers(tower, otseg, image)
        return found if otseg is None else found | _decoder_layers(otseg, image, embeddings)

    classes = None if model.embeddings is None else model.embeddings[:TEXTS]
    found = image_layers(state, image, classes)
    if model.text_config is not None:
        text_graphdef, text_state = nnx.split(model.build_text_tower())
        read = jax.jit(lambda state, tokens: _text_layers(nnx.merge(text_graphdef, state), tokens))
        found |= read(text_state, tokens)
    return found


def _clip_vision(model: Model) -> VisionTower:
    config = model.vision_config
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: VisionTower(config, double_class_embedding=False, rngs=nnx.Rngs(0)))
    )
    return nnx.merge(graphdef, table.assign(state, clip.below("vision/", model.leaves)))


def _vision_layers(tower: VisionTower, otseg: OTSeg | None, image: jax.Array) -> dict[str, Any]:
    stages = list(tower.stages(image, otseg.prompts(1) if otseg else None))
    found = {f"vision block {i}": tokens for i, tokens in enumerate(stages[1:])}
    last = otseg.prompts.norm(stages[-1]) if otseg else stages[-1]
    return {"vision embedding": stages[0], **found, "vision projection": tower.project(last)}


def _text_layers(tower: TextTower, tokens: jax.Array) -> dict[str, Any]:
    found = {"text projection": tower(tokens)}
    x = tower.token_embedding[...][tokens] + tower.position_embedding[None, : tokens.shape[1]]
    for i, block in enumerate(tower.blocks):
        x = block(x)
        found[f"text block {i}"] = x
    return found


def _decoder_layers(model: OTSeg, image: jax.Array, embeddings: jax.Array) -> dict[str, Any]:
    global_embedding, pixels = model.embed(image)
    logits, mps_logits = model.match(global_embedding, pixels, embeddings)
    product = global_embedding[:, None, None] * embeddings[None]
    repeated = jnp.broadcast_to(embeddings[None], product.shape)
    queries = model.q_proj(jnp.concatenate([product, repeated], axis=-1))
    found: dict[str, Any] = {"logits": logits}
    if mps_logits is not None:
        found["mps logits"] = mps_logits
    for i, layer in enumerate(model.decoder.layers):
        queries, found[f"decoder layer {i}"] = layer(queries, pixels)
    return found
