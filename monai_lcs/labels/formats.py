"""The file formats of label tables: from the text of a file to labels, and from labels to text."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_lcs.labels.cells import guard_cell
from monai_lcs.labels.hemispheres import infer_hemisphere, parse_hemisphere
from monai_lcs.labels.label import Label
from monai_lcs.labels.rows import Row, cut, mapping_rows, parse_csv, parse_json, parse_lines, parse_tsv

__all__ = ["channel_def", "labels_of_channel_def", "labels_text", "read_labels"]


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
    return _labels(mapping_rows(channel_def))


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
        raise ValueError(f"Label ids must be integers, got {cut(repr(row['id']))}.")
    id = int(row["id"].partition(".")[0])
    if id == 0:
        _check_background(row["name"])
        return None
    hemisphere = parse_hemisphere(row["hemisphere"]) if "hemisphere" in row else infer_hemisphere(row["name"])
    return Label(
        id,
        row["name"],
        parent=row.get("parent"),
        hemisphere=hemisphere,
        color=_parse_color(row),  # type: ignore[arg-type]  # None stands for the default color
        abbreviation=row.get("abbreviation"),
    )


_BACKGROUND_WORDS = {"background", "unknown", "unlabeled", "unlabelled", "undefined", "exterior", "bkg", "bckgrnd"}
_BACKGROUND_NAMES = {
    *("", "bg", "clear", "clearlabel", "none", "nolabel", "notlabeled", "notlabelled", "nothing", "null", "void"),
    *("empty", "zero", "0", "label0", "other", "others", "rest", "everythingelse", "remainder", "outside", "air"),
    *("nonbrain", "notbrain", "unassigned", "unclassified", "unsegmented", "na", "nan"),
}


def _check_background(name: str) -> None:
    """Raise where id 0 has the name of a structure, as in tables that count from 0 the labels of a map from 1."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[\W_]+", " ", words).lower().strip()
    if not _BACKGROUND_WORDS.intersection(words.split()) and words.replace(" ", "") not in _BACKGROUND_NAMES:
        raise ValueError(
            f"Id 0 is called {cut(repr(name), 60)}, but 0 is background: if the table counts from 0 and the label map "
            "from 1, add 1 to every id of the table; if this is the background, call it 'background'."
        )


def _parse_color(row: Mapping[str, str]) -> tuple[int, int, int] | None:
    if row.get("color"):
        match = re.fullmatch("#?([0-9a-fA-F]{6})", row["color"])
        if not match:
            raise ValueError(f'Colors must be "#rrggbb", got {cut(repr(row["color"]))}.')
        red, green, blue = bytes.fromhex(match[1])
        return red, green, blue
    parts = [row[part] for part in ("red", "green", "blue") if part in row]
    if len(parts) < 3 or not any(parts):
        return None
    if not all(re.fullmatch("[0-9]{1,3}", part) for part in parts):
        raise ValueError(f"Colors must be three integers from 0 to 255, got {cut(', '.join(parts))}.")
    red, green, blue = map(int, parts)
    return red, green, blue


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


# ---- from labels to text --------------------------------------------------------------------------------------------


def _delimited_text(labels: Sequence[Label], headings: Sequence[str], delimiter: str, missing: str) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(headings)
    for label in labels:
        cells = vars(label) | {"index": label.id, "color": "#" + bytes(label.color).hex()}
        writer.writerow([_cell(cells.get(heading)) or missing for heading in headings])
    return stream.getvalue()


def _cell(value: Any) -> Any:
    """Give a cell as it is written: text begins with nothing that a spreadsheet runs."""
    return guard_cell(value) if isinstance(value, str) else value


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
    ".tsv": (parse_tsv, _tsv_text),
    ".csv": (parse_csv, _csv_text),
    ".txt": (parse_lines, _freesurfer_text),
    ".ctab": (parse_lines, _freesurfer_text),
    ".lut": (parse_lines, _freesurfer_text),
    ".ctbl": (parse_lines, _slicer_text),
    ".label": (parse_lines, _itk_snap_text),
    ".json": (parse_json, _json_text),
}


def _format(path: Path) -> tuple[Callable[[str], Iterable[Row]], Callable[[Sequence[Label]], str]]:
    """Give the parser and the writer of the format that a file's suffix stands for."""
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"the format of {path.name} is unknown; label tables end in {', '.join(_FORMATS)}.")
    return _FORMATS[path.suffix.lower()]
