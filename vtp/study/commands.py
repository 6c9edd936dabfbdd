"""`python -m vtp study`: run a plan, say how far it is, draw what came out."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from vtp.config import ROOT, ConfigError


@click.group()
def study() -> None:
    """Run a grid of variants, and draw figures from what they reached."""


PLAN = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
VALUES = click.argument("overrides", nargs=-1)
FOUND = click.option(
    "--records",
    type=click.Path(file_okay=False, path_type=Path),
    default=ROOT / "docs" / "study",
    show_default="docs/study",
    help="Folder of records.",
)


@study.command("run")
@PLAN
@VALUES
@FOUND
@click.option("--direct", is_flag=True, help="Run stages without DVC.")
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="With --direct: N cells at the same time, on the GPUs of this machine in turn; stages they share run once.",
)
@click.option("--retry", is_flag=True, help="Also run again what diverged.")
@click.option("--only", multiple=True, metavar="OBJECTIVE", help="Only the cells of this objective; may be repeated.")
def study_run(
    file: Path, overrides: tuple[str, ...], records: Path, direct: bool, at_once: int, retry: bool, only: tuple[str, ...]
) -> None:
    """Run the cells of the study FILE that have no record yet; overrides (key=value) hold for all of them."""
    from vtp import stopping
    from vtp.config import parse
    from vtp.data.source_pins import check_there
    from vtp.lock import Lock
    from vtp.provenance import main_checkout
    from vtp.study import plan, process, work
    from vtp.study.direct import Workshop
    from vtp.study.experiments import Experiments
    from vtp.study.records import Records

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    stopping.leave_at_once()
    if at_once > 1 and not direct:
        raise ConfigError(
            f"--at-once={at_once} needs --direct. Of DVC's experiments several run at once from its queue: "
            f"`dvc exp run --queue`, then `dvc queue start --jobs {at_once}`."
        )
    found = plan.read(file, overrides, only)
    # Here, since a stage that finds no data fails cell by cell, and each failure replaces a record.
    check_there(parse(found.cells[0].tree).data, ROOT / "data" / "inputs")
    main, kept = main_checkout(), Records(records / found.name)
    runner: process.Runner = Workshop(main, found, at_once) if direct else Experiments(main, found)
    try:
        work.run(found, kept, runner, Lock(main / "runs" / "studies" / "lock"), retry=retry, at_once=at_once)
    except process.Stopped:
        raise stopping.Stopped from None


@study.command("status")
@PLAN
@VALUES
@FOUND
def study_status(file: Path, overrides: tuple[str, ...], records: Path) -> None:
    """Say of every cell of the study FILE whether it is done, and what it reached."""
    from vtp.study import plan, work
    from vtp.study.records import Records

    found = plan.read(file, overrides)
    kept = Records(records / found.name)
    for cell in found.cells:
        known = kept.find(cell)
        click.echo(f"{cell.name}: waiting" if known is None else work.sentence(known))
    click.echo(f"study {found.name}: {work.state(found, kept)}")


@study.command("report")
@FOUND
def study_report(records: Path) -> None:
    """Redraw the figures of every study from its records, and write the text and the pages about them."""
    from vtp.provenance import main_checkout
    from vtp.study import report

    text = records.with_suffix(".md")
    drawn = report.write(records, text)
    click.echo(f"wrote {text} and {len(drawn)} figures below {records}")
    if told := report.track(main_checkout(), records, drawn):
        click.echo(f"entered {', '.join(told)} in MLflow; `python -m vtp.tracking ui` shows the runs of each side by side")
