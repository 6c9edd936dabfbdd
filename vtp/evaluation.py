"""A trained tokenizer and its samples held against pictures: what the metrics are computed from, and under which names.

Numbers in Inception's features are called FID; in the metric network's they are Frechet distances, `rfd` and `gfd`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vtp.config import EvaluateParams
from vtp.data.captions import VOCABULARY, expand_templates, tokenize
from vtp.data.shards import Prepared, Split
from vtp.metrics.features import extract
from vtp.metrics.generation import Describe, Described, compare, frechet, inception
from vtp.metrics.reconstruction import psnr, ssim
from vtp.metrics.understanding import (
    accuracy,
    factor_accuracy,
    linear_probe,
    zero_shot_classifier,
    zero_shot_predictions,
)
from vtp.models.base import Tokenizer
from vtp.models.metric_network import MetricNetwork
from vtp.models.tokenizer import VisualTokenizer

log = logging.getLogger(__name__)

Values = dict[str, float | int | None]


def describer(features: str, folder: Path, device: torch.device) -> Describe | None:
    """The network in whose features pictures are compared: the one trained here, or Inception from disk.

    None where there is neither, because the data has no labels to train one on; distances between sets are left out then.
    """
    if features == "inception":
        return inception(device)
    if not (folder / "config.json").exists():
        log.warning(
            "no Frechet distances, precision, recall: the data has no labels to train a metric network on; "
            "evaluate.features=inception needs none"
        )
        return None
    return MetricNetwork.from_pretrained(folder).to(device).describe


def understanding(tokenizer: Tokenizer, data: Prepared, params: EvaluateParams, device: torch.device, seed: int) -> Values:
    """Zero-shot and linear-probe accuracy on the validation pictures, each also by factor where classes have factors.

    Probes read what the tokenizer pools: its trunk's vector, and its mean latent, all that a diffusion transformer is given.
    Zero-shot numbers are None for a tokenizer that cannot be asked in words, and all are for data without labels.
    """
    if not data.labelled:
        return {"num_classes": 0, **dict.fromkeys(("zero_shot_top1", "linear_probe_top1", "linear_probe_bottleneck_top1"))}
    classes = data.classes
    factors = sorted(classes[0].factors)
    values: Values = {"num_classes": len(classes)}
    values |= {f"num_{name}s": len({entry.factors[name] for entry in classes}) for name in factors}
    described = {split: _describe(tokenizer, getattr(data, split), params, device) for split in ("train", "validation")}
    truth = data.validation.labels

    def record(name: str, predicted: Tensor | None) -> None:
        values[f"{name}_top1"] = None if predicted is None else accuracy(predicted, truth)
        for factor in factors:
            by_class = [entry.factors for entry in classes]
            values[f"{name}_{factor}_top1"] = None if predicted is None else factor_accuracy(predicted, truth, by_class, factor)

    guessed = None
    if (reason := speechless(tokenizer)) is None:
        prompts = prompt_features([entry.name for entry in classes], params.templates, tokenizer, device)
        guessed = zero_shot_predictions(described["validation"]["image"], zero_shot_classifier(prompts))
    else:
        log.info("no zero-shot accuracy: %s", reason)
    record("zero_shot", guessed)
    for kind in ("trunk", "bottleneck"):
        train = described["train"][kind].to(device)
        labels = data.train.labels[_spread(data.train, params.probe.max_samples)].to(device)
        probe = linear_probe(train, labels, len(classes), params.probe, seed)
        record(
            "linear_probe" if kind == "trunk" else f"linear_probe_{kind}",
            probe.predict(described["validation"][kind].to(device)).cpu(),
        )
    return values


def _spread(split: Split, most: int) -> Tensor:
    """At most `most` rows of a split, evenly spread."""
    count = min(len(split), most)
    return torch.arange(count) * len(split) // count


def _describe(tokenizer: Tokenizer, split: Split, params: EvaluateParams, device: torch.device) -> dict[str, Tensor]:
    rows = _spread(split, params.probe.max_samples if split.name == "train" else len(split))
    widths: dict[str, int] = {}

    def features(pictures: Tensor) -> Tensor:
        parts = tokenizer.pooled(pictures / 255)
        widths.update({name: part.shape[1] for name, part in parts.items()})
        return torch.cat([part.float() for part in parts.values()], dim=1)

    table = extract(features, lambda i: split.image(int(rows[i])), len(rows), batch=params.batch, device=device)
    return dict(zip(widths, table.split(list(widths.values()), dim=1), strict=True))


def speechless(tokenizer: Tokenizer) -> str | None:
    """Why a tokenizer cannot be asked in words; None if it can."""
    if not isinstance(tokenizer, VisualTokenizer):
        return "the tokenizer is convolutional and has no text tower"
    text = tokenizer.options.text
    if text is None:
        return "the tokenizer was trained without captions"
    if text.vocabulary != VOCABULARY:
        return f"the tokenizer's text tower knows {text.vocabulary} caption ids, CLIP's vocabulary has {VOCABULARY}"
    return "the tokenizer's text tower does not pool" if text.pool == "none" else None


def prompt_features(names: Sequence[str], templates: Sequence[str], tokenizer: Tokenizer, device: torch.device) -> Tensor:
    """Text features of every class under every template: (classes, templates, T), on the CPU; see `expand_templates`."""
    assert isinstance(tokenizer, VisualTokenizer)
    assert tokenizer.options.text is not None
    templates = expand_templates(templates)
    texts = [template.format(name) for name in names for template in templates]
    tokens = tokenize(texts, tokenizer.options.text.context_length).to(device)
    features = torch.cat([tokenizer.encode_text(rows) for rows in tokens.split(1024)])
    return features.float().cpu().unflatten(0, (len(names), len(templates)))


def reconstruction(
    tokenizer: Tokenizer,
    split: Split,
    describe: Describe | None,
    distance: Callable[[Tensor, Tensor], Tensor],
    params: EvaluateParams,
    device: torch.device,
) -> Values:
    """PSNR (dB), SSIM, perceptual distance and Frechet distance of decoded pictures to all pictures of a split, unrounded.

    The Frechet distance is None without a network to `describe` pictures.
    """

    def measure(pictures: Tensor) -> Tensor:
        pixels = pictures / 255
        decoded = tokenizer.decode(tokenizer.encode(pixels)).float().clamp(0, 1)
        with unrounded(device):
            each = torch.stack([psnr(decoded, pixels), ssim(decoded, pixels), distance(2 * decoded - 1, 2 * pixels - 1)], dim=1)
            features = [describe(shown)[0] for shown in (pictures, to_uint8(decoded))] if describe else []
            return torch.cat([each, *features], dim=1)

    table = extract(measure, split.image, len(split), batch=params.batch, device=device)
    width = (table.shape[1] - 3) // 2
    means = table[:, :3].double().mean(0).tolist()
    return {
        "psnr": means[0],
        "ssim": means[1],
        "distance": means[2],
        "rfid" if params.features == "inception" else "rfd": (
            frechet(table[:, 3 : 3 + width], table[:, 3 + width :]) if describe else None
        ),
    }


def unrounded(device: torch.device) -> torch.autocast:
    """What measures works in float32 whatever the measured networks work in.

    SSIM takes variances as differences: in bfloat16 it comes out above 1.
    """
    return torch.autocast(device.type, enabled=False)


def decoded(decode: Callable[[Tensor], Tensor], latents: Tensor, batch: int, device: torch.device) -> Tensor:
    """Latents (n, C, h, w) as 8-bit pictures: uint8 (n, 3, H, W) on the CPU. `decode` is that of a tokenizer on `device`."""
    return torch.cat([to_uint8(decode(rows.to(device)).float()).cpu() for rows in latents.split(batch)])


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1], clamped and rounded to the nearest of 256 levels."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


def seen(
    describe: Describe,
    paint: Callable[[Tensor], Tensor],
    item: Callable[[int], Tensor],
    count: int,
    params: EvaluateParams,
    device: torch.device,
) -> Described:
    """A set as a network sees it, `evaluate.batch` pictures at a time; ranks share the work, and no more pictures are kept.

    Args:
        paint: items (b, ...) on `device` -> pictures uint8 (b, 3, H, W).
        item: index -> what is painted: a latent, or a picture already.
    """
    widths: list[int] = []

    def rows(items: Tensor) -> Tensor:
        pictures = paint(items)
        with unrounded(device):
            both = describe(pictures)
        widths[:] = [part.shape[1] for part in both]
        return torch.cat(both, dim=1)

    table = extract(rows, item, count, batch=params.batch, device=device)
    return Described(*table.split(widths, dim=1))


def generation(
    latents: Mapping[str, Tensor],
    paint: Callable[[Tensor], Tensor],
    split: Split,
    describe: Describe | None,
    params: EvaluateParams,
    device: torch.device,
) -> Values:
    """Distances of decoded samples to as many real pictures, evenly spread over a split.

    Args:
        latents: (n, C, h, w) on the CPU, by name: `samples`; `gaussian`, noise with the latents' channel statistics, and where it
            was asked for `unguided`, the same noises drawn without guidance. Of these two the Frechet distance alone is taken.
        paint: latents on `device` -> pictures uint8 (b, 3, H, W).
        describe: the network that sees the pictures; without one every distance is None.

    Raises:
        ValueError: the split has fewer pictures.
    """
    count = len(latents["samples"])
    found: Mapping[str, float | None] = dict.fromkeys(("frechet", "score", "precision", "recall", "kid"))
    distances: dict[str, float | None] = dict.fromkeys(latents)
    if describe is not None:
        if len(split) < count:
            have = f"evaluate.reference={params.reference} has {len(split)} pictures"
            raise ValueError(f"sample.samples={count}, but {have}; take as many of both.")
        spread = _spread(split, count)
        reference = seen(describe, lambda pictures: pictures, lambda i: split.image(int(spread[i])), count, params, device)
        sets = {name: seen(describe, paint, rows.__getitem__, count, params, device) for name, rows in latents.items()}
        found = compare(sets["samples"], reference, device)
        distances |= {name: frechet(own.features, reference.features) for name, own in sets.items() if name != "samples"}
    name = "gfid" if params.features == "inception" else "gfd"
    return {
        name: found["frechet"],
        **{f"{name}_{other}": distances[other] for other in latents if other != "samples"},
        "inception_score" if params.features == "inception" else "inception_style_score": found["score"],
        "precision": found["precision"],
        "recall": found["recall"],
        "kid": found["kid"],
        "samples": count,
    }
