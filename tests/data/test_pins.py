from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtp.config import ROOT
from vtp.data.pins import check_tokenizer, write_tokenizer_pin


def test_a_tokenizer_is_pinned_by_the_files_it_is_read_from(tmp_path: Path) -> None:
    given, inputs, names = tmp_path / "given", tmp_path / "inputs", ("config.json", "model.safetensors", "vtp_extra.safetensors")
    given.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (given / name).write_text(name)
    file = write_tokenizer_pin(None, names, inputs)
    assert json.loads(file.read_text()) == {"path": None, "files": {}}
    with pytest.raises(ValueError, match=r"pins no tokenizer, not .*given; run `python -m vtp pin`"):
        check_tokenizer(given, names, inputs)
    assert list(json.loads(write_tokenizer_pin(given, names, inputs).read_text())["files"]) == [
        "config.json",
        "model.safetensors",
    ]
    (given / "README.md").write_text("another text")
    check_tokenizer(given, names, inputs)
    for name, text, message in (
        ("vtp_extra.safetensors", "x", "was added"),
        ("model.safetensors", "x", "has another size"),
        ("config.json", "CONFIG.json", "has other contents"),
    ):
        write_tokenizer_pin(given, names, inputs)
        (given / name).write_text(text)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            check_tokenizer(given, names, inputs)


def test_this_project_pins_no_tokenizer_of_its_own() -> None:
    assert json.loads((ROOT / "data" / "inputs" / "tokenizer.json").read_text()) == {"path": None, "files": {}}
