"""Checkpoints of LightningDiT (arXiv 2501.01423) in and out: `.pt` files of its training script.

Such a file is a dictionary with the weights under `ema` (the average, which is what one samples from) and `model`, beside the
optimizer's state and settings that nobody needs here. Names and shapes say almost everything about the architecture, so no
settings are asked for; what they cannot always say, the number of heads, is looked up among the published sizes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtp.artifacts import aside, load_pickled
from vtp.models.dit import DiT, listed
from vtp.models.dit_blocks import DitOptions, hidden_width

log = logging.getLogger(__name__)

SIZES = {"B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16), "1p0B": (1536, 24, 24), "1p6B": (1792, 28, 28)}
"""Width, depth and heads of the published sizes."""


def size_name(options: DitOptions) -> str | None:
    """`XL/1`, say: the published name of a size and its patch, None for a size of one's own."""
    shape = (options.width, options.depth, options.heads)
    return next((f"{name}/{options.patch}" for name, size in SIZES.items() if size == shape), None)


def open_dit(path: Path, heads: int | None = None) -> DiT:
    """A diffusion transformer from a folder of this project or a LightningDiT checkpoint, in eval mode and frozen, on the CPU.

    Raises:
        ValueError: as `DiT.from_pretrained` and `load_checkpoint` do.
    """
    return DiT.from_pretrained(path) if path.is_dir() else load_checkpoint(path, heads)


def load_checkpoint(path: Path, heads: int | None = None) -> DiT:
    """Read a `.pt` file of LightningDiT's training script, in float32, in eval mode and frozen, on the CPU.

    The file is mapped, not read at once. The average (`ema`) is taken where there is one, `model` else; a bare dictionary of
    tensors is taken as it is. What wrappers add to the names (`module.`, `_orig_mod.`) is removed.

    Args:
        heads: of the attention; needed only for a size that is not published and has neither rotary positions nor normalised
            queries, whose tables tell it.

    Raises:
        ValueError: no whole file of torch.save, one that holds other objects than tensors (it is not opened), or tensors that are
            not a LightningDiT's, by name.
    """
    content: Any = load_pickled(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights.")
    entry = next((name for name in ("ema", "model") if name in content), None)
    weights = content if entry is None else content[entry]
    log.info("%s: taking the weights under %s", path, repr(entry) if entry else "no name of their own")
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{path} holds no weights under {entry!r}; expected a dictionary of tensors under 'ema' or 'model'.")
    tensors = {_plain(name): value for name, value in weights.items()}
    return DiT.from_tensors(infer_options(tensors, path, heads), tensors, path)


def save_checkpoint(model: DiT, path: Path) -> None:
    """Write a file that LightningDiT's scripts load: the same weights under `ema` and `model`."""
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    with aside(path) as temporary, temporary.open("wb") as file:  # given a path, torch.save would write its name into the archive
        torch.save({"ema": weights, "model": weights}, file)


def constructor_arguments(options: DitOptions) -> dict[str, int | float | bool]:
    """The arguments LightningDiT's own class is built with, for a checkpoint of these options."""
    return {
        "input_size": options.grid,
        "patch_size": options.patch,
        "in_channels": options.latent_channels,
        "hidden_size": options.width,
        "depth": options.depth,
        "num_heads": options.heads,
        "mlp_ratio": options.mlp_ratio,
        "num_classes": options.num_classes,
        "use_qknorm": options.qk_norm,
        "use_swiglu": options.swiglu,
        "use_rope": options.rope,
        "use_rmsnorm": options.rmsnorm,
        "wo_shift": not options.shift,
        "learn_sigma": options.learn_sigma,
    }


def infer_options(tensors: Mapping[str, Tensor], where: Path, heads: int | None = None) -> DitOptions:
    """The architecture that names and shapes of published tensors tell.

    Raises:
        ValueError: tensors that every LightningDiT has are missing, or shapes that none has; named, with `where` to blame.
    """
    needed = (
        "x_embedder.proj.weight",
        "pos_embed",
        "y_embedder.embedding_table.weight",
        "blocks.0.adaLN_modulation.1.weight",
        "final_layer.linear.weight",
    )
    gated, plain = "blocks.0.mlp.w3.weight", "blocks.0.mlp.fc2.weight"
    missing = [name for name in needed if name not in tensors]
    if missing or (gated not in tensors and plain not in tensors):
        raise ValueError(f"{where} is not a LightningDiT; it lacks {listed([*missing, *([] if missing else [gated])])}.")
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    tokens = tensors["pos_embed"].shape[1]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise ValueError(f"{where}: pos_embed has {tokens} positions, which are no square; other grids are not supported.")
    swiglu = gated in tensors
    hidden = tensors[gated if swiglu else plain].shape[1]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    outputs = tensors["final_layer.linear.weight"].shape[0]
    return DitOptions(
        latent_channels=channels,
        grid=side * patch,
        patch=patch,
        width=width,
        depth=depth,
        heads=_heads(tensors, width, depth, heads, where),
        mlp_ratio=_mlp_ratio(width, hidden, swiglu, where),
        num_classes=tensors["y_embedder.embedding_table.weight"].shape[0] - 1,
        qk_norm="blocks.0.attn.q_norm.weight" in tensors,
        swiglu=swiglu,
        rope="feat_rope.freqs_cos" in tensors,
        rmsnorm="blocks.0.norm1.weight" in tensors,
        shift=tensors["blocks.0.adaLN_modulation.1.weight"].shape[0] == 6 * width,
        learn_sigma=outputs == 2 * channels * patch * patch,
    )


def _plain(name: str) -> str:
    return name.replace("_orig_mod.", "").removeprefix("module.")


def _heads(tensors: Mapping[str, Tensor], width: int, depth: int, given: int | None, where: Path) -> int:
    """Heads, told by a tensor of one head's width, by the published sizes, or by the caller."""
    for name in ("feat_rope.freqs_cos", "blocks.0.attn.q_norm.weight"):
        if name in tensors:
            told = width // tensors[name].shape[-1]
            if given not in (None, told):
                raise ValueError(f"{where} has {told} heads by {name}, not {given}; leave heads out.")
            return told
    published = next((heads for size, layers, heads in SIZES.values() if (size, layers) == (width, depth)), None)
    if (found := given or published) is None:
        raise ValueError(
            f"{where} does not tell its heads, and width {width} with depth {depth} is no published size; give heads."
        )
    return found


def _mlp_ratio(width: int, hidden: int, swiglu: bool, where: Path) -> float:
    """The roundest ratio of feed-forward to width that gives a hidden width of `hidden`: 4 rather than 3.999."""
    middle = (1.5 * hidden + 1.25) / width if swiglu else (hidden + 0.5) / width
    for digits in range(10):
        if hidden_width(width, ratio := round(middle, digits), swiglu) == hidden:
            return ratio
    raise ValueError(f"{where}: no mlp_ratio gives a hidden width of {hidden} at width {width}.")
