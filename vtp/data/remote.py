"""Files that may lie on another machine, through fsspec: patterns become names, names become bytes or whole copies here."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from vtp.artifacts import aside, digest

ETAGS = ("ETag", "etag", "md5Hash", "md5", "LastModified", "Last-Modified", "mtime", "created")
"""What file systems call the mark that changes with the contents, the most telling first."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What is wrong with this machine when a copy fails."""
NAMED = 64
"""Characters of a URL's last part that the name of its copy shows: signed URLs are longer than file names may be."""


class Unreachable(ValueError):
    """A file on another machine that cannot be read now."""


def is_remote(location: str) -> bool:
    """Whether a location is a URL, and not a path on this machine."""
    return "://" in location


def expand(pattern: str) -> list[str]:
    """Paths or URLs that a pattern names: `{000..331}` and `{a,b}` as a shell expands them, then `*`, `?` and `[...]`.

    A folder stands for the tars in it. Braces are taken at their word, so a name among them may turn out not to exist.

    Raises:
        ValueError: nothing is there by such a name.
    """
    import fsspec
    from braceexpand import braceexpand

    found: list[str] = []
    for name in [pattern] if _is_here(pattern) else braceexpand(pattern):
        if _is_here(name):  # whatever signs are in its name
            matches = sorted(map(str, Path(name).absolute().glob("*.tar"))) if Path(name).is_dir() else [name]
        elif any(sign in name for sign in "*?["):
            with _reaching(name):
                system, path = fsspec.core.url_to_fs(name)
                matches = sorted(system.glob(path))
                matches = [system.unstrip_protocol(match) for match in matches] if is_remote(name) else matches
        else:
            matches = [name]
        if not matches:
            raise ValueError(f"nothing is called {name}; give files, a pattern of files or a folder of tars.")
        found += matches
    return found


def _is_here(name: str) -> bool:
    return not is_remote(name) and Path(name).exists()


def open_file(location: str) -> BinaryIO:
    """A file to read in sequence or at any place.

    Raises:
        FileNotFoundError: there is none.
        Unreachable: now, or while it is read.
    """
    if not is_remote(location):
        return open(location, "rb")
    import fsspec

    with _reaching(location):
        return cast(BinaryIO, _Reached(fsspec.open(location, "rb").open(), location))


def size(location: str) -> int | None:
    """Bytes of a file; None where its server does not say.

    Raises:
        FileNotFoundError: there is none.
    """
    return _info(location)["size"] if is_remote(location) else os.path.getsize(location)


def mark(location: str) -> dict[str, Any]:
    """What a file is recognised by: its size, and its sha256 or, on another machine, the mark its server gives it.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_remote(location):
        return {"bytes": os.path.getsize(location), "sha256": digest(Path(location))}
    info = _info(location)
    etag = next((str(info[name]) for name in ETAGS if info.get(name)), None)
    return {"bytes": info["size"], "etag": etag}


def local_copy(location: str, folder: Path, most_bytes: int) -> Path:
    """A whole copy of a remote file in `folder`, fetched unless it is there; the copies used longest ago make room for it.

    Copies appear whole and are fetched once, so any number of processes may share the folder; a file that one of them has open
    stays readable when another makes room. (fsspec's own caches neither bound their size nor write aside.)

    Args:
        most_bytes: of all copies together; the one asked for is kept whatever its size.
    """
    path = folder / f"{hashlib.sha256(location.encode()).hexdigest()[:24]}-{location.rsplit('/', 1)[-1][-NAMED:]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            os.utime(path)
            return path
        _fetch(location, path, most_bytes)
    return path


def _fetch(location: str, path: Path, most_bytes: int) -> None:
    import fsspec

    with aside(path) as temporary:
        with _reaching(location):
            system, name = fsspec.core.url_to_fs(location)
            system.get_file(name, str(temporary))
        _make_room(path.parent, most_bytes - temporary.stat().st_size)


def _make_room(folder: Path, most_bytes: int) -> None:
    """Delete the copies used longest ago until the others are within `most_bytes`."""
    copies = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another process made room, too
            if not entry.name.startswith("."):
                copies.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    total = sum(length for _, length, _ in copies)
    for _, length, path in sorted(copies):
        if total <= most_bytes:
            return
        Path(path).unlink(missing_ok=True)
        total -= length


def _info(location: str) -> dict[str, Any]:
    import fsspec

    with _reaching(location):
        system, path = fsspec.core.url_to_fs(location)
        return {"size": None, **system.info(path)}


@contextmanager
def _reaching(location: str) -> Iterator[None]:
    """Name what went wrong in one line: every file system brings libraries with errors of their own."""
    try:
        yield
    except Exception as error:
        # Where a server refuses (403, 500), fsspec says that there is no such file, and keeps the answer behind that.
        answer = error.__cause__ if isinstance(error, FileNotFoundError) else error
        absent = isinstance(answer, FileNotFoundError | None) or getattr(answer, "status", None) == 404
        if absent or getattr(answer, "errno", None) in FULL:
            raise
        words = str(answer).splitlines()
        what = f"{type(answer).__name__}: {words[0]}" if words else type(answer).__name__
        raise Unreachable(f"{location} cannot be read ({what}); bring it back, or try again.") from error


class _Reached:
    """A file on another machine as `vtp.data.tars` reads it."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file, self._location = file, location

    def read(self, size: int = -1) -> bytes:
        with _reaching(self._location):
            return self._file.read(size)

    def seek(self, place: int) -> int:
        with _reaching(self._location):
            return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
