"""What each headline number means, how it is written, and the whole of them as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Value = float | int | str | bool | None
Summary = Mapping[str, Value]

NOTHING = "—"
"""Stands for null: not measured, or without meaning for this data."""


@dataclass(frozen=True)
class Metric:
    """One number of the summary.

    Attributes:
        spec: how the number is formatted.
        unit: written after the number; "%" turns a fraction in [0, 1] into per cent, and has the page draw a bar.
        higher: True when higher is better.
        classes: key of the summary that counts the classes, so that guessing is right once in that many.
        rival: key of the number to hold this one against, and what to call it.
    """

    key: str
    label: str
    explanation: str
    spec: str
    unit: str = ""
    higher: bool = True
    classes: str | None = None
    rival: tuple[str, str] | None = None

    def text(self, value: Value) -> str:
        """The value as it is shown, with its unit."""
        if value is None or isinstance(value, str | bool):
            return plain(value)
        number = format(100 * value if self.unit == "%" else value, self.spec)
        return f"{number} {self.unit}".rstrip()

    def chance(self, summary: Summary) -> float | None:
        """Accuracy of guessing, a fraction; None where the number of classes is not known."""
        count = summary.get(self.classes) if self.classes else None
        return 1 / count if isinstance(count, int) and count > 0 else None

    def against(self, summary: Summary) -> str:
        """What to hold the value against: "chance 2.1 %" or "before GAN 25.02 dB"; empty if there is nothing."""
        chance = self.chance(summary)
        if chance is not None:
            return f"chance {self.text(chance)}"
        if self.rival and summary.get(self.rival[0]) is not None:
            return f"{self.rival[1]} {self.text(summary[self.rival[0]])}"
        return ""


def _accuracy(key: str, label: str, explanation: str, *, classes: str | None = None) -> Metric:
    return Metric(key, label, explanation, ".1f", "%", classes=classes)


def _pair(key: str, label: str, explanation: str, spec: str, unit: str = "", *, higher: bool) -> Metric:
    """A number that exists with the pre-trained decoder (`..._before_gan`) and with the fine-tuned one."""
    return Metric(key, label, explanation, spec, unit, higher, rival=(f"{key}_before_gan", "before GAN"))


@dataclass(frozen=True)
class Group:
    title: str
    explanation: str
    metrics: tuple[Metric, ...]


GROUPS = (
    Group(
        "Understanding",
        "What the encoder knows about pictures it never saw: from captions alone (zero-shot), and with a linear layer "
        "on its frozen features (probe).",
        (
            _accuracy(
                "zero_shot_top1", "Zero-shot, class", "Nearest class by its caption; no label was seen.", classes="num_classes"
            ),
            _accuracy("zero_shot_colour_top1", "Zero-shot, colour", "Nearest colour by its caption.", classes="num_colours"),
            _accuracy("zero_shot_shape_top1", "Zero-shot, shape", "Nearest shape by its caption.", classes="num_shapes"),
            _accuracy(
                "linear_probe_top1",
                "Linear probe, trunk",
                "Class, from the features before the bottleneck.",
                classes="num_classes",
            ),
            _accuracy(
                "linear_probe_bottleneck_top1",
                "Linear probe, bottleneck",
                "Class, from the latents the generator learns.",
                classes="num_classes",
            ),
            _accuracy(
                "linear_probe_shape_top1",
                "Linear probe, shape",
                "Shape, from the features before the bottleneck.",
                classes="num_shapes",
            ),
        ),
    ),
    Group(
        "Reconstruction",
        "How close decode(encode(picture)) comes to the picture. The adversarial fine-tuning of the decoder (GAN) usually "
        "gives away a little pixel fidelity for pictures that look real.",
        (
            _pair("psnr", "PSNR", "Peak signal-to-noise ratio: fidelity of single pixels.", ".2f", "dB", higher=True),
            _pair("ssim", "SSIM", "Structural similarity: fidelity of local patterns; 1 is perfect.", ".3f", higher=True),
            _pair("rfd", "rFD", "Fréchet distance of features, reconstructions to originals.", ".4g", higher=False),
            _pair("lpips", "LPIPS", "Learned perceptual distance.", ".3f", higher=False),
            _pair(
                "lpips_random",
                "LPIPS, random weights",
                "Distance in an untrained network; not the published LPIPS.",
                ".3f",
                higher=False,
            ),
        ),
    ),
    Group(
        "Generation",
        "How pictures that the diffusion transformer draws in latent space compare with real ones. Distances may be compared "
        "only in the same features and against the same number of pictures; FID is the name in Inception's features alone.",
        (
            Metric(
                "gfd",
                "gFD",
                "Fréchet distance of features, samples to real pictures.",
                ".4g",
                higher=False,
                rival=("gfd_gaussian", "Gaussian latents"),
            ),
            Metric("inception_style_score", "Inception-style score", "Confident and varied predictions on samples.", ".2f"),
            _accuracy("precision", "Precision", "Samples that lie among real pictures: quality."),
            _accuracy("recall", "Recall", "Real pictures that lie among samples: variety."),
            Metric("kid", "KID", "Kernel distance of features; no bias at small counts.", ".4g", higher=False),
        ),
    ),
)


def others(summary: Summary) -> dict[str, Value]:
    """What the summary holds beyond the metrics known here and the values they are compared with."""
    metrics = [metric for group in GROUPS for metric in group.metrics]
    known = {metric.key for metric in metrics} | {metric.rival[0] for metric in metrics if metric.rival}
    return {key: value for key, value in summary.items() if key not in known}


def plain(value: object) -> str:
    """Any value on one line: four significant digits, lists with commas, null as a dash."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def console_table(summary: Summary) -> str:
    """The summary as aligned plain text, in groups; keys without a meaning known here follow under "Also".

    Accuracies, precision and recall are fractions in [0, 1] in the summary, per cent in the table; null is a dash.
    """
    blocks = [
        (group.title, [_console_row(metric, summary) for metric in group.metrics if metric.key in summary]) for group in GROUPS
    ]
    blocks.append(("Also", [(key, plain(value), "", "") for key, value in others(summary).items()]))
    rows = [row for _, block in blocks for row in block]
    label, value = (max((len(row[column]) for row in rows), default=0) for column in (0, 1))
    lines = [f"{'':{label + 2}}  {'':{value}}  better"]
    for title, block in blocks:
        if block:
            lines += ["", title, *(f"  {a:{label}}  {b:>{value}}  {c:6}  {d}".rstrip() for a, b, c, d in block)]
    return "\n".join(lines)


def _console_row(metric: Metric, summary: Summary) -> tuple[str, str, str, str]:
    value = metric.text(summary[metric.key])
    return metric.label, value, "higher" if metric.higher else "lower", metric.against(summary)
