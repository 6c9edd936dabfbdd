"""Training curves: one CSV line per logged step, and a sheet of small panels, one per scalar."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vtp.artifacts import aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, float]
"""One logged step: {"step": 40, "clip": 3.1, ...}; a scalar that began later is absent from the earlier rows."""

ACCENT, INK, QUIET, HAIR = "#2f5fd0", "#1f2328", "#57606a", "#e4e7eb"
PANEL = (3.7, 2.15)
"""Width and height of one panel, inches."""
COLUMNS = 3
SMOOTH_FROM = 60
"""Points from which on a running mean is drawn over the raw line."""


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per row, `step` first, then the scalars as they first appear; empty where a row lacks one; no rows, a header.

    Nine significant digits, which hold every float32 exactly; the same rows give the same bytes.
    """
    names = _scalars(rows) if rows else []
    with aside(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *names])
        for row in rows:
            writer.writerow([int(row["step"]), *(format(row[name], ".9g") if name in row else "" for name in names)])


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows that `write_csv` wrote; what is empty is absent again."""
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: float(cell) for name, cell in line.items() if cell} for line in csv.DictReader(file)]


def plot(path: Path, rows: Sequence[Row], title: str) -> None:
    """A PNG with one panel per scalar against the step, its last value in the corner; the same rows give the same bytes.

    From 60 points on a running mean lies over the raw line. What is not finite leaves a gap and is counted in the panel.
    """
    # 0.5 s to import, and only the end of a run draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = _scalars(rows)
    if not names:
        raise ValueError(f"{path.name} has no scalar to draw; rows need at least one key besides step.")
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * lines + 0.45), dpi=144, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08, wspace=0.03, hspace=0.04)  # type: ignore[union-attr, call-arg]
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    axes = figure.subplots(lines, columns, squeeze=False)
    steps = np.array([row["step"] for row in rows], dtype=np.float64)
    for i, panel in enumerate(axes.flat):
        if i < len(names):
            values = np.array([row.get(names[i], np.nan) for row in rows], dtype=np.float64)
            given = np.array([names[i] in row for row in rows])
            _panel(panel, names[i], steps[given], values[given], span=(steps[0], steps[-1]))
        else:
            panel.set_axis_off()
    with aside(path) as temporary:
        canvas.print_figure(temporary, format="png", metadata={"Software": None}, facecolor="white")


def _panel(panel: Axes, name: str, steps: NDArray[np.float64], values: NDArray[np.float64], span: tuple[float, float]) -> None:
    finite = np.isfinite(values)
    shown = np.where(finite, values, np.nan)
    many = len(values) >= SMOOTH_FROM
    dot = "o" if len(values) == 1 else ""
    panel.plot(steps, shown, color=ACCENT, linewidth=0.9 if many else 1.6, alpha=0.3 if many else 1.0, marker=dot, markersize=4)
    if many:
        panel.plot(steps, _running_mean(shown, window=max(5, len(values) // 24)), color=ACCENT, linewidth=1.7)
    panel.set_title(name, loc="left", fontsize=9, color=INK, fontweight="bold", pad=6)
    panel.set_title(f"{values[-1]:.4g}", loc="right", fontsize=9, color=QUIET, pad=6)
    if not finite.all():
        note = f"{int((~finite).sum())} not finite"
        panel.text(0.98, 0.94, note, transform=panel.transAxes, ha="right", va="top", fontsize=8, color="#b42318")
    if span[0] < span[1]:
        panel.set_xlim(*span)
    panel.margins(y=0.08)
    panel.locator_params(axis="x", nbins=5, integer=True)
    panel.locator_params(axis="y", nbins=5, min_n_ticks=3)
    panel.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useOffset=False)
    panel.yaxis.get_offset_text().set(fontsize=7.5, color=QUIET)
    panel.tick_params(labelsize=8, colors=QUIET, length=0, pad=4)
    panel.grid(color=HAIR, linewidth=0.8)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ced6")
    panel.set_xlabel("step", fontsize=8, color=QUIET, labelpad=2)


def _scalars(rows: Sequence[Row]) -> list[str]:
    """Every key but `step`, in the order of first appearance."""
    if not rows:
        raise ValueError("a training history needs at least one row.")
    for i, row in enumerate(rows):
        if "step" not in row:
            raise ValueError(f"row {i} of a training history has no step; it holds {', '.join(row) or 'nothing'}.")
    return [name for name in dict.fromkeys(name for row in rows for name in row) if name != "step"]


def _running_mean(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Mean over a centred window, shorter at the ends; NaNs are left out of it, and stay NaN themselves."""
    finite = np.isfinite(values)
    ones = np.ones(min(window, len(values)))
    total = np.convolve(np.where(finite, values, 0.0), ones, mode="same")
    count = np.convolve(finite.astype(np.float64), ones, mode="same")
    return np.where(finite, total / np.maximum(count, 1), np.nan)
