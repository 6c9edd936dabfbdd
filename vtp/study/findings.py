"""What the paper reports beside what came out here, each judged by sign and shape (VTP, arXiv 2512.13687)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vtp.study.curves import (
    Curve,
    comparable,
    correlation,
    curve,
    objectives,
    partial_correlation,
    reached,
    usual_transformer,
)
from vtp.study.records import Record

JOINT = "clip+ssl+ae"
STRONG = -0.5
"""A correlation weaker than this one is called none."""


@dataclass(frozen=True)
class Finding:
    """One claim.

    Attributes:
        agrees: whether sign and shape here are the paper's; None where the records cannot tell.
    """

    claim: str
    paper: str
    here: str
    agrees: bool | None


def findings(records: Sequence[Record]) -> list[Finding]:
    """Every claim, also those that these records say nothing about."""
    lines = {name: curve(records, name, "pretrain_steps") for name in objectives(records)}
    steps = {name: curve(records, name, "dit_steps") for name in objectives(records)}
    return [
        _joint_scales(lines),
        _reconstruction_does_not(lines),
        _joint_wins(records),
        _probe(records),
        _convergence(steps),
        _levels(records),
    ]


Lines = dict[str, Curve]


def _joint_scales(lines: Lines) -> Finding:
    claim = "Generation with the joint tokenizer improves with pre-training compute"
    paper = "gFID improves by 65.8 % over the compute range"
    values = lines[JOINT].means("gfd") if JOINT in lines else []
    if len(values) < 2:
        return Finding(claim, paper, "not measured", None)
    gain = 1 - values[-1] / values[0]
    return Finding(claim, paper, f"gFD {_way(values)}: {gain:+.1%} improvement", values[-1] < values[0])


def _reconstruction_does_not(lines: Lines) -> Finding:
    claim = "A tokenizer trained to reconstruct rebuilds better with compute, and is not the better for generation"
    paper = "AE: rFID 2.0 to 0.5, while gFID goes from 55.04 to 58.56"
    rebuilt, made = (lines["ae"].means(metric) if "ae" in lines else [] for metric in ("rfd", "gfd"))
    if len(made) < 2 or len(rebuilt) < 2:
        return Finding(claim, paper, "not measured", None)
    gain = 1 - made[-1] / made[0]
    here = f"AE: rFD {_way(rebuilt)}, gFD {_way(made)} ({gain:+.1%} improvement)"
    return Finding(claim, paper, here, rebuilt[-1] < rebuilt[0] and gain <= 0.1)


def _joint_wins(records: Sequence[Record]) -> Finding:
    """Under the usual transformer, and under every longer one that both have: it agrees if all of them do."""
    claim = "At the largest compute the joint tokenizer generates better than reconstruction at any compute"
    paper = "far below the AE's gFID of 55 to 59 under the same DiT"
    usual, said, ratios = usual_transformer(records), [], []
    for steps in sorted({record.dit_steps for record in records if record.dit_steps >= usual}):
        runs = [record for record in records if record.dit_steps == steps]
        ours, theirs = (curve(runs, name, "pretrain_steps").means("gfd") for name in (JOINT, "ae"))
        if ours and theirs:
            ratios.append(ours[-1] / min(theirs))
            longer = "" if steps == usual else f", with transformers of {steps} steps"
            said.append(f"{ours[-1]:.4g} against {min(theirs):.4g}: {ratios[-1]:.2f} x{longer}")
    if not said:
        return Finding(claim, paper, "not measured", None)
    return Finding(claim, paper, "; ".join(said), max(ratios) < 1)


def _probe(records: Sequence[Record]) -> Finding:
    claim = "The better a tokenizer understands, the better it generates"
    paper = "gFID falls as the linear probe rises"
    runs = comparable(records)
    r = correlation(runs, "linear_probe_top1", "gfd")
    if r is None:
        return Finding(claim, paper, "not measured", None)
    here = f"r = {r:.2f} between probe and gFD, over all runs of one DiT"
    if (rebuilt := correlation(runs, "rfd", "gfd")) is not None:
        here += f"; {rebuilt:.2f} between rFD and gFD"
    if (rest := partial_correlation(runs, "linear_probe_top1", "gfd", "rfd")) is not None:
        here += f"; {rest:.2f} between probe and gFD at equal rFD (partial correlation)"
    return Finding(claim, paper, here, r <= STRONG)


def _convergence(lines: Lines) -> Finding:
    claim = "The diffusion transformer converges faster on the joint tokenizer's latents than on aligned ones"
    paper = "4.1 times faster than on VA-VAE's"
    if JOINT not in lines or len(lines[JOINT].points) < 2:
        return Finding(claim, paper, "not measured", None)
    said, rivals = [], {name: line for name, line in lines.items() if name != JOINT and line.points}
    faster: bool | None = None
    for name, line in rivals.items():
        values = line.means("gfd")
        if not values:
            continue
        at = reached(lines[JOINT], "gfd", values[-1])
        last = line.points[-1].x
        first = at == lines[JOINT].points[0].x
        words = (
            f"reached {'by' if first else 'at'} {at:.0f}, {'at least ' if first else ''}{last / at:.1f} x"
            if at
            else "not reached"
        )
        said.append(f"{name} at {last} steps: {words}")
        if name == "vavae":
            faster = at is not None and at < last
    return Finding(claim, paper, "; ".join(said) or "not measured", faster)


def _levels(records: Sequence[Record]) -> Finding:
    claim = "Levels (other data, another size, other features: not to be compared)"
    paper = "VTP-L: zero-shot 78.2 %, rFID 0.36, linear probe 85.7 %"
    done = [record for record in comparable(records) if record.objective == JOINT]
    if not done:
        return Finding(claim, paper, "not measured", None)
    last = max(done, key=lambda record: record.pretrain_flops or 0.0)
    shares = (("zero-shot", last.zero_shot_top1), ("linear probe", last.linear_probe_top1))
    words = [f"{name} {value:.1%}" for name, value in shares if value is not None]
    words += [f"{name} {value:.4g}{unit}" for name, value, unit in (("rFD", last.rfd, ""), ("PSNR", last.psnr, " dB")) if value]
    return Finding(claim, paper, f"{last.cell}: {', '.join(words)}", None)


def _way(values: Sequence[float]) -> str:
    return " to ".join(f"{value:.4g}" for value in (values[0], values[-1]))
