"""What a conversion kept: every tensor after the round trip, every layer against torch.

The round trip is source → DEST as read back from disk → the source's names. The layers are computed
on a seeded image, by our modules and by torch from the source's own arrays (`references`).
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx
from tabulate import tabulate

from otseg_jax import paths
from otseg_jax.checkpoints import pretrained
from otseg_jax.checkpoints.pretrained import Model, Pretrained
from otseg_jax.convert import write as writers
from otseg_jax.convert.read import Loaded
from otseg_jax.models import methods
from otseg_jax.models.clip import TextTower, VisionTower
from otseg_jax.models.otseg import OTSeg, VisualPrompts
from otseg_jax.weights import files, rules

TEXTS = 2  # token rows, and classes of a decoder, that the layers are compared on
CONVERGED = 500  # Sinkhorn updates after which nothing moves, at the usual ε

Arrays: TypeAlias = Mapping[str, np.ndarray]


def measure(
    loaded: Loaded, dest: str | Path, *, format: str, source: str, seed: int = 0
) -> dict[str, Any]:
    """Measure a conversion from `source` to `dest`, written in a `format` of `convert.WRITERS`.

    Returns:
        JSON: {"source", "format", "sha256", "tensors": [{"name", "shape", "dtype", "delta",
        "note"}], "layers": [{"name", "delta", "scale"}], "note"}. delta is max |Δ|, null where a
        tensor has no counterpart; scale is the largest entry of torch's output.
    """
    layers, note = [], ""
    tensors = list(_tensors(*_round_trip(loaded, Path(dest), format)))
    try:
        layers = list(_layers(loaded, seed))
    except ImportError:
        note = "torch is not installed: layers were not compared (pip install torch)"
    if not layers and not note:
        note = "the source is our own format: there is no torch program to compare layers with"
    about = {"source": source, "format": loaded.format, "sha256": loaded.model.origin.sha256}
    return {**about, "tensors": tensors, "layers": layers, "note": note}


def to_markdown(report: Mapping[str, Any]) -> str:
    """The report as Markdown."""
    tensors, layers = report["tensors"], report["layers"]
    largest = max((row["delta"] for row in tensors if row["delta"] is not None), default=0.0)
    table = partial(tabulate, tablefmt="github", floatfmt=".3g")
    parts = [
        f"# Conversion of {report['source']}",
        f"Format {report['format']}, SHA-256 {report['sha256'] or 'unknown'}. "
        f"{len(tensors)} tensors, largest difference after the round trip {largest:g}.",
        table(tensors, headers={"name": "tensor", "delta": "max abs Δ", "note": ""}),
    ]
    if layers:
        heads = {"name": "layer", "delta": "max abs Δ to torch", "scale": "largest entry"}
        parts.append(table(layers, headers=heads))
    return "\n\n".join([*parts, *filter(None, [report["note"]])]) + "\n"


def write(path: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write `path`.parity.md and `path`.parity.json; returns their paths."""
    told = {"md": to_markdown(report), "json": json.dumps(report, indent=1) + "\n"}
    for kind, text in told.items():
        with paths.atomic(f"{path}.parity.{kind}") as part:
            part.write_text(text, encoding="utf-8")
    return [Path(f"{path}.parity.{kind}") for kind in told]


def _round_trip(loaded: Loaded, dest: Path, format: str) -> tuple[Arrays, Arrays]:
    """Arrays of the source and of DEST as read back from disk, under the same names."""
    model = loaded.model
    if format == "mmseg" and isinstance(model, Model):
        before = loaded.arrays if loaded.format == "mmseg" else writers.mmseg_arrays(model)
        return before, files.read(dest).arrays
    if format == "hf":
        same = loaded.format == "hugging_face"
        before = loaded.arrays if same else writers.hugging_face_arrays(model.clip)
        return before, files.read(dest / "model.safetensors").arrays
    written = pretrained.read(dest)
    if not loaded.rules:
        return model.leaves(), written.leaves()
    leaves = {n: x for n, x in written.leaves().items() if n != "embeddings"}
    back = rules.invert(loaded.rules, leaves)
    if isinstance(written, Model):
        back |= written.unused
    elif written.clip.logit_scale is not None:
        back["logit_scale"] = np.asarray(written.clip.logit_scale, np.float32)
    return loaded.arrays, back


def _tensors(before: Arrays, after: Arrays) -> Iterator[dict[str, Any]]:
    for name, array in before.items():
        note, delta = "", None
        if name not in after:
            note = "not used"
        elif after[name].shape != array.shape:
            note = f"resized to {list(after[name].shape)}"
        else:
            there, here = np.asarray(array, np.float64), np.asarray(after[name], np.float64)
            delta = float(np.abs(there - here).max(initial=0.0))
        about = {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}
        yield {**about, "delta": delta, "note": note}


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
        options = methods.trained(model.spec.model)
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
    found = {}
    if model.clip.text_config is not None:
        found = _run(_text_layers, model.clip.build_text(), tokens)
    if isinstance(model, Model):
        return found | _run(_model_layers, model.build(), image, model.embeddings[:TEXTS])
    return found | _run(_vision_layers, model.clip.build_vision(), image)


def _run(layers: Callable[..., dict[str, Any]], module: Any, *inputs: Any) -> dict[str, Any]:
    """The layers of a module, compiled: op by op it would take several times as long."""
    graphdef, state = nnx.split(module)
    compiled = jax.jit(lambda state, *inputs: layers(nnx.merge(graphdef, state), *inputs))
    return compiled(state, *inputs)


def _vision_layers(
    tower: VisionTower, image: jax.Array, prompts: VisualPrompts | None = None
) -> dict[str, Any]:
    first, *stages = tower.stages(image, prompts(1) if prompts else None)
    found = {f"vision block {i}": tokens for i, tokens in enumerate(stages)}
    last = prompts.norm(stages[-1]) if prompts else stages[-1]
    return {"vision embedding": first, **found, "vision projection": tower.project(last)}


def _text_layers(tower: TextTower, tokens: jax.Array) -> dict[str, Any]:
    found = {"text projection": tower(tokens)}
    x = tower.token_embedding[...][tokens] + tower.position_embedding[None, : tokens.shape[1]]
    for i, block in enumerate(tower.blocks):
        x = block(x)
        found[f"text block {i}"] = x
    return found


def _model_layers(model: OTSeg, image: jax.Array, embeddings: jax.Array) -> dict[str, Any]:
    global_embedding, pixels = model.embed(image)
    maps = model.match(global_embedding, pixels, embeddings)
    found = {"logits": maps.pop("decoder")}
    found |= {f"{name} logits": scores for name, scores in maps.items()}
    queries = model.describe(global_embedding, embeddings)
    for i, layer in enumerate(model.decoder.layers):
        queries, found[f"decoder layer {i}"] = layer(queries, pixels)
    return _vision_layers(model.vision, image, model.prompts) | found
