from __future__ import annotations

import errno
import io
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from vtp.data import remote


@pytest.fixture
def bucket() -> fsspec.AbstractFileSystem:
    system = fsspec.filesystem("memory")
    for i in range(4):
        system.pipe(f"/bucket/{i}.tar", bytes([i]) * 1000)
    return system


def test_copies_are_whole_and_fetched_once(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    path = remote.local_copy("memory://bucket/1.tar", tmp_path, 10_000)
    assert path.read_bytes() == bytes([1]) * 1000
    before = path.stat().st_ino
    assert remote.local_copy("memory://bucket/1.tar", tmp_path, 10_000) == path
    assert path.stat().st_ino == before
    bucket.pipe("/bucket/deep/1.tar", b"another")
    assert remote.local_copy("memory://bucket/deep/1.tar", tmp_path, 10_000).read_bytes() == b"another"


def test_copies_used_longest_ago_make_room(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    paths = [remote.local_copy(f"memory://bucket/{i}.tar", tmp_path, 3500) for i in range(3)]
    for age, path in zip((30, 10, 20), paths, strict=True):
        os.utime(path, (1e9 - age, 1e9 - age))
    remote.local_copy("memory://bucket/2.tar", tmp_path, 3500)  # used just now
    file = paths[0].open("rb")
    last = remote.local_copy("memory://bucket/3.tar", tmp_path, 3500)
    assert {path for path in [*paths, last] if path.exists()} == {paths[1], paths[2], last}
    assert file.read() == bytes(1000)  # whoever has it open goes on
    file.close()
    remote.local_copy("memory://bucket/0.tar", tmp_path, 10)
    assert [path.exists() for path in [*paths, last]] == [True, False, False, False]


def test_a_copy_that_fails_leaves_nothing(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        remote.local_copy("memory://bucket/none.tar", tmp_path, 10_000)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_several_that_want_a_copy_fetch_it_once(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, fetch = [], remote._fetch

    def slowly(location: str, path: Path, most_bytes: int) -> None:
        fetched.append(location)
        time.sleep(0.05)
        fetch(location, path, most_bytes)

    monkeypatch.setattr(remote, "_fetch", slowly)
    with ThreadPoolExecutor(4) as pool:
        copies = list(pool.map(lambda _: remote.local_copy("memory://bucket/1.tar", tmp_path, 10_000), range(4)))
    assert fetched == ["memory://bucket/1.tar"]
    assert set(copies) == {copies[0]}


class Answer(Exception):
    """What libraries below fsspec raise: no OSError, and pages long."""

    def __str__(self) -> str:
        return "403, message='Forbidden'\nmore of it"


class Refusing(MemoryFileSystem):
    """Files that are there, and a server that does not give them."""

    protocol = "refusing"

    def info(self, path: str, **kwargs: object) -> dict[str, object]:
        raise FileNotFoundError(path) from Answer()

    def get_file(self, *args: object, **kwargs: object) -> None:
        raise Answer

    def _open(self, path: str, *args: object, **kwargs: object) -> BinaryIO:
        class Ending(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() >= 1024:
                    raise TimeoutError  # without a word, as fsspec's own
                return super().read(size)

        return Ending(bytes(4096))


def test_a_server_that_does_not_answer_well_is_one_line(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    words = r"^refusing://bucket/1\.tar cannot be read \(Answer: 403, message='Forbidden'\); bring it back, or try again\.$"
    for ask in (remote.size, remote.mark, lambda location: remote.local_copy(location, tmp_path, 10_000)):
        with pytest.raises(remote.Unreachable, match=words):
            ask("refusing://bucket/1.tar")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    with remote.open_file("refusing://bucket/1.tar") as file:
        assert file.read(1024) == bytes(1024)
        with pytest.raises(remote.Unreachable, match=r"1\.tar cannot be read \(TimeoutError\)"):
            file.read(1)
    with pytest.raises(remote.Unreachable, match="Protocol not known"):
        remote.open_file("no-such-protocol://bucket/1.tar")


def test_a_full_disk_is_not_the_servers_fault(
    bucket: fsspec.AbstractFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(MemoryFileSystem, "get_file", full)
    with pytest.raises(OSError, match="No space left"):
        remote.local_copy("memory://bucket/1.tar", tmp_path, 10_000)


def test_a_signed_url_is_longer_than_a_file_name(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    name = "memory://bucket/1.tar?signature=" + 300 * "a"
    bucket.pipe("/bucket/1.tar?signature=" + 300 * "a", b"content")
    assert remote.local_copy(name, tmp_path, 10_000).read_bytes() == b"content"


def test_size_and_mark_of_files_here_and_elsewhere(bucket: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    sha = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert remote.mark(str(tmp_path / "a")) == {"bytes": 1, "sha256": sha}
    assert remote.size(str(tmp_path / "a")) == 1
    assert remote.size("memory://bucket/1.tar") == 1000
    mark = remote.mark("memory://bucket/1.tar")
    assert mark["bytes"] == 1000
    assert mark == remote.mark("memory://bucket/1.tar")
    bucket.pipe("/bucket/1.tar", bytes(1000))
    assert mark != remote.mark("memory://bucket/1.tar")
    for name in ("memory://bucket/none.tar", str(tmp_path / "none")):
        with pytest.raises(FileNotFoundError):
            remote.mark(name)
