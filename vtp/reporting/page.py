"""One static page with everything a run says about itself; it opens from disk, without a network and without a script."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vtp.artifacts import aside
from vtp.reporting.summary import GROUPS, Metric, Summary, Value, others, plain


@dataclass(frozen=True)
class StageReport:
    """What one stage reports: `reports/<name>.json`, and for a training the PNG of its curves; a CSV beside it is linked."""

    name: str
    numbers: Mapping[str, Value]
    curves: Path | None = None


LEAD = (
    "One visual tokenizer, three uses: it understands pictures, it rebuilds them from compact latents, "
    "and a diffusion transformer draws new ones in the space of those latents."
)

STAGES: dict[str, tuple[str, str]] = {
    "prepare": ("Data", "Pictures, captions and labels, checked and packed into shards."),
    "pretrain": (
        "Pre-training",
        "Encoder, bottleneck and decoder learn together from captions, from views of a picture, and from its pixels.",
    ),
    "metric_network": (
        "Metric network",
        "A small classifier whose features the distances between sets of pictures are taken in.",
    ),
    "finetune_decoder": (
        "Decoder fine-tuning",
        "The encoder is frozen; a discriminator teaches the decoder to draw what looks real.",
    ),
    "latents": ("Latents", "The frozen encoder's bottleneck for every training picture."),
    "dit": ("Diffusion transformer", "Learns the velocity that carries noise to latents, by class."),
    "tokenizer": ("Evaluation of the tokenizer", "Understanding and reconstruction on pictures that no training saw."),
    "generation": ("Evaluation of the samples", "Generated pictures against real ones."),
}
"""Title and one sentence for the stages by name; an unknown one is shown under its own name."""

PICTURES: dict[str, tuple[str, str]] = {
    "data": ("The data", "Training pictures and their captions."),
    "statistics": (
        "What the data is like",
        "Lengths of the captions, sizes and shapes as the pictures came, balance of the classes.",
    ),
    "reconstructions": (
        "Reconstructions",
        "Validation pictures, what the pre-trained decoder makes of their latents, and what the fine-tuned one does.",
    ),
    "samples": ("Samples", "Generated from noise for the class named below each picture; not picked by hand."),
    "nearest": ("Nearest training pictures", "Samples and the training pictures closest to them in feature space: is it memory?"),
}
"""Title and one sentence for the picture sheets by file stem, as above."""


def write_page(
    path: Path,
    *,
    title: str,
    summary: Summary,
    stages: Sequence[StageReport],
    pictures: Sequence[Path],
    parameters: Mapping[str, object],
    provenance: Mapping[str, object] | None = None,
) -> None:
    """Write the page; the same arguments give the same bytes.

    Args:
        path: the page; pictures and curves are linked relative to its folder, so all of it can be moved or zipped together.
        title: heading and title of the page.
        summary: headline numbers, see `vtp.reporting.summary`; null is shown as a dash, unknown keys are shown as they are.
        stages: in the order to show them.
        pictures: PNG sheets, in the order to show them; known stems get a title and an explanation.
        parameters: a tree of plain values, as in params.yaml.
        provenance: git revision, versions and the like; None leaves the section out.

    Raises:
        ValueError: a picture or a sheet of curves does not exist.
    """
    folder = path.parent
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("template.html").render(
        title=title,
        lead=LEAD,
        groups=[_group(group.title, group.explanation, group.metrics, summary) for group in GROUPS],
        table=_table(summary),
        pictures=[_picture(picture, folder, *_words(picture.stem, PICTURES)) for picture in pictures],
        stages=[_stage(stage, folder) for stage in stages],
        parameters=_sections(parameters),
        provenance=_leaves(provenance or {}),
    )
    with aside(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def _group(title: str, explanation: str, metrics: Sequence[Metric], summary: Summary) -> dict[str, object]:
    """One block of tiles; what is null has a row in the table of all results, not a tile."""
    tiles = [_tile(metric, summary) for metric in metrics if summary.get(metric.key) is not None]
    return {"title": title, "anchor": title.lower(), "explanation": explanation, "tiles": tiles}


def _tile(metric: Metric, summary: Summary) -> dict[str, object]:
    value, chance = summary[metric.key], metric.chance(summary)
    number, _, unit = metric.text(value).partition(" ")
    note, verdict = metric.against(summary), ""
    rival = summary.get(metric.rival[0]) if metric.rival else None
    if metric.rival and isinstance(value, int | float) and isinstance(rival, int | float):
        verdict = "" if value == rival else "good" if (value > rival) == metric.higher else "bad"
        word = {"": "as", "good": "better than", "bad": "worse than"}[verdict]
        note = f"{word} {metric.rival[1]} ({metric.text(rival)})"
    return {
        "label": metric.label,
        "number": number,
        "unit": unit,
        "better": "higher" if metric.higher else "lower",
        "explanation": metric.explanation,
        "note": note,
        "verdict": verdict,
        "bar": f"{_percent(value):.2f}" if metric.unit == "%" and isinstance(value, int | float) else None,
        "mark": f"{_percent(chance):.2f}" if chance is not None else None,
    }


def _percent(fraction: float) -> float:
    """Length of a bar; a fraction outside [0, 1] is drawn at the end it fell off."""
    return 100 * min(max(fraction, 0.0), 1.0)


def _table(summary: Summary) -> list[dict[str, object]]:
    """Every number the summary holds, those of unknown meaning last."""
    blocks: list[dict[str, object]] = []
    for group in GROUPS:
        rows = []
        for metric in group.metrics:
            better = "higher" if metric.higher else "lower"
            if metric.key in summary:
                rows.append((metric.label, metric.key, metric.text(summary[metric.key]), better, metric.explanation))
            if metric.rival and metric.rival[0] in summary:
                key, name = metric.rival
                rows.append((f"{metric.label}, {name}", key, metric.text(summary[key]), better, "For comparison."))
        blocks.append({"title": group.title, "rows": rows})
    blocks.append({"title": "Also", "rows": [(_title(key), key, plain(value), "", "") for key, value in others(summary).items()]})
    return [block for block in blocks if block["rows"]]


def _stage(stage: StageReport, folder: Path) -> dict[str, object]:
    title, sentence = _words(stage.name, STAGES)
    numbers = [(key.replace("_", " "), plain(value)) for key, value in stage.numbers.items()]
    curves = csv = None
    if stage.curves:
        curves = _picture(stage.curves, folder, f"Training curves: {title}", sentence)
        beside = stage.curves.with_suffix(".csv")
        csv = _link(beside, folder) if beside.exists() else None
    return {"name": stage.name, "title": title, "sentence": sentence, "numbers": numbers, "curves": curves, "csv": csv}


def _words(name: str, known: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    return known.get(name, (_title(name), ""))


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _picture(file: Path, folder: Path, title: str, sentence: str) -> dict[str, object]:
    """A link to a picture beside the page, with its size in CSS pixels (1/96 inch) so that no text jumps while it loads."""
    if not file.exists():
        raise ValueError(f"{file} does not exist; the page would show a hole. Run the stage that draws it.")
    with Image.open(file) as image:
        width, height = (round(pixels * 96 / image.info.get("dpi", (96, 96))[0]) for pixels in image.size)
    return {"link": _link(file, folder), "width": width, "height": height, "title": title, "sentence": sentence}


def _link(file: Path, folder: Path) -> str:
    return quote(Path(os.path.relpath(file, folder)).as_posix())


def _sections(parameters: Mapping[str, object]) -> list[tuple[str, list[tuple[str, str]]]]:
    """One block for each table at the top of the tree, after one for the values that stand there by themselves."""
    alone = {name: value for name, value in parameters.items() if not isinstance(value, Mapping)}
    tables = [(name, _leaves(value)) for name, value in parameters.items() if isinstance(value, Mapping)]
    return ([("general", _leaves(alone))] if alone else []) + tables


def _leaves(value: object, key: str = "") -> list[tuple[str, str]]:
    """A tree of plain values as (dotted key, value as JSON writes it; texts bare)."""
    if isinstance(value, Mapping) and value:
        return [leaf for name, inner in value.items() for leaf in _leaves(inner, f"{key}.{name}" if key else str(name))]
    if isinstance(value, Mapping) and not key:
        return []
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]
