"""The command line of tracking: follow runs into MLflow, bring it what is left, show its pages."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from vtp.tracking.upload import follow, replay


def command_line(arguments: list[str]) -> int:
    """`python -m vtp.tracking upload|replay|ui [MAIN]`; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vtp.tracking", description="Bring spooled runs to MLflow, or show them.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("upload", "follow the runs in progress, and end some seconds after the last of them (stages start this themselves)"),
        ("replay", "upload everything that is not there yet"),
        ("ui", "serve MLflow's pages on this machine"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("main", nargs="?", type=Path, help="root of the main checkout; default: that of this code")
    commands.choices["ui"].add_argument("--port", type=int, default=5000)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    if chosen.main is None:
        from vtp.provenance import main_checkout  # loads torch, which a waiting uploader can do without

        chosen.main = main_checkout()
    main = chosen.main.resolve()
    if chosen.command == "ui":
        from vtp.tracking.ui import serve

        return serve(main, chosen.port)
    return follow(main) if chosen.command == "upload" else replay(main)


if __name__ == "__main__":
    sys.exit(command_line(sys.argv[1:]))
