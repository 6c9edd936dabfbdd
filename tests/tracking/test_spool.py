"""Files of the spool: whole lines, a living writer, positions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tracking.made_up import begin
from vtp.tracking.spool import Spool


@pytest.mark.trap
def test_half_a_line_harms_no_other(tmp_path: Path, alone: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    track = begin(tmp_path)
    file = track._file
    assert file is not None

    class Full:
        def write(self, data: bytes) -> int:
            return file.write(data[: len(data) // 2])

    track._file = Full()  # type: ignore[assignment]
    track.scalars(1, {"loss": 1.0})
    track._file = file
    track.scalars(2, {"loss": 2.0})
    track.close()
    spool = Spool(tmp_path / "runs" / "spool" / "pretrain-abc-0000.jsonl", "x")
    records, offset = spool.read()
    assert [(record["kind"], record["step"]) for record in records] == [("open", 0), ("scalar", 2), ("end", 0)]
    assert offset == spool.path.stat().st_size


def test_a_writer_is_alive_until_it_closes(tmp_path: Path, alone: list[Path]) -> None:
    track = begin(tmp_path)
    spool = Spool(tmp_path / "runs" / "spool" / "pretrain-abc-0000.jsonl", "x")
    assert spool.alive()
    track.close()
    assert not spool.alive()


def test_a_reader_takes_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "a-b-0000.jsonl"
    path.write_bytes(b'{"kind": 1}\n{"kind": 2}\n{"ki')
    spool = Spool(path, "x")
    records, spool.position.offset = spool.read()
    assert records == [{"kind": 1}, {"kind": 2}]
    with path.open("ab") as file:
        file.write(b'nd": 3}\n')
    assert spool.read() == ([{"kind": 3}], path.stat().st_size)


def test_a_position_holds_for_one_destination(tmp_path: Path) -> None:
    path = tmp_path / "a-b-0000.jsonl"
    path.write_bytes(b"{}\n")
    spool = Spool(path, "here")
    spool.position.offset, spool.position.done = 3, True
    spool.note()
    assert not Spool(path, "here").pending()
    there = Spool(path, "there")
    assert (there.pending(), there.elsewhere, there.position.offset) == (True, True, 0)
