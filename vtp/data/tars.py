"""Members of a tar in sequence, with their places in it, and hostile tars told apart from whole ones.

Plain headers, nearly all there are, are read here, which takes a fifth of the time of `tarfile`; long names, PAX records and
whatever else is unusual are left to `tarfile`. Nothing is ever unpacked to a path that a tar names.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
PLAIN = (b"0", b"\0")
"""Types of a regular file."""
SPLIT = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]*)")
"""Key and extension of a member's name, as WebDataset parts them: at the first dot of the last part of the path, which may not
be hidden."""


class BrokenTar(ValueError):
    """A tar that ends early or whose headers are no headers; the message says where."""


class Member(NamedTuple):
    """A file in a tar: `size` bytes at `offset`; `regular` is false for folders, links and devices."""

    name: str
    offset: int
    size: int
    regular: bool


def members(file: BinaryIO) -> Iterator[Member]:
    """Members in order. Between two of them the caller may read: the file stands at the member's first byte.

    Raises:
        BrokenTar: the tar is cut, has no end, or a header is broken; members before that have been yielded.
    """
    position = 0
    while True:
        try:
            file.seek(position)
        except OverflowError:
            raise BrokenTar(f"the tar is broken: a member is said to end at byte {position}") from None
        head = file.read(BLOCK)
        if len(head) < BLOCK:
            raise BrokenTar(f"the tar is cut: it ends at byte {position + len(head)} without an end mark")
        if head[156:157] in PLAIN and head[124] < 0x80 and head[0]:
            member = _plain(head, position + BLOCK)
        elif not head.strip(b"\0"):
            return
        else:
            member, position = _unusual(file, position)
            file.seek(member.offset)
            yield member
            continue
        yield member
        position = member.offset + -(-member.size // BLOCK) * BLOCK


def read(file: BinaryIO, member: Member) -> bytes:
    """The bytes of the member that `members` has just yielded.

    Raises:
        BrokenTar: the tar ends within them.
    """
    data = file.read(member.size)
    if len(data) < member.size:
        raise BrokenTar(f"the tar is cut within {member.name}, at byte {member.offset + len(data)}")
    return data


def part_name(name: str) -> tuple[str, str] | None:
    """Key and extension (lower case) of a member that belongs to a sample; None for other files."""
    match = SPLIT.fullmatch(name.removeprefix("./"))
    return (match[1], match[2].lower()) if match else None


def leads_out(name: str) -> bool:
    """Whether a name would lead out of the folder that a tar is unpacked in."""
    return name.startswith("/") or ".." in name.split("/")


def _plain(head: bytes, offset: int) -> Member:
    try:
        size = int(head[124:136].strip(b" \0") or b"0", 8)
        said = int(head[148:156].strip(b" \0"), 8)
    except ValueError:
        said, size = -1, 0
    if size < 0:  # Python reads signs; a member that ends before it begins would be met for ever
        said = -1
    if sum(head) - sum(head[148:156]) + 8 * ord(" ") != said:
        raise BrokenTar(f"the tar is broken: no header at byte {offset - BLOCK}")
    name, prefix = head[:100].split(b"\0", 1)[0], head[345:500].split(b"\0", 1)[0]
    whole = prefix + b"/" + name if prefix else name
    return Member(whole.decode("utf-8", "surrogateescape"), offset, size, True)


def _unusual(file: BinaryIO, position: int) -> tuple[Member, int]:
    """The member whose headers begin at `position`, by `tarfile`, and where the next one begins."""
    file.seek(position)
    try:
        tar = tarfile.TarFile(fileobj=file)
    except (tarfile.TarError, OverflowError) as error:
        raise BrokenTar(f"the tar is broken at byte {position} ({error})") from None
    first = tar.firstmember  # type: ignore[attr-defined]  # what the constructor has read
    if first is None or first.size < 0 or tar.offset <= position:
        raise BrokenTar(f"the tar is broken at byte {position}")
    return Member(first.name, first.offset_data, first.size if first.isreg() else 0, first.isreg()), tar.offset
