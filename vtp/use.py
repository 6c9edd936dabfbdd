"""What one does with trained models and a handful of pictures: look inside, reconstruct, classify, generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from vtp import sampling, seeding
from vtp.artifacts import MANIFEST, digest, load_json
from vtp.config import SampleParams
from vtp.data.latents import carries_statistics, load_statistics
from vtp.data.pictures import Unusable, centre_crop, decode
from vtp.data.shards import ClassInfo
from vtp.evaluation import decoded, prompt_features, speechless
from vtp.metrics.reconstruction import psnr
from vtp.metrics.understanding import zero_shot_classifier
from vtp.models.base import Tokenizer
from vtp.models.dit import DiT
from vtp.models.dit_blocks import DitOptions
from vtp.models.kinds import holds_tokenizer, open_tokenizer
from vtp.models.lightningdit import open_dit, size_name
from vtp.models.options import misread
from vtp.models.tokenizer import VisualTokenizer
from vtp.tracking import flatten


def inside(path: Path) -> dict[str, str]:
    """What lies in a folder, a tokenizer or a diffusion transformer: what it is, its parts, and its options as they are stored.

    Args:
        path: the folder, or a LightningDiT checkpoint.

    Raises:
        ValueError: there is neither, or what is there is broken.
    """
    if not path.exists():
        raise ValueError(f"{path} is not there; give the folder of a tokenizer or a diffusion transformer, or --hub and a name.")
    file = path / "config.json"
    if path.is_dir() and not file.is_file():
        raise ValueError(f"{file} is missing, so this is the folder of neither a tokenizer nor a diffusion transformer.")
    config = {} if path.is_file() else load_json(file)
    if holds_tokenizer(config):
        tokenizer = open_tokenizer(path)
        facts, parts = _described(tokenizer), dict(tokenizer.named_children())
    else:
        model = open_dit(path)
        facts, parts, config = _described_dit(model.options, path), {"transformer": model}, asdict(model.options)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    facts |= {f"{name} parameters": f"{count:,}" for name, count in counts.items()}
    return facts | {name: str(value) for name, value in flatten(config, ".").items()}


def _described_dit(options: DitOptions, path: Path) -> dict[str, str]:
    """A diffusion transformer in a few words."""
    size = size_name(options)
    return {
        "what": f"diffusion transformer{f' {size}' if size else ''} for {options.num_classes} classes",
        "latents": f"{options.latent_channels} x {options.grid} x {options.grid}",
        "statistics": "its own" if carries_statistics(path) else "none; it needs those of the latents it was trained on",
    }


def _described(tokenizer: Tokenizer) -> dict[str, str]:
    """A tokenizer in a few words."""
    factor, channels, side = tokenizer.downsample, tokenizer.latent_channels, tokenizer.image_size
    grid = side // factor
    visual = isinstance(tokenizer, VisualTokenizer)
    facts = {
        "what": f"{'visual' if visual else 'convolutional'} tokenizer f{factor}d{channels}",
        "latents": f"{channels} x {grid} x {grid} of a picture of {side} x {side} pixels, its training size",
        "captions": "trained without",
    }
    if isinstance(tokenizer, VisualTokenizer):
        if text := tokenizer.options.text:
            facts["captions"] = f"{text.context_length} ids of {text.vocabulary:,}"
        if odd := misread(tokenizer.options):
            facts["elsewhere"] = f"the published inference code would decode it wrongly: {'; '.join(odd)}"
    return facts


def measured(data: Path, reports: Path) -> dict[str, float | None]:
    """What the evaluation found on held-out pictures of the tokenizer in `data`/finetune_decoder, by name.

    Raises:
        ValueError: there is no evaluation, or it is another tokenizer's.
    """
    evaluated = load_json(data / "evaluate_tokenizer" / MANIFEST).get("evaluated")
    if evaluated != digest(data / "finetune_decoder" / MANIFEST):
        raise ValueError("the evaluation is of another tokenizer; `dvc repro evaluate_tokenizer` measures this one.")
    return {name: value for name, value in load_json(reports / "tokenizer.json").items() if not name.endswith("_before_gan")}


def read_pictures(files: Sequence[Path], size: int) -> Tensor:
    """Pictures of files, their central squares at `size` pixels: (B, 3, S, S) floats in [0, 1].

    Raises:
        ValueError: naming the file that is missing or no picture.
    """
    pictures = []
    for file in files:
        try:
            square = centre_crop(decode(file.read_bytes() if file.is_file() else None), size)
        except Unusable as error:
            raise ValueError(f"{file} cannot be read as a picture ({error}); give a PNG, JPEG or WebP.") from None
        pictures.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3))
    return torch.stack(pictures).permute(0, 3, 1, 2) / 255


@torch.inference_mode()
def reconstructed(tokenizer: Tokenizer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [0, 1] through the tokenizer and back, clamped; and the PSNR of each in dB, (B,)."""
    back = tokenizer.decode(tokenizer.encode(pixels)).clamp(0, 1)
    return back, psnr(back, pixels)


@torch.inference_mode()
def classified(tokenizer: Tokenizer, pixels: Tensor, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Probability of every label for every picture by zero-shot prompts: (B, labels), rows sum to 1.

    Raises:
        ValueError: the tokenizer cannot be asked in words.
    """
    if (reason := speechless(tokenizer)) is not None:
        raise ValueError(f"{reason}, so it cannot classify by words.")
    assert isinstance(tokenizer, VisualTokenizer)
    prompts = prompt_features(labels, templates, tokenizer, torch.device("cpu"))
    scores = tokenizer.logit_scale.exp() * tokenizer.encode_image(pixels) @ zero_shot_classifier(prompts).T
    return scores.softmax(dim=1)


def class_number(label: str, classes: Sequence[ClassInfo]) -> int:
    """The class called `label`, or the class of that number.

    Raises:
        ValueError: there is none; with the names that come nearest.
    """
    import difflib

    names = [entry.name for entry in classes]
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < len(names):
        return int(label)
    near = difflib.get_close_matches(label, names, n=5, cutoff=0.3) or names[:5]
    raise ValueError(f"there is no class {label!r} among {len(names)}; near are {', '.join(near)}.")


@torch.inference_mode()
def generated(data: Path, numbers: Sequence[int], params: SampleParams, seed: int) -> Tensor:
    """A picture of each of these classes from the diffusion transformer and the decoder below `data`.

    Returns:
        uint8 (n, 3, H, W); the same for equal arguments.
    """
    model = DiT.from_pretrained(data / "train_dit")
    mean, std = load_statistics(data / "train_dit")
    tokenizer = open_tokenizer(data / "finetune_decoder")
    options = model.options
    shape = (options.latent_channels, options.grid, options.grid)
    noise = torch.stack([torch.randn(shape, generator=seeding.generator(seed, "generate", i)) for i in range(len(numbers))])
    labels = torch.tensor(numbers)
    latents, _ = sampling.draw(model, noise, labels, options.num_classes, params)
    return decoded(tokenizer.decode, latents * std + mean, params.batch, torch.device("cpu"))
