"""What --verify compares with, in torch: CLIP, OTSeg and ZegCLIP by equation, transformers' CLIP.

`vision`, `text` and `decoder` are written apart from the models, and use nothing of `models` or
`weights`. torch is an optional extra: only `verify` imports this module, and only where it is.

Every function takes the source's `arrays` by their own names and returns the output of each layer
by name, so that the first wrong layer shows. Arrays go in and come out as numpy: images
f32[b, s, s, 3], normalised, and tokens i[t, l]. `act` is "quick_gelu" or "gelu".
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from einops import rearrange
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
    q, k, v = rearrange(y, "b t (qkv heads c) -> qkv b heads t c", qkv=3, heads=heads)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    y = rearrange(y, "b heads t c -> b t (heads c)")
    x = x + _linear(y, w, f"{name}.attn.out_proj")
    y = _linear(_norm(x, w, f"{name}.ln_2"), w, f"{name}.mlp.c_fc")
    y = y * torch.sigmoid(1.702 * y) if act == "quick_gelu" else F.gelu(y)
    return x + _linear(y, w, f"{name}.mlp.c_proj")


def vision(
    arrays: Mapping[str, np.ndarray], prefix: str, image: np.ndarray, *, heads: int, act: str
) -> Layers:
    """Tokens after each block of a vision tower, and the projection of all of them.

    `prefix` is "visual." (CLIP) or "backbone." (OTSeg: prompts, and the class embedding twice).
    Prompts go through the blocks, as in the original program, and are left out of what is returned.
    """
    w = _tensors(arrays, prefix)
    patch = w["conv1.weight"].shape[-1]
    x = F.conv2d(torch.tensor(image).permute(0, 3, 1, 2), w["conv1.weight"], stride=patch)
    height, width = x.shape[-2:]
    positions = w["positional_embedding"]
    side = round((len(positions) - 1) ** 0.5)
    grid = rearrange(positions[1:], "(h w) d -> 1 d h w", h=side)
    if (height, width) != (side, side):
        grid = F.interpolate(grid, (height, width), mode="bilinear")
    learned = [w[n] for n in ("prompt_embeddings", "deep_prompt_embeddings") if n in w]
    prompts = list(_linear(torch.cat(learned), w, "prompt_proj")[:, None]) if learned else []
    first = w["class_embedding"] + positions[0]
    if prompts:  # the original program's second class embedding
        first = first + w["class_embedding"]
    patches = rearrange(x + grid, "b d h w -> b (h w) d")
    x = _norm(torch.cat([first.expand(len(x), 1, -1), patches], dim=1), w, "ln_pre")
    layers = {"vision embedding": x}
    for i in range(_count(w, "transformer.resblocks.")):
        if i <= len(prompts):  # the first block without prompts of its own loses the last ones
            inner = [prompts[i].expand(len(x), -1, -1)] if i < len(prompts) else []
            x = torch.cat([x[:, :1], *inner, x[:, -height * width :]], dim=1)
        x = _block(x, w, f"transformer.resblocks.{i}", heads=heads, act=act, causal=False)
        layers[f"vision block {i}"] = torch.cat([x[:, :1], x[:, -height * width :]], dim=1)
    x = layers[f"vision block {i}"]
    if prompts:
        x = _norm(x, w, "prompt_norm", 1e-6)
    layers["vision projection"] = _norm(x, w, "ln_post") @ w["proj"]
    return {name: tensor.numpy() for name, tensor in layers.items()}


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
    for i in range(_count(w, "transformer.resblocks.")):
        x = _block(x, w, f"transformer.resblocks.{i}", heads=heads, act=act, causal=True)
        layers[f"text block {i}"] = x
    pooled = x[torch.arange(len(x)), torch.tensor(tokens).argmax(-1)]
    layers["text projection"] = _norm(pooled, w, "ln_final") @ w["text_projection"]
    return {name: tensor.numpy() for name, tensor in layers.items()}


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

    `global_embedding` [b, c], `pixels` [b, m, c] and `embeddings` [k, n, c] have unit length.
    `heads` is 0 for OTSeg. All `iterations` of Sinkhorn are done: the original may stop early.
    """
    w = _tensors(arrays, "decode_head.")
    g, memory, t = map(torch.tensor, (global_embedding, pixels, embeddings))
    product = g[:, None, None] * t[None]
    queries = _linear(torch.cat([product, t.expand_as(product)], dim=-1), w, "q_proj")
    start, layers, maps = queries, {}, []
    for i in range(_count(w, "decoder_1.layers.")):
        name = f"decoder_1.layers.{i}"
        q, k, v = (
            _linear(x, w, f"{name}.multihead_attn.{part}")
            for x, part in ((queries, "q"), (memory, "k"), (memory, "v"))
        )
        if heads:
            collected, score = _softmax_attention(q, k, v, heads)
        else:
            plan, score = _transport(q, k, epsilon, iterations)
            collected = torch.einsum("bkmn,bmc->bknc", plan, v)
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
        _, layers["mps logits"] = _transport(start, memory, epsilon, iterations)
    layers["logits"] = logits
    return {name: tensor.numpy() for name, tensor in layers.items()}


@torch.no_grad()
def transformers_layers(
    clip: Clip, arrays: Mapping[str, np.ndarray], image: np.ndarray, tokens: np.ndarray
) -> Layers:
    """Outputs of every layer of both towers, as transformers computes them.

    Of `clip`, the conversion, the sizes are used, and weights only where the source names its own
    as Flax does, which transformers no longer reads, or at another image size.
    """
    vision, words = clip.vision_config, clip.text_config
    assert words is not None
    described = write.hugging_face_config(vision, words)
    described.pop("model_type")  # CLIPConfig sets it itself
    reference = CLIPModel(CLIPConfig(**described)).eval()
    if "/" in next(iter(arrays)):
        arrays = write.hugging_face_arrays(clip)
    state = _tensors(arrays, "")
    key = "vision_model.embeddings.position_embedding.weight"
    if len(state[key]) != vision.grid**2 + 1:  # resized by the conversion
        state[key] = torch.tensor(write.hugging_face_arrays(clip)[key])
    reference.load_state_dict(state, strict=False)  # older files hold position_ids, too
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
    # ZegCLIP has one prompt per class: the classes are the queries.
    q, k, v = (
        rearrange(x, "b t (heads c) -> b heads t c", heads=heads) for x in (q[:, :, 0], k, v)
    )
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    collected = rearrange(logits.softmax(-1) @ v, "b heads k c -> b k 1 (heads c)")
    return collected, logits.mean(1)


def _transport(q: Any, k: Any, epsilon: float, iterations: int) -> tuple[Any, Any]:
    """Plans by Sinkhorn in the log domain, with uniform marginals, and score maps M·N·Σₙ T·S."""
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    similarity = torch.einsum("bknc,bmc->bkmn", q, k)
    kernel = (similarity - 1) / epsilon
    m, n = similarity.shape[-2:]
    row = column = torch.zeros(())
    for _ in range(iterations):
        row = -torch.logsumexp(kernel + column, -1, keepdim=True) - np.log(m)
        column = -torch.logsumexp(kernel + row, -2, keepdim=True) - np.log(n)
    plan = torch.exp(kernel + row + column)
    return plan, m * n * (plan * similarity).sum(-1)


def _count(w: Mapping[str, Any], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in w if name.startswith(prefix)})
