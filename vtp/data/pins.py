"""Pins of data that comes from outside: a small tracked file in data/inputs/ with size and sha256 of every file.

Stages depend on the pin, so a changed data set re-runs them; and a data set that changed without a new pin stops them.
"""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vtp.artifacts import digest, load_json, save_json
from vtp.config import DataParams

SCENES_VERSION = 2
"""Raised when the renderer gives other pictures or captions for the same seed."""
SHOWN = 3
"""Files that an error names."""


def pin(path: Path, names: Collection[str] | None = None) -> dict[str, Any]:
    """Size and sha256 of each file under `path`, by relative name; hidden files and folders do not count.

    Args:
        names: count these files alone.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    files = _files(path, names)
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(digest, files.values()))
    return {"files": {name: {"bytes": files[name].stat().st_size, "sha256": sha} for name, sha in zip(files, sums, strict=True)}}


def verify(path: Path, pinned: dict[str, Any], names: Collection[str] | None = None) -> None:
    """Check the files under `path` (of these names alone, if any are given) against a pin: sizes first, then checksums.

    Raises:
        ValueError: naming the first files that are missing, added or different.
    """
    files, expected = _files(path, names), pinned["files"]
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


TOKENIZER = "tokenizer.json"
"""The pin of a tokenizer from outside; it is always there, because `pretrain` depends on it whether it is given one or not."""


def write_tokenizer_pin(path: Path | None, names: Collection[str], folder: Path) -> Path:
    """Write the pin of a tokenizer's folder, or that there is none, to `folder`/tokenizer.json, and return its path.

    Args:
        names: the files a tokenizer is read from.
    """
    facts: dict[str, Any] = {"files": {}} if path is None else pin(path, names)
    save_json(folder / TOKENIZER, {"path": None if path is None else str(path), **facts})
    return folder / TOKENIZER


def check_tokenizer(path: Path, names: Collection[str], folder: Path) -> None:
    """Check a tokenizer's folder against its pin in `folder`.

    Raises:
        ValueError: another folder is pinned, or the files differ.
    """
    pinned = load_json(folder / TOKENIZER)
    if pinned["path"] != str(path):
        raise ValueError(f"{folder / TOKENIZER} pins {pinned['path'] or 'no tokenizer'}, not {path}; run `python -m vtp pin`.")
    verify(path, pinned, names)


def _files(path: Path, names: Collection[str] | None = None) -> dict[str, Path]:
    found = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    files = {
        name: file
        for name, file in found.items()
        if (name in names if names is not None else not any(part.startswith(".") for part in Path(name).parts))
    }
    if not files:
        wanted = "files" if names is None else " or ".join(names)
        raise ValueError(f"{path} is no folder with {wanted} in it; give an absolute path.")
    return files
