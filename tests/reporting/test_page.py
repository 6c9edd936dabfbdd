from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from vtp.reporting.curves import plot, write_csv
from vtp.reporting.page import StageReport, write_page
from vtp.reporting.pictures import save_png

EVIL = """<script>alert("1 & 2")</script>'"""
VOID = {"meta", "img", "link", "br", "input"}


class Outline(HTMLParser):
    """Tags with their attributes, visible text, and whether every tag that opens is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for name, attributes in self.tags if name == tag and attribute in attributes]


@pytest.fixture
def arguments(tmp_path: Path) -> dict[str, Any]:
    """A whole report, its pictures on disk, one under a name that a link has to quote."""
    sheet = np.zeros((20, 30, 3), np.uint8)
    for name in ("data", "two words #1"):
        save_png(tmp_path / "pictures" / f"{name}.png", sheet)
    rows = [{"step": 0, "clip": 4.0}, {"step": 10, "clip": 3.0}]
    plot(tmp_path / "curves" / "pretrain.png", rows, "Pre-training")
    write_csv(tmp_path / "curves" / "pretrain.csv", rows)
    return {
        "title": "A run",
        "summary": {
            "zero_shot_top1": 0.5,
            "num_classes": 4,
            "psnr": 24.0,
            "psnr_before_gan": 25.0,
            "rfd": 3.0,
            "rfd_before_gan": 9.0,
            "recall": None,
            "extra_number": 1.23456,
        },
        "stages": [
            StageReport("prepare", {"pictures": 4096, "quarantined": None}),
            StageReport("pretrain", {"clip": 3.0}, tmp_path / "curves" / "pretrain.png"),
        ],
        "pictures": [tmp_path / "pictures" / "data.png", tmp_path / "pictures" / "two words #1.png"],
        "parameters": {"seed": 0, "data": {"path": None, "parquet": {"image": "jpg"}, "scale": [0.8, 1.0]}},
        "provenance": {"revision": "0123abc"},
    }


def written(folder: Path, arguments: dict[str, Any]) -> str:
    write_page(folder / "index.html", **arguments)
    return (folder / "index.html").read_text()


def test_the_page_needs_nothing_from_outside(tmp_path, arguments) -> None:
    html = written(tmp_path, arguments)
    outline = Outline(html)
    assert not outline.open
    assert "//" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in outline.tags}
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]


def test_every_link_leads_somewhere(tmp_path, arguments) -> None:
    outline = Outline(written(tmp_path, arguments))
    anchors = {str(attributes["id"]) for _, attributes in outline.tags if "id" in attributes}
    links = outline.all("a", "href") + outline.all("img", "src")
    assert len(outline.all("img", "src")) == 3
    assert "curves/pretrain.csv" in links
    for link in links:
        assert link[1:] in anchors if link.startswith("#") else (tmp_path / unquote(link)).is_file()


def test_pictures_have_a_size_and_a_text(tmp_path, arguments) -> None:
    outline = Outline(written(tmp_path, arguments))
    pictures = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert (pictures[0]["width"], pictures[0]["height"]) == ("30", "20")
    assert all(attributes["alt"] for attributes in pictures)


def test_everything_given_is_escaped(tmp_path, arguments) -> None:
    arguments["title"] = EVIL
    arguments["summary"] |= {"zero_shot_top1": EVIL, EVIL: EVIL}
    arguments["stages"].append(StageReport(EVIL, {EVIL: EVIL}))
    arguments["parameters"][EVIL] = {EVIL: EVIL, "list": [EVIL]}
    arguments["provenance"][EVIL] = EVIL
    html = written(tmp_path, arguments)
    outline = Outline(html)
    assert "<script" not in html
    assert not outline.open
    assert outline.text.count(EVIL) >= 9


def test_null_is_a_dash_in_the_table_and_has_no_tile(tmp_path, arguments) -> None:
    html = written(tmp_path, arguments)
    assert re.search(r"<code>recall</code></td><td class=\"number\">—</td>", html)
    tiles = html[html.index('id="generation"') : html.index('id="pictures"')]
    assert "Recall" not in tiles
    assert "Not measured in this run." in tiles
    assert "None" not in Outline(html).text


def test_numbers_are_held_against_chance_and_the_decoder_before(tmp_path, arguments) -> None:
    text = Outline(written(tmp_path, arguments)).text
    assert "chance 25.0 %" in text
    assert "worse than before GAN (25.00 dB)" in text
    assert "better than before GAN (9)" in text


def test_unknown_numbers_and_every_parameter_are_shown(tmp_path, arguments) -> None:
    html = written(tmp_path, arguments)
    assert '<code>extra_number</code></td><td class="number">1.235</td>' in html
    for key, value in (
        ("seed", "0"),
        ("path", "null"),
        ("parquet.image", "jpg"),
        ("scale", "[0.8, 1.0]"),
        ("revision", "0123abc"),
    ):
        assert f"<dt>{key}</dt><dd>{value}</dd>" in html


def test_sections_without_content_are_left_out(tmp_path, arguments) -> None:
    html = written(tmp_path, arguments | {"provenance": None, "pictures": [], "stages": [], "summary": {}})
    assert not Outline(html).open
    for section in ("provenance", "pictures", "stages"):
        assert f'id="{section}"' not in html
        assert f'href="#{section}"' not in html


def test_the_same_report_gives_the_same_bytes(tmp_path, arguments) -> None:
    assert written(tmp_path, arguments) == written(tmp_path, arguments)
    assert not list(tmp_path.glob(".*"))


def test_a_hole_in_the_page_is_refused(tmp_path, arguments) -> None:
    with pytest.raises(ValueError, match=r"gone\.png does not exist"):
        write_page(tmp_path / "index.html", **arguments | {"pictures": [tmp_path / "gone.png"]})
    assert not (tmp_path / "index.html").exists()
