from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from vtp.data import tars
from vtp.data.tars import BrokenTar, Member

NAMES = [
    "a.jpg",
    "a.txt",
    "deep/er/b.c.json",
    "x" * 99,
    "y" * 60 + "/" + "z" * 90,
    "l" * 300 + ".jpg",
    "ü" * 30 + ".png",
    "e.cls",
]
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def written(format: int, mtime: float = 0) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for i, name in enumerate(NAMES):
            if format == tarfile.USTAR_FORMAT and len(name.encode()) > 250:
                continue
            member = tarfile.TarInfo(name)
            member.size, member.mtime = 300 * i, mtime  # type: ignore[assignment]
            tar.addfile(member, io.BytesIO(bytes([i]) * member.size))
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo(f"odd{kind.decode()}.jpg")
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    return file.getvalue()


def read(data: bytes) -> list[tuple[Member, bytes]]:
    file = io.BytesIO(data)
    return [(member, tars.read(file, member)) for member in tars.members(file)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mtime", [0, 1.5])
def test_members_are_those_of_tarfile(format: str, mtime: float) -> None:
    if format == "ustar" and mtime:
        pytest.skip("has no fractions of seconds")
    data = written(FORMATS[format], mtime)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(m.name, m.offset_data, m.size if m.isreg() else 0, m.isreg()) for m in tar]
    found = read(data)
    assert [tuple(member) for member, _ in found] == expected
    assert all(data[member.offset : member.offset + member.size] == contents for member, contents in found)


def test_members_that_are_not_read_are_passed_over() -> None:
    data = written(tarfile.PAX_FORMAT)
    assert list(tars.members(io.BytesIO(data))) == [member for member, _ in read(data)]


def test_names_are_parted_as_webdataset_parts_them() -> None:
    names = ["a.jpg", "a.b.JPG", "d.e/a.txt", "./a.txt", "README", ".hidden", "a.", "d/a.seg.png", "d/"]
    for name in names:
        key, extension = webdataset.tariterators.base_plus_ext(name)
        expected = None if key is None else (key.removeprefix("./"), extension.lower())
        assert tars.part_name(name) == expected, name
    assert tars.part_name("d/._a.jpg") is None  # of no sample; WebDataset makes one with the key d/ of it


@pytest.mark.parametrize("format", FORMATS)
def test_a_cut_tar_gives_what_is_whole_and_says_where_it_ends(format: str) -> None:
    data = written(FORMATS[format])
    whole = read(data)
    end = whole[-1][0].offset
    for cut in [0, 1, 511, 512, 513, 700, 1024, *np.linspace(1100, end, 60).astype(int).tolist(), end]:
        file = io.BytesIO(data[:cut])
        found: list[tuple[Member, bytes]] = []
        with pytest.raises(BrokenTar, match="the tar is"):
            found.extend((member, tars.read(file, member)) for member in tars.members(file))
        assert found == whole[: len(found)]
        assert len(found) >= sum(member.offset + member.size + 1024 <= cut for member, _ in whole)


def test_a_header_that_is_none_is_told() -> None:
    data = bytearray(written(tarfile.USTAR_FORMAT))
    places = [member.offset - 512 for member, _ in read(bytes(data))]
    for place, byte in ((places[2] + 5, 1), (places[2] + 130, ord("9")), (places[2] + 150, ord("x"))):
        broken = bytearray(data)
        broken[place] = byte
        with pytest.raises(BrokenTar, match=f"no header at byte {places[2]}"):
            read(bytes(broken))
    with pytest.raises(BrokenTar):
        read(b"<html>404</html>" * 100)


@pytest.mark.parametrize("size", [b"-0000001000", b"-0000000001", b"\xff" * 12, b"\xff" * 11 + b"\x00"])
def test_a_member_of_less_than_nothing_ends_the_tar(size: bytes) -> None:
    """Taken at its word, it would end before it begins, and be met again and again."""
    header = bytearray(written(tarfile.USTAR_FORMAT)[:512])
    header[124 : 124 + len(size)], header[148:156] = size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(BrokenTar, match="broken"):
        read(bytes(header) + b"\0" * 4096)


def test_a_member_beyond_all_files_ends_the_tar() -> None:
    header = bytearray(written(tarfile.GNU_FORMAT)[:512])
    header[124:136], header[148:156] = b"\x80" + b"\x7f".rjust(4, b"\0") + b"\xff" * 7, b" " * 8  # about 2 to the 63
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(BrokenTar, match="broken"):
        list(tars.members(io.BytesIO(bytes(header) + b"\0" * 4096)))


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/a.jpg", "b/../../a.jpg", "..", "a/.."])
def test_names_that_lead_out_are_told(name: str) -> None:
    assert tars.leads_out(name)
    assert not tars.leads_out(name.replace("..", "x").lstrip("/"))


def test_a_tar_on_disk_is_read_like_one_in_memory(tmp_path: Path) -> None:
    data = written(tarfile.PAX_FORMAT, 1.5)
    (tmp_path / "a.tar").write_bytes(data)
    with (tmp_path / "a.tar").open("rb") as file:
        assert [(member, tars.read(file, member)) for member in tars.members(file)] == read(data)
