"""Cells of tables that people open in a spreadsheet: text must stay text, and never run as a formula."""

from __future__ import annotations

import re

__all__ = ["guard_cell", "unguard_cell"]

_FORMULA = re.compile("[\\s']*[=+@＝＋－＠\t\r-]")  # noqa: RUF001  # spreadsheets take the wide ones as well
_GUARDED = re.compile(f"'{_FORMULA.pattern}")


def guard_cell(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would take for a formula.

    Spreadsheets run a cell that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return. The apostrophe is
    what they themselves write for "this is text". :func:`unguard_cell` gives back every text as it was.

    Example:
        >>> guard_cell("=1+1"), guard_cell("Left-Hippocampus"), guard_cell("'-x")
        ("'=1+1", 'Left-Hippocampus', "''-x")
    """
    return f"'{text}" if _FORMULA.match(text) else text


def unguard_cell(text: str) -> str:
    """Take away the apostrophe that :func:`guard_cell` put before a text.

    Example:
        >>> unguard_cell("'=1+1"), unguard_cell("'tis a name")
        ('=1+1', "'tis a name")
    """
    return text[1:] if _GUARDED.match(text) else text
