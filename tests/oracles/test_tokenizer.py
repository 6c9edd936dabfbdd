"""Caption ids of CLIP's byte-pair vocabulary."""

from __future__ import annotations

import json

import torch

from tests.oracles.conftest import FOLDER, Compare, Tolerance
from vtp.data.captions import END, START, VOCABULARY, tokenize

ORACLE = json.loads((FOLDER / "tokenizer" / "tokens.json").read_text())
EQUAL = Tolerance(0, 0)


def test_ids_at_77_and_at_16(compare: Compare) -> None:
    assert [ORACLE[name] for name in ("vocab_size", "sot", "eot")] == [VOCABULARY, START, END]
    rows = torch.tensor([ids + [0] * (77 - len(ids)) for ids in ORACLE["ids"]])
    compare("tokenizer", "ids", tokenize(ORACLE["texts"], 77), rows, EQUAL)
    compare("tokenizer", "ids_context16", tokenize(ORACLE["texts"], 16), torch.tensor(ORACLE["ids_context16"]), EQUAL)
