"""The rival of `benchmark_model.py`: OTSeg in plain PyTorch, as its authors' program runs it.

Fused attention, in-place where torch likes it, Sinkhorn with the original's stop, losses on the
upsampled logits. Weights come by the original program's names; what learns is a leaf that requires
a gradient. Everything lies on torch's default device.
"""

from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

LEARNS = ("backbone.prompt", "backbone.deep_prompt", "decode_head.")
TOWER = ("backbone.transformer.", "backbone.conv1.")  # what runs in its blocks, frozen


class TorchOTSeg:
    """Forward pass and loss.

    `narrow` runs the frozen tower under bfloat16 autocast, its matrices cast once.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], *, heads: int, narrow: bool):
        self.heads, self.narrow = heads, narrow
        self.w = {
            name: torch.tensor(array).requires_grad_(name.startswith(LEARNS))
            for name, array in arrays.items()
        }
        for name, weight in self.w.items():
            if narrow and name.startswith(TOWER) and weight.ndim > 1:
                self.w[name] = weight.to(torch.bfloat16)
        count = {name.split(".")[3] for name in arrays if name.startswith("backbone.transformer")}
        self.blocks, self.layers = len(count), 3

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Linear layer of this name."""
        return F.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])

    def norm(self, x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        """LayerNorm of this name."""
        return F.layer_norm(x, x.shape[-1:], self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def split(self, x: Tensor, name: str) -> Tensor:
        """Query, key and value of this block's attention, [3, b, heads, t, c]."""
        w, bias = (self.w[f"{name}.attn.in_proj_{kind}"] for kind in ("weight", "bias"))
        x = F.linear(x, w, bias)
        return rearrange(x, "b t (qkv heads c) -> qkv b heads t c", qkv=3, heads=self.heads)

    def mlp(self, x: Tensor, name: str) -> Tensor:
        """MLP of this block."""
        x = self.linear(x, f"{name}.mlp.c_fc")
        return self.linear(x * torch.sigmoid(1.702 * x), f"{name}.mlp.c_proj")

    def block(self, x: Tensor, name: str) -> Tensor:
        """Pre-norm block of the tower."""
        y = attend(*self.split(self.norm(x, f"{name}.ln_1"), name))
        x = x + self.linear(y, f"{name}.attn.out_proj")
        return x + self.mlp(self.norm(x, f"{name}.ln_2"), name)

    def embed(self, image: Tensor, drop: nn.Module) -> tuple[Tensor, Tensor]:
        """Embeddings of the images, and of their pixels; dropout of the visual prompts."""
        w, conv = self.w, self.w["backbone.conv1.weight"]
        with torch.autocast(image.device.type, torch.bfloat16, enabled=self.narrow):
            x = F.conv2d(image, conv, stride=conv.shape[-1]).flatten(2).transpose(1, 2)
            positions = w["backbone.positional_embedding"]
            first = 2 * w["backbone.class_embedding"] + positions[0]
            x = torch.cat([first.expand(len(x), 1, -1), x + positions[1:]], dim=1)
            x, m = self.norm(x, "backbone.ln_pre"), x.shape[1] - 1
            learned = (w["backbone.prompt_embeddings"], w["backbone.deep_prompt_embeddings"])
            prompts = self.linear(torch.cat(learned), "backbone.prompt_proj")[:, None]
            for i in range(self.blocks):
                inner = drop(prompts[i].expand(len(x), -1, -1))
                x = torch.cat([x[:, :1], inner, x[:, -m:]], dim=1)
                x = self.block(x, f"backbone.transformer.resblocks.{i}")
        x = self.norm(x.float(), "backbone.prompt_norm", 1e-6)
        x = self.norm(x, "backbone.ln_post") @ w["backbone.proj"]
        return F.normalize(x[:, 0], dim=-1), F.normalize(x[:, -m:], dim=-1)

    def __call__(
        self, image: Tensor, text: Tensor, *, dropout: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Logits of the decoder and of the MPS path on the patch grid, f32[b, k, h, w]."""
        drop = nn.Dropout(dropout) if dropout else nn.Identity()
        g, memory = self.embed(image, drop)
        product = g[:, None, None] * text[None]
        both = torch.cat([product, text.expand_as(product)], dim=-1)
        start = queries = self.linear(both, "decode_head.q_proj")
        maps = []
        for i in range(self.layers):
            name = f"decode_head.decoder_1.layers.{i}"
            q, k, v = (
                self.linear(x, f"{name}.multihead_attn.{part}")
                for x, part in ((queries, "q"), (memory, "k"), (memory, "v"))
            )
            plan, score = transport(q, k)
            collected = torch.einsum("bkmn,bmc->bknc", drop(plan), v)
            collected = self.linear(collected, f"{name}.multihead_attn.proj")
            queries = self.norm(queries + drop(collected), f"{name}.norm2")
            inner = drop(F.relu(self.linear(queries, f"{name}.linear1")))
            inner = drop(self.linear(inner, f"{name}.linear2"))
            queries = self.norm(queries + inner, f"{name}.norm3")
            maps.append(score)
        logits = maps[-1]
        for score in maps[:-1]:
            logits = logits * torch.sigmoid(score) ** (1 / (len(maps) - 1))
        _, mps = transport(start, memory)
        side = round(memory.shape[1] ** 0.5)
        return tuple(rearrange(x, "b k (h w) -> b k h w", h=side) for x in (logits, mps))

    def label(self, image: Tensor, text: Tensor, size: tuple[int, int], *, stride: int) -> Tensor:
        """Label map of one photo in `size`: square windows, one after the other, averaged."""
        height, width = image.shape[2:]
        side = min(height, width)
        total = torch.zeros(len(text), height, width)
        count = torch.zeros(height, width)
        for left in sorted({min(x, width - side) for x in range(0, width - side + stride, stride)}):
            window = image[..., left : left + side]
            decoder, mps = self(window, text)
            z = F.interpolate((decoder + mps) / 2, (side, side), mode="bilinear")[0]
            total[..., left : left + side] += torch.sigmoid(z)
            count[:, left : left + side] += 1
        scores = F.interpolate((total / count)[None], size, mode="bilinear")[0]
        return scores.argmax(0)

    def loss(self, image: Tensor, text: Tensor, label: Tensor, *, dropout: float) -> Tensor:
        """Focal and dice losses of both maps."""
        total = torch.zeros(())
        for logits in self(image, text, dropout=dropout):
            z = F.interpolate(logits, label.shape[1:], mode="bilinear")
            target = F.one_hot(label, z.shape[1]).permute(0, 3, 1, 2).float()
            p = torch.sigmoid(z)
            entropy = F.binary_cross_entropy_with_logits(z, target, reduction="none")
            right = p * target + (1 - p) * (1 - target)
            alpha = 0.25 * target + 0.75 * (1 - target)
            focal = (alpha * entropy * (1 - right) ** 2).mean((2, 3)).sum()
            overlap, area = (p * target).sum((2, 3)), target.sum((2, 3))
            ratio = (2 * overlap + 1) / (p.sum((2, 3)) + area + 1)
            present = area > 0
            total = total + (100 * focal + ((1 - ratio) * present).sum()) / present.sum()
        return total


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention, [b, t, heads·c]."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b heads t c -> b t (heads c)")


def transport(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Transport plan and score map M·N·Σₙ T·S, Sinkhorn in the log domain with the early stop."""
    epsilon = 0.05
    similarity = torch.einsum("bknc,bmc->bkmn", F.normalize(q, dim=-1), F.normalize(k, dim=-1))
    kernel = (similarity - 1) / epsilon
    m, n = similarity.shape[-2:]
    row, column = torch.zeros(()), torch.zeros(())
    for _ in range(100):
        before = row
        row = np.log(1 / m + 1e-8) - torch.logsumexp(kernel + column, -1, keepdim=True)
        column = np.log(1 / n + 1e-8) - torch.logsumexp(kernel + row, -2, keepdim=True)
        if epsilon * (row - before).abs().mean() < 1e-6:
            break
    plan = torch.exp(kernel + row + column)
    return plan, m * n * (plan * similarity).sum(-1)
