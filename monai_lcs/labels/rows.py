"""From the text of a label table to its rows: tables with headings, the line formats of other tools, and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from monai_lcs.labels.cells import unguard_cell

__all__ = ["Row", "cut", "mapping_rows", "parse_csv", "parse_json", "parse_lines", "parse_tsv", "shorten"]

Row: TypeAlias = tuple[str, Mapping[str, str]]
"""Where a file describes a label ("line 3"), and the cells of that row under the names of `_HEADINGS`."""


def shorten(values: Sequence[object], most: int = 10) -> str:
    """List the first few values, for a message.

    Example:
        >>> shorten([1, 2, 3], most=2)
        '1, 2, ...'
    """
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


def cut(text: str, most: int = 80) -> str:
    """Shorten a text for a message.

    Example:
        >>> cut("a long name", most=6)
        'a long...'
    """
    return text if len(text) <= most else f"{text[:most]}..."


# ---- tables with headings -------------------------------------------------------------------------------------------

# The usual headings of each field, in order of preference. A column holds one field: the first here that claims it.
_ID = (
    *("id", "index", "label id", "label number", "label value", "number", "value"),
    *("label index", "structure id", "region id", "roi id", "idx", "no"),
)
_HEADINGS = {
    "id": _ID,
    "name": (
        *("name", "label name", "structure name", "region name", "roi name"),
        *("label", "structure", "region", "roi", "abbreviation", "acronym", "roi abbr"),
    ),
    "parent": ("parent", "lobe", "structure"),
    "hemisphere": ("hemisphere", "hemi"),
    "abbreviation": ("abbreviation", "acronym", "roi abbr"),
    "color": ("color", "colour", "hex"),
    "red": ("r", "red", "color r", "color red"),
    "green": ("g", "green", "color g", "color green"),
    "blue": ("b", "blue", "color b", "color blue"),
}


def parse_csv(text: str) -> list[Row]:
    r"""Parse a table whose cells are separated by commas, semicolons or tabs.

    Example:
        >>> parse_csv("# of our lab\nLabelValue;LabelName\n4;CSF\n")
        [('line 3', {'id': '4', 'name': 'CSF'})]
    """
    return _parse_table(text, ",;\t")


def parse_tsv(text: str) -> list[Row]:
    r"""Parse a table whose cells are separated by tabs.

    Example:
        >>> parse_tsv("index\tname\n4\tCSF\n")
        [('line 2', {'id': '4', 'name': 'CSF'})]
    """
    return _parse_table(text, "\t")


def _parse_table(text: str, delimiters: str) -> list[Row]:
    lines = text.split("\n")
    start, delimiter = _find_heading(lines, delimiters)
    (_, headings), *body = _read_cells(lines, start, delimiter)
    columns = _find_columns(headings, [cells for _, cells in body if len(cells) == len(headings)])
    rows: list[Row] = []
    for line, cells in body:
        if _is_comment(cells, len(headings), columns["id"]):
            continue
        if len(cells) != len(headings):
            raise ValueError(f"line {line}: expected {len(headings)} columns like the heading line, got {len(cells)}.")
        rows.append((f"line {line}", {field: unguard_cell(cells[i]) for field, i in columns.items()}))
    return rows


def _find_heading(lines: Sequence[str], delimiters: str) -> tuple[int, str]:
    """Find the line of the headings and what separates its cells.

    It is the first that is neither empty nor a comment; or else one of the comments before it (``#ID<tab>name``).
    """
    filled = [i for i, line in enumerate(lines) if line.strip(delimiters + " \t")]
    if not filled:
        raise ValueError("the file is empty.")
    first = next((i for i in filled if not lines[i].lstrip().startswith("#")), filled[0])
    candidates = [first, *reversed(filled[: filled.index(first)])]
    i = next((i for i in candidates if _is_heading(lines[i], delimiters)), first)
    return i, max(delimiters, key=lines[i].count)


def _is_heading(line: str, delimiters: str) -> bool:
    """Tell whether a line has a heading of an id and another one of a name."""
    cells = line.replace('"', "").split(max(delimiters, key=line.count))
    positions = _heading_positions(cells)
    ids, names = ({positions.get(_squash(h)) for h in usual} for usual in ((*_ID, "label"), _HEADINGS["name"]))
    return len((ids | names) - {None}) > 1 and ids != {None} and names != {None}


def _is_comment(cells: list[str], columns: int, id_column: int) -> bool:
    """Tell a comment from a row whose first cell is a name such as "#5"."""
    is_row = len(cells) == columns and re.fullmatch(r"[+-]?[0-9.]+", cells[id_column])
    return cells[0].startswith("#") and not is_row


def _read_cells(lines: Sequence[str], start: int, delimiter: str) -> list[tuple[int, list[str]]]:
    """Split lines into cells; leave out empty ones, but keep the line numbers."""
    # Pandas tells neither the line of a record nor a short row from empty cells, the csv module does.
    stream = io.StringIO("\n".join(lines[start:]))
    reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        records = [(start + reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"line {start + reader.line_num}: {error}.") from None
    return [(line, cells) for line, cells in records if any(cells)]


def _find_columns(headings: list[str], rows: list[list[str]]) -> dict[str, int]:
    """Find the column of each field of `_HEADINGS` that the file has."""
    positions = _heading_positions(headings)
    columns: dict[str, int] = {}
    for field, usual in _usual_headings(positions, rows).items():
        free = [positions[h] for h in map(_squash, usual) if positions.get(h, -1) not in (-1, *columns.values())]
        if free:
            columns[field] = free[0]
    for field in ("id", "name"):
        if field not in columns:
            raise ValueError(
                f"no {field} column found among the headings {cut(shorten(headings))}; "
                f"call it {field!r} (or {', '.join(map(repr, _HEADINGS[field][1:5]))})."
            )
    return columns


def _heading_positions(headings: list[str]) -> dict[str, int]:
    """Find the column of each heading, whatever its case, blanks and signs; the first of several counts."""
    positions: dict[str, int] = {}
    for i, heading in enumerate(headings):
        positions.setdefault(_squash(heading), i)
    return positions


def _squash(heading: str) -> str:
    """Write "Label Name", "label_name" and "LabelName" alike."""
    return re.sub(r"[\W_]+", "", heading).lower()


def _usual_headings(positions: Mapping[str, int], rows: list[list[str]]) -> dict[str, tuple[str, ...]]:
    """Give `_HEADINGS` for one file: "label" is the name in some files and the id in others."""
    usual = dict(_HEADINGS)
    # It is the id if the file has no better column for that and it holds integers.
    if "label" in positions and any(cells[positions["label"]].isdecimal() for cells in rows):
        usual["id"] += ("label",)
    return usual


# ---- line formats ---------------------------------------------------------------------------------------------------

_ITK_SNAP_LINE = re.compile(
    r'(?P<id>\S+)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+\S+\s+\S+\s+\S+\s+"(?P<name>.*)"',
)


_FREESURFER_FIELDS = ("red", "green", "blue", "alpha", "tissue")


def parse_lines(text: str) -> list[Row]:
    """Parse a FreeSurfer color table or an ITK-SNAP label description. No line can be both.

    FreeSurfer's rows end in 4 numbers (R G B A) or, since version 8, in 5: the tissue type as well.

    Raises:
        ValueError: if a line is neither, or if it is not clear whether a number belongs to the name.

    Example:
        >>> parse_lines("819 Left-HypoThal-noMB  0  80  0 0 2")[0][1]["name"]
        'Left-HypoThal-noMB'
    """
    rows: list[Row] = []
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        row = _itk_snap_row(line) or _freesurfer_row(line)
        if row is None:
            expected = '`id name R G B A` (FreeSurfer) or `id R G B A VIS MSH "name"` (ITK-SNAP)'
            raise ValueError(f"line {number}: expected {expected}, got `{cut(line)}`.")
        rows.append((f"line {number}", row))
    _check_where_names_end(rows)
    return rows


def _itk_snap_row(line: str) -> dict[str, str] | None:
    match = _ITK_SNAP_LINE.fullmatch(line)
    return match.groupdict() if match else None


def _freesurfer_row(line: str) -> dict[str, str] | None:
    """Split a line at both ends: the name is what is left, and never swallows a number."""
    words = line.split()
    count = next((i for i, word in enumerate(reversed(words[2:])) if not re.fullmatch(r"-?\d+", word)), len(words) - 2)
    if count not in (4, 5):
        return None
    name, *numbers = line.split(None, 1)[1].rsplit(None, count)
    return {"id": words[0], "name": name, **dict(zip(_FREESURFER_FIELDS, numbers, strict=False))}


def _check_where_names_end(rows: Sequence[Row]) -> None:
    """Raise where five numbers may be a name's end and a color: is `9 Area 4 1 2 3 0` called "Area" or "Area 4"?

    FreeSurfer's names hold no blanks and differ, and its opacity is 0 or 255.
    """
    counts = Counter(row["name"] for _, row in rows)
    with_blanks = any(re.search(r"\s", name) for name in counts)
    for where, row in rows:
        if "tissue" in row and (with_blanks or counts[row["name"]] > 1 or row["alpha"] not in ("0", "255")):
            numbers = " ".join(row[field] for field in _FREESURFER_FIELDS)
            raise ValueError(
                f"{where}: it is not clear where the name ends in `{cut(row['name'])} {cut(numbers)}`; "
                "write `_` for the blanks in names."
            )


# ---- JSON -----------------------------------------------------------------------------------------------------------


def parse_json(text: str) -> list[Row]:
    """Parse a bundle's ``channel_def`` or ``metadata.json``, or the ``labels`` of a ``dataset.json``.

    Raises:
        ValueError: if the file is nothing of these, or describes regions of several ids.

    Example:
        >>> parse_json('{"labels": {"background": 0, "liver": 1}}')[1]
        ("label 'liver'", {'id': '1', 'name': 'liver'})
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ValueError("the file is nested too deeply for a label table.") from None
    return list(mapping_rows(_label_mapping(content)))


def _label_mapping(content: Any) -> dict[str, Any]:
    """Find the mapping between ids and names in a JSON file."""
    try:
        if "network_data_format" in content:  # a bundle's metadata.json: its first output holds the labels
            content = next(iter(content["network_data_format"]["outputs"].values()))["channel_def"]
        elif isinstance(content.get("labels"), dict | list):  # nnU-Net's, Decathlon's
            content = content["labels"]
    except (AttributeError, KeyError, StopIteration, TypeError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(
            'expected a channel_def such as {"0": "background", "1": "name"}, a bundle\'s metadata.json, or the '
            "`labels` of a dataset.json."
        )
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The json module itself silently keeps the last of several equal keys.
    key, count = max(Counter(key for key, _ in pairs).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ValueError(f"key {cut(repr(key))} is defined {count} times.")
    return dict(pairs)


def mapping_rows(mapping: Mapping[str, Any]) -> Iterator[Row]:
    """Give the rows of a mapping in either direction: ``{"1": "liver"}`` or nnU-Net's ``{"liver": 1}``.

    nnU-Net's ``"ignore"`` is left out: no voxel of it is a label.

    Raises:
        ValueError: if a name is not a string, or an nnU-Net region has several ids.

    Example:
        >>> list(mapping_rows({"liver": 1}))
        [("label 'liver'", {'id': '1', 'name': 'liver'})]
    """
    for key, value in mapping.items():
        if isinstance(value, str):
            yield f"key {cut(repr(key))}", {"id": str(key), "name": value}
            continue
        ids = value if isinstance(value, list) else [value]
        if str(key).strip("+-").isdecimal() or not all(type(id) is int for id in ids) or not ids:
            raise ValueError(f"key {cut(repr(key))}: the name must be a string, got {cut(repr(value))}.")
        if len(ids) > 1:
            union = cut(" + ".join(map(str, ids)), 30)
            raise ValueError(
                f"label {cut(repr(key), 40)} is a region of the ids {cut(repr(ids), 40)}: a label table has one name "
                f"for each id; name them, and request the region as a union, '{union}'."
            )
        if key != "ignore":
            yield f"label {cut(repr(key))}", {"id": str(ids[0]), "name": str(key)}
