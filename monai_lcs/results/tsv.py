"""Writes tables as text with tabs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

__all__ = ["write_tsv"]


def write_tsv(frame: pd.DataFrame, path: Path, float_format: str | None = None) -> None:
    r"""Writes a table with tabs between its columns, and NaN as ``n/a``, as BIDS does.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tsv(pd.DataFrame({"id": [4], "dice": [float("nan")]}), Path(folder, "dice.tsv"))
        ...     Path(folder, "dice.tsv").read_text().splitlines()
        ['id\tdice', '4\tn/a']
    """
    frame.to_csv(path, sep="\t", index=False, na_rep="n/a", float_format=float_format)
