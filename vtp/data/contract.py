"""What a row must be to be trained on. Rows that break the contract are put aside with a readable reason, never repaired.

The columns are checked shard by shard (`row_schema`), and what only the whole can show, after all shards are there
(`apart_schema`): keys are unique, and the splits share no key and no picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pandera.pandas as pa

SMALLEST_SIDE = 8
KEY = r"[A-Za-z0-9_-]{1,90}"
"""Keys become file names within a tar, where a dot or a slash would have a meaning."""

REASONS = {"not_nullable": "{column} is missing", "field_uniqueness": "{column} is that of an earlier row"}
"""pandera's own checks in words; the checks below bring theirs along."""


def row_schema(class_names: Sequence[str]) -> pa.DataFrameSchema:
    """The rows of a shard: key, caption, label, class_name, and of the image whether it decodes and its short side in pixels."""
    import pandas as pd
    import pandera.pandas as pa

    names = pd.Series(class_names, dtype="string")

    def named_alike(rows: pd.DataFrame) -> pd.Series:
        expected = rows["label"].astype("Int64").map(names)
        return (expected == rows["class_name"]).fillna(True).astype(bool)

    return pa.DataFrameSchema(
        {
            "key": pa.Column(
                "string",
                pa.Check(lambda keys: keys.str.fullmatch(KEY), error="key is not 1 to 90 letters, digits, _ and -"),
                unique=True,
                report_duplicates="exclude_first",
            ),
            "caption": pa.Column("string", pa.Check(lambda texts: texts.str.strip() != "", error="caption is empty")),
            "label": pa.Column("Int64", pa.Check.in_range(0, len(class_names) - 1, error="label is not that of a known class")),
            "class_name": pa.Column("string"),
            "decodes": pa.Column(bool, pa.Check.eq(True, error="image cannot be decoded")),
            "short_side": pa.Column(
                "Int64", pa.Check.ge(SMALLEST_SIDE, error=f"image is smaller than {SMALLEST_SIDE} pixels"), nullable=True
            ),
        },
        checks=pa.Check(named_alike, error="class_name is not that of the label"),
        strict=True,
    )


def apart_schema(others: pd.DataFrame | None = None) -> pa.DataFrameSchema:
    """The rows (key, image_hash) of a whole split, which share nothing with the rows `others` of the validation split."""
    import pandera.pandas as pa

    key_checks, hash_checks = [], []
    if others is not None:
        key_checks = [pa.Check(lambda keys: ~keys.isin(others["key"]), error="key is also in validation")]
        hash_checks = [pa.Check(lambda hashes: ~hashes.isin(others["image_hash"]), error="image is also in validation")]
    return pa.DataFrameSchema(
        {
            "key": pa.Column("string", key_checks, unique=True, report_duplicates="exclude_first"),
            "image_hash": pa.Column("string", hash_checks),
        },
        strict=True,
    )


def broken(schema: pa.DataFrameSchema, rows: pd.DataFrame) -> dict[int, list[str]]:
    """Why rows break a schema: row label -> reasons, both in rising order. Rows that keep it are absent."""
    import pandera.pandas as pa

    try:
        schema.validate(rows, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
    else:
        return {}
    if cases["index"].isna().any():
        raise TypeError(f"the frame itself does not fit the contract: {cases['check'].tolist()}")
    reasons: dict[int, set[str]] = {}
    for column, check, index in zip(cases["column"], cases["check"], cases["index"], strict=True):
        reasons.setdefault(int(index), set()).add(REASONS.get(check, check).format(column=column))
    return {index: sorted(reasons[index]) for index in sorted(reasons)}
