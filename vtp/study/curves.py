"""Records as curves: what one axis does while all others stand still."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vtp.study.records import Record

Axis = Literal["pretrain_steps", "encoder", "decoder", "data_fraction", "dit_steps"]
AXES: tuple[Axis, ...] = ("pretrain_steps", "encoder", "decoder", "data_fraction", "dit_steps")
Metric = Literal["rfd", "gfd", "gfd_guided", "linear_probe_top1", "zero_shot_top1", "psnr", "pretrain_flops"]


@dataclass(frozen=True)
class Point:
    """The runs of one cell that differ in their seed only."""

    x: Any
    runs: tuple[Record, ...]

    def mean(self, metric: Metric) -> float | None:
        """Over the seeds; None where it was not measured."""
        values = self._values(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: Metric) -> float:
        """Standard deviation over the seeds; 0 for a single one."""
        values = self._values(metric)
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def _values(self, metric: Metric) -> list[float]:
        return [value for run in self.runs if (value := getattr(run, metric)) is not None]


@dataclass(frozen=True)
class Curve:
    """What one objective reaches along one axis, cheap to expensive."""

    objective: str
    axis: Axis
    points: tuple[Point, ...]

    def means(self, metric: Metric) -> list[float]:
        """Of every point that has it."""
        return [value for point in self.points if (value := point.mean(metric)) is not None]


def objectives(records: Sequence[Record]) -> list[str]:
    """Those with a finished run, in the order of the records."""
    return list(dict.fromkeys(record.objective for record in records if record.status == "done"))


def curve(records: Sequence[Record], objective: str, axis: Axis) -> Curve:
    """The longest curve there is along an axis; of equally long ones the most expensive, and under the usual transformer.

    All other axes stand still along it. Sizes are in the order of what training them costs.
    """
    usual = usual_transformer(records)
    lines: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        if record.status == "done" and record.objective == objective:
            lines[tuple(getattr(record, other) for other in AXES if other != axis)].append(record)

    def rank(line: Sequence[Record]) -> tuple[int, float, bool]:
        return len({getattr(run, axis) for run in line}), _cost(line), any(run.dit_steps == usual for run in line)

    chosen = max(lines.values(), key=rank, default=[])
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in chosen:
        groups[getattr(record, axis)].append(record)
    points = [Point(x, tuple(runs)) for x, runs in groups.items()]
    if axis in ("encoder", "decoder"):
        points.sort(key=lambda point: _cost(point.runs))
    else:
        points.sort(key=lambda point: point.x)
    return Curve(objective, axis, tuple(points))


def _cost(runs: Sequence[Record]) -> float:
    return max(run.pretrain_flops or 0.0 for run in runs)


def comparable(records: Sequence[Record]) -> list[Record]:
    """The finished runs whose diffusion transformer was trained equally long: as long as most."""
    usual = usual_transformer(records)
    return [record for record in records if record.status == "done" and record.dit_steps == usual]


def usual_transformer(records: Sequence[Record]) -> int:
    """Steps of the transformer of most finished runs; 0 without any."""
    done = [record.dit_steps for record in records if record.status == "done"]
    return statistics.mode(done) if done else 0


def common_transformer(records: Sequence[Record]) -> int:
    """Steps of the longest transformer that every objective has; the usual ones where there is none."""
    done = [record for record in records if record.status == "done"]
    found = [{record.dit_steps for record in done if record.objective == name} for name in objectives(done)]
    return max(set.intersection(*found), default=usual_transformer(records)) if found else 0


def both(records: Sequence[Record], x: Metric, y: Metric) -> list[tuple[float, float]]:
    """Of every finished run that has both, the two."""
    return [
        (a, b)
        for record in records
        if record.status == "done" and (a := getattr(record, x)) is not None and (b := getattr(record, y)) is not None
    ]


def correlation(records: Sequence[Record], x: Metric, y: Metric) -> float | None:
    """Pearson's r over the finished runs that have both; None for fewer than three, or where one does not vary."""
    pairs = both(records, x, y)
    if len(pairs) < 3 or any(len({pair[i] for pair in pairs}) == 1 for i in (0, 1)):
        return None
    return statistics.correlation(*zip(*pairs, strict=True))


def partial_correlation(records: Sequence[Record], x: Metric, y: Metric, given: Metric) -> float | None:
    """Pearson's r of what straight lines in `given` leave of x and of y, over the finished runs that have all three.

    None for fewer than four of them, or where one does not vary or lies on such a line.
    """
    whole = [record for record in records if getattr(record, given) is not None]
    xy, xz, yz = (correlation(whole, *pair) for pair in ((x, y), (x, given), (y, given)))
    if xy is None or xz is None or yz is None or len(both(whole, x, y)) < 4:
        return None
    left = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / math.sqrt(left) if left > 1e-12 else None


def reached(line: Curve, metric: Metric, target: float) -> float | None:
    """Where along a numeric axis a falling curve first comes down to `target`; None if it does not.

    Between points it is straight on logarithmic axes, as the figure draws it: distances fall by factors.
    """
    points = [(float(point.x), value) for point in line.points if (value := point.mean(metric)) is not None]
    if points and points[0][1] <= target:
        return points[0][0]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if y0 > target >= y1:
            return x0 * (x1 / x0) ** (math.log(y0 / target) / math.log(y0 / y1))
    return None
