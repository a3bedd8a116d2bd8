"""Writes tables as text with tabs, and reads them back."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from monai.config import PathLike

from monai_lcs.labels.cells import guard_cell, unguard_cell

__all__ = ["read_tsv", "write_tsv"]

_TEXTS = ("case", "name")


def write_tsv(frame: pd.DataFrame, path: Path, float_format: str | None = None) -> None:
    r"""Writes a table with tabs between its columns, and NaN as ``n/a``, as BIDS does.

    A text that begins with ``=``, ``+``, ``-`` or ``@`` gets an apostrophe before it, as a spreadsheet would run it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tsv(pd.DataFrame({"name": ["=x"], "dice": [float("nan")]}), Path(folder, "dice.tsv"))
        ...     Path(folder, "dice.tsv").read_text().splitlines()
        ['name\tdice', "'=x\tn/a"]
    """
    texts = frame.select_dtypes(exclude="number").map(lambda cell: guard_cell(cell) if isinstance(cell, str) else cell)
    frame.assign(**{str(column): texts[column] for column in texts}).to_csv(
        path, sep="\t", index=False, na_rep="n/a", float_format=float_format
    )


def read_tsv(path: PathLike) -> pd.DataFrame:
    """Reads what :func:`write_tsv` wrote: names and cases are text, such as "007" and "None", and only ``n/a`` is NaN.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tsv(pd.DataFrame({"case": ["007"], "name": ["=x"], "dice": [0.5]}), Path(folder, "dice.tsv"))
        ...     read_tsv(Path(folder, "dice.tsv")).values.tolist()
        [['007', '=x', 0.5]]
    """
    types = dict.fromkeys(_TEXTS, str)
    frame = pd.read_csv(path, sep="\t", na_values=["n/a"], keep_default_na=False, dtype=types)
    texts = [column for column in _TEXTS if column in frame]
    frame[texts] = frame[texts].map(lambda cell: unguard_cell(cell) if isinstance(cell, str) else cell)
    return frame
