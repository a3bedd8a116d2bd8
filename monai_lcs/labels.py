"""The label table: which ids a label map holds, what each is called and how labels are asked for."""

from __future__ import annotations

import colorsys
import csv
import difflib
import fnmatch
import io
import json
import operator
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

__all__ = ["Label", "LabelTable"]

# What a file says of one label, by the names of `_HEADINGS`, and where it says so ("line 3").
_Row = tuple[str, Mapping[str, str]]


@dataclass(frozen=True)
class Label:
    """One label of a label map.

    Surrounding white space is removed from all strings, and an empty `parent` or `abbreviation` is None.

    Args:
        id: the voxels' value, > 0 (0 is background, never a label).
        name: what the label is called; unique names are usual, not required.
        parent: name of the coarse label (a lobe, a structure) it belongs to, or None.
        hemisphere: "L", "R", or None where it is on the midline, in both or unknown.
        color: red, green and blue, 0 to 255. The default is a color drawn from the id, the same in every run.
        abbreviation: a short name, or None.

    Raises:
        ValueError: for an id that is not an integer > 0, an empty name or one with line breaks or tabs, another
            hemisphere, or a color that is not three integers from 0 to 255.

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


class LabelTable:
    """The labels of a label map, ordered by id; immutable.

    Background, id 0, is never a label: files and ids may contain it, the table leaves it out. A table without labels
    is allowed, a file without labels is not.

    Args:
        labels: the labels, in any order.

    Raises:
        ValueError: if two labels have the same id.

    Example:
        >>> table = LabelTable([Label(17, "Left-Hippocampus", "MTL", "L"), Label(53, "Right-Hippocampus", "MTL", "R"),
        ...                     Label(16, "Brain-Stem")])
        >>> table
        LabelTable(3 labels, ids 16 to 53)
        >>> table[53].name, 54 in table, table.dtype
        ('Right-Hippocampus', False, dtype('uint8'))
        >>> table.select("Left-*"), table.select("MTL"), table.select([16, "MTL"])
        ((17,), (17, 53), (16, 17, 53))
    """

    def __init__(self, labels: Iterable[Label]) -> None:
        ordered = sorted(labels, key=lambda label: label.id)
        self._labels = {label.id: label for label in ordered}
        if len(self._labels) < len(ordered):
            duplicates = [id for id, count in Counter(label.id for label in ordered).items() if count > 1]
            raise ValueError(f"Label ids must be unique, got more than one label with id {_shorten(duplicates)}.")
        self._source = "the label table"  # named in the message when something asked for is not there

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelTable:
        """Read a label table; the suffix says the format, in text files the content does.

        ===================  =====================================================================================
        ``.tsv``             a table with a heading line: BIDS ``dseg.tsv`` (``index``, ``name``, ...) or alike
        ``.csv``             the same, separated by commas, semicolons or tabs
        ``.txt``, ``.ctab``  FreeSurfer color table, ``17 Left-Hippocampus 220 216 20 0``, or as ``.label``
        ``.label``           ITK-SNAP label description, ``17 220 216 20 1 1 1 "Left Hippocampus"``
        ``.json``            a bundle's ``channel_def``, ``{"0": "background", "1": "..."}``, or ``metadata.json``
        ===================  =====================================================================================

        Tables have their columns found by heading, whatever the case: the id under ``id``, ``index``, ``label id``,
        ``label number``, ``label value``, ``number``, ``value``, or ``label`` where that holds integers; the name
        under ``name``, ``label name``, ``structure name``, ``region name``, ``label``, ``structure``, ``region`` or
        ``abbreviation`` (the first there is); the parent under ``parent``, ``lobe`` or a ``structure`` that is not
        the name; ``hemisphere``; ``abbreviation``; the color under ``color`` (``#rrggbb``) or ``r``, ``g``, ``b``.
        Other columns are ignored. An empty cell or ``n/a`` is "none". Where a file has no column for the hemisphere,
        the usual patterns in the name tell it (``Left-``, ``ctx-rh-``, ``L_``, ``_right``).

        Args:
            path: a UTF-8 text file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: naming the file, and the line where it is one line's fault: unknown format, not UTF-8, no id
                or name column, no labels, duplicate, negative or non-integer ids, missing names, bad colors, a row
                with more or fewer columns than the heading.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no label table {path}.")
        try:
            parse, _ = _format(path)
            table = cls(_labels(parse(_read_text(path))))
            if not table:
                raise ValueError("the file holds no labels.")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        table._source = str(path)
        return table

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the table in the format of the suffix, as `read` has them; the file appears complete or not at all.

        ``.tsv`` (BIDS, with the extra columns ``parent`` and ``hemisphere``) and ``.csv`` hold all there is of a
        label. FreeSurfer (``.txt``, ``.ctab``) and ITK-SNAP (``.label``) hold id, name and color, ``.json`` id and
        name. A FreeSurfer name cannot hold white space, which becomes ``_``; an ITK-SNAP name cannot hold ``"``,
        which becomes ``'``.

        Args:
            path: the file to write, in an existing folder.
            overwrite: replace the file if it exists.

        Raises:
            FileExistsError: if the file exists and is not to be overwritten.
            FileNotFoundError: if there is no such folder.
            ValueError: if the suffix is none of these.
        """
        path = Path(path)
        _, text = _format(path)
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another name or pass overwrite=True.")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"There is no folder {path.parent} to write {path.name} in.")
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(text(self).encode())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def from_ids(cls, ids: Iterable[SupportsIndex]) -> LabelTable:
        """Make a table of labels known by their ids only, as `np.unique` of a label map gives them.

        Example:
            >>> LabelTable.from_ids([0, 17, 4]).names
            ('label-4', 'label-17')
        """
        return cls(Label(id, f"label-{id}") for id in map(_as_int, ids) if id != 0)

    @classmethod
    def from_channel_def(cls, channel_def: Mapping[str, str]) -> LabelTable:
        """Make a table from a bundle's `channel_def`; the hemispheres are told by the names.

        Raises:
            ValueError: if a key is not an integer >= 0, or a name is missing or not a string.

        Example:
            >>> LabelTable.from_channel_def({"0": "background", "17": "Left-Hippocampus"})[17].hemisphere
            'L'
        """
        return cls(_labels(_channel_rows(channel_def)))

    def channel_def(self) -> dict[str, str]:
        """Give the table as a bundle's `channel_def`, background included.

        Example:
            >>> LabelTable([Label(17, "Left-Hippocampus")]).channel_def()
            {'0': 'background', '17': 'Left-Hippocampus'}
        """
        return {"0": "background"} | {str(label.id): label.name for label in self}

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids, ascending."""
        return tuple(self._labels)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the ids."""
        return tuple(label.name for label in self)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that holds every id; uint8 for a table without labels."""
        return np.min_scalar_type(max(self._labels, default=0))

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._labels.values())

    def __contains__(self, id: object) -> bool:
        return id in self._labels

    def __getitem__(self, id: int) -> Label:
        try:
            return self._labels[id]
        except KeyError:
            raise KeyError(self._unknown_id(id)) from None

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, LabelTable) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        ids = f", ids {self.ids[0]} to {self.ids[-1]}" if self else ""
        return f"LabelTable({len(self)} label{'s' * (len(self) != 1)}{ids})"

    def select(self, query: int | str | Sequence[int | str] | None) -> tuple[int, ...]:
        """Find the ids of the labels asked for, ascending, each once.

        Args:
            query: None or ``"all"``, every label; an integer, or its digits as a string, the label of that id; a
                string, all labels of that name *and* all whose parent has that name; if there are none and it holds
                one of ``*?[``, all labels whose name matches it as a glob. Case matters. A string is never split at
                commas. A sequence is the union of its members; an empty one selects nothing.

        Raises:
            ValueError: if a member of the query finds no label; the message has the nearest names or ids.

        Example:
            >>> table = LabelTable([Label(1, "insula", "cortex", "L"), Label(2, "insula", "cortex", "R"),
            ...                     Label(3, "cuneus", "cortex", "L")])
            >>> table.select(None), table.select("insula"), table.select("c*"), table.select(["3", 1])
            ((1, 2, 3), (1, 2), (3,), (1, 3))
            >>> table.select("Insulla")
            Traceback (most recent call last):
            ...
            ValueError: 'Insulla' names no label of the label table; the nearest: 'insula'.
        """
        if query is None or (isinstance(query, str) and query == "all"):
            return self.ids
        if isinstance(query, str):
            return self._select_id(int(query)) if re.fullmatch("[0-9]+", query) else self._select_name(query)
        if isinstance(query, Iterable) and getattr(query, "ndim", 1) > 0:  # also arrays and tensors, but not of 0 axes
            return tuple(sorted({id for member in query for id in self.select(member)}))
        return self._select_id(_as_int(query))

    def subset(self, ids: int | str | Sequence[int | str] | None) -> LabelTable:
        """Make a table of only the labels that `select` finds for `ids`.

        Example:
            >>> LabelTable.from_ids([1, 2, 3]).subset([3, 1]).ids
            (1, 3)
        """
        table = LabelTable(self[id] for id in self.select(ids))
        table._source = self._source
        return table

    def children(self) -> dict[str, tuple[int, ...]]:
        """Give the ids under each parent name, for merging fine labels to coarse ones.

        Every id is in exactly one group: a label without a parent stands for itself, under its own name.

        Example:
            >>> LabelTable([Label(1, "cuneus", "occipital"), Label(2, "Brain-Stem"), Label(3, "lingual", "occipital")]
            ... ).children()
            {'occipital': (1, 3), 'Brain-Stem': (2,)}
        """
        groups: dict[str, list[int]] = {}
        for label in self:
            groups.setdefault(label.parent or label.name, []).append(label.id)
        return {name: tuple(ids) for name, ids in groups.items()}

    def _select_id(self, id: int) -> tuple[int, ...]:
        if id not in self:
            raise ValueError(self._unknown_id(id))
        return (id,)

    def _select_name(self, name: str) -> tuple[int, ...]:
        # Names first: some hold the characters of a glob ("Left-Thalamus-Proper*").
        ids = tuple(label.id for label in self if name in (label.name, label.parent))
        if not ids and set(name) & set("*?["):
            ids = tuple(label.id for label in self if fnmatch.fnmatchcase(label.name, name))
        if not ids:
            raise ValueError(f"{name!r} names no label of {self._source}; {self._nearest_names(name)}.")
        return ids

    def _nearest_names(self, name: str) -> str:
        known = {text.lower(): text for label in self for text in (label.parent, label.name) if text}
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
        if near:
            return f"the nearest: {', '.join(repr(known[text]) for text in near)}"
        return f"its names are {_shorten(self.names)}"

    def _unknown_id(self, id: object) -> str:
        if not self or not isinstance(id, (int, np.integer)):
            return f"There is no label {id!r} in {self._source}, which has {len(self)} labels."
        near = sorted(sorted(self.ids, key=lambda known: abs(known - id))[:3])
        return (
            f"There is no label {id} in {self._source}, which has {len(self)} labels, "
            f"ids {self.ids[0]} to {self.ids[-1]}; the nearest: {_shorten(near)}."
        )


def _as_int(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise ValueError(f"Label ids must be integers, got {value!r}.") from None


def _check_id(value: Any) -> int:
    id = _as_int(value)
    if not 0 < id < 2**63:
        raise ValueError(f"Label ids must be integers > 0 that fit 64 bits, got {id}.")
    return id


def _check_text(value: Any, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"The {what} must be a string, got {value!r}.")
    value = (value or "").strip()
    # The text formats have one label a line, BIDS takes "n/a" for none.
    if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", value) or value.lower() == "n/a":
        raise ValueError(f'The {what} must not be "n/a" nor hold tabs or line breaks, got {value!r}.')
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
    """Spread ids evenly over hue, saturation and value by the R3 low-discrepancy sequence: neighbors differ."""
    hue, saturation, value = ((id * step) % 1 for step in (0.8191725134, 0.6710436067, 0.5497004779))
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.4 + 0.6 * saturation, 0.6 + 0.4 * value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _shorten(values: Sequence[object], most: int = 10) -> str:
    return ", ".join(map(repr, values[:most])) + (", ..." if len(values) > most else "")


# ---- from a file's rows to labels -----------------------------------------------------------------------------------


def _labels(rows: Iterable[_Row]) -> Iterator[Label]:
    """Make the labels of a file's rows, naming the row in every error."""
    seen: dict[int, str] = {}
    for where, row in rows:
        try:
            label = _label({field: "" if text.lower() == "n/a" else text for field, text in row.items()})
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if label is None:
            continue
        if label.id in seen:
            raise ValueError(f"{where}: label {label.id} is already defined at {seen[label.id]}.")
        seen[label.id] = where
        yield label


def _label(row: Mapping[str, str]) -> Label | None:
    """Make the label of one row, None for background."""
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
        row.get("parent"),
        hemisphere,
        _parse_color(row),  # type: ignore[arg-type]  # None asks for the default
        row.get("abbreviation"),
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
    """Tell the hemisphere by the usual name patterns; None where there is none, or they contradict each other."""
    # Whole words anywhere; the bare letters only as atlases write them, at either end ("L_V1", "Insula_R").
    found = set(re.split(r"[-_.\s]+", name.lower())) & {"left", "right", "lh", "rh"}
    found |= set(re.findall(r"^[LR](?=[_ .])|(?<=[_ .])[LR]$", name.strip()))
    sides = {word[0].upper() for word in found}
    return sides.pop() if len(sides) == 1 else None


# ---- formats: text to rows, table to text ---------------------------------------------------------------------------

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


def _parse_table(text: str, delimiter: str) -> list[_Row]:
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
                f"no {field} column found among the headings {_shorten(headings)}; "
                f"call it {field!r} (or {', '.join(map(repr, _HEADINGS[field][1:5]))})."
            )
    return columns


def _parse_csv(text: str) -> list[_Row]:
    headings = text.lstrip().partition("\n")[0]
    return _parse_table(text, max(",;\t", key=headings.count))


def _parse_tsv(text: str) -> list[_Row]:
    return _parse_table(text, "\t")


_FREESURFER_LINE = re.compile(
    r"(?P<id>\S+)\s+(?P<name>\S.*?)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+\d+",
)
_ITK_SNAP_LINE = re.compile(
    r'(?P<id>\S+)\s+(?P<red>\d+)\s+(?P<green>\d+)\s+(?P<blue>\d+)\s+\S+\s+\S+\s+\S+\s+"(?P<name>.*)"',
)


def _parse_lines(text: str) -> Iterator[_Row]:
    """Parse a FreeSurfer color table or an ITK-SNAP label description; no line can be both."""
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        match = _FREESURFER_LINE.fullmatch(line) or _ITK_SNAP_LINE.fullmatch(line)
        if not match:
            expected = '`id name R G B A` (FreeSurfer) or `id R G B A VIS MSH "name"` (ITK-SNAP)'
            raise ValueError(f"line {number}: expected {expected}, got `{line}`.")
        yield f"line {number}", match.groupdict()


def _parse_json(text: str) -> list[_Row]:
    content = json.loads(text, object_pairs_hook=_unique_keys)
    try:
        if "network_data_format" in content:  # a bundle's metadata.json: its first output holds the labels
            content = next(iter(content["network_data_format"]["outputs"].values()))["channel_def"]
        content.items()
    except (AttributeError, KeyError, StopIteration, TypeError):
        raise ValueError('expected a channel_def such as {"0": "background", "1": "name"}.') from None
    return list(_channel_rows(content))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # By itself the json module keeps the last of several equal keys without a word.
    key, count = max(Counter(key for key, _ in pairs).items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        raise ValueError(f"key {key!r} is defined {count} times.")
    return dict(pairs)


def _channel_rows(channel_def: Mapping[str, str]) -> Iterator[_Row]:
    for key, name in channel_def.items():
        if not isinstance(name, str):
            raise ValueError(f"key {key!r}: the name must be a string, got {name!r}.")
        yield f"key {key!r}", {"id": str(key), "name": name}


def _table_text(table: LabelTable, headings: Sequence[str], delimiter: str, missing: str) -> str:
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
    return _table_text(table, headings, "\t", "n/a")


def _csv_text(table: LabelTable) -> str:
    return _table_text(table, ("id", "name", "abbreviation", "color", "parent", "hemisphere"), ",", "")


def _freesurfer_text(table: LabelTable) -> str:
    rows = [(0, "Unknown", 0, 0, 0)] + [(label.id, re.sub(r"\s", "_", label.name), *label.color) for label in table]
    width = max(len(row[1]) for row in rows)
    lines = [f"{id:<6} {name:<{width}} {r:>3} {g:>3} {b:>3} 0" for id, name, r, g, b in rows]
    return "\n".join([f"{'#No.':<6} {'Label Name:':<{width}}   R   G   B A", *lines, ""])


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


_FORMATS: dict[str, tuple[Callable[[str], Iterable[_Row]], Callable[[LabelTable], str]]] = {
    ".tsv": (_parse_tsv, _tsv_text),
    ".csv": (_parse_csv, _csv_text),
    ".txt": (_parse_lines, _freesurfer_text),
    ".ctab": (_parse_lines, _freesurfer_text),
    ".label": (_parse_lines, _itk_snap_text),
    ".json": (_parse_json, _json_text),
}


def _format(path: Path) -> tuple[Callable[[str], Iterable[_Row]], Callable[[LabelTable], str]]:
    """Give the parser and the writer for a file's suffix."""
    if path.suffix.lower() not in _FORMATS:
        raise ValueError(f"the format of {path.name} is unknown; label tables end in {', '.join(_FORMATS)}.")
    return _FORMATS[path.suffix.lower()]
