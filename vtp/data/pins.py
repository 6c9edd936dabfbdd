"""Pins of what comes from outside: small tracked files in data/inputs/ that say what it was.

Stages depend on the pin, so a changed input re-runs them; and an input that changed without a new pin stops them. A file is
pinned by its size and sha256, or by the mark that its server gives it. Those of data sources: `vtp.data.source_pins`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from vtp.artifacts import load_json, save_json
from vtp.data import remote

SHOWN = 3
"""Files that an error names."""
MANY = 4096
"""Files that are looked at together: what waits for its turn takes two kilobytes, and class folders hold a million."""
Marks = dict[str, dict[str, Any]]
"""By name, what a file or folder is recognised by."""


def marks(files: Mapping[str, str], mark: Callable[[str], dict[str, Any]] = remote.mark) -> Marks:
    """The marks of files, given as name -> location.

    Raises:
        ValueError: one of them does not exist, or cannot be read.
    """
    found: Marks = {}
    waiting = iter(files.items())
    with ThreadPoolExecutor() as pool:
        try:
            while some := dict(islice(waiting, MANY)):
                found |= zip(some, pool.map(mark, some.values()), strict=True)
        except FileNotFoundError as error:
            raise ValueError(f"{error.filename or error} does not exist; bring it back, or name what is there.") from None
        except OSError as error:
            raise ValueError(f"{error.filename or error} cannot be read ({error.strerror}); mend it, or leave it out.") from None
    return found


def sizes(files: Mapping[str, str]) -> Marks:
    """The sizes of files, as much of their marks as takes no reading."""
    return marks(files, lambda location: {"bytes": remote.size(location)})


def differences(pinned: Marks, found: Marks) -> list[str]:
    """What differs in names and in what was `found` of each, a phrase each: what is missing or was added first."""
    changes = [f"{name} is missing" for name in pinned if name not in found]
    changes += [f"{name} was added" for name in found if name not in pinned]
    for name, mark in found.items():
        if name in pinned and (changed := [fact for fact in mark if mark[fact] != pinned[name].get(fact)]):
            changes.append(f"{name} has {'another size' if 'bytes' in changed else 'other contents'}")
    return changes


def refuse(what: str, changes: list[str]) -> None:
    """Stop if anything changed.

    Raises:
        ValueError: naming the first changes.
    """
    if changes:
        more = f" and {len(changes) - SHOWN} more" if len(changes) > SHOWN else ""
        raise ValueError(
            f"{what} is not the data that was pinned: {', '.join(changes[:SHOWN])}{more}; "
            "bring it back, or accept it with `python -m vtp pin`."
        )


Given = Literal["tokenizer", "latents", "dit"]
"""What may come from outside in place of being trained or computed. Its pin is always there, empty without one, because a stage
depends on it either way."""


def write_given_pin(what: Given, path: Path | None, names: Collection[str] | None, folder: Path) -> Path:
    """Write the pin of what is given from outside, or that nothing is, to `folder`/{what}.json, and return its path.

    Args:
        path: a folder, or one file.
        names: the files of the folder that are read; None: all but hidden ones.
    """
    files = {} if path is None else marks(_files(path, names))
    file = folder / f"{what}.json"
    save_json(file, {"path": None if path is None else str(path), "files": files})
    return file


def check_given(what: Given, path: Path, names: Collection[str] | None, folder: Path) -> None:
    """Check what is given from outside against its pin in `folder`.

    Raises:
        ValueError: another path is pinned, or the files differ.
    """
    file = folder / f"{what}.json"
    pinned, files = load_json(file), _files(path, names)
    if pinned["path"] != str(path):
        raise ValueError(f"{file} pins {pinned['path'] or f'no {what}'}, not {path}; run `python -m vtp pin`.")
    refuse(str(path), differences(pinned["files"], sizes(files)) or differences(pinned["files"], marks(files)))


def _files(path: Path, names: Collection[str] | None) -> dict[str, str]:
    if path.is_file():
        return {path.name: str(path)}
    found = names or [str(file.relative_to(path)) for file in path.rglob("*")]
    shown = [name for name in sorted(found) if not any(part.startswith(".") for part in Path(name).parts)]
    files = {name: str(path / name) for name in shown if (path / name).is_file()}
    if not files:
        wanted = " or ".join(names) if names else "files"
        raise ValueError(f"{path} is no file and no folder with {wanted} in it; give an absolute path.")
    return files
