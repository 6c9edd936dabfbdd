"""A folder of pictures and a tar with everything in them that can be wrong, and what the quarantine says of each."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.stub import pixels, png


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of some hundred bytes that says it has side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(pixels(99, seed, height=40, width=48))


def unusual() -> dict[str, bytes]:
    """Pictures that look odd and are used."""
    exif = Image.Exif()
    exif[0x0112] = 6
    layer = picture(4).convert("RGBA")
    layer.putalpha(128)
    deep = np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48)
    frames = {"save_all": True, "append_images": [picture(6)]}
    return {
        "grey.jpg": encoded(picture(0).convert("L"), "JPEG"),
        "palette.png": encoded(picture(1).convert("P"), "PNG"),
        "cmyk.jpg": encoded(picture(2).convert("CMYK"), "JPEG"),
        "alpha.png": encoded(layer, "PNG"),
        "sixteen.png": encoded(Image.fromarray(deep), "PNG"),
        "turned.jpg": encoded(picture(3), "JPEG", exif=exif),
        "moving.gif": encoded(picture(5), "GIF", **frames),
        "really_a_jpeg.png": encoded(picture(7), "JPEG"),
        "web.webp": encoded(picture(8), "WEBP"),
    }


def broken() -> dict[str, tuple[bytes, str]]:
    """Files that no picture can be made of, and why."""
    whole = encoded(picture(9), "JPEG")
    return {
        "bomb.png": (bomb(40000), "image has more than 67108864 pixels"),
        "cut.jpg": (whole[: len(whole) // 2], "image is cut"),
        "half_zeros.jpg": (whole[: len(whole) // 2] + bytes(len(whole) // 2), "image is cut"),
        "short.png": (encoded(picture(10), "PNG")[:-900], "image is cut"),
        "empty.jpg": (b"", "image is empty"),
        "zeros.jpg": (bytes(5000), "image is no picture of a known format"),
        "page.jpg": (b"<!DOCTYPE html><title>404</title>", "image is no picture of a known format"),
        "floats.tif": (encoded(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"), "image has 32 bits a channel"),
        "thread.png": (encoded(Image.new("RGB", (2000, 9)), "PNG"), "image is more than 10 times as long as wide"),
        "dot.png": (encoded(Image.new("RGB", (7, 7)), "PNG"), "image is smaller than 8 pixels"),
    }


CAPTIONS = {
    "chinese": "一只猫坐在窗台上",
    "emoji": "a cat 🐈‍⬛ on a mat 🧿",
    "control": "a\x00 cat\x07 \x1b[31mred\u202e",
    "html": "<p>a &amp;cat</p> &lt;br/&gt;",
    "long": "cat and dog " * 8500,
    "mojibake": "schÃ¶ne Katze",
    "arabic": "قطة على السجادة",
}
NO_CAPTIONS = {"blank": " \n\t ", "bells": "\x07\x07\x1b"}


def good(folder: Path, count: int, *, captions: bool) -> None:
    for split, seed in (("train", 0), ("val", 1)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True, exist_ok=True)
            for i in range(count if split == "train" else count // 4):
                (folder / split / label / f"{i:03d}.jpg").write_bytes(
                    png(pixels(seed, ord(label[0]), i, height=40, width=40), "JPEG")
                )
                if captions:
                    (folder / split / label / f"{i:03d}.txt").write_text(f"{label} number {i}", encoding="utf-8")


def poisoned_folder(folder: Path) -> dict[str, str]:
    """Class folders with good pictures among bad ones: key -> reason of what is to be put aside."""
    good(folder, 40, captions=True)
    cat = folder / "train" / "cat"
    expected = {}
    for name, data in unusual().items():
        (cat / name).write_bytes(data)
        (cat / name).with_suffix(".txt").write_text("unusual")
    for name, (data, reason) in broken().items():
        file = cat / f"bad_{name}"
        file.write_bytes(data)
        file.with_suffix(".txt").write_text("broken")
        expected[f"cat_{file.stem}"] = reason
    for name, caption in {**CAPTIONS, **NO_CAPTIONS}.items():
        (cat / f"said_{name}.png").write_bytes(png(pixels(7, len(name), ord(name[0]), height=20, width=20)))
        (cat / f"said_{name}.txt").write_text(caption, encoding="utf-8")
    expected |= dict.fromkeys((f"cat_said_{name}" for name in NO_CAPTIONS), "caption is empty")
    (cat / "silent.png").write_bytes(png(pixels(8)))
    expected["cat_silent"] = "caption is missing"
    (cat / "001.png").write_bytes(png(pixels(9)))  # whose caption is that of 001.jpg, and so is its key
    expected["cat_001"] = "key is that of an earlier row"
    (cat / "leaked.jpg").write_bytes((folder / "val" / "dog" / "003.jpg").read_bytes())
    (cat / "leaked.txt").write_text("seen in validation")
    expected["cat_leaked"] = "image is also in validation"
    (cat / "notes.docx").write_text("x")
    expected["cat_notes"] = "file name is not that of a picture"
    (folder / "val" / "emu").mkdir()
    (folder / "val" / "emu" / "000.jpg").write_bytes(png(pixels(10), "JPEG"))
    expected["emu_000"] = "folder or label is not that of a training class"
    return expected


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def samples(split: str, count: int) -> list[tuple[str, bytes]]:
    found = []
    for i in range(count):
        image = png(pixels(split == "train", 50, i, height=40, width=40), "JPEG")
        found += [
            (f"{split}{i:03d}.jpg", image),
            (f"{split}{i:03d}.txt", f"sample {i}".encode()),
            (f"{split}{i:03d}.cls", b"%d" % (i % 2)),
        ]
    return found


def poisoned_tars(folder: Path) -> dict[str, str]:
    """Two training tars, the second cut, and one for validation: key -> how the reason begins."""
    bad: list[tuple[str, bytes]] = []
    expected = {}

    def add(name: str, reason: str, *members: tuple[str, bytes]) -> None:
        bad.extend(members)
        expected[name] = reason

    image = png(pixels(11), "JPEG")
    for name, (data, reason) in broken().items():
        suffix = ".jpg" if name.endswith("jpg") else ".png"
        if not name.endswith("tif"):
            key = f"bad_{name.replace('.', '_')}"
            add(key, reason, (key + suffix, data), (f"{key}.txt", b"broken"), (f"{key}.cls", b"0"))
    add("nine", "label is not that of a known class", ("nine.jpg", image), ("nine.txt", b"x"), ("nine.cls", b"9"))
    add("word", "label is no whole number", ("word.jpg", png(pixels(12))), ("word.txt", b"x"), ("word.cls", b"cat"))
    add("mute", "caption is missing", ("mute.jpg", png(pixels(13))), ("mute.cls", b"0"))
    add("bare", "label is missing", ("bare.jpg", png(pixels(14))), ("bare.txt", b"x"))
    add("lost", "image is missing", ("lost.txt", b"x"), ("lost.cls", b"0"))
    add("twin", "two pictures have one key", ("twin.jpg", image), ("twin.png", image), ("twin.txt", b"x"), ("twin.cls", b"0"))
    add("../up.jpg", "the member's name leads out of the tar", ("../up.jpg", image))
    add("/etc/up.jpg", "the member's name leads out of the tar", ("/etc/up.jpg", image))
    add(
        "train003",
        "key is that of an earlier row",
        ("train003.jpg", png(pixels(15))),
        ("train003.txt", b"x"),
        ("train003.cls", b"0"),
    )
    leaked = samples("val", 1)[0][1]
    add("leaked", "image is also in validation", ("leaked.jpg", leaked), ("leaked.txt", b"x"), ("leaked.cls", b"0"))
    tar_of(folder / "train-0.tar", samples("train", 60) + bad)
    tar_of(folder / "train-1.tar", samples("train", 10))
    data = (folder / "train-1.tar").read_bytes()
    (folder / "train-1.tar").write_bytes(data[: data.index(b"train008.jpg") + 700])
    expected["train008"] = "the tar is cut within train008.jpg"
    tar_of(folder / "val-0.tar", samples("val", 12))
    (folder / "names.txt").write_text("cat\ndog\n")
    return expected
