"""The hemisphere of a label: from the words of a table's column, or from usual patterns in the label's name."""

from __future__ import annotations

import re

__all__ = ["infer_hemisphere", "name_of_both_sides", "parse_hemisphere"]

_HEMISPHERES = {
    "L": ("l", "left", "lh"),
    "R": ("r", "right", "rh"),
    None: ("", "b", "both", "bilateral", "lr", "m", "midline", "none", "unknown"),
}

_PATTERNS = (
    r"(?<![^-_.\s()\[\]{},;:/])(?i:left|right|lh|rh)(?![^-_.\s()\[\]{},;:/])",  # words count anywhere
    r"(?<![A-Za-z])(?:Left|Right)(?=[A-Z])|(?<=[a-z])(?:Left|Right)(?![a-z])",  # "LeftInsula", "insulaLeft"
    # The bare letters count only where atlases write them, at either end or in parentheses.
    r"^[LR](?=[_ .])|^[LR](?=-\w\w)|^[lr](?=[_.]\w\w)",
    r"(?<=[_ .])[LR]$|(?<=[^\W_]-)[LR]$|(?<=[^\W_][_.-])[lr]$",
    r"(?<=[(\[])[LRlr](?=[)\]])",
)


def parse_hemisphere(text: str) -> str | None:
    """Read a cell of a column of hemispheres: ``"L"``, ``"R"``, or None for both, neither and unknown.

    Raises:
        ValueError: if the text is none of the usual words.

    Example:
        >>> parse_hemisphere("rh"), parse_hemisphere("both")
        ('R', None)
    """
    for hemisphere, words in _HEMISPHERES.items():
        if text.lower() in words:
            return hemisphere
    raise ValueError(f"The hemisphere must be L, R, B (both) or n/a, got {text[:40]!r}.")


def infer_hemisphere(name: str) -> str | None:
    """Tell the hemisphere from usual patterns in the name; None if there are none or they contradict each other.

    Example:
        >>> [infer_hemisphere(name) for name in ("ctx-lh-insula", "insula_r", "L-insula", "insula (left)", "Leftover")]
        ['L', 'R', 'L', 'L', None]
    """
    found = [word for pattern in _PATTERNS for word in re.findall(pattern, name.strip())]
    sides = {word[0].upper() for word in found}
    return sides.pop() if len(sides) == 1 else None


def name_of_both_sides(name: str) -> str:
    """The name without what tells its hemisphere, which is the same for both sides of a structure.

    Example:
        >>> [name_of_both_sides(name) for name in ("ctx-lh-insula", "ctx-rh-insula", "Leftover")]
        ['ctx--insula', 'ctx--insula', 'Leftover']
    """
    return name if infer_hemisphere(name) is None else re.sub("|".join(_PATTERNS), "", name.strip())
