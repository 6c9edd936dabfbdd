"""What a row must be to be trained on. Rows that break the contract are put aside with a readable reason, never repaired.

Rows are checked as they are read, some thousand at a time, with the validation split as it was read before them; that keys differ
between all shards is seen at the end (`vtp.data.duplicates.repeated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtp.data.duplicates import Seen

if TYPE_CHECKING:
    from typing import TypeAlias

    import pandas as pd
    import pandera.pandas as pa

    Schema: TypeAlias = pa.DataFrameSchema

SMALLEST_SIDE = 8
LONGEST_SIDE = 10
"""Times the short side; of a longer picture hardly anything is left in a square."""
KEY = r"[A-Za-z0-9_-]{1,90}"
"""Keys become file names within a tar, where a dot or a slash would have a meaning."""

REPEATED_KEY = "key is that of an earlier row"
REASONS = {"not_nullable": "{column} is missing", "field_uniqueness": REPEATED_KEY, "fault": "{case}"}
"""pandera's own checks in words, and what is wrong with a picture, told by whoever decoded it; other checks bring their words."""


def row_schema(class_names: Sequence[str], *, captioned: bool, keys_differ: bool = True, seen: Seen | None = None) -> Schema:
    """The rows that a process looks at together.

    Columns: key, caption, label, class_name (null where the source has none), caption_ids (start and end included), fault (why
    the picture is none), short_side in pixels and elongation (long over short side) of the picture, key_hash and image_hash (64
    bits), alike (looks like a picture of validation).

    Args:
        class_names: by label; none if rows have no labels.
        captioned: every row needs a caption.
        keys_differ: keys must differ from those of validation, too.
        seen: the validation split, for training rows.
    """
    import pandas as pd
    import pandera.pandas as pa

    names = pd.Series(class_names, dtype="string")

    def named_alike(rows: pd.DataFrame) -> pd.Series:
        expected = rows["label"].astype("Int64").map(names)
        return (expected == rows["class_name"]).fillna(True).astype(bool)

    labels = [pa.Check.in_range(0, len(class_names) - 1, error="label is not that of a known class")] if class_names else []
    known_keys = (
        [pa.Check(lambda found: ~found.isin(seen.keys), error="key is also in validation")] if seen and keys_differ else []
    )
    known_images = [pa.Check(lambda found: ~found.isin(seen.images), error="image is also in validation")] if seen else []
    return pa.DataFrameSchema(
        {
            "key": pa.Column(
                "string",
                pa.Check(lambda keys: keys.str.fullmatch(KEY), error="key is not 1 to 90 letters, digits, _ and -"),
                unique=True,
                report_duplicates="exclude_first",
            ),
            "caption": pa.Column("string", nullable=not captioned),
            "caption_ids": pa.Column("Int64", pa.Check.ge(3, error="caption is empty") if captioned else None, nullable=True),
            "label": pa.Column("Int64", labels, nullable=not class_names),
            "class_name": pa.Column("string", nullable=True),
            "fault": pa.Column("string", pa.Check(lambda faults: faults.isna(), error="fault"), nullable=True),
            "short_side": pa.Column(
                "Int64", pa.Check.ge(SMALLEST_SIDE, error=f"image is smaller than {SMALLEST_SIDE} pixels"), nullable=True
            ),
            "elongation": pa.Column(
                float, pa.Check.le(LONGEST_SIDE, error=f"image is more than {LONGEST_SIDE} times as long as wide"), nullable=True
            ),
            "key_hash": pa.Column("UInt64", known_keys, nullable=True),
            "image_hash": pa.Column("UInt64", known_images, nullable=True),
            "alike": pa.Column(bool, pa.Check.eq(False, error="image looks like one in validation")),
        },
        checks=pa.Check(named_alike, error="class_name is not that of the label") if class_names else None,
        strict=True,
    )


def broken(schema: Schema, rows: pd.DataFrame) -> dict[int, list[str]]:
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
    columns = (cases[name] for name in ("column", "check", "index", "failure_case"))
    for column, check, index, case in zip(*columns, strict=True):
        reasons.setdefault(int(index), set()).add(REASONS.get(check, check).format(column=column, case=case))
    return {index: sorted(reasons[index]) for index in sorted(reasons)}
