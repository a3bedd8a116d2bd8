"""One label: its id, its name and how it is shown."""

from __future__ import annotations

import colorsys
import operator
import re
from dataclasses import dataclass
from typing import Any

from monai_lcs.labels.limits import MAX_TABLE_ID
from monai_lcs.labels.rows import cut

__all__ = ["Label", "as_integer", "is_integer"]


@dataclass(frozen=True)
class Label:
    """One label of a label map.

    White space around a string is removed. An empty ``parent`` or ``abbreviation`` becomes None.

    Args:
        id: the value of the label's voxels, > 0. The value 0 is background, which is never a label.
        name: what the label is called. Names are usually unique, but need not be.
        parent: name of the coarse label that it belongs to (a lobe, a structure), or None.
        hemisphere: ``"L"``, ``"R"``, or None for a label on the midline, on both sides or on an unknown side.
        color: red, green and blue, each from 0 to 255. By default the id decides, so the color is the same in every
            run.
        abbreviation: a short name, or None.

    Raises:
        ValueError: if the id is not an integer > 0, the name is empty, a string holds line breaks or tabs, the
            hemisphere is another one, or the color is not three integers from 0 to 255.

    Example:
        >>> Label(17, "Left-Hippocampus", parent="Hippocampus", hemisphere="L").color
        (188, 67, 121)
    """

    id: int
    name: str
    parent: str | None = None
    hemisphere: str | None = None
    color: tuple[int, int, int] = None  # type: ignore[assignment]  # filled in from the id
    abbreviation: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", _check_id(self.id))
        for field in ("name", "parent", "abbreviation"):
            object.__setattr__(self, field, _check_text(getattr(self, field), f"{field} of label {self.id}"))
        if self.name is None:
            raise ValueError(f"Label {self.id} has no name.")
        if self.hemisphere not in ("L", "R", None):
            raise ValueError(f'The hemisphere of label {self.id} must be "L", "R" or None, got {self.hemisphere!r}.')
        color = _default_color(self.id) if self.color is None else self.color
        object.__setattr__(self, "color", _check_color(color, self.id))


def is_integer(value: Any) -> bool:
    """Tell whether a value is one integer of Python, numpy or torch; True and False are not.

    Example:
        >>> import numpy as np
        >>> is_integer(3), is_integer(np.uint8(3)), is_integer(3.0), is_integer(True)
        (True, True, False, False)
    """
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def as_integer(value: Any) -> int:
    """Give a label id as a Python integer.

    Raises:
        ValueError: if the value is not an integer.

    Example:
        >>> import numpy as np
        >>> as_integer(np.uint8(3))
        3
    """
    if not is_integer(value):
        raise ValueError(f"Label ids must be integers, got {value!r}.")
    return operator.index(value)


def _check_id(value: Any) -> int:
    id = as_integer(value)
    if not 0 < id <= MAX_TABLE_ID:
        raise ValueError(f"Label ids must be integers > 0 that fit 64 bits, got {id}.")
    return id


def _check_text(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"The {what} must be a string, got {cut(repr(value))}.")
    value = (value or "").strip()
    # The text formats have one label a line, and BIDS writes "n/a" for nothing.
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", value) or value.lower() == "n/a":
        raise ValueError(f'The {what} must not be "n/a" nor hold tabs or line breaks, got {cut(repr(value))}.')
    return value or None


def _check_color(color: Any, id: int) -> tuple[int, int, int]:
    try:
        red, green, blue = map(operator.index, color)
    except (TypeError, ValueError):
        red = green = blue = -1
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"The color of label {id} must be three integers from 0 to 255, got {color!r}.")
    return red, green, blue


def _default_color(id: int) -> tuple[int, int, int]:
    """Spread ids evenly over hue, saturation and value by the R3 low-discrepancy sequence, so that neighbors differ."""
    hue, saturation, value = ((id * step) % 1 for step in (0.8191725134, 0.6710436067, 0.5497004779))
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.4 + 0.6 * saturation, 0.6 + 0.4 * value)
    return round(255 * red), round(255 * green), round(255 * blue)
