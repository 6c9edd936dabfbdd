from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import webdataset

from tests.data.poison import tar_of
from tests.data.stub import DATA, pixels, png
from vtp.config_data import DataParams, WebDatasetMembers
from vtp.data.sources.base import Row
from vtp.data.sources.webdataset import WebDataset

JPEG = png(pixels(0), "JPEG")


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    tar_of(path, list(members))
    return path


def data_for(path: object, caption: str | None = "txt", label: str | None = None, **changes: object) -> DataParams:
    other = {"path": str(path), "validation_path": "/nowhere/x.tar", **changes}
    return replace(DATA, source="webdataset", webdataset=WebDatasetMembers(caption, label), **other)  # type: ignore[arg-type]


def rows(members: Iterable[tuple[str, bytes]], tmp_path: Path, **changes: object) -> list[Row]:
    """Rows of one tar."""
    file = tar(tmp_path / "one.tar", members)
    return list(WebDataset(data_for(file, **changes)).rows("train", 0))  # type: ignore[arg-type]


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    return str(tmp_path / "names.txt")


def test_tars_of_webdatasets_own_writer_are_read_as_its_reader_does(tmp_path: Path, names: str) -> None:
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(7):
            key = f"sub{i % 2}/{i:05d}"
            writer.write({"__key__": key, "jpg": png(pixels(i), "JPEG"), "txt": f"caption {i} é", "cls": i % 2, "json": {"i": i}})
    found = list(WebDataset(data_for(path, "txt", "cls", class_names=names)).rows("train", 0))
    expected = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert len(found) == len(expected) == 7
    bytes_of_tar = path.read_bytes()
    for row, sample in zip(found, expected, strict=True):
        assert row.key == sample["__key__"].replace("/", "_")
        assert row.image == sample["jpg"]
        assert row.offset is not None
        assert bytes_of_tar[row.offset : row.offset + len(sample["jpg"])] == sample["jpg"]
        assert row.caption == sample["txt"].decode()
        assert row.label == int(sample["cls"])
        assert (row.file, row.fault) == (str(path), None)


def test_fields_of_json_serve_as_caption_and_label(tmp_path: Path, names: str) -> None:
    about = {"caption": "from json", "label": 1, "sha256": "0" * 64}
    members = [("0.json", json.dumps(about).encode()), ("0.png", JPEG), ("1.webp", JPEG), ("1.json", b'{"label": 0}')]
    found = rows(members, tmp_path, caption="json:caption", label="json:label", class_names=names)
    assert [(row.key, row.caption, row.label, row.image) for row in found] == [("0", "from json", 1, JPEG), ("1", None, 0, JPEG)]


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([("0.jpg", JPEG), ("0.png", JPEG), ("0.txt", b"x")], "two pictures have one key"),
        ([("0.jpg", JPEG), ("0.jpg", JPEG), ("0.txt", b"x")], "two pictures have one key"),
        ([("0.jpg", JPEG), ("0.txt", b"x"), ("0.txt", b"x")], "two members txt have one key"),
        ([("../0.jpg", JPEG)], "the member's name leads out of the tar"),
        ([("/etc/0.jpg", JPEG)], "the member's name leads out of the tar"),
    ],
)
def test_samples_that_do_not_hold_together_are_told_and_the_others_read(
    tmp_path: Path, members: list[tuple[str, bytes]], fault: str
) -> None:
    good = [("1.jpg", JPEG), ("1.txt", b"one"), ("2.jpg", JPEG), ("2.txt", b"two")]
    for order in (members + good, good + members, good[:2] + members + good[2:]):
        found = rows(order, tmp_path)
        assert [row.key for row in found if not row.fault] == ["1", "2"]
        assert [(row.fault, row.file) for row in found if row.fault] == [(fault, str(tmp_path / "one.tar"))]


def test_what_belongs_to_no_sample_is_passed_over(tmp_path: Path) -> None:
    members = [("README", b"x"), ("._0.jpg", b"x"), ("0.jpg", JPEG), ("0.seg.png", b"x"), ("0.txt", b"one"), ("0.npy", b"x")]
    assert [(row.key, row.image, row.caption) for row in rows(members, tmp_path)] == [("0", JPEG, "one")]


@pytest.mark.parametrize(
    ("about", "fault"),
    [
        (b"{", "json cannot be read"),
        (b"[" * 100_000, "json cannot be read"),
        (b'{"caption": 3, "label": 0}', "caption is no text"),
        (b'{"caption": "x", "label": "one"}', "label is no whole number"),
        (b'{"caption": "x", "label": 0.5}', "label is no whole number"),
        (b'{"caption": "x", "label": 1e400}', "label is no whole number"),
        (b'{"caption": "x", "label": [1]}', "label is no whole number"),
        (b'{"caption": "x", "label": 99999999999}', "label is no whole number"),
    ],
)
def test_descriptions_that_make_no_sense_are_told(tmp_path: Path, names: str, about: bytes, fault: str) -> None:
    members = [("0.jpg", JPEG), ("0.json", about), ("1.jpg", JPEG), ("1.json", b'{"caption": "x", "label": 1}')]
    found = rows(members, tmp_path, caption="json:caption", label="json:label", class_names=names)
    assert [(row.key, row.fault) for row in found] == [("0", fault), ("1", None)]


def test_samples_without_a_part_come_without_it(tmp_path: Path) -> None:
    found = rows([("0.txt", b"alone"), ("1.jpg", JPEG)], tmp_path)
    assert [(row.key, row.image, row.caption, row.fault) for row in found] == [
        ("0", None, "alone", None),
        ("1", JPEG, None, None),
    ]


def test_a_cut_tar_gives_its_whole_samples_and_a_row_that_says_so(tmp_path: Path) -> None:
    members = [(f"{i}.{kind}", JPEG if kind == "jpg" else b"text") for i in range(6) for kind in ("jpg", "txt")]
    file = tar(tmp_path / "one.tar", members)
    data = file.read_bytes()
    place = data.index(b"4.jpg")
    for cut in (place + 100, place + 600, data.index(b"4.txt") + 200):
        file.write_bytes(data[:cut])
        found = list(WebDataset(data_for(file)).rows("train", 0))
        whole = [row.key for row in found if not row.fault]
        assert whole in (["0", "1", "2"], ["0", "1", "2", "3"])
        assert "the tar is cut" in str(found[-1].fault)
        assert [row.file for row in found if row.fault] == [str(file)]


def test_patterns_name_tars_in_order(tmp_path: Path) -> None:
    for i in range(12):
        tar(tmp_path / f"shard-{i:03d}.tar", [(f"{i}.jpg", JPEG), (f"{i}.txt", b"x")])
    every = [str(tmp_path / f"shard-{i:03d}.tar") for i in range(12)]
    for pattern, expected in (
        ("shard-{000..011}.tar", every),
        ("shard-*.tar", every),
        ("shard-00[1-3].tar", every[1:4]),
        ("shard-{005,002}.tar", [every[5], every[2]]),
        ("shard-{00,01}?.tar", every),
        ("", every),
    ):
        assert WebDataset(data_for(tmp_path / pattern)).tars["train"] == expected, pattern
    with pytest.raises(ValueError, match=r"nothing is called .*none-\*.tar"):
        WebDataset(data_for(tmp_path / "none-*.tar"))
    with pytest.raises(ValueError, match=r"shard-002.tar is in data.path and in data.validation_path"):
        WebDataset(data_for(tmp_path, validation_path=every[2]))
    gone = WebDataset(data_for(tmp_path / "shard-{000..012}.tar"))
    assert gone.parts("train") == 13
    with pytest.raises(ValueError, match=r"shard-012.tar does not exist"):
        list(gone.rows("train", 12))


def test_signs_in_the_name_of_what_is_there_are_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "my [old] {a,b} tars"
    for i in range(2):
        tar(folder / f"{i}*.tar", [(f"{i}.jpg", JPEG), (f"{i}.txt", b"x")])
    every = [str(folder / f"{i}*.tar") for i in range(2)]
    assert WebDataset(data_for(folder)).tars["train"] == every
    assert WebDataset(data_for(every[1])).tars["train"] == every[1:]


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "tars" / "0.tar").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"tars/0\.tar cannot be read \(Is a directory\); mend it, or leave it out of data\.path"
    ):
        list(WebDataset(data_for(tmp_path / "tars")).rows("train", 0))


def test_urls_are_read_through_fsspec(tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    for i in range(3):
        file = tar(tmp_path / f"{i}.tar", [(f"{i}.jpg", JPEG), (f"{i}.txt", b"caption")])
        system.pipe(f"/bucket/{i}.tar", file.read_bytes())
    for pattern in ("memory://bucket/{0..2}.tar", "memory://bucket/*.tar"):
        found = WebDataset(data_for(pattern))
        assert [location.rsplit("/", 1)[1] for location in found.tars["train"]] == ["0.tar", "1.tar", "2.tar"]
        assert [row.key for part in range(3) for row in found.rows("train", part)] == ["0", "1", "2"]


def test_labels_need_names(tmp_path: Path) -> None:
    file = tar(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match=r"data.webdataset.label=cls, but data.class_names is null"):
        WebDataset(data_for(file, label="cls"))
    assert WebDataset(data_for(file)).classes == []
    assert not WebDataset(data_for(file, caption=None)).captioned
    assert len(WebDataset(data_for(file, label="cls", class_names="imagenet")).classes) == 1000
