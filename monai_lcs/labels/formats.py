"""The file formats of label tables: text to rows, rows to what makes a label, and a table to text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_lcs.labels import LabelTable

__all__ = ["Row", "channel_rows", "label_arguments", "read_rows", "shorten", "table_text"]

Row = tuple[str, Mapping[str, str]]
"""Where a file speaks of a label ("line 3"), and what it says, by the names of `_HEADINGS`."""


def read_rows(path: Path) -> Iterable[Row]:
    """The rows of a file in the format of its suffix; a ValueError does not name the file."""
    parse, _ = _format(path)
    return parse(_read_text(path))


def table_text(table: LabelTable, path: Path) -> str:
    """The content of a file in the format of its suffix."""
    _, text = _format(path)
    return text(table)


def shorten(values: Sequence[object], most: int = 10) -> str:
    """The first few values, for a message."""
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


# ---- from a row to a label ------------------------------------------------------------------------------------------


def label_arguments(row: Mapping[str, str]) -> dict[str, Any] | None:
    """What a row says of a label, as the arguments of `Label`; None for background."""
    row = {field: "" if text.lower() == "n/a" else text for field, text in row.items()}
    # Spreadsheets and data frames write 17 as 17.0 as soon as one id is missing.
    if not re.fullmatch(r"[+-]?[0-9]{1,20}(\.0*)?", row["id"]):
        raise ValueError(f"Label ids must be integers, got {row['id']!r}.")
    id = int(row["id"].partition(".")[0])
    if id == 0:
        return None
    hemisphere = _parse_hemisphere(row["hemisphere"]) if "hemisphere" in row else _infer_hemisphere(row["name"])
    return {
        "id": id,
        "name": row["name"],
        "parent": row.get("parent"),
        "hemisphere": hemisphere,
        "color": _parse_color(row),
        "abbreviation": row.get("abbreviation"),
    }


def _parse_color(row: Mapping[str, str]) -> tuple[int, int, int] | None:
    if row.get("color"):
        match = re.fullmatch("#?([0-9a-fA-F]{6})", row["color"])
        if not match:
            raise ValueError(f'Colors must be "#rrggbb", got {row["color"]!r}.')
        red, green, blue = bytes.fromhex(match[1])
        return red, green, blue
    parts = [row[part] for part in ("red", "green", "blue") if part in row]
    if len(parts) < 3 or not any(parts):
        return None
    if not all(re.fullmatch("[0-9]{1,3}", part) for part in parts):
        raise ValueError(f"Colors must be three integers from 0 to 255, got {', '.join(parts)}.")
    red, green, blue = map(int, parts)
    return red, green, blue


_HEMISPHERES = {
    "L": ("l", "left", "lh"),
    "R": ("r", "right", "rh"),
    None: ("", "b", "both", "bilateral", "lr", "m", "midline", "none", "unknown"),
}


def _parse_hemisphere(text: str) -> str | None:
    for hemisphere, words in _HEMISPHERES.items():
        if text.lower() in words:
            return hemisphere
    raise ValueError(f"The hemisphere must be L, R, B (both) or n/a, got {text!r}.")


def _infer_hemisphere(name: str) -> str | None:
    """Tell the hemisphere by the usual name patterns; None where there is none, or they contradict each other."""
    # Whole words anywhere; the bare letters only as atlases write them, at either end ("L_V1", "Insula_R").
    found = set(re.split(r"[-_.\s]+", name.lower())) & {"left", "right", "lh", "rh"}
    found |= set(re.findall(r"^[LR](?=[_ .])|(?<=[_ .])[LR]$", name.strip()))
    sides = {word[0].upper() for word in found}
    return sides.pop() if len(sides) == 1 else None


# ---- from text to rows ----------------------------------------------------------------------------------------------

# Usual headings, in order of preference. A column serves one purpose, the first here that claims it.
_HEADINGS = {
    "id": ("id", "index", "label id", "label number", "label value", "number", "value"),
    "name": (
        "name",
        "label name",
        "structure name",
        "region name",
        "label",
        "structure",
        "region",
        "abbreviation",
        "acronym",
    ),
    "parent": ("parent", "lobe", "structure"),
    "hemisphere": ("hemisphere", "hemi"),
    "abbreviation": ("abbreviation", "acronym"),
    "color": ("color", "colour", "hex"),
    "red": ("r", "red"),
    "green": ("g", "green"),
    "blue": ("b", "blue"),
}


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the file is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None
    if not text.strip():
        raise ValueError("the file is empty.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse_table(text: str, delimiter: str) -> list[Row]:
    # The csv module rather than pandas, which tells neither the line of a record nor a short row from empty cells.
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}.") from None
    if not rows:
        raise ValueError("the file is empty.")
    (_, headings), *body = rows
    columns = _find_columns(headings, [cells for _, cells in body if len(cells) == len(headings)])
    for line, cells in body:
        if len(cells) != len(headings):
            raise ValueError(f"line {line}: expected {len(headings)} columns like the heading line, got {len(cells)}.")
    return [(f"line {line}", {field: cells[i] for field, i in columns.items()}) for line, cells in body]


def _find_columns(headings: list[str], rows: list[list[str]]) -> dict[str, int]:
    """Map what `_HEADINGS` names to the position of the column that holds it."""
    positions: dict[str, int] = {}
    for i, heading in enumerate(headings):
        positions.setdefault(" ".join(re.split(r"[\s_-]+", heading.strip("#: ").lower())), i)
    usual = dict(_HEADINGS)
    # "label" is the id in some files, the name in others: the id where there is no better one and it holds integers.
    if "label" in positions and any(cells[positions["label"]].isdecimal() for cells in rows):
        usual["id"] += ("label",)
    columns: dict[str, int] = {}
    for field in usual:
        for heading in usual[field]:
            if heading in positions and positions[heading] not in columns.values():
                columns[field] = positions[heading]
                break
    for field in ("id", "name"):
        if field not in columns:
            raise ValueError(
                f"no {field} column found among the headings {shorten(headings)}; "
                f"call it {field!r} (or {', '.join(map(repr, _HEADINGS[field][1:5]))})."
            )
    return columns


def _parse_csv(text: str) -> list[Row]:
    headings = text.lstrip().partition("\n")[0]
    return _parse_table(text, max(",;\t", key=headings.count))


def _parse_tsv(text: str) -> list[Row]:
    return _parse_table(text, "\t")


_FREESURFER_LINE = re.compile(
    r"(?P<id>\S+)\s+(?P<name>\S.*?)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+\d+",
)
_ITK_SNAP_LINE = re.compile(
    r'(?P<id>\S+)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+\S+\s+\S+\s+\S+\s+"(?P<name>.*)"',
)


def _parse_lines(text: str) -> Iterator[Row]:
    """Parse a FreeSurfer color table or an ITK-SNAP label description; no line can be both."""
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        match = _FREESURFER_LINE.fullmatch(line) or _ITK_SNAP_LINE.fullmatch(line)
        if not match:
            expected = '`id name R G B A` (FreeSurfer) or `id R G B A VIS MSH "name"` (ITK-SNAP)'
            raise ValueError(f"line {number}: expected {expected}, got `{line}`.")
        yield f"line {number}", match.groupdict()


def _parse_json(text: str) -> list[Row]:
    content = json.loads(text, object_pairs_hook=_unique_keys)
    try:
        if "network_data_format" in content:  # a bundle's metadata.json: its first output holds the labels
            content = next(iter(content["network_data_format"]["outputs"].values()))["channel_def"]
        content.items()
    except (AttributeError, KeyError, StopIteration, TypeError):
        raise ValueError('expected a channel_def such as {"0": "background", "1": "name"}.') from None
    return list(channel_rows(content))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # By itself the json module keeps the last of several equal keys without a word.
    key, count = max(Counter(key for key, _ in pairs).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ValueError(f"key {key!r} is defined {count} times.")
    return dict(pairs)


def channel_rows(channel_def: Mapping[str, str]) -> Iterator[Row]:
    """The rows of a bundle's `channel_def`, `{"1": "name"}`."""
    for key, name in channel_def.items():
        if not isinstance(name, str):
            raise ValueError(f"key {key!r}: the name must be a string, got {name!r}.")
        yield f"key {key!r}", {"id": str(key), "name": name}


# ---- from a table to text -------------------------------------------------------------------------------------------


def _delimited_text(table: LabelTable, headings: Sequence[str], delimiter: str, missing: str) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(headings)
    for label in table:
        cells = vars(label) | {"index": label.id, "color": "#" + bytes(label.color).hex()}
        writer.writerow([cells.get(heading) or missing for heading in headings])
    return stream.getvalue()


def _tsv_text(table: LabelTable) -> str:
    # "mapping" is BIDS' index of standard structures, which a label does not have.
    headings = ("index", "name", "abbreviation", "color", "mapping", "parent", "hemisphere")
    return _delimited_text(table, headings, "\t", "n/a")


def _csv_text(table: LabelTable) -> str:
    return _delimited_text(table, ("id", "name", "abbreviation", "color", "parent", "hemisphere"), ",", "")


def _freesurfer_text(table: LabelTable, alpha: int = 0) -> str:
    rows = [(label.id, re.sub(r"\s", "_", label.name), *label.color, alpha) for label in table]
    rows = [(0, "Unknown", 0, 0, 0, 0), *rows]
    width = max(len(row[1]) for row in rows)
    lines = [f"{id:<6} {name:<{width}} {r:>3} {g:>3} {b:>3} {a}" for id, name, r, g, b, a in rows]
    return "\n".join([f"{'#No.':<6} {'Label Name:':<{width}}   R   G   B A", *lines, ""])


def _slicer_text(table: LabelTable) -> str:
    # The last number is transparency in FreeSurfer, opacity in Slicer.
    return _freesurfer_text(table, alpha=255)


def _itk_snap_text(table: LabelTable) -> str:
    lines = [
        "# ITK-SnAP Label Description File",
        "# IDX   -R-  -G-  -B-  -A-- VIS MSH  LABEL",
        '    0     0    0    0     0   0   0  "Clear Label"',
    ]
    for label in table:
        r, g, b = label.color
        name = label.name.replace('"', "'")
        lines.append(f'{label.id:>5} {r:>5} {g:>4} {b:>4}     1   1   1  "{name}"')
    return "\n".join([*lines, ""])


def _json_text(table: LabelTable) -> str:
    return json.dumps(table.channel_def(), indent=4, ensure_ascii=False) + "\n"


_FORMATS: dict[str, tuple[Callable[[str], Iterable[Row]], Callable[[LabelTable], str]]] = {
    ".tsv": (_parse_tsv, _tsv_text),
    ".csv": (_parse_csv, _csv_text),
    ".txt": (_parse_lines, _freesurfer_text),
    ".ctab": (_parse_lines, _freesurfer_text),
    ".lut": (_parse_lines, _freesurfer_text),
    ".ctbl": (_parse_lines, _slicer_text),
    ".label": (_parse_lines, _itk_snap_text),
    ".json": (_parse_json, _json_text),
}


def _format(path: Path) -> tuple[Callable[[str], Iterable[Row]], Callable[[LabelTable], str]]:
    """Give the parser and the writer for a file's suffix."""
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"the format of {path.name} is unknown; label tables end in {', '.join(_FORMATS)}.")
    return _FORMATS[path.suffix.lower()]
