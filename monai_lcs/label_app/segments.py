"""Segments of a client: which labels of the atlas their values stand for, and which labels are new."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from monai_lcs.labels import Label, LabelTable, is_integer, label_names
from monai_lcs.labels.limits import MAX_FLOAT32_ID

__all__ = ["LabelInfo", "atlas_ids", "check_new_name", "painted_labels"]

LabelInfo = Sequence[Mapping[str, Any]]
"""What a client sends with a label map: ``[{"name": "Left-Hippocampus", "idx": 1, "color": [220, 216, 20]}]``."""


def atlas_ids(values: Iterable[int], label_info: LabelInfo, table: LabelTable) -> dict[int, int]:
    """Find the atlas id of each value of a saved label map. Values whose name the atlas lacks are left out.

    Args:
        values: the values that occur in the label map.
        label_info: their names. If it is empty, the values are ids of the atlas.
        table: the labels of the atlas.

    Example:
        >>> table = LabelTable.from_channel_def({"17": "Left-Hippocampus"})
        >>> atlas_ids([1, 2], [{"name": "Left-Hippocampus", "idx": 1}, {"name": "lesion", "idx": 2}], table)
        {1: 17}
    """
    if not label_info:
        return {value: value for value in values if value in table}
    segments, known = _segments_by_value(label_info), _labels_by_name(table)
    names = {value: str(segments[value]["name"]) for value in values if value in segments}
    return {value: known[name].id for value, name in names.items() if name in known}


def painted_labels(values: Iterable[int], label_info: LabelInfo, table: LabelTable) -> dict[int, Label]:
    """Find the label of each value that was painted on the atlas. Labels that the table lacks get the next free ids.

    Args:
        values: the values that occur in the painted label map, without 0.
        label_info: their names and, for new labels, perhaps their colors. If it is empty, the values are ids of the
            atlas. A segment called ``"background"`` is left out.
        table: the labels of the atlas.

    Raises:
        ValueError: if a value has no name, two values mean the same label, a new name cannot be used (see
            :func:`check_new_name`), a color is not valid, or no id is left.

    Example:
        >>> table = LabelTable.from_channel_def({"17": "Left-Hippocampus"})
        >>> info = [{"name": "Left-Hippocampus", "idx": 1}, {"name": "Left-Cyst", "idx": 2}]
        >>> [(value, label.id, label.hemisphere) for value, label in painted_labels([1, 2], info, table).items()]
        [(1, 17, 'L'), (2, 18, 'L')]
    """
    segments, known = _segments_by_value(label_info), _labels_by_name(table)
    free_ids = itertools.count(max(table.ids, default=0) + 1)
    labels: dict[int, Label] = {}
    for value in values:
        if not label_info:
            labels[value] = _label_of_id(value, table)
            continue
        segment = _segment_of(value, segments)
        if segment["name"] != "background":
            labels[value] = known.get(str(segment["name"])) or _new_label(next(free_ids), segment, table)
    _check_distinct(labels.values(), table)
    return labels


def check_new_name(name: Any, table: LabelTable) -> str:
    """Check the name of a label that is to be added, and return it without white space around it.

    Raises:
        ValueError: if the name is empty, too long or no text, or if a request could not tell it from other labels: it
            is an id, a list, a pattern, a union or ``"all"``, or differs from a name of the table only in case.

    Example:
        >>> table = LabelTable.from_channel_def({"17": "Left-Hippocampus"})
        >>> check_new_name(" Left-Cyst ", table)
        'Left-Cyst'
        >>> check_new_name("left-hippocampus", table)
        Traceback (most recent call last):
        ...
        ValueError: The atlas has a label 'Left-Hippocampus': write 'left-hippocampus' like it, or choose another name.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"A label needs a name, got {name!r}.")
    name = name.strip()
    if len(name) > 100 or not name.isprintable():
        raise ValueError(f"A label's name must be at most 100 printable characters, got {name[:120]!r}.")
    _check_no_request(name)
    _check_unlike_others(name, table)
    return name


def _check_no_request(name: str) -> None:
    """A name must not read like a request of other labels, nor like a path."""
    if set(name) & set(',;*?[]{}"/\\<>|') or " + " in name or ".." in name:
        raise ValueError(
            f'A label\'s name must not hold any of , ; * ? [ ] {{ }} " / \\ < > | " + " "..", got {name!r}.'
        )
    if name.isdecimal() or name.lower() in ("all", "background", "n/a"):
        raise ValueError(f"A label must not be called {name!r}, which asks for other labels.")


def _check_unlike_others(name: str, table: LabelTable) -> None:
    """A name must differ from those of labels and parents in more than case."""
    for known in (text for label in table for text in (label.name, label.parent) if text):
        if known.lower() == name.lower():
            raise ValueError(f"The atlas has a label {known!r}: write {name!r} like it, or choose another name.")


def _segments_by_value(label_info: LabelInfo) -> dict[int, Mapping[str, Any]]:
    """The segments that have both a value and a name."""
    return {int(info["idx"]): info for info in label_info if is_integer(info.get("idx")) and info.get("name")}


def _labels_by_name(table: LabelTable) -> dict[str, Label]:
    return {name: table[id] for id, name in label_names(table).items()}


def _segment_of(value: int, segments: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
    if value not in segments:
        raise ValueError(_unknown_value(value, "no name in `label_info`"))
    return segments[value]


def _label_of_id(value: int, table: LabelTable) -> Label:
    if value not in table:
        raise ValueError(_unknown_value(value, "not an id of the atlas"))
    return table[value]


def _unknown_value(value: int, problem: str) -> str:
    return f'The painted value {value} is {problem}: send label_info [{{"name": ..., "idx": {value}}}].'


def _new_label(id: int, segment: Mapping[str, Any], table: LabelTable) -> Label:
    if id > MAX_FLOAT32_ID:
        raise ValueError(
            f"The atlas has no room for another label: its highest id is {id - 1}, {MAX_FLOAT32_ID} at most."
        )
    name = check_new_name(segment["name"], table)
    label = LabelTable.from_channel_def({str(id): name})[id]  # tells the hemisphere by the name
    return replace(label, color=_parse_color(segment["color"])) if segment.get("color") else label


def _parse_color(color: Any) -> tuple[int, int, int]:
    """Three numbers from 0 to 255; fractions up to 1, as 3D Slicer may send them, are scaled."""
    try:
        red, green, blue = (float(part) for part in color)
    except (TypeError, ValueError):
        raise ValueError(f"A color must be three numbers, got {color!r}.") from None
    scale = 255 if max(red, green, blue) <= 1 and any(part % 1 for part in (red, green, blue)) else 1
    return round(red * scale), round(green * scale), round(blue * scale)


def _check_distinct(labels: Iterable[Label], table: LabelTable) -> None:
    """Two segments must not mean the same label, and new names must differ in more than case."""
    labels = list(labels)
    new = [label.name.lower() for label in labels if label.id not in table]
    if len({label.id for label in labels}) < len(labels) or len(set(new)) < len(new):
        raise ValueError(f"Each segment must have a name of its own, got {sorted(label.name for label in labels)}.")
