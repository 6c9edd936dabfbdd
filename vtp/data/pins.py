"""Pins of data that comes from outside: a small tracked file in data/inputs/ with size and sha256 of every file.

Stages depend on the pin, so a changed data set re-runs them; and a data set that changed without a new pin stops them.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vtp.artifacts import digest, load_json, save_json
from vtp.config import DataParams

SCENES_VERSION = 2
"""Raised when the renderer gives other pictures or captions for the same seed."""
SHOWN = 3
"""Files that an error names."""


def pin(path: Path) -> dict[str, Any]:
    """Size and sha256 of each file under `path`, by relative name; hidden files and folders do not count.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    files = _files(path)
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(digest, files.values()))
    return {"files": {name: {"bytes": files[name].stat().st_size, "sha256": sha} for name, sha in zip(files, sums, strict=True)}}


def verify(path: Path, pinned: dict[str, Any]) -> None:
    """Check the files under `path` against a pin: names and sizes first, then checksums of all.

    Raises:
        ValueError: naming the first files that are missing, added or different.
    """
    files, expected = _files(path), pinned["files"]
    changes = [f"{name} is missing" for name in expected if name not in files]
    changes += [f"{name} was added" for name in files if name not in expected]
    both = [name for name in files if name in expected]
    changes += [f"{name} has another size" for name in both if files[name].stat().st_size != expected[name]["bytes"]]
    if not changes:
        with ThreadPoolExecutor() as pool:
            sums = dict(zip(files, pool.map(digest, files.values()), strict=True))
        changes = [f"{name} has other contents" for name in files if sums[name] != expected[name]["sha256"]]
    if changes:
        more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        raise ValueError(
            f"{path} is not the data that was pinned: {', '.join(changes[:SHOWN])}{more}; "
            "bring the files back, or accept them with `python -m vtp pin`."
        )


def write_pin(data: DataParams, folder: Path) -> Path:
    """Write the pin of the configured source, `folder`/{source}.json, and return its path; scenes have a version only."""
    facts: dict[str, Any] = {"version": SCENES_VERSION} if data.path is None else pin(Path(data.path))
    file = folder / f"{data.source}.json"
    save_json(file, {"source": data.source, **facts})
    return file


def check(data: DataParams, folder: Path) -> None:
    """Check the configured source against its pin in `folder`.

    Raises:
        ValueError: there is no pin, or the data differs from it.
    """
    file = folder / f"{data.source}.json"
    if not file.exists():
        raise ValueError(f"{file} does not exist; `python -m vtp pin` pins data.source={data.source}.")
    pinned = load_json(file)
    if data.source == "scenes":
        if pinned["version"] != SCENES_VERSION:
            raise ValueError(f"{file} pins scenes {pinned['version']}, not {SCENES_VERSION}; run `python -m vtp pin`.")
    elif data.path is not None:
        verify(Path(data.path), pinned)


def _files(path: Path) -> dict[str, Path]:
    found = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    files = {name: file for name, file in found.items() if not any(part.startswith(".") for part in Path(name).parts)}
    if not files:
        raise ValueError(f"data.path={path} is no folder with files in it; give the absolute path of the data set.")
    return files
