"""What a conversion kept: every tensor after the round trip, every layer against torch.

The round trip is source → DEST as read back from disk → the source's names. The layers are computed
on a seeded image, by our modules and by torch from the source's own arrays (`references`).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tabulate import tabulate

from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.convert import write as writers
from otseg_jax.convert.read import Loaded
from otseg_jax.models.clip import TextTower, VisionTower
from otseg_jax.models.otseg import OTSeg
from otseg_jax.weights import files, rules

TEXTS = 2  # token rows, and classes of a decoder, that the layers are compared on
CONVERGED = 500  # Sinkhorn updates after which nothing moves, at the usual ε


def measure(
    loaded: Loaded, dest: str | Path, *, format: str, source: str, seed: int = 0
) -> dict[str, Any]:
    """Measure a conversion.

    Args:
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
    before, after = _round_trip(loaded, Path(dest), format)
    try:
        layers = list(_layers(loaded, seed))
    except ImportError:
        note = "torch is not installed: layers were not compared (pip install torch)"
    if not layers and not note:
        note = "the source is our own format: there is no torch program to compare layers with"
    return {
        "source": source,
        "format": loaded.format,
        "sha256": loaded.model.origin.sha256,
        "tensors": list(_tensors(before, after)),
        "layers": layers,
        "note": note,
    }


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    tensors, layers = report["tensors"], report["layers"]
    deltas = [row["delta"] for row in tensors if row["delta"] is not None]
    parts = [
        f"# Conversion of {report['source']}",
        f"Format {report['format']}, SHA-256 {report['sha256'] or 'unknown'}. "
        f"{len(tensors)} tensors, largest difference after the round trip "
        f"{max(deltas, default=0.0):g}.",
        _table(
            tensors,
            {
                "name": "tensor",
                "shape": "shape",
                "dtype": "dtype",
                "delta": "max abs Δ",
                "note": "",
            },
        ),
    ]
    if layers:
        parts.append(
            _table(
                layers, {"name": "layer", "delta": "max abs Δ to torch", "scale": "largest entry"}
            )
        )
    return "\n\n".join([*parts, *filter(None, [report["note"]])]) + "\n"


def _table(rows: list[dict[str, Any]], headers: Mapping[str, str]) -> str:
    cells = [[row[key] for key in headers] for row in rows]
    return tabulate(cells, list(headers.values()), tablefmt="github", floatfmt=".3g")


def write(path: str | Path, report: Mapping[str, Any]) -> list[Path]:
    """Write `path`.parity.md and `path`.parity.json; returns their paths."""
    path = Path(path)
    contents = {
        path.with_name(f"{path.name}.parity.md"): to_markdown(report),
        path.with_name(f"{path.name}.parity.json"): json.dumps(report, indent=1) + "\n",
    }
    for file, content in contents.items():
        file.write_text(content, encoding="utf-8")
    return list(contents)


def _round_trip(
    loaded: Loaded, dest: Path, format: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays of the source and of DEST as read back from disk, under the same names."""
    model = loaded.model
    if format == "mmseg" and isinstance(model, Model):
        same = loaded.format == "mmseg"
        before = dict(loaded.arrays) if same else writers.mmseg_arrays(model)
        return before, files.read(dest).arrays
    if format == "hf":
        same = loaded.format == "hugging_face"
        before = dict(loaded.arrays) if same else writers.hugging_face_arrays(model.clip)
        return before, files.read(dest / "model.safetensors").arrays
    written = pretrained.read(dest)
    if not loaded.rules:
        return model.leaves(), written.leaves()
    leaves = {n: x for n, x in written.leaves().items() if n != "embeddings"}
    back = rules.invert(loaded.rules, leaves)
    if isinstance(written, Model):
        return dict(loaded.arrays), back | dict(written.unused)
    scale = written.clip.logit_scale
    kept = {} if scale is None else {"logit_scale": np.asarray(scale, np.float32)}
    return dict(loaded.arrays), back | kept


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


def _layers(loaded: Loaded, seed: int) -> Iterator[dict[str, Any]]:
    if not loaded.rules:
        return
    clip = loaded.model.clip
    rng = np.random.default_rng(seed)
    size = clip.vision_config.image_size
    image = rng.normal(size=(1, size, size, 3)).astype(np.float32)
    tokens: np.ndarray = np.zeros((0, 0), np.int64)
    if clip.text_config is not None:
        last = clip.text_config.vocab_size - 1
        tokens = rng.integers(1, last - 1, (TEXTS, clip.text_config.context_length))
        tokens[:, -1] = last
    theirs = _by_torch(loaded, image, tokens)
    ours = _by_us(loaded.model, image, tokens)
    for name, want in theirs.items():
        got = np.asarray(ours[name])
        delta, scale = float(np.abs(got - want).max()), float(np.abs(want).max())
        yield {"name": name, "delta": delta, "scale": scale}


def _by_torch(loaded: Loaded, image: np.ndarray, tokens: np.ndarray) -> dict[str, np.ndarray]:
    from otseg_jax.convert import references

    model, arrays, clip = loaded.model, loaded.arrays, loaded.model.clip
    if loaded.format == "hugging_face":
        return references.transformers_layers(clip, arrays, image, tokens)
    vision, whole = clip.vision_config, isinstance(model, Model)
    prefix, act = "backbone." if whole else "visual.", vision.activation
    found = references.vision(arrays, prefix, image, heads=vision.heads, act=act)
    if clip.text_config is not None:
        prefix = "text_encoder." if whole else ""
        prefix = "text." if "text.token_embedding.weight" in arrays else prefix
        found |= references.text(arrays, prefix, tokens, heads=clip.text_config.heads, act=act)
    if isinstance(model, Model):
        last = found["vision projection"]
        unit = last / np.linalg.norm(last, axis=-1, keepdims=True)
        options = model.spec.model
        found |= references.decoder(
            arrays,
            unit[:, 0],
            unit[:, -(vision.grid**2) :],
            model.embeddings[:TEXTS],
            heads=options.decoder_heads if options.decoder == "cross_attention" else 0,
            epsilon=options.epsilon,
            iterations=options.iterations if options.sinkhorn == "unrolled" else CONVERGED,
        )
    return found


def _by_us(model: Pretrained, image: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    otseg = model.build() if isinstance(model, Model) else None
    tower = otseg.vision if otseg else model.clip.build_vision()
    graphdef, state = nnx.split((tower, otseg))

    @jax.jit
    def image_layers(state, image, embeddings):
        tower, otseg = nnx.merge(graphdef, state)
        found = _vision_layers(tower, otseg, image)
        return found if otseg is None else found | _decoder_layers(otseg, image, embeddings)

    classes = model.embeddings[:TEXTS] if isinstance(model, Model) else None
    found = image_layers(state, image, classes)
    if model.clip.text_config is not None:
        text_graphdef, text_state = nnx.split(model.clip.build_text())
        read = jax.jit(lambda state, tokens: _text_layers(nnx.merge(text_graphdef, state), tokens))
        found |= read(text_state, tokens)
    return found


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
    maps = model.match(global_embedding, pixels, embeddings)
    found: dict[str, Any] = {"logits": maps["decoder"]}
    if "mps" in maps:
        found["mps logits"] = maps["mps"]
    queries = model.describe(global_embedding, embeddings)
    for i, layer in enumerate(model.decoder.layers):
        queries, found[f"decoder layer {i}"] = layer(queries, pixels)
    return found
