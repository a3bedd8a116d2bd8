"""The label table: which ids a label map holds, what each is called and how labels are asked for."""

from __future__ import annotations

import colorsys
import difflib
import fnmatch
import operator
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from monai_lcs.files import check_absent, write_atomically
from monai_lcs.labels.formats import Row, channel_rows, label_arguments, read_rows, shorten, table_text

__all__ = ["Label", "LabelTable", "is_integer"]


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
            raise ValueError(f"Label ids must be unique, got more than one label with id {shorten(duplicates)}.")
        self._source = "the label table"  # named in the message when something asked for is not there

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelTable:
        """Read a label table; the suffix says the format, in text files the content does.

        ===================  =====================================================================================
        ``.tsv``             a table with a heading line: BIDS ``dseg.tsv`` (``index``, ``name``, ...) or alike
        ``.csv``             the same, separated by commas, semicolons or tabs
        ``.txt``, ``.ctab``  FreeSurfer color table, ``17 Left-Hippocampus 220 216 20 0``, or as ``.label``
        ``.lut``             the same
        ``.ctbl``            3D Slicer color table, lines as FreeSurfer's
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
            table = cls(_labels(read_rows(path)))
            if not table:
                raise ValueError("the file holds no labels.")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        table._source = str(path)
        return table

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the table in the format of the suffix, as `read` has them; the file appears complete or not at all.

        ``.tsv`` (BIDS, with the extra columns ``parent`` and ``hemisphere``) and ``.csv`` hold all there is of a
        label. FreeSurfer (``.txt``, ``.ctab``, ``.lut``), Slicer (``.ctbl``) and ITK-SNAP (``.label``) hold id, name
        and color, ``.json`` id and name. A name for FreeSurfer or Slicer cannot hold white space, which becomes
        ``_``; an ITK-SNAP name cannot hold ``"``, which becomes ``'``.

        Args:
            path: the file to write, in an existing folder.
            overwrite: replace the file if it exists.

        Raises:
            FileExistsError: if the file exists and is not to be overwritten.
            OSError: naming the file, if it cannot be written, for example in a folder that does not exist.
            ValueError: if the suffix is none of these.
        """
        path = Path(path)
        content = table_text(self, path).encode()
        check_absent([path], overwrite)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

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
        return cls(_labels(channel_rows(channel_def)))

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
        return f"its names are {shorten(self.names)}"

    def _unknown_id(self, id: object) -> str:
        if not self or not isinstance(id, (int, np.integer)):
            return f"There is no label {id!r} in {self._source}, which has {len(self)} labels."
        near = sorted(sorted(self.ids, key=lambda known: abs(known - id))[:3])
        return (
            f"There is no label {id} in {self._source}, which has {len(self)} labels, "
            f"ids {self.ids[0]} to {self.ids[-1]}; the nearest: {shorten(near)}."
        )


def is_integer(value: Any) -> bool:
    """Whether `value` is one integer of Python, numpy or torch; True and False are not."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _as_int(value: Any) -> int:
    if not is_integer(value):
        raise ValueError(f"Label ids must be integers, got {value!r}.")
    return operator.index(value)


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


def _labels(rows: Iterable[Row]) -> Iterator[Label]:
    """Make the labels of a file's rows, naming the row in every error."""
    seen: dict[int, str] = {}
    for where, row in rows:
        try:
            arguments = label_arguments(row)
            label = None if arguments is None else Label(**arguments)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if label is None:
            continue
        if label.id in seen:
            raise ValueError(f"{where}: label {label.id} is already defined at {seen[label.id]}.")
        seen[label.id] = where
        yield label
