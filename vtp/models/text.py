"""The text tower of CLIP (arXiv 2103.00020): a causal transformer whose feature sits at the end-of-text token.

Parameter names are those of the published VTP weights. What training here uses are the defaults; the rest is for reading weights
of others (OpenCLIP's options).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtp.models.blocks import LayerScale


@dataclass(frozen=True)
class TextOptions:
    """Shape of the text tower; the defaults are CLIP's.

    Attributes:
        width: also the width T of the joint image-text space.
        mlp_ratio: hidden width of a block over its width.
        layer_scale: start value of LayerScale; None leaves it out.
        causal: a token sees only those before it. Padding is never masked, so without it every feature depends on the padding.
        pool: which token's feature is the text's: argmax (the largest id, end-of-text) | first | last | none (all of them).
        projection: False: the pooled feature is not multiplied by the joint space's matrix.
        projection_bias: the matrix is a linear layer with a bias.
        quick_gelu: x * sigmoid(1.702 x) in place of the exact GELU.
        pad_id, output_tokens: read by nothing, in the published code neither; kept for the file.
    """

    width: int
    depth: int
    heads: int
    context_length: int
    vocabulary: int
    mlp_ratio: float = 4.0
    layer_scale: float | None = None
    causal: bool = True
    pool: str = "argmax"
    projection: bool = True
    projection_bias: bool = False
    quick_gelu: bool = False
    pad_id: int = 0
    output_tokens: bool = False


class TextAttention(nn.Module):
    """Self-attention, causal or not, with the parameter names of torch's MultiheadAttention."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        width, self.heads, self.causal = options.width, options.heads, options.causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(x.transpose(1, 2).reshape(batch, length, width))


class TextMlp(nn.Module):
    """c_proj(gelu(c_fc x))."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        hidden = int(options.width * options.mlp_ratio)
        self.c_fc = nn.Linear(options.width, hidden)
        self.c_proj = nn.Linear(hidden, options.width)
        self.quick = options.quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x) if self.quick else F.gelu(x))


class TextBlock(nn.Module):
    """Pre-norm residual block: x + ls1(attn(ln1 x)), then x + ls2(mlp(ln2 x))."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(options.width)
        self.attn = TextAttention(options)
        self.ln_2 = nn.LayerNorm(options.width)
        self.mlp = TextMlp(options)
        scale = options.layer_scale
        self.ls_1 = nn.Identity() if scale is None else LayerScale(options.width, scale)
        self.ls_2 = nn.Identity() if scale is None else LayerScale(options.width, scale)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls_1(self.attn(self.ln_1(x)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class TextTransformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(TextBlock(options) for _ in range(options.depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class TextTower(nn.Module):
    """Caption ids (B, L) to one feature each (B, T), not normalised; with `pool` none to one for every token (B, L, T)."""

    def __init__(self, options: TextOptions) -> None:
        super().__init__()
        self.options = options
        width = options.width
        self.token_embedding = nn.Embedding(options.vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.empty(options.context_length, width))
        self.text_transformer = TextTransformer(options)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection: nn.Parameter | nn.Linear | None = None
        if options.projection and options.projection_bias:
            self.text_projection = nn.Linear(width, width)
        elif options.projection:
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
        match self.text_projection:
            case nn.Linear() as linear:
                linear.weight.normal_(std=width**-0.5, generator=generator)
                linear.bias.zero_()
            case nn.Parameter() as matrix:
                matrix.normal_(std=width**-0.5, generator=generator)
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
        x = self.ln_final(self.pooled(self.text_transformer(x), tokens))
        match self.text_projection:
            case nn.Linear() as linear:
                return linear(x)
            case nn.Parameter() as matrix:
                return x @ matrix.to(x.dtype)
        return x

    def pooled(self, x: Tensor, tokens: Tensor) -> Tensor:
        """The feature of each text: (B, L, T) -> (B, T), or all of them where nothing is pooled."""
        match self.options.pool:
            case "first":
                return x[:, 0]
            case "last":
                return x[:, -1]
            case "none":
                return x
        # The end-of-text id is the largest there is, so its place is the argmax.
        return x[torch.arange(len(x), device=x.device), tokens.argmax(dim=1)]
