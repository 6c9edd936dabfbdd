"""The figures of a study, each a PNG of a few panels; the same records give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vtp.artifacts import aside
from vtp.reporting.curves import HAIR, INK, QUIET
from vtp.reporting.pictures import save_png
from vtp.study.curves import Axis, Curve, Metric, Point, both, common_transformer, comparable, correlation, curve, objectives
from vtp.study.records import Record, Records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {
    "ae": "#8a8f98",
    "clip+ae": "#d9822b",
    "ssl+ae": "#2a9d6f",
    "clip+ssl+ae": "#2f5fd0",
    "vavae": "#b5489c",
    "frozen": "#7a5c3e",
    "kl-vae": "#c23b3b",
}
"""One for each objective, in all figures; others take the spare ones."""
SPARE = ("#3aa6b9", "#6b4fbb", "#97a636")
MARKS = "osD^vP*X"
LABELS: dict[Metric, str] = {
    "rfd": "rFD",
    "gfd": "gFD, no guidance",
    "gfd_guided": "gFD, guided",
    "linear_probe_top1": "linear probe, top-1",
    "zero_shot_top1": "zero-shot, top-1",
    "psnr": "PSNR, dB",
    "pretrain_flops": "pre-training, FLOPs",
}
DISTANCES: tuple[Metric, ...] = ("rfd", "gfd", "gfd_guided")
TICKS = {"x": (1.0, 2.0, 5.0), "y": (1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)}
"""Where a logarithmic axis has its marks in every power of ten: numbers beside one another take more room than stacked ones."""
TITLES: dict[Axis, str] = {
    "pretrain_steps": "pre-training, FLOPs",
    "encoder": "encoder",
    "decoder": "decoder",
    "data_fraction": "share of the pictures",
    "dit_steps": "diffusion transformer, steps",
}


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Every figure that the records have the points for, in the order to show them."""
    made = []
    along = {axis: _along(records, axis) for axis in TITLES}
    if along["pretrain_steps"]:
        panels = [_panel(along["pretrain_steps"], metric, _flops) for metric in ("rfd", "gfd", "gfd_guided", "linear_probe_top1")]
        made.append(_figure(folder / "compute.png", panels))
    runs = comparable(records)
    if correlation(runs, "linear_probe_top1", "gfd") is not None:
        against: tuple[Metric, ...] = ("linear_probe_top1", "rfd")
        panels = [_scatter(runs, metric) for metric in against if correlation(runs, metric, "gfd") is not None]
        made.append(_figure(folder / "probe.png", panels))
    sizes: tuple[Axis, ...] = ("encoder", "data_fraction", "decoder")
    panels = [_panel(along[axis], metric) for axis in sizes if along[axis] for metric in ("rfd", "gfd")]
    if panels:
        made.append(_figure(folder / "sizes.png", panels))
    if along["dit_steps"]:
        panels = [_panel(along["dit_steps"], metric, logarithmic=True) for metric in ("gfd", "gfd_guided")]
        made.append(_figure(folder / "convergence.png", panels))
    return made


def sheet(records: Sequence[Record], kept: Records, file: Path) -> Path | None:
    """Originals, reconstructions and samples of every objective at its largest compute, two side by side.

    Under the longest transformer that all of them have: what a short one draws tells little of the tokenizer.
    """
    steps, strips = common_transformer(records), []
    runs = [record for record in records if record.dit_steps == steps]
    for name in objectives(runs):
        last = curve(runs, name, "pretrain_steps").points[-1].runs[0]
        if kept.picture(last.cell).exists():
            strips.append((last.cell, Image.open(kept.picture(last.cell)).convert("RGB")))
    if not strips:
        return None
    title, margin, font = 26, 12, ImageFont.load_default(14)
    width, height = (max(sides) for sides in zip(*(strip.size for _, strip in strips), strict=True))
    across, down = width + 2 * margin, height + title + margin
    columns = min(2, len(strips))
    page = Image.new("RGB", (across * columns, down * -(-len(strips) // columns) + margin), "white")
    for number, (name, strip) in enumerate(strips):
        x, y = number % columns * across + margin, number // columns * down + margin // 2
        ImageDraw.Draw(page).text((x, y + title / 2), name, fill=INK, font=font, anchor="lm")
        page.paste(strip, (x, y + title))
    save_png(file, np.array(page))
    return file


Panel = Callable[["Axes"], None]


def _along(records: Sequence[Record], axis: Axis) -> list[Curve]:
    """The curves along an axis of the objectives that have more than one point on it.

    Along compute, if there is such a curve, those of one point as well: compute is their place whatever else they are. On another
    axis a single point may stand beside a curve from which it differs in compute, too.
    """
    found = [curve(records, name, axis) for name in objectives(records)]
    moving = [line for line in found if len(line.points) > 1]
    return found if moving and axis == "pretrain_steps" else moving


def _flops(point: Point) -> float:
    return point.mean("pretrain_flops") or 0.0


def _panel(
    lines: Sequence[Curve], metric: Metric, at: Callable[[Point], float] | None = None, *, logarithmic: bool = False
) -> Panel:
    """One metric along an axis, a line for each objective, bars of one standard deviation where there are several seeds.

    Args:
        at: the place of a point; None takes its value on the axis, evenly spaced where that is a name.
    """

    def paint(axes: Axes) -> None:
        names = list(dict.fromkeys(point.x for line in lines for point in line.points))
        if metric in DISTANCES:
            _spread_out(axes)
        worded = any(isinstance(name, str) for name in names)
        place = at or (lambda point: float(names.index(point.x) if worded else point.x))
        for number, line in enumerate(lines):
            colour, mark = _look(line.objective, number)
            points = [point for point in line.points if point.mean(metric) is not None]
            xs, ys = [place(point) for point in points], line.means(metric)
            if at is not None and xs and not any(xs):  # it costs no pre-training: a level to compare with
                axes.axhline(min(ys), label=line.objective, color=colour, linestyle="--", linewidth=1.4)
                continue
            bars = [point.spread(metric) for point in points]
            axes.errorbar(
                xs,
                ys,
                yerr=bars if any(bars) else None,
                label=line.objective,
                color=colour,
                marker=mark,
                markersize=5,
                linewidth=1.6,
                capsize=3,
            )
        if worded:
            axes.set_xticks(range(len(names)), names)
            axes.margins(x=0.15)
        if logarithmic or at is not None:
            axes.set_xscale("log")
        if at is None and not worded:
            axes.set_xticks(names, [str(name) for name in names])
            axes.xaxis.minorticks_off()
        _dress(axes, TITLES[lines[0].axis], LABELS[metric])

    return paint


def _scatter(records: Sequence[Record], metric: Metric) -> Panel:
    """gFD against another metric, one mark a run."""

    def paint(axes: Axes) -> None:
        _spread_out(axes)
        if metric in DISTANCES:
            _spread_out(axes, "x")
        for number, name in enumerate(objectives(records)):
            colour, mark = _look(name, number)
            pairs = both([r for r in records if r.objective == name], metric, "gfd")
            axes.scatter(
                [value for value, _ in pairs],
                [distance for _, distance in pairs],
                s=34,
                color=colour,
                marker=mark,
                label=name,
            )
        r = correlation(records, metric, "gfd")
        axes.set_title(f"r = {r:.2f}", loc="right", fontsize=9, color=QUIET)
        _dress(axes, LABELS[metric], LABELS["gfd"])

    return paint


def _spread_out(axes: Axes, which: Literal["x", "y"] = "y") -> None:
    """A logarithmic scale with plain numbers: distances differ by factors, and one that is far off hides no others."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=TICKS[which]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()


def _look(objective: str, number: int) -> tuple[str, str]:
    """Colour and mark of an objective, in every figure the same; others than the known take the spare ones by their number."""
    known = list(COLOURS)
    if objective in known:
        return COLOURS[objective], MARKS[known.index(objective)]
    return SPARE[number % len(SPARE)], MARKS[-1]


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9, color=QUIET)
    axes.set_title(y, loc="left", fontsize=10, fontweight="bold", color=INK)
    axes.grid(color=HAIR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8, colors=QUIET, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ced6")


def _figure(file: Path, panels: Sequence[Panel]) -> Path:
    """Panels side by side, two in a line, under one legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.5 * columns + 0.4, 2.9 * lines + 0.5), dpi=144, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes, paint in zip(grid.flat, panels, strict=False):
        paint(axes)
    marks = {label: mark for axes in grid.flat for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(marks.values(), marks, loc="outside lower center", ncols=min(7, len(marks)), fontsize=8, frameon=False)
    with aside(file) as temporary:
        canvas.print_figure(temporary, format="png", metadata={"Software": None}, facecolor="white")
    return file
