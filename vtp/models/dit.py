"""A diffusion transformer over latent grids, conditioned on a time and a class.

The architecture is DiT (arXiv 2212.09748) as LightningDiT changed it (arXiv 2501.01423): RMS norms, SwiGLU and rotary positions
on top of adaptive layer norms. Names of parameters and buffers are those of the published checkpoints, which therefore load
strictly (`lightningdit.py`). The module draws no random numbers: labels are dropped by whoever trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from vtp import artifacts
from vtp.models.dit_blocks import (
    Block,
    DitOptions,
    FinalLayer,
    LabelEmbed,
    PatchEmbed,
    RMSNorm,
    Rope,
    TimeEmbed,
    position_table,
    time_frequencies,
)

FILES = ("config.json", "model.safetensors")
"""What a diffusion transformer is read from."""


class DiT(nn.Module):
    """Velocity of the flow from noise (t = 0) to latents (t = 1), given a class.

    `blocks` may be compiled or sharded one by one. The null label is `options.num_classes`.
    """

    pos_embed: Tensor

    def __init__(self, options: DitOptions) -> None:
        super().__init__()
        self.options = options
        self.x_embedder = PatchEmbed(options)
        self.register_buffer("pos_embed", torch.empty(1, options.side**2, options.width))
        self.t_embedder = TimeEmbed(options.width)
        self.y_embedder = LabelEmbed(options.num_classes, options.width)
        self.feat_rope = Rope(options.width // options.heads, options.side) if options.rope else None
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.depth))
        self.final_layer = FinalLayer(options)
        self.fill_tables()

    def fill_tables(self) -> None:
        self.pos_embed.copy_(position_table(self.options.width, self.options.side))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Fill every parameter and table from `generator`, which lives on the parameters' device.

        All gates and the output start at zero, so the network starts as the zero velocity (DiT, arXiv 2212.09748, section 3.2).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02, generator=generator)
            elif isinstance(module, RMSNorm | nn.LayerNorm) and module.weight is not None:
                nn.init.ones_(module.weight)
            if isinstance(module, DiT | Rope | TimeEmbed):
                module.fill_tables()
        for name, parameter in self.named_parameters():
            if name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            elif name.endswith(("bias", "adaLN_modulation.1.weight")) or name == "final_layer.linear.weight":
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Latents x (B, C, h, w) at times t (B,) in [0, 1] with labels (B,) int64 -> velocity (B, C, h, w)."""
        tokens = self.x_embedder(x)
        condition = self.t_embedder(t) + self.y_embedder(labels)
        gate, added = self.positions(tokens)
        for block in self.blocks:
            tokens, gate, added = block(tokens, gate, added, condition, self.feat_rope)
        tokens = torch.addcmul(tokens, gate[:, None], added)
        side, patch = self.options.side, self.options.patch
        values = self.final_layer(tokens, condition).unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        picture = values.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        return picture[:, : self.options.latent_channels]

    def positions(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the first block adds to `tokens` (B, N, D), in the form in which blocks hand on: a gate (B, D) of ones, positions.

        Under autocast the sum of all blocks is carried in the precision of what enters it here: bfloat16. Strides and gradients
        are those of later blocks, so that compiled code for one serves all.
        """
        parts = 6 if self.options.shift else 4
        gate = tokens.new_ones(len(tokens), parts * tokens.shape[2])[:, -tokens.shape[2] :]
        added = self.pos_embed.to(tokens.dtype).expand_as(tokens).contiguous()
        return gate.requires_grad_(tokens.requires_grad), added.requires_grad_(tokens.requires_grad)

    @classmethod
    def from_tensors(cls, options: DitOptions, tensors: Mapping[str, Tensor], where: Path) -> DiT:
        """A model around tensors by their published names, in float32, in eval mode and frozen, on the CPU.

        Nothing is copied that is in float32 already: mapped files stay mapped.

        Raises:
            ValueError: tensors that are missing, not known or of another shape, by name; `where` is the file to blame.
        """
        with torch.device("meta"):
            model = cls(options)
        expected = model.state_dict()
        missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
        if missing or unknown:
            raise ValueError(f"{where}: tensors missing: {listed(missing)}; not known: {listed(unknown)}.")
        for name, tensor in tensors.items():
            if tensor.shape != expected[name].shape:
                raise ValueError(f"{where}: {name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}.")
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        model.t_embedder.frequencies = time_frequencies()  # the one table that is not stored
        return model.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> DiT:
        """Read what `save_pretrained` wrote, in eval mode and frozen, on the CPU.

        Weights are mapped from the file, not copied. Checksums are compared where a manifest lies beside them.

        Raises:
            ValueError: a missing, cut or changed file, another kind of model, an option that is unknown or missing, or tensors
                that do not fit the options; each by name.
        """
        artifacts.verify_listed(Path(folder), FILES)
        file = Path(folder) / "config.json"
        config = artifacts.load_json(file)
        if not isinstance(config, dict):
            raise ValueError(f"{file} holds no table of options.")
        known = {field.name for field in fields(DitOptions)}
        if odd := sorted(known ^ set(config)):
            kind = f"model_type={config['model_type']!r}" if "model_type" in config else f"look at {listed(odd)}"
            raise ValueError(f"{file} does not describe a diffusion transformer of this project ({kind}).")
        try:
            options = DitOptions(**config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {error}") from None
        return cls.from_tensors(options, artifacts.load_tensors(Path(folder) / "model.safetensors"), Path(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors (published names) and config.json (the options), each whole or not at all.

        The configuration comes last, and one that was there goes first, so that it never describes other weights.
        """
        (Path(folder) / "config.json").unlink(missing_ok=True)
        artifacts.save_tensors(Path(folder) / "model.safetensors", self.state_dict())
        artifacts.save_json(Path(folder) / "config.json", asdict(self.options))


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first of many names, for an error."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"
