"""The model card beside a tokenizer: README.md with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vtp.models.options import TokenizerOptions, misread


@dataclass(frozen=True)
class Card:
    """What a card says beyond the tokenizer's options.

    Attributes:
        origin: one sentence: where the weights come from.
        license: identifier as the Hub knows it; `other` where the weights are somebody else's or nobody said.
        metrics: measured numbers by name, null ones left out; none at all is said in words.
    """

    origin: str = "Saved with `VisualTokenizer.save_pretrained`; nothing is recorded about its training."
    license: str = "other"
    metrics: Mapping[str, float | int | None] = field(default_factory=dict)

    @classmethod
    def of_pipeline(cls, given: bool, where: str, numbers: Mapping[str, float | int | None]) -> Card:
        """The card of a tokenizer from this project's pipeline.

        Args:
            given: whether its weights began as somebody else's; then theirs is the license, and nobody here knows it.
            where: what the numbers are of: a training (at its last step), or held-out pictures.
        """
        begun = " It began with weights from outside, whose terms hold for it." if given else ""
        origin = f"Made by the pipeline of Open VTP.{begun}"
        measured = {f"{where}: {name}": value for name, value in numbers.items() if not name.endswith("gradient_norm")}
        return cls(origin, "other" if given else "apache-2.0", measured)


def render(card: Card, options: TokenizerOptions, parameters: Mapping[str, int]) -> str:
    """README.md as text; equal arguments give equal bytes.

    Args:
        parameters: number of parameters of each part.
    """
    encoder, text = options.encoder, options.text
    name = f"f{encoder.patch}d{encoder.latent_channels}"
    tags = ["visual-tokenizer", "vtp", "image-tokenizer", *(["image-text-contrast"] if text else [])]
    front = ["---", f"license: {card.license}", "library_name: open-vtp", "pipeline_tag: image-feature-extraction", "tags:"]
    front += [*(f"- {tag}" for tag in tags), "---"]
    does = ["understands (class token and patch tokens)"]
    does += ["matches pictures with captions"] if text else []
    does += ["rebuilds pictures from its latents"] if options.decoder else []
    lines = [
        *front,
        "",
        f"# Visual tokenizer {name}",
        "",
        f"One encoder that {', '.join(does)}; VTP (*Visual Tokenizer Pre-training*, arXiv 2512.13687). {card.origin}",
        "",
        "| | |",
        "|---|---|",
        f"| latents of an H x W picture | {encoder.latent_channels} x H/{encoder.patch} x W/{encoder.patch} |",
        f"| trained at | {options.image_size} x {options.image_size} pixels |",
        f"| RoPE in | {encoder.block.rope} |",
        *(f"| parameters, {part} | {count:,} |" for part, count in parameters.items()),
        "",
        "```python",
        "from vtp import VisualTokenizer",
        "",
        'tokenizer = VisualTokenizer.from_pretrained("this folder")',
        "latents = tokenizer.encode(pixels)  # floats in [0, 1], (B, 3, H, W)",
        "```",
        "",
        *_measured(card),
    ]
    lines += ["", "## Reading it elsewhere", "", *_elsewhere(options), ""]
    return "\n".join(lines)


def render_convolutional(card: Card, image_size: int, factor: int, channels: int, parameters: Mapping[str, int]) -> str:
    """README.md of a convolutional autoencoder as text; equal arguments give equal bytes."""
    lines = [
        *("---", f"license: {card.license}", "library_name: diffusers", "tags:", "- image-tokenizer", "- vae", "---", ""),
        f"# Convolutional KL autoencoder f{factor}d{channels}",
        "",
        f"diffusers' `AutoencoderKL` (arXiv 2112.10752). {card.origin}",
        "",
        "| | |",
        "|---|---|",
        f"| latents of an H x W picture | {channels} x H/{factor} x W/{factor} |",
        f"| trained at | {image_size} x {image_size} pixels |",
        *(f"| parameters, {part} | {count:,} |" for part, count in parameters.items()),
        "",
        "```python",
        "from diffusers import AutoencoderKL",
        "",
        'network = AutoencoderKL.from_pretrained("this folder")',
        "latents = network.encode(2 * pixels - 1).latent_dist.mode()  # floats in [0, 1], (B, 3, H, W)",
        "```",
        "",
        "Whatever `scaling_factor` says, what was measured here was measured on latents as they are, normalised by the mean and",
        "deviation of each channel.",
        "",
        *_measured(card),
        "",
    ]
    return "\n".join(lines)


def _measured(card: Card) -> list[str]:
    measured = {key: value for key, value in card.metrics.items() if value is not None}
    table = ["| | |", "|---|---|", *(f"| {key} | {_plain(value)} |" for key, value in measured.items())]
    return ["## Measured", "", *(table if measured else ["No number was known when these files were written."])]


def _plain(value: float | int) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _elsewhere(options: TokenizerOptions) -> list[str]:
    wrong = misread(options)
    if wrong:
        return [f"The published inference code would decode it wrongly: {'; '.join(wrong)}."]
    lines = ["The files have the layout of the published VTP weights, and the published inference code reads them."]
    if options.encoder.block.rope == "float32":
        lines += ["It applies RoPE in bfloat16, this tokenizer was trained in float32: expect differences of about 1e-3."]
    return lines
