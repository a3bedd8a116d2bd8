"""The file formats of label tables: from the text of a file to labels, and from labels to text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_lcs.labels.label import Label

__all__ = ["channel_def", "labels_of_channel_def", "labels_text", "read_labels", "shorten"]

Row = tuple[str, Mapping[str, str]]
"""Where a file describes a label ("line 3"), and the cells of that row under the names of `_HEADINGS`."""


def read_labels(path: Path) -> Iterator[Label]:
    """Read the labels of a file in the format of its suffix.

    Raises:
        ValueError: if the file is not such a table. The message names the row at fault, but not the file.
    """
    parse, _ = _format(path)
    return _labels(parse(_read_text(path)))


def labels_text(labels: Iterable[Label], path: Path) -> str:
    r"""Write labels as the content of a file in the format of its suffix.

    Raises:
        ValueError: if the suffix is that of no format.

    Example:
        >>> labels_text([Label(4, "CSF", color=(60, 60, 60))], Path("labels.csv"))
        'id,name,abbreviation,color,parent,hemisphere\n4,CSF,,#3c3c3c,,\n'
    """
    _, text = _format(path)
    return text(list(labels))


def channel_def(labels: Iterable[Label]) -> dict[str, str]:
    """Write labels as a bundle's ``channel_def``, background included.

    Example:
        >>> channel_def([Label(17, "Left-Hippocampus")])
        {'0': 'background', '17': 'Left-Hippocampus'}
    """
    return {"0": "background"} | {str(label.id): label.name for label in labels}


def labels_of_channel_def(channel_def: Mapping[str, str]) -> Iterator[Label]:
    """Read the labels of a bundle's ``channel_def``; the names tell the hemispheres.

    Raises:
        ValueError: if a key is not an integer >= 0, or a name is missing or not a string.

    Example:
        >>> [label.id for label in labels_of_channel_def({"0": "background", "17": "Left-Hippocampus"})]
        [17]
    """
    return _labels(_channel_rows(channel_def))


def shorten(values: Sequence[object], most: int = 10) -> str:
    """List the first few values, for a message.

    Example:
        >>> shorten([1, 2, 3], most=2)
        '1, 2, ...'
    """
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


# ---- from rows to labels --------------------------------------------------------------------------------------------


def _labels(rows: Iterable[Row]) -> Iterator[Label]:
    """Make the labels of rows; every error names its row."""
    seen: dict[int, str] = {}
    for where, row in rows:
        try:
            label = _label(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if label is None:
            continue
        if label.id in seen:
            raise ValueError(f"{where}: label {label.id} is already defined at {seen[label.id]}.")
        seen[label.id] = where
        yield label


def _label(row: Mapping[str, str]) -> Label | None:
    """Make the label of a row; None for background."""
    row = {field: "" if text.lower() == "n/a" else text for field, text in row.items()}
    # Spreadsheets and data frames write 17 as 17.0 as soon as one id is missing.
    if not re.fullmatch(r"[+-]?[0-9]{1,20}(\.0*)?", row["id"]):
        raise ValueError(f"Label ids must be integers, got {row['id']!r}.")
    id = int(row["id"].partition(".")[0])
    if id == 0:
        return None
    hemisphere = _parse_hemisphere(row["hemisphere"]) if "hemisphere" in row else _infer_hemisphere(row["name"])
    return Label(
        id,
        row["name"],
        parent=row.get("parent"),
        hemisphere=hemisphere,
        color=_parse_color(row),  # type: ignore[arg-type]  # None stands for the default color
        abbreviation=row.get("abbreviation"),
    )


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
    """Tell the hemisphere from usual patterns in the name; None if there are none or they contradict each other."""
    # Words count anywhere, the bare letters only where atlases write them, at either end ("L_V1", "Insula_R").
    found = set(re.split(r"[-_.\s]+", name.lower())) & {"left", "right", "lh", "rh"}
    found |= set(re.findall(r"^[LR](?=[_ .])|(?<=[_ .])[LR]$", name.strip()))
    sides = {word[0].upper() for word in found}
    return sides.pop() if len(sides) == 1 else None


# ---- from text to rows ----------------------------------------------------------------------------------------------

# The usual headings of each field, in order of preference. A column holds one field: the first here that claims it.
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
    (_, headings), *body = _read_cells(text, delimiter)
    columns = _find_columns(headings, [cells for _, cells in body if len(cells) == len(headings)])
    for line, cells in body:
        if len(cells) != len(headings):
            raise ValueError(f"line {line}: expected {len(headings)} columns like the heading line, got {len(cells)}.")
    return [(f"line {line}", {field: cells[i] for field, i in columns.items()}) for line, cells in body]


def _read_cells(text: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Split text into the cells of each line; leave out empty lines, but keep the line numbers."""
    # Pandas tells neither the line of a record nor a short row from empty cells, the csv module does.
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}.") from None
    lines = [(line, cells) for line, cells in lines if any(cells)]
    if not lines:
        raise ValueError("the file is empty.")
    return lines


def _find_columns(headings: list[str], rows: list[list[str]]) -> dict[str, int]:
    """Find the column of each field of `_HEADINGS` that the file has."""
    positions = _heading_positions(headings)
    columns: dict[str, int] = {}
    for field, usual in _usual_headings(positions, rows).items():
        free = [positions[h] for h in usual if h in positions and positions[h] not in columns.values()]
        if free:
            columns[field] = free[0]
    for field in ("id", "name"):
        if field not in columns:
            raise ValueError(
                f"no {field} column found among the headings {shorten(headings)}; "
                f"call it {field!r} (or {', '.join(map(repr, _HEADINGS[field][1:5]))})."
            )
    return columns


def _heading_positions(headings: list[str]) -> dict[str, int]:
    """Find the column of each heading, written in lower case and with single spaces; the first of several counts."""
    positions: dict[str, int] = {}
    for i, heading in enumerate(headings):
        positions.setdefault(" ".join(re.split(r"[\s_-]+", heading.strip("#: ").lower())), i)
    return positions


def _usual_headings(positions: Mapping[str, int], rows: list[list[str]]) -> dict[str, tuple[str, ...]]:
    """Give `_HEADINGS` for one file: "label" is the name in some files and the id in others."""
    usual = dict(_HEADINGS)
    # It is the id if the file has no better column for that and it holds integers.
    if "label" in positions and any(cells[positions["label"]].isdecimal() for cells in rows):
        usual["id"] += ("label",)
    return usual


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
    """Parse a FreeSurfer color table or an ITK-SNAP label description. No line can be both."""
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
    return list(_channel_rows(content))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # The json module itself silently keeps the last of several equal keys.
    key, count = max(Counter(key for key, _ in pairs).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ValueError(f"key {key!r} is defined {count} times.")
    return dict(pairs)


def _channel_rows(channel_def: Mapping[str, str]) -> Iterator[Row]:
    """Give the rows of a bundle's `channel_def`, `{"1": "name"}`."""
    for key, name in channel_def.items():
        if not isinstance(name, str):
            raise ValueError(f"key {key!r}: the name must be a string, got {name!r}.")
        yield f"key {key!r}", {"id": str(key), "name": name}


# ---- from labels to text --------------------------------------------------------------------------------------------


def _delimited_text(labels: Sequence[Label], headings: Sequence[str], delimiter: str, missing: str) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(headings)
    for label in labels:
        cells = vars(label) | {"index": label.id, "color": "#" + bytes(label.color).hex()}
        writer.writerow([cells.get(heading) or missing for heading in headings])
    return stream.getvalue()


def _tsv_text(labels: Sequence[Label]) -> str:
    # In BIDS, "mapping" is the index of a standard structure, which a label does not have.
    headings = ("index", "name", "abbreviation", "color", "mapping", "parent", "hemisphere")
    return _delimited_text(labels, headings, "\t", "n/a")


def _csv_text(labels: Sequence[Label]) -> str:
    return _delimited_text(labels, ("id", "name", "abbreviation", "color", "parent", "hemisphere"), ",", "")


def _freesurfer_text(labels: Sequence[Label], alpha: int = 0) -> str:
    rows = [(label.id, re.sub(r"\s", "_", label.name), *label.color, alpha) for label in labels]
    rows = [(0, "Unknown", 0, 0, 0, 0), *rows]
    width = max(len(row[1]) for row in rows)
    lines = [f"{id:<6} {name:<{width}} {r:>3} {g:>3} {b:>3} {a}" for id, name, r, g, b, a in rows]
    return "\n".join([f"{'#No.':<6} {'Label Name:':<{width}}   R   G   B A", *lines, ""])


def _slicer_text(labels: Sequence[Label]) -> str:
    # The last number is the transparency in FreeSurfer's files and the opacity in Slicer's.
    return _freesurfer_text(labels, alpha=255)


def _itk_snap_text(labels: Sequence[Label]) -> str:
    lines = [
        "# ITK-SnAP Label Description File",
        "# IDX   -R-  -G-  -B-  -A-- VIS MSH  LABEL",
        '    0     0    0    0     0   0   0  "Clear Label"',
    ]
    for label in labels:
        r, g, b = label.color
        name = label.name.replace('"', "'")
        lines.append(f'{label.id:>5} {r:>5} {g:>4} {b:>4}     1   1   1  "{name}"')
    return "\n".join([*lines, ""])


def _json_text(labels: Sequence[Label]) -> str:
    return json.dumps(channel_def(labels), indent=4, ensure_ascii=False) + "\n"


_FORMATS: dict[str, tuple[Callable[[str], Iterable[Row]], Callable[[Sequence[Label]], str]]] = {
    ".tsv": (_parse_tsv, _tsv_text),
    ".csv": (_parse_csv, _csv_text),
    ".txt": (_parse_lines, _freesurfer_text),
    ".ctab": (_parse_lines, _freesurfer_text),
    ".lut": (_parse_lines, _freesurfer_text),
    ".ctbl": (_parse_lines, _slicer_text),
    ".label": (_parse_lines, _itk_snap_text),
    ".json": (_parse_json, _json_text),
}


def _format(path: Path) -> tuple[Callable[[str], Iterable[Row]], Callable[[Sequence[Label]], str]]:
    """Give the parser and the writer of the format that a file's suffix stands for."""
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"the format of {path.name} is unknown; label tables end in {', '.join(_FORMATS)}.")
    return _FORMATS[path.suffix.lower()]
