"""What stages hand to each other: safetensors and JSON in folders with a manifest; written aside, renamed, verified on load."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # stages look at manifests long before they need torch
    from torch import Tensor

MANIFEST = "manifest.json"


class BrokenArtifact(ValueError):
    """A folder or file that is not what its manifest says, or has none."""


def digest(path: Path) -> str:
    """sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place when the block ends well; a reader never sees half a file.

    Raises:
        IsADirectoryError: a folder is there, which a file must not take away.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder is where a file is to be written", str(path))
    with _aside(path) as temporary:
        yield temporary


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """`aside` for a folder, which is created empty; one that was there goes when the block has ended well.

    Raises:
        NotADirectoryError: a file is there.
    """
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder is to be written", str(path))
    with _aside(path) as temporary:
        temporary.mkdir()
        yield temporary
        if path.is_dir():
            remove(path)


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)  # a process of the same number may have been killed here: in a container all have the same few
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        remove(temporary)


def meant(path: str | Path) -> Path:
    """The file or folder that `path` was to become, if it is such a temporary neighbour; otherwise itself."""
    own = Path(path)
    found = re.fullmatch(rf"\.(.+)\.{os.getpid()}", own.name)
    return own.with_name(found[1]) if found else own


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on the disk. Otherwise a power cut may leave its name alone.

    Raises:
        OSError: the disk is full, say: some file systems tell no sooner.
    """
    for inner in [*path.rglob("*"), path]:
        descriptor = os.open(inner, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if not inner.is_dir():  # of which not every file system knows how to
                raise
        finally:
            os.close(descriptor)


def save_json(path: Path, value: Any) -> None:
    """Indented JSON with stable key order as given, whole or absent even after a power cut; NaN and infinities are refused."""
    with aside(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
        settle(temporary)


def load_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        BrokenArtifact: the file is missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BrokenArtifact(f"{path} is missing; run the stage that writes it (`dvc repro`).") from None
    except ValueError as error:
        raise BrokenArtifact(f"{path} is not JSON ({error}); delete it and make it anew.") from None


def save_tensors(path: Path, tensors: Mapping[str, Tensor], note: tuple[str, str] | None = None) -> None:
    """Tensors into one safetensors file; equal tensors give equal bytes.

    Args:
        note: name and text of one entry of the file's metadata. There is no second, because several have no stable order.

    Raises:
        OSError: the disk is full, say; a file that was there before is unchanged.
    """
    import safetensors.torch

    metadata = None if note is None else dict([note])
    ready = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    with aside(path) as temporary:
        with numbered(path):
            safetensors.torch.save_file(ready, temporary, metadata)
        temporary.chmod(0o644)  # the library writes for the owner alone


@contextmanager
def numbered(path: Path) -> Iterator[None]:
    """Turn what safetensors says of a file it cannot write into the system's own error, whose number it hides in its text."""
    import safetensors

    try:
        yield
    except safetensors.SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        BrokenArtifact: the file is missing or cut short.
    """
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise BrokenArtifact(f"{path} is missing; run the stage that writes it (`dvc repro`).") from None
    except safetensors.SafetensorError as error:
        raise BrokenArtifact(f"{path} is not a whole safetensors file ({error}); delete it and make it anew.") from None


def load_pickled(path: Path) -> Any:
    """Tensors, numbers and containers of a file that torch.save wrote, mapped into memory; no code in it is ever run.

    Raises:
        BrokenArtifact: the file is missing, cut short, in the format of torch before 1.6, or holds objects of other kinds, which
            are named and not opened: making them could run whatever the file's author wrote.
    """
    import pickle
    import zipfile

    import torch

    if not path.is_file():
        raise BrokenArtifact(f"{path} is missing; give a file that torch.save wrote.")
    if not zipfile.is_zipfile(path):
        raise BrokenArtifact(
            f"{path} is cut short, or not the zip file that torch.save writes since 1.6; nothing of it was opened."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) '?([\w.]+)", str(error))
        raise BrokenArtifact(
            f"{path} holds {found[1] if found else 'an object'}, not tensors alone; it was not opened, because that could run "
            "code. Where you trust it, load it yourself and save only its tensors."
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise BrokenArtifact(f"{path} is not a whole file of torch.save ({str(error).splitlines()[0]}); fetch it anew.") from None


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes, dtypes and bits, in the order of names."""
    import torch

    summed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        summed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        summed.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.dim() else str(tensor.item()).encode())
    return summed.hexdigest()


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """`manifest.json`: `about`, and size and sha256 of every file in the folder. Holds no times, hosts or paths."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    save_json(folder / MANIFEST, {**about, "files": files})


def read_manifest(folder: Path, verify: bool = True) -> dict[str, Any]:
    """The manifest of `folder`, after checking that every file it names is there and unchanged.

    Args:
        verify: compare checksums too, not sizes alone.

    Raises:
        BrokenArtifact: naming the first file that is missing, cut or changed.
    """
    manifest = load_json(folder / MANIFEST)
    for name, facts in manifest["files"].items():
        _verify(folder, name, facts, verify)
    return manifest


def verify_listed(folder: Path, names: Sequence[str]) -> None:
    """Compare files with the manifest that lies beside them, if one of ours does; a name it does not list is not looked at.

    Raises:
        BrokenArtifact: naming the first file that is missing, cut or changed.
    """
    listed = load_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    files = listed.get("files") if isinstance(listed, dict) else None
    if isinstance(files, dict):  # other programs write files of this name, too
        for name in files.keys() & set(names):
            _verify(folder, name, files[name], True)


def _verify(folder: Path, name: str, facts: Mapping[str, Any], checksum: bool) -> None:
    path = folder / name
    if not path.is_file():
        raise BrokenArtifact(f"{path} is missing, though {MANIFEST} lists it; make {folder} anew.")
    if path.stat().st_size != facts["bytes"]:
        raise BrokenArtifact(f"{path} has {path.stat().st_size} bytes, not {facts['bytes']}; make {folder} anew.")
    if checksum and digest(path) != facts["sha256"]:
        raise BrokenArtifact(f"{path} is not the file its manifest lists (sha256 differs); make {folder} anew.")
