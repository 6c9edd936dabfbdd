from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from vtp.data.captions import END, START, VOCABULARY, tokenize

ORACLE = json.loads((Path(__file__).parents[1] / "oracles" / "tokenizer" / "tokens.json").read_text())


def test_ids_match_the_oracle_at_77_and_at_16() -> None:
    assert [ORACLE[name] for name in ("vocab_size", "sot", "eot")] == [VOCABULARY, START, END]
    rows = tokenize(ORACLE["texts"], 77)
    assert rows.dtype == torch.int64
    for row, ids in zip(rows.tolist(), ORACLE["ids"], strict=True):
        assert row == ids + [0] * (77 - len(ids))
    assert tokenize(ORACLE["texts"], 16).tolist() == ORACLE["ids_context16"]


def test_repeated_texts_keep_their_rows() -> None:
    rows = tokenize(["a dog", "a cat", "a dog"], 6)
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])
    assert tokenize([], 6).shape == (0, 6)


def test_open_clip_itself_is_not_imported() -> None:
    code = "import sys; from vtp.data.captions import tokenize; tokenize(['a'], 4); print('open_clip' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "False"
