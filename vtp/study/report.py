"""The report of studies, written from their records alone: figures, one text for all of them, and one page each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vtp.artifacts import aside
from vtp.study import figures
from vtp.study.findings import findings
from vtp.study.records import Record, Records
from vtp.tracking.studies import Entry, enter

CAPTIONS = {
    "compute": "Against pre-training compute, without a teacher's. Bars: one standard deviation, if there are several seeds.",
    "probe": "Generation against understanding and against reconstruction, one mark a run.",
    "sizes": "Against the encoder's size, the share of the pictures that pre-training sees, and the decoder's size.",
    "convergence": "Against the length of the diffusion transformer's training.",
    "sheet": "Originals, reconstructions and samples of each objective's longest run under the longest transformer that all "
    "have; not picked by hand.",
}
PLACED = (
    "objective", "pretrain_steps", "pretrain_flops", "encoder", "decoder", "data_fraction", "dit_steps", "seed", "dataset",
    "metric_network",
)  # fmt: skip
"""What MLflow is told as a parameter: where a run stands."""
MEASURED = (
    "rfd_before_gan", "rfd", "gfd", "gfd_guided", "linear_probe_top1", "linear_probe_bottleneck_top1", "zero_shot_top1", "psnr",
    "pretrain_flops", "seconds",
)  # fmt: skip
"""... and as a metric."""
COLUMNS = (
    ("run", "cell"),
    ("FLOPs", "pretrain_flops"),
    ("rFD before the GAN", "rfd_before_gan"),
    ("rFD", "rfd"),
    ("gFD", "gfd"),
    ("gFD guided", "gfd_guided"),
    ("probe", "linear_probe_top1"),
    ("latents' probe", "linear_probe_bottleneck_top1"),
    ("zero-shot", "zero_shot_top1"),
    ("PSNR", "psnr"),
)


def write(folder: Path, text: Path) -> list[Path]:
    """Redraw every study below `folder` and write `text` (Markdown) about all of them; the figures that were drawn.

    Raises:
        ValueError: there is no record at all, or a file that is none.
    """
    names = studies(folder)
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


def studies(folder: Path) -> list[str]:
    """The names of those with a record below `folder`."""
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and any(path.glob("*.json")))


def _section(name: str, records: Sequence[Record], made: Sequence[Path]) -> dict[str, object]:
    done = [record for record in records if record.status == "done"]
    return {
        "name": name,
        "dataset": ", ".join(sorted({record.dataset for record in records})),
        "rulers": _rulers(done),
        "hours": f"{sum(record.seconds for record in records) / 3600:.1f}",
        "columns": [title for title, _ in COLUMNS],
        "rows": [[_cell(getattr(record, key), key) for _, key in COLUMNS] for record in done],
        "odd": [(record.cell, record.status, record.message) for record in records if record.status != "done"],
        "findings": findings(records),
        "figures": [(file.stem, CAPTIONS[file.stem], f"figures/{file.name}") for file in made],
    }


def _rulers(records: Sequence[Record]) -> list[str]:
    """Which runs were measured with which network, in words; nothing where one measured all."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.rfd is not None:
            found.setdefault((record.metric_network or "not known which")[:16], []).append(record.cell)
    return [f"{ruler}: {', '.join(cells)}" for ruler, cells in found.items()] if len(found) > 1 else []


def _place(record: Record) -> tuple[int, str, float, int, str]:
    """Objectives as the figures know them, each from cheap to expensive: pre-training, then the transformer."""
    known = list(figures.COLOURS)
    number = known.index(record.objective) if record.objective in known else len(known)
    return number, record.objective, record.pretrain_flops or 0.0, record.dit_steps, record.cell


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


def track(main: Path, folder: Path, drawn: Sequence[Path]) -> list[str]:
    """Enter every record, and the figures, in MLflow, an experiment for each study: those that are whole there. Never raises."""
    told = []
    for name in studies(folder):
        kept = Records(folder / name)
        entries = [_entry(record, kept.picture(record.cell)) for record in sorted(kept.all(), key=_place)]
        if files := [file for file in drawn if file.parents[1].name == name]:
            entries.append(Entry("figures", files=files))
        if enter(main, name, entries):
            told.append(name)
    return told


def _entry(record: Record, picture: Path) -> Entry:
    """A record as MLflow shows it: where it stands, what it reached, and its pictures."""
    return Entry(
        name=record.cell,
        status="FINISHED" if record.status == "done" else "FAILED",
        parameters={name: value for name in PLACED if (value := getattr(record, name)) is not None},
        metrics={name: value for name in MEASURED if (value := getattr(record, name)) is not None},
        tags={"status": record.status} | ({"message": record.message} if record.message else {}),
        files=[picture] if picture.exists() else [],
    )
