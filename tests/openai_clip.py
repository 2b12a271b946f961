"""CLIP as OpenAI's program builds it, in torch: the oracle for its names, layouts and features."""

import warnings
from collections import OrderedDict

import pytest

torch = pytest.importorskip("torch")
nn = torch.nn


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = [("c_fc", nn.Linear(width, mlp)), ("gelu", QuickGELU())]
        self.mlp = nn.Sequential(OrderedDict([*layers, ("c_proj", nn.Linear(mlp, width))]))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, mlp: int):
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads, mlp) for _ in range(layers)])

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Vision(nn.Module):
    def __init__(
        self, size: int, patch: int, width: int, layers: int, heads: int, mlp: int, out: int
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, out))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv1(image).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
        x = self.transformer(x.transpose(0, 1), None).transpose(0, 1)
        return self.ln_post(x) @ self.proj


class CLIP(nn.Module):
    """`encode_image` and `encode_text` as OpenAI's; all tokens of an image are projected."""

    def __init__(
        self,
        *,
        size: int = 32,
        patch: int = 8,
        width: int = 128,
        layers: int = 2,
        out: int = 32,
        vocab: int = 64,
        context: int = 12,
        text_width: int = 64,
        text_layers: int = 2,
        mlp: int = 0,  # of the vision tower; 0: four times its width
    ):
        super().__init__()
        self.visual = Vision(size, patch, width, layers, width // 64, mlp or 4 * width, out)
        self.transformer = Transformer(text_width, text_layers, text_width // 64, 4 * text_width)
        self.token_embedding = nn.Embedding(vocab, text_width)
        self.positional_embedding = nn.Parameter(torch.randn(context, text_width))
        self.ln_final = nn.LayerNorm(text_width)
        self.text_projection = nn.Parameter(text_width**-0.5 * torch.randn(text_width, out))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1 and name != "visual.class_embedding":
                # torch starts norms at 1 and biases at 0, which would hide a swap of two of them
                nn.init.normal_(parameter, mean=float("ln_" in name and "weight" in name), std=0.3)
        self.input_resolution = size
        self.context_length = context
        self.vocab_size = vocab

    def forward(self, image: torch.Tensor, tokens: torch.Tensor):
        length = tokens.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.transformer(x.transpose(0, 1), mask).transpose(0, 1)
        pooled = self.ln_final(x)[torch.arange(len(x)), tokens.argmax(dim=-1)]
        return self.visual(image), pooled @ self.text_projection


def make(**sizes: int) -> CLIP:
    torch.manual_seed(0)
    return CLIP(**sizes).eval()


def script(model: nn.Module, path) -> None:
    """Save as TorchScript, as OpenAI's files are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather see torch.export
        torch.jit.save(torch.jit.script(model), path)
