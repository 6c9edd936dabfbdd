from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from vtp.data import contract

NAMES = ["red star", "blue disc"]


def frame(**changes: tuple[int, Any]) -> pd.DataFrame:
    """Three good rows numbered 10 to 12, with single values changed: caption=(11, " ")."""
    rows = pd.DataFrame(
        {
            "key": pd.array(["a-1", "a_2", "A3"], dtype="string"),
            "caption": pd.array(["a star", "a disc", "one disc"], dtype="string"),
            "label": pd.array([0, 1, 1], dtype="Int64"),
            "class_name": pd.array(["red star", "blue disc", "blue disc"], dtype="string"),
            "decodes": [True, True, True],
            "short_side": pd.array([64, 8, 500], dtype="Int64"),
        },
        index=range(10, 13),
    )
    for column, (row, value) in changes.items():
        rows.loc[row, column] = value
    return rows


def test_good_rows_pass() -> None:
    assert contract.broken(contract.row_schema(NAMES), frame()) == {}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("key", "a-1", "key is that of an earlier row"),
        ("key", pd.NA, "key is missing"),
        ("key", "a/2", "key is not 1 to 90 letters, digits, _ and -"),
        ("key", "a2\n", "key is not 1 to 90 letters, digits, _ and -"),
        ("key", "k" * 91, "key is not 1 to 90 letters, digits, _ and -"),
        ("caption", " \t\n", "caption is empty"),
        ("caption", pd.NA, "caption is missing"),
        ("label", pd.NA, "label is missing"),
        ("label", -1, "label is not that of a known class"),
        ("label", 2, "label is not that of a known class"),
        ("label", 0, "class_name is not that of the label"),
        ("class_name", pd.NA, "class_name is missing"),
        ("decodes", False, "image cannot be decoded"),
        ("short_side", 7, "image is smaller than 8 pixels"),
    ],
)
def test_each_fault_is_named_on_its_row_alone(column: str, value: Any, reason: str) -> None:
    assert contract.broken(contract.row_schema(NAMES), frame(**{column: (11, value)})) == {11: [reason]}


def test_all_faults_of_all_rows_are_found_at_once() -> None:
    rows = frame(caption=(12, ""), label=(10, 7), decodes=(12, False))
    assert contract.broken(contract.row_schema(NAMES), rows) == {
        10: ["label is not that of a known class"],
        12: ["caption is empty", "image cannot be decoded"],
    }


def test_a_frame_of_another_form_is_an_error_not_a_broken_row() -> None:
    with pytest.raises(TypeError, match="does not fit"):
        contract.broken(contract.row_schema(NAMES), frame().drop(columns="caption"))


def test_splits_share_no_key_and_no_picture() -> None:
    def rows(keys: str, hashes: str) -> pd.DataFrame:
        return pd.DataFrame({"key": list(keys), "image_hash": list(hashes)}, dtype="string")

    validation = rows("xyz", "123")
    assert contract.broken(contract.apart_schema(), validation) == {}
    assert contract.broken(contract.apart_schema(validation), rows("abac", "4456")) == {2: ["key is that of an earlier row"]}
    assert contract.broken(contract.apart_schema(validation), rows("abyz", "4256")) == {
        1: ["image is also in validation"],
        2: ["key is also in validation"],
        3: ["key is also in validation"],
    }
