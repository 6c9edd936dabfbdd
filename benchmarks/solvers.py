"""Quality against evaluations of every solver, on a DiT that was really trained: `python -m benchmarks.solvers --data data`.

Reads a finished pipeline's outs (prepare, train_metric_network, finetune_decoder, train_dit) and params.yaml's guidance. Every
solver starts from the same noises and labels. `gfd` is the Frechet distance of the decoded samples to real pictures; its error is
the deviation over resampled sets of samples. `off` is the distance of the latents to those of a fine solution, relative to their
size. `--minutes` ends the list early; what was measured is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import measure
from vtp import evaluation, sampling
from vtp.artifacts import aside
from vtp.config import ROOT, SampleParams, Solver, load
from vtp.data.latents import load_statistics
from vtp.data.shards import Prepared
from vtp.engine.inference import put_to_work, same_shape
from vtp.engine.loop import autocast
from vtp.models.dit import DiT
from vtp.models.tokenizer import VisualTokenizer
from vtp.seeding import generator

log = logging.getLogger(__name__)

CALLS: dict[Solver, int] = {"euler": 1, "adams2": 1, "adams3": 1, "dpmpp2m": 1, "heun": 2, "midpoint": 2, "heun3": 3}
"""Evaluations of a step."""
FINE: tuple[Solver, int] = ("heun", 49)
"""Solver and points of the fine solution."""
RESAMPLED = 16


@dataclass(frozen=True)
class Row:
    """One solver at one number of evaluations."""

    solver: Solver
    points: int
    evaluations: int
    gfd: float
    error: float
    off: float
    seconds: float


def choices(budgets: list[int]) -> list[tuple[Solver, int]]:
    """Solver and points for each budget of evaluations, the cheap ones first."""
    return [(name, budget // calls + 1) for budget in sorted(budgets) for name, calls in CALLS.items() if budget % calls == 0]


class Distance:
    """Frechet distances of many sets of features to one reference, on the device, in float64."""

    def __init__(self, reference: Tensor) -> None:
        self.mean, covariance = _moments(reference.double(), torch.ones(len(reference), device=reference.device))
        values, vectors = torch.linalg.eigh(covariance)
        self.root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        self.trace = values.sum()

    def __call__(self, features: Tensor, weights: Tensor) -> float:
        """Distance of the features (n, F), of which each counts `weights` (n,) times."""
        mean, covariance = _moments(features.double(), weights)
        cross = torch.linalg.eigvalsh(self.root @ covariance @ self.root).clamp(min=0).sqrt().sum()
        return float((mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * cross)


def _moments(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    weights = weights.double()
    mean = weights @ features / weights.sum()
    centred = features - mean
    return mean, centred.T @ (weights[:, None] * centred) / (weights.sum() - 1)


def distance_and_error(distance: Distance, features: Tensor) -> tuple[float, float]:
    """The distance of all, and its deviation over sets resampled with replacement: the same sets whatever the solver."""
    count, device = len(features), features.device
    draw = generator(0, "resample")
    found = []
    for _ in range(RESAMPLED):
        weights = torch.randint(count, (count,), generator=draw).bincount(minlength=count)
        found.append(distance(features, weights.to(device)))
    return distance(features, torch.ones(count, device=device)), float(torch.tensor(found).std())


class Bench:
    """The trained networks, and the noises and labels that every solver starts from."""

    def __init__(self, data: Path, samples: int, batch: int, device: torch.device, compiled: bool) -> None:
        params = load()
        self.device, self.batch, self.how = device, batch, params.sample
        self.model = put_to_work(DiT.from_pretrained(data / "train_dit"), device, compiled=compiled)
        tokenizer = put_to_work(VisualTokenizer.from_pretrained(data / "finetune_decoder"), device, compiled=compiled)
        self.decode = same_shape(tokenizer.decode, batch, compiled=compiled)
        describe = evaluation.describer(params.evaluate.features, data / "train_metric_network", device)
        if describe is None:
            raise SystemExit(f"{data} holds no metric network to measure with; train one on data with labels.")
        self.describe = describe
        self.mean, self.std = (t.to(device) for t in load_statistics(data / "train_dit"))
        prepared = Prepared.open(data / "prepare")
        split = prepared.train if params.evaluate.reference == "train" else prepared.validation
        count = min(samples, len(split))
        reference = split.rows(torch.arange(count) * len(split) // count)["images"]
        options = self.model.options
        shape = (options.latent_channels, options.grid, options.grid)
        self.noise = torch.stack([torch.randn(shape, generator=generator(params.seed, "sample", i)) for i in range(samples)])
        self.labels = torch.arange(samples) % options.num_classes
        self.draw = same_shape(self._draw, batch, compiled=compiled)
        self.distance = Distance(torch.cat([self.describe(rows.to(device))[0].float() for rows in reference.split(batch)]))
        self.solver, self.evaluations = self.how, 0

    def _draw(self, noise: Tensor, labels: Tensor) -> Tensor:
        latents, self.evaluations = sampling.draw(self.model, noise, labels, self.model.options.num_classes, self.solver)
        return latents.float()

    def sampled(self, solver: SampleParams) -> Tensor:
        """Latents of all noises, on the device."""
        self.solver = solver
        parts = zip(self.noise.split(self.batch), self.labels.split(self.batch), strict=True)
        return torch.cat([self.draw(noise.to(self.device), labels.to(self.device)) for noise, labels in parts])

    def features(self, latents: Tensor) -> Tensor:
        """What the metric network sees in the decoded pictures."""
        found = []
        for rows in latents.split(self.batch):
            pictures = evaluation.to_uint8(self.decode(rows * self.std + self.mean).float())
            found.append(self.describe(pictures)[0].float())
        return torch.cat(found)

    def row(self, name: Solver, points: int, fine: Tensor) -> Row:
        """Measure one choice."""
        begun = time.perf_counter()
        latents = self.sampled(replace(self.how, solver=name, points=points))
        off = measure.relative_error([latents], [fine])  # waits for the device
        seconds = time.perf_counter() - begun
        gfd, error = distance_and_error(self.distance, self.features(latents))
        return Row(name, points, self.evaluations, gfd, error, off, seconds)


def measured(bench: Bench, budgets: list[int], minutes: float, keep: Callable[[list[Row]], None]) -> None:
    """Measure one choice after another, the fine solution first, and hand over the rows after each."""
    end = time.monotonic() + 60 * minutes
    fine = bench.sampled(replace(bench.how, solver=FINE[0], points=FINE[1]))
    rows = [bench.row(*FINE, fine)]
    keep(rows)
    for name, points in choices(budgets):
        if time.monotonic() > end:
            log.info("the time is over before %s with %d points", name, points)
            break
        rows.append(bench.row(name, points, fine))
        log.info("%s", rows[-1])
        keep(rows)


def table(rows: list[Row]) -> str:
    """The rows as Markdown, by evaluations."""
    lines = ["| solver | points | evaluations | gFD | off the fine solution |", "|---|---|---|---|---|"]
    lines += [
        f"| {r.solver} | {r.points} | {r.evaluations} | {r.gfd:.3f} ± {r.error:.3f} | {r.off:.2e} |"
        for r in sorted(rows, key=lambda r: (r.evaluations, r.gfd))
    ]
    return "\n".join(lines) + "\n"


def curve(rows: list[Row], path: Path) -> None:
    """gFD over evaluations, a line for each solver."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in CALLS:
        own = sorted((r for r in rows if r.solver == name), key=lambda r: r.evaluations)
        if own:
            axes.errorbar(
                [r.evaluations for r in own],
                [r.gfd for r in own],
                [r.error for r in own],
                marker="o",
                ms=3,
                capsize=2,
                label=name,
            )
    axes.set(xscale="log", yscale="log", xlabel="evaluations of the model", ylabel="gFD")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="outs of a finished pipeline")
    parser.add_argument("--samples", type=int, default=10000)
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--budgets", type=int, nargs="+", default=[6, 12, 24, 48])
    parser.add_argument("--minutes", type=float, default=2.0, help="after which no further choice is measured")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = (args.out or measure.RESULTS) / measure.machine(device)
    folder.mkdir(parents=True, exist_ok=True)

    def keep(rows: list[Row]) -> None:
        how = {"samples": args.samples, "sample": asdict(load().sample), "versions": measure.versions(device)}
        with aside(folder / "solvers.json") as temporary:
            temporary.write_text(json.dumps(how | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
        (folder / "solvers.md").write_text(table(rows))
        curve(rows, folder / "solvers.png")

    with torch.inference_mode(), autocast(device):
        bench = Bench(args.data, args.samples, args.batch, device, compiled=device.type == "cuda")
        measured(bench, args.budgets, args.minutes, keep)
    log.info("%s", (folder / "solvers.md").read_text())


if __name__ == "__main__":
    main()
