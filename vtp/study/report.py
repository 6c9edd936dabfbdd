"""The report of studies, written from their records alone: figures, one text for all of them, and one page each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vtp.artifacts import aside
from vtp.provenance import fingerprint
from vtp.study import figures
from vtp.study.findings import findings
from vtp.study.records import Record, Records
from vtp.tracking import Track

CAPTIONS = {
    "compute": "Against pre-training compute. Bars: one standard deviation over seeds, where there are several.",
    "probe": "Generation against understanding, one mark a run.",
    "sizes": "Against the encoder's size, the share of the pictures that pre-training sees, and the decoder's size.",
    "convergence": "Against the length of the diffusion transformer's training.",
    "sheet": "Originals, reconstructions and samples of the longest run of each objective; not picked by hand.",
}
COLUMNS = (
    ("run", "cell"),
    ("FLOPs", "pretrain_flops"),
    ("rFD", "rfd"),
    ("gFD", "gfd"),
    ("gFD guided", "gfd_guided"),
    ("probe", "linear_probe_top1"),
    ("zero-shot", "zero_shot_top1"),
    ("PSNR", "psnr"),
)


def write(folder: Path, text: Path) -> list[Path]:
    """Redraw every study below `folder` and write `text` (Markdown) about all of them; the figures that were drawn.

    Raises:
        ValueError: there is no record at all, or a file that is none.
    """
    names = sorted(path.name for path in folder.glob("*") if path.is_dir() and any(path.glob("*.json")))
    if not names:
        raise ValueError(f"{folder} holds no records; `python -m vtp study run FILE` makes them.")
    sections, drawn = [], []
    for name in names:
        kept = Records(folder / name)
        records = sorted(kept.all(), key=_place)
        made = figures.draw(records, folder / name / "figures")
        if sheet := figures.sheet(records, kept, folder / name / "figures" / "sheet.png"):
            made.append(sheet)
        section = _section(name, records, made)
        _render("page.html", folder / name / "index.html", sections=[section])
        sections.append(section)
        drawn += made
    _render("study.md", text, sections=sections, folder=folder.name)
    return drawn


def _section(name: str, records: Sequence[Record], made: Sequence[Path]) -> dict[str, object]:
    done = [record for record in records if record.status == "done"]
    return {
        "name": name,
        "dataset": ", ".join(sorted({record.dataset for record in records})),
        "hours": f"{sum(record.seconds for record in records) / 3600:.1f}",
        "columns": [title for title, _ in COLUMNS],
        "rows": [[_cell(getattr(record, key), key) for _, key in COLUMNS] for record in done],
        "odd": [(record.cell, record.status, record.message) for record in records if record.status != "done"],
        "findings": findings(records),
        "figures": [(file.stem, CAPTIONS[file.stem], f"figures/{file.name}") for file in made],
    }


def _place(record: Record) -> tuple[int, str, float, str]:
    """Objectives as the figures know them, each from cheap to expensive."""
    known = list(figures.COLOURS)
    number = known.index(record.objective) if record.objective in known else len(known)
    return number, record.objective, record.pretrain_flops or 0.0, record.cell


def _cell(value: object, key: str) -> str:
    if value is None:
        return "—"
    if isinstance(value, str):
        return value
    if key == "pretrain_flops":
        return f"{value:.2e}"
    return f"{value:.1%}" if key.endswith("_top1") else f"{value:.4g}"


def _render(template: str, file: Path, **values: object) -> None:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    with aside(file) as temporary:
        temporary.write_text(environment.get_template(template).render(values), encoding="utf-8")


def track(main: Path, folder: Path, drawn: Sequence[Path]) -> None:
    """Show figures and numbers of every study in MLflow, as a run of its own each. Never raises."""
    for name in sorted({file.parents[1].name for file in drawn}):
        done = [record for record in Records(folder / name).all() if record.status == "done"]
        key = fingerprint({"study": [[record.cell, record.key] for record in done]})
        with Track.open("study", key, main=main, variant=f"study-{name}", parameters={}, run_name=f"study {name}") as tracker:
            for record in done:
                values = {metric: getattr(record, metric) for _, metric in COLUMNS[1:]}
                # Names of metrics know no plus sign.
                cell = record.cell.replace("+", " ")
                tracker.final({f"{cell}/{metric}": value for metric, value in values.items() if value is not None})
            for file in drawn:
                if file.parents[1].name == name:
                    tracker.picture(file.stem, np.array(Image.open(file).convert("RGB")), 0)
