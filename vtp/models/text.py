"""The text tower of CLIP (arXiv 2103.00020): a causal transformer whose feature sits at the end-of-text token.

Parameter names are those of the published VTP weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class TextOptions:
    """Shape of the text tower. `width` is also the width T of the joint image-text space."""

    width: int
    depth: int
    heads: int
    context_length: int
    vocabulary: int


class TextAttention(nn.Module):
    """Causal self-attention with the parameter names of torch's MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(x.transpose(1, 2).reshape(batch, length, width))


class TextMlp(nn.Module):
    """c_proj(gelu(c_fc x)), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class TextBlock(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = TextAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = TextMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class TextTransformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(options.width, options.heads) for _ in range(options.depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class TextTower(nn.Module):
    """Caption ids (B, L) to one feature each (B, T), not normalised."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        self.options = options
        width = options.width
        self.token_embedding = nn.Embedding(options.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(options.context_length, width))
        self.text_transformer = TextTransformer(options)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, width))

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer's blocks, under the name the other towers use."""
        return self.text_transformer.resblocks

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """CLIP's initialisation: deviations by width and depth, so that the residual stream starts at unit scale."""
        width, depth = self.options.width, self.options.depth
        self.token_embedding.weight.normal_(std=0.02, generator=generator)
        self.positional_embedding.normal_(std=0.01, generator=generator)
        self.text_projection.normal_(std=width**-0.5, generator=generator)
        for block in self.blocks:
            assert isinstance(block, TextBlock)
            block.attn.in_proj_weight.normal_(std=width**-0.5, generator=generator)
            block.attn.out_proj.weight.normal_(std=(2 * depth * width) ** -0.5, generator=generator)
            block.mlp.c_fc.weight.normal_(std=(2 * width) ** -0.5, generator=generator)
            block.mlp.c_proj.weight.normal_(std=(2 * depth * width) ** -0.5, generator=generator)
            for layer in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                layer.bias.zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        x = self.ln_final(self.text_transformer(x))
        # The end-of-text id is the largest there is, so its place is the argmax.
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
        return x @ self.text_projection.to(x.dtype)
