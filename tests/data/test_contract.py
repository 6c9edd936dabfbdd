from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from vtp.data import contract
from vtp.data.duplicates import Seen

NAMES = ["red star", "blue disc"]
SEEN = Seen(*(np.array(hashes, dtype=np.uint64) for hashes in ([7, 8], [2**64 - 2], [])))
SCHEMA = contract.row_schema(NAMES, captioned=True, seen=SEEN)


def frame(**changes: tuple[int, Any]) -> pd.DataFrame:
    """Three good rows numbered 10 to 12, with single values changed: caption=(11, " ")."""
    rows = pd.DataFrame(
        {
            "key": pd.array(["a-1", "a_2", "A3"], dtype="string"),
            "caption": pd.array(["a star", "a disc", "one disc"], dtype="string"),
            "label": pd.array([0, 1, 1], dtype="Int64"),
            "class_name": pd.array(["red star", "blue disc", "blue disc"], dtype="string"),
            "caption_ids": pd.array([4, 4, 4], dtype="Int64"),
            "fault": pd.array([None, None, None], dtype="string"),
            "short_side": pd.array([64, 8, 500], dtype="Int64"),
            "elongation": [1.0, 10.0, 1.5],
            "key_hash": pd.array([1, 2, 3], dtype="UInt64"),
            "image_hash": pd.array([4, 5, 2**64 - 1], dtype="UInt64"),
            "alike": [False, False, False],
        },
        index=range(10, 13),
    )
    for column, (row, value) in changes.items():
        rows.loc[row, column] = value
    return rows


def test_good_rows_pass() -> None:
    assert contract.broken(SCHEMA, frame()) == {}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("key", "a-1", "key is that of an earlier row"),
        ("key", pd.NA, "key is missing"),
        ("key", "a/2", "key is not 1 to 90 letters, digits, _ and -"),
        ("key", "a2\n", "key is not 1 to 90 letters, digits, _ and -"),
        ("key", "k" * 91, "key is not 1 to 90 letters, digits, _ and -"),
        ("caption_ids", 2, "caption is empty"),
        ("caption", pd.NA, "caption is missing"),
        ("label", pd.NA, "label is missing"),
        ("label", -1, "label is not that of a known class"),
        ("label", 2, "label is not that of a known class"),
        ("label", 0, "class_name is not that of the label"),
        ("fault", "image is cut", "image is cut"),
        ("short_side", 7, "image is smaller than 8 pixels"),
        ("elongation", 10.1, "image is more than 10 times as long as wide"),
        ("key_hash", 7, "key is also in validation"),
        ("image_hash", 2**64 - 2, "image is also in validation"),
        ("alike", True, "image looks like one in validation"),
    ],
)
def test_each_fault_is_named_on_its_row_alone(column: str, value: Any, reason: str) -> None:
    assert contract.broken(SCHEMA, frame(**{column: (11, value)})) == {11: [reason]}


def test_all_faults_of_all_rows_are_found_at_once() -> None:
    rows = frame(caption_ids=(12, 2), label=(10, 7), fault=(12, "image is cut"))
    assert contract.broken(SCHEMA, rows) == {
        10: ["label is not that of a known class"],
        12: ["caption is empty", "image is cut"],
    }


def test_a_frame_of_another_form_is_an_error_not_a_broken_row() -> None:
    with pytest.raises(TypeError, match="does not fit"):
        contract.broken(SCHEMA, frame().drop(columns="caption"))


def test_what_the_source_has_not_is_not_asked_for() -> None:
    rows = frame().assign(caption=pd.NA, caption_ids=pd.NA, label=pd.NA, class_name=pd.NA)
    rows = rows.astype({"caption": "string", "caption_ids": "Int64", "label": "Int64", "class_name": "string"})
    assert contract.broken(contract.row_schema([], captioned=False), rows) == {}
    for schema, reason in (
        (contract.row_schema(NAMES, captioned=False), "label is missing"),
        (contract.row_schema([], captioned=True), "caption is missing"),
    ):
        assert contract.broken(schema, rows) == {10: [reason], 11: [reason], 12: [reason]}


def test_keys_of_tars_may_meet_those_of_validation() -> None:
    schema = contract.row_schema(NAMES, captioned=True, keys_differ=False, seen=SEEN)
    assert contract.broken(schema, frame(key_hash=(11, 7))) == {}
