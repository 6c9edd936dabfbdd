"""The records as the table of docs/performance.md: `python -m benchmarks.table` writes it there."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.measure import RESULTS
from vtp.artifacts import aside
from vtp.config import ROOT

PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- records: python -m benchmarks.table -->\n", "<!-- end of records -->"
HEAD = ("work", "ms", "range", "images/s", "TFLOP/s", "ceiling", "share", "peak GiB", "gradient error", "date", "command")


def rows(folder: Path) -> list[tuple[str, ...]]:
    """One row for each record of a machine, by name; a figure that a record does not have is a dash.

    What is measured of the data has other columns, and stands in docs/data.md.
    """
    found: list[tuple[str, ...]] = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text())
        if path.stem.startswith("data-") or "milliseconds" not in values or "command" not in values:
            continue

        def told(key: str, form: str = "{:.4g}", values: dict = values) -> str:
            return form.format(values[key]) if isinstance(values.get(key), int | float) else "-"

        span = f"{told('fastest')} to {told('slowest')}" if "fastest" in values else "-"
        found.append(
            (
                path.stem,
                told("milliseconds"),
                span,
                told("images_per_second"),
                told("tflops", "{:.0f}"),
                told("ceiling_tflops", "{:.0f}"),
                told("share_of_ceiling", "{:.0%}"),
                told("peak_gib", "{:.1f}"),
                told("gradient_error", "{:.1e}"),
                values.get("date", "-"),
                f"`{values['command']}`",
            )
        )
    return found


def table(results: Path = RESULTS) -> str:
    """A heading with device and versions, and a table, for every machine that has records."""
    parts = []
    for folder in sorted(path for path in results.iterdir() if path.is_dir()) if results.exists() else []:
        lines = rows(folder)
        if not lines:
            continue
        first = next(json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.stem == lines[0][0])
        versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if name != "device")
        marks = [HEAD, tuple("---" for _ in HEAD), *lines]
        parts.append(f"**{first['versions'].get('device', folder.name)}** ({versions})\n")
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in marks) + "\n")
    return "\n".join(parts)


def main() -> None:
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    with aside(PAGE) as temporary:
        temporary.write_text(before + BEGIN + "\n" + table() + "\n" + END + after)


if __name__ == "__main__":
    main()
