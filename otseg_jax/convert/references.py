"""What --verify compares with, in torch: CLIP, OTSeg and ZegCLIP by equation, transformers' CLIP.

`vision`, `text` and `decoder` are written apart from the models, in plain torch, and use nothing of
`models` or `weights`. torch is an optional extra: only `verify` imports this module, and only where
torch is present.

Every function takes the source's `arrays` by their own names and returns the output of each layer
by name, so that the first wrong layer shows. Arrays go in and come out as numpy: images
f32[b, s, s, 3], normalised, and tokens i[t, l]. `act` is "quick_gelu" or "gelu".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from otseg_jax.convert import write
from otseg_jax.weights.clip import Clip

Layers = dict[str, np.ndarray]


def _tensors(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): torch.tensor(np.array(array, np.float32))
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _norm(x: Any, weights: Mapping[str, Any], name: str, eps: float = 1e-5) -> Any:
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _linear(x: Any, weights: Mapping[str, Any], name: str) -> Any:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _block(x: Any, w: Mapping[str, Any], name: str, *, heads: int, act: str, causal: bool) -> Any:
    y = _norm(x, w, f"{name}.ln_1")
    y = F.linear(y, w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"])
    batch, length, width = x.shape
    q, k, v = (
        part.reshape(batch, length, heads, width // heads).transpose(1, 2)
        for part in y.chunk(3, dim=-1)
    )
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    x = x + _linear(y.transpose(1, 2).reshape(x.shape), w, f"{name}.attn.out_proj")
    y = _linear(_norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc")
    y = y * torch.sigmoid(1.702 * y) if act == "quick_gelu" else F.gelu(y)
    return x + _linear(y, w, f"{name}.mlp.c_proj")


@torch.no_grad()
def vision(
    arrays: Mapping[str, np.ndarray], prefix: str, image: np.ndarray, *, heads: int, act: str
) -> Layers:
    """Tokens after each block of a vision tower, and the projection of all of them.

    `prefix` is "visual." (CLIP) or "backbone." (OTSeg: prompts, and the class embedding twice).
    """
    w = _tensors(arrays, prefix)
    x = F.conv2d(torch.tensor(image).permute(0, 3, 1, 2), w["conv1.weight"], stride=_patch(w))
    height, width = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    positions = w["positional_embedding"]
    side = round((len(positions) - 1) ** 0.5)
    grid = positions[1:].T.reshape(1, -1, side, side)
    if (height, width) != (side, side):
        grid = F.interpolate(grid, (height, width), mode="bilinear")
    prompts = _prompts(w)
    first = w["class_embedding"] + positions[0]
    if prompts:  # the original program's second class embedding
        first = first + w["class_embedding"]
    patches = x + grid.flatten(2).transpose(1, 2)
    x = torch.cat([first.expand(len(x), 1, -1), patches], dim=1)
    x = _norm(x, w, "ln_pre")
    layers = {"vision embedding": x}
    for i in range(_blocks(w)):
        if i <= len(prompts):  # the first block without prompts of its own loses the last ones
            inner = [prompts[i].expand(len(x), -1, -1)] if i < len(prompts) else []
            x = torch.cat([x[:, :1], *inner, x[:, -height * width :]], dim=1)
        x = _block(x, w, f"transformer.resblocks.{i}", heads=heads, act=act, causal=False)
        layers[f"vision block {i}"] = x
    if prompts:
        x = _norm(x, w, "prompt_norm", 1e-6)
    layers["vision projection"] = _norm(x, w, "ln_post") @ w["proj"]
    return {name: tensor.numpy() for name, tensor in layers.items()}


@torch.no_grad()
def text(
    arrays: Mapping[str, np.ndarray], prefix: str, tokens: np.ndarray, *, heads: int, act: str
) -> Layers:
    """Token states after each block of a text tower, and its pooled, projected output."""
    names = ("token_embedding", "positional_embedding", "transformer.", "ln_final", "text_proj")
    # With an empty prefix the arrays of the other tower are here too.
    w = {n: t for n, t in _tensors(arrays, prefix).items() if n.startswith(names)}
    x = w["token_embedding.weight"][torch.tensor(tokens, dtype=torch.long)]
    x = x + w["positional_embedding"][: tokens.shape[1]]
    layers = {}
    for i in range(_blocks(w)):
        x = _block(x, w, f"transformer.resblocks.{i}", heads=heads, act=act, causal=True)
        layers[f"text block {i}"] = x
    pooled = x[torch.arange(len(x)), torch.tensor(tokens).argmax(-1)]
    layers["text projection"] = _norm(pooled, w, "ln_final") @ w["text_projection"]
    return {name: tensor.numpy() for name, tensor in layers.items()}


@torch.no_grad()
def decoder(
    arrays: Mapping[str, np.ndarray],
    global_embedding: np.ndarray,
    pixels: np.ndarray,
    embeddings: np.ndarray,
    *,
    heads: int,
    epsilon: float,
    iterations: int,
) -> Layers:
    """Score maps [b, k, m] of a decoder's layers, and the logits; for OTSeg also "mps logits".

    Args:
        global_embedding: [b, c], unit length, as are `pixels` [b, m, c] and `embeddings` [k, n, c].
        heads: of ZegCLIP's attention; 0 for OTSeg's.
        iterations: of Sinkhorn; always all of them, where the original program may stop early.
    """
    w = _tensors(arrays, "decode_head.")
    g, memory, t = map(torch.tensor, (global_embedding, pixels, embeddings))
    product = g[:, None, None] * t[None]
    queries = _linear(torch.cat([product, t.expand_as(product)], dim=-1), w, "q_proj")
    start, layers, maps = queries, {}, []
    for i in range(len({n.split(".")[2] for n in w if n.startswith("decoder_1.layers.")})):
        name = f"decoder_1.layers.{i}"
        q, k, v = (
            _linear(x, w, f"{name}.multihead_attn.{part}")
            for x, part in ((queries, "q"), (memory, "k"), (memory, "v"))
        )
        if heads:
            collected, score = _softmax_attention(q, k, v, heads)
        else:
            plan, similarity = _transport(q, k, epsilon, iterations)
            collected = torch.einsum("bkmn,bmc->bknc", plan, v)
            score = plan[0, 0].numel() * (plan * similarity).sum(-1)  # M·N·Σₙ T·S
        collected = _linear(collected, w, f"{name}.multihead_attn.proj")
        queries = _norm(queries + collected, w, f"{name}.norm2")
        inner = _linear(F.relu(_linear(queries, w, f"{name}.linear1")), w, f"{name}.linear2")
        queries = _norm(queries + inner, w, f"{name}.norm3")
        maps.append(score)
        layers[f"decoder layer {i}"] = score
    logits = maps[-1]
    if not heads:  # OTSeg: gated by the geometric mean of the layers before
        for score in maps[:-1]:
            logits = logits * torch.sigmoid(score) ** (1 / (len(maps) - 1))
        plan, similarity = _transport(start, memory, epsilon, iterations)
        layers["mps logits"] = plan[0, 0].numel() * (plan * similarity).sum(-1)
    layers["logits"] = logits
    return {name: tensor.numpy() for name, tensor in layers.items()}


@torch.no_grad()
def transformers_layers(
    clip: Clip, arrays: Mapping[str, np.ndarray], image: np.ndarray, tokens: np.ndarray
) -> Layers:
    """Outputs of every layer of both towers, as transformers computes them.

    Of `clip`, the conversion, the sizes are used, and the weights only where the source names them
    as Flax does, which transformers no longer reads.
    """
    vision, words = clip.vision_config, clip.text_config
    assert words is not None
    described = write.hugging_face_config(vision, words)
    described.pop("model_type")  # CLIPConfig sets it itself
    reference = CLIPModel(CLIPConfig(**described)).eval()
    if "/" in next(iter(arrays)):
        arrays = write.hugging_face_arrays(clip)
    state = {
        name: torch.tensor(np.array(array, np.float32))
        for name, array in arrays.items()
        if not name.endswith("position_ids")  # of older files: indices, not weights
    }
    key = "vision_model.embeddings.position_embedding.weight"
    if len(state[key]) != vision.grid**2 + 1:  # resized by the conversion
        state[key] = torch.tensor(write.hugging_face_arrays(clip)[key])
    reference.load_state_dict(state, strict=False)
    pixels = torch.tensor(image).permute(0, 3, 1, 2)
    seen = reference.vision_model(pixels, output_hidden_states=True)
    read = reference.text_model(torch.tensor(tokens), output_hidden_states=True)
    hidden = seen.last_hidden_state
    projected = reference.visual_projection(reference.vision_model.post_layernorm(hidden))
    found = {
        "vision embedding": seen.hidden_states[0],
        **{f"vision block {i}": x for i, x in enumerate(seen.hidden_states[1:])},
        "vision projection": projected,
        **{f"text block {i}": x for i, x in enumerate(read.hidden_states[1:])},
        "text projection": reference.text_projection(read.pooler_output),
    }
    return {name: tensor.numpy() for name, tensor in found.items()}


def _softmax_attention(q: Any, k: Any, v: Any, heads: int) -> tuple[Any, Any]:
    batch, classes, _, width = q.shape
    # ZegCLIP has one prompt per class: the classes are the queries.
    q, k, v = (
        x.reshape(batch, -1, heads, width // heads).transpose(1, 2) for x in (q[:, :, 0], k, v)
    )
    logits = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
    collected = (logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, classes, 1, width)
    return collected, logits.mean(1)


def _transport(q: Any, k: Any, epsilon: float, iterations: int) -> tuple[Any, Any]:
    """Sinkhorn in the log domain, uniform marginals; q [b, k, n, c], k [b, m, c] → [b, k, m, n]."""
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    similarity = torch.einsum("bknc,bmc->bkmn", q, k)
    kernel = (similarity - 1) / epsilon
    m, n = similarity.shape[-2:]
    column = torch.zeros(*similarity.shape[:2], 1, n)
    row = torch.zeros(*similarity.shape[:2], m, 1)
    for _ in range(iterations):
        row = -torch.logsumexp(kernel + column, -1, keepdim=True) - np.log(m)
        column = -torch.logsumexp(kernel + row, -2, keepdim=True) - np.log(n)
    return torch.exp(kernel + row + column), similarity


def _prompts(w: Mapping[str, Any]) -> list[Any]:
    if "prompt_embeddings" not in w:
        return []
    every = torch.cat([w["prompt_embeddings"], w["deep_prompt_embeddings"]])
    return list(_linear(every, w, "prompt_proj")[:, None])


def _patch(w: Mapping[str, Any]) -> int:
    return w["conv1.weight"].shape[-1]


def _blocks(w: Mapping[str, Any]) -> int:
    return 1 + max(int(n.split(".")[2]) for n in w if n.startswith("transformer.resblocks."))
