"""The classic convolutional autoencoder whose latent is a normal distribution held close to the standard one (arXiv 2112.10752).

diffusers' AutoencoderKL, trained here or by others, as one more tokenizer. Its folder is diffusers' own: `config.json` and
`diffusion_pytorch_model.safetensors`.

The latent of a picture is the mean of its distribution, as the networks give it. `scaling_factor`, `shift_factor`, `latents_mean`
and `latents_std` of a configuration are kept but never applied: latents are normalised by statistics that are counted over
them, which undoes any such map.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtp import artifacts, seeding
from vtp.config import TokenizerParams
from vtp.models.base import PixelDecoder, Tokenizer
from vtp.models.card import Card, render_convolutional
from vtp.models.pretrained import CARD, CONFIG, check_free
from vtp.models.tokenizer import normalize

log = logging.getLogger(__name__)

CLASS = "AutoencoderKL"
WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = (CONFIG, WEIGHTS)
"""What such a tokenizer is read from."""
SCALES = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
FREE = (*SCALES, "sample_size", "force_upcast")
"""Keys that trained weights do not depend on."""
Config = dict[str, Any]
"""The arguments of diffusers' AutoencoderKL, all of them."""


class ConvolutionalEncoder(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to features (B, D, h, w), and these to distributions of latents."""

    def __init__(self, trunk: Any, moments: nn.Module | None) -> None:
        super().__init__()
        self.trunk, self.quant_conv = trunk, moments

    def hidden(self, images: Tensor) -> Tensor:
        """Input of the trunk's last convolution."""
        return _through(self.trunk, self.trunk.down_blocks, images, first=True)

    def moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance, (B, C, h, w) each."""
        found = self.trunk.conv_out(hidden)
        mean, log_variance = (found if self.quant_conv is None else self.quant_conv(found)).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)


class ConvolutionalDecoder(PixelDecoder):
    """Latents to pictures. diffusers paints in [-1, 1]; what comes out here is ImageNet-normalised, as all decoders' pictures."""

    def __init__(self, trunk: Any, first: nn.Module | None) -> None:
        super().__init__()
        self.trunk, self.post_quant_conv = trunk, first

    def hidden(self, latents: Tensor) -> Tensor:
        """Input of the trunk's last convolution, (B, D, H, W)."""
        latents = latents if self.post_quant_conv is None else self.post_quant_conv(latents)
        return _through(self.trunk, self.trunk.up_blocks, latents, first=False)

    @property
    def last(self) -> nn.Conv2d:
        return self.trunk.conv_out

    def arranged(self, output: Tensor) -> Tensor:
        return normalize((output + 1) / 2)


def _through(trunk: Any, blocks: nn.ModuleList, x: Tensor, *, first: bool) -> Tensor:
    """A trunk of diffusers up to its last convolution; the blocks that change resolution come first, or the middle does."""
    x = trunk.conv_in(x)
    x = x if first else trunk.mid_block(x)
    for block in blocks:
        x = block(x)
    x = trunk.mid_block(x) if first else x
    return trunk.conv_act(trunk.conv_norm_out(x))


class ConvolutionalTokenizer(Tokenizer):
    """See the module.

    >>> tokenizer = ConvolutionalTokenizer.from_pretrained("/weights/sd-vae-ft-mse")
    >>> latents = tokenizer.encode(pixels)         # (B, 3, H, W) in [0, 1] -> (B, C, H/p, W/p)
    >>> pixels = tokenizer.decode(latents)         # back, unclamped

    Args:
        network: a diffusers AutoencoderKL, whose parts are taken over.
        config: what it was built with.
    """

    def __init__(self, network: Any, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConvolutionalEncoder(network.encoder, network.quant_conv)
        self.decoder = ConvolutionalDecoder(network.decoder, network.post_quant_conv)

    @classmethod
    def new(cls, params: TokenizerParams, image_size: int, seed: int) -> ConvolutionalTokenizer:
        """A fresh one; its weights are drawn as diffusers draws them, a function of `seed` alone."""
        config = config_of(params, image_size)
        with seeding.forked(seed, "tokenizer", "convolutional"):
            return cls(_class()(**config), config)

    @property
    def image_size(self) -> int:
        size = self.config["sample_size"]
        return size if isinstance(size, int) else size[0]

    @property
    def downsample(self) -> int:
        return 2 ** (len(self.config["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        return self.config["latent_channels"]

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of the latent of pictures: mean and logarithm of the variance, (B, C, h, w) each.

        Raises:
            ValueError: not a float picture batch, or sides that are no multiple of the downsampling factor.
        """
        return self.encoder.moments(self._hidden(pixels))

    def encode(self, pixels: Tensor) -> Tensor:
        """See `Tokenizer`: the means.

        Raises:
            ValueError: as `posterior`.
        """
        return self.posterior(pixels)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """See `Tokenizer`.

        Raises:
            ValueError: no floats, or another number of channels than the tokenizer's.
        """
        self._check_latents(latents)
        return (self.decoder.last(self.decoder.hidden(latents.to(self.decoder.last.weight.dtype))) + 1) / 2

    def pooled(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `Tokenizer`. There is no class token: the trunk's vector is the mean of its last features (B, D)."""
        hidden = self._hidden(pixels)
        return {"trunk": hidden.mean((2, 3)), "bottleneck": self.encoder.moments(hidden)[0].mean((2, 3))}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ConvolutionalTokenizer:
        """Read a diffusers folder, in eval mode and frozen, on the CPU and in float32. Nothing is fetched, nothing unpickled.

        Raises:
            ValueError: another class, unknown keys, a missing or changed file, missing, extra or ill-shaped tensors; by name.
        """
        path = Path(folder)
        config = read_config(path)
        artifacts.verify_listed(path, FILES)
        if not (path / WEIGHTS).is_file():
            raise ValueError(f"{path / WEIGHTS} is missing; save the weights as safetensors, in one file and without a variant.")
        scaled = [f"{name}={config[name]}" for name in SCALES if config[name] not in (None, 1, 1.0)]
        if scaled:
            log.info("%s: %s not applied: latents are normalised by their own statistics", path, ", ".join(scaled))
        return cls(_load(path, config), config).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | Path, card: Card | None = None) -> None:
        """Write a folder that diffusers reads, and a model card. It appears whole or not at all.

        Raises:
            ValueError: the folder exists and holds other things.
        """
        path = Path(folder).absolute()
        check_free(path, (*FILES, CARD, artifacts.MANIFEST))
        with torch.device("meta"):
            network = _class()(**self.config)
        network.encoder, network.quant_conv = self.encoder.trunk, self.encoder.quant_conv
        network.decoder, network.post_quant_conv = self.decoder.trunk, self.decoder.post_quant_conv
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in self.named_children()}
        with artifacts.folder_aside(path) as aside:
            network.save_config(aside)
            artifacts.save_tensors(aside / WEIGHTS, network.state_dict(), ("format", "pt"))
            text = render_convolutional(card or Card(), self.image_size, self.downsample, self.latent_channels, counts)
            (aside / CARD).write_text(text, encoding="utf-8")

    def _hidden(self, pixels: Tensor) -> Tensor:
        self._grid(pixels)
        return self.encoder.hidden((2 * pixels - 1).to(self.decoder.last.weight.dtype))


def config_of(params: TokenizerParams, image_size: int) -> Config:
    """The configuration of a tokenizer trained here: a resolution for each halving, and the picture's own.

    Norms have groups of at least four channels, 32 groups at most, which is diffusers' number at 128 channels and more.
    """
    form = params.convolutional
    channels = [form.width * 2 ** min(i, form.doublings) for i in range(params.patch.bit_length())]
    return _filled(
        {
            "block_out_channels": channels,
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels),
            "layers_per_block": form.blocks,
            "latent_channels": params.latent_channels,
            "norm_num_groups": math.gcd(form.width // 4, 32),
            "sample_size": image_size,
            "scaling_factor": 1.0,
        }
    )


def read_config(folder: Path) -> Config:
    """The configuration in a folder, what it leaves out filled in.

    Raises:
        ValueError: of another class, or with keys that the installed diffusers does not know; or it paints no colour pictures.
    """
    file = folder / CONFIG
    stored = artifacts.load_json(file)
    if stored.get("_class_name") != CLASS:
        raise ValueError(f"{file}: _class_name is {stored.get('_class_name')}; of diffusers' autoencoders {CLASS} is read here.")
    given = {key: value for key, value in stored.items() if not key.startswith("_")}
    if unknown := sorted(given.keys() - _filled({}).keys()):
        raise ValueError(f"{file}: the installed diffusers does not know {', '.join(unknown)}; bring it up to date.")
    config = _filled(given)
    if (colours := (config["in_channels"], config["out_channels"])) != (3, 3):
        raise ValueError(f"{file}: in_channels and out_channels are {colours[0]} and {colours[1]}; pictures have 3.")
    levels = {len(config[name]) for name in ("block_out_channels", "down_block_types", "up_block_types")}
    if len(levels) > 1:
        raise ValueError(f"{file}: block_out_channels, down_block_types and up_block_types must be equally long.")
    return config


def differences(wanted: Config, given: Config) -> list[str]:
    """In what the weights of `given` are not those of a network of the form `wanted`, a phrase each; empty if they fit."""
    return [
        f"{key} ({given[key]}, not {value})"
        for key, value in wanted.items()
        if key not in FREE and _plain(given[key]) != _plain(value)
    ]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _filled(given: Mapping[str, Any]) -> Config:
    """A configuration with diffusers' defaults where nothing is given."""
    known = list(inspect.signature(_class().__init__).parameters.values())[1:]
    return {p.name: _plain(p.default) for p in known} | dict(given)


def _load(path: Path, config: Config) -> Any:
    with seeding.forked(0, "unused"):  # diffusers draws weights first and loads the file over them
        try:
            network, report = _class().from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                torch_dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # whatever a configuration or a file that cannot be makes it raise
            raise ValueError(f"{path}: diffusers cannot read it: {' '.join(str(error).split())}") from None
    wrong = [
        f"{what}: {', '.join(sorted(map(str, report[key])))}"
        for key, what in (("missing_keys", "missing"), ("unexpected_keys", "not known"), ("mismatched_keys", "of another shape"))
        if report[key]
    ]
    if wrong:
        raise ValueError(f"{path}: the tensors are not those of {CONFIG}; {'; '.join(wrong)}.")
    return network


def _class() -> type[Any]:
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            f"a convolutional tokenizer needs diffusers, which cannot be imported ({error}); `pip install diffusers`."
        ) from None
    return AutoencoderKL
