"""What a data set is like, on one sheet: caption lengths, sizes, shapes, balance of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vtp.artifacts import aside
from vtp.reporting.curves import ACCENT, HAIR, INK, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPLITS = {"train": ACCENT, "validation": "#e07b39"}
BINS = 40


def plot_statistics(path: Path, facts: Mapping[str, Any]) -> None:
    """A PNG of four panels, training and validation as shares of their pictures; the same facts give the same bytes.

    Args:
        facts: statistics of the prepared data, with `counts` and `pictures_per_class` for each split.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 5.2), dpi=144, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.05)  # type: ignore[union-attr, call-arg]
    panels = figure.subplots(2, 2)
    names = ", ".join(f"{facts[split]['pictures']:,} for {'training' if split == 'train' else split}" for split in SPLITS)
    figure.suptitle(f"Pictures: {names}", x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    for split, colour in SPLITS.items():
        counts = {name: np.array(values) for name, values in facts[split]["counts"].items()}
        _steps(panels[0, 0], np.arange(len(counts["caption_ids"])), counts["caption_ids"], split, colour)
        _steps(panels[0, 1], *_binned(counts["short_side"]), split, colour)
        aspects = np.linspace(-4, 4, len(counts["shape"]))
        _steps(panels[1, 0], aspects, counts["shape"], split, colour)
        classes = np.sort(np.array(facts[split]["pictures_per_class"]["all"]))[::-1]
        shares = classes / max(classes.sum(), 1)
        panels[1, 1].plot(np.arange(1, len(classes) + 1), shares, color=colour, linewidth=1.6, label=split)
    _dress(panels[0, 0], "caption length", "ids, start and end included")
    _dress(panels[0, 1], "short side as it came", "pixels")
    _dress(panels[1, 0], "shape", "log2 of width over height")
    _dress(panels[1, 1], "balance", "classes, the largest first")
    panels[1, 1].set_ylim(bottom=0)
    with aside(path) as temporary:
        canvas.print_figure(temporary, format="png", metadata={"Software": None}, facecolor="white")


def _binned(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of 0, 1, 2, ... in at most `BINS` bins from the least to the most that is met, at their lower ends."""
    met = np.flatnonzero(counts)
    first, last = (int(met[0]), int(met[-1])) if len(met) else (0, 0)
    width = -(-(last - first + 1) // BINS)
    starts = np.arange(first - width, last + 2 * width, width)
    sums = [counts[max(start, 0) : max(start + width, 0)].sum() for start in starts]
    return starts, np.array(sums)


def _steps(panel: Axes, places: np.ndarray, counts: np.ndarray, name: str, colour: str) -> None:
    shares = counts / max(counts.sum(), 1)
    panel.step(places, shares, where="mid", color=colour, linewidth=1.4, label=name)
    panel.fill_between(places, shares, step="mid", color=colour, alpha=0.15)


def _dress(panel: Axes, title: str, below: str) -> None:
    panel.set_title(title, loc="left", fontsize=9, color=INK, fontweight="bold", pad=6)
    panel.set_xlabel(below, fontsize=8, color=QUIET, labelpad=2)
    panel.set_ylabel("share of pictures", fontsize=8, color=QUIET, labelpad=2)
    panel.tick_params(labelsize=8, colors=QUIET, length=0, pad=4)
    panel.locator_params(axis="x", integer=True)
    panel.grid(color=HAIR, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.legend(fontsize=8, frameon=False, labelcolor=QUIET)
    for side, spine in panel.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#c9ced6")
