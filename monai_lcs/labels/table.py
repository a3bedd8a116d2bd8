"""The label table: the ids that a label map may hold, what each is called, and how to find labels by a query."""

from __future__ import annotations

import difflib
import fnmatch
import operator
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from monai_lcs.files import check_absent, write_atomically
from monai_lcs.labels.formats import channel_def, labels_of_channel_def, labels_text, read_labels
from monai_lcs.labels.label import Label, as_integer
from monai_lcs.labels.rows import shorten

__all__ = ["LabelTable"]

_PARENT_WORDS = ("lobe", "parent")


class LabelTable:
    """The labels of a label map, ordered by id; immutable.

    Background, id 0, is never a label. Files and lists of ids may contain it, the table leaves it out. A table may be
    without labels, a file may not.

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
        self._source = "the label table"  # messages name it where a requested label is missing

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> LabelTable:
        """Read a label table in the format of the file's suffix; in text files the content tells the format.

        ===================  =====================================================================================
        ``.tsv``             a table with a heading line: BIDS ``dseg.tsv`` (``index``, ``name``, ...) or alike
        ``.csv``             the same, separated by commas, semicolons or tabs
        ``.txt``, ``.ctab``  FreeSurfer color table, ``17 Left-Hippocampus 220 216 20 0``, or as ``.label``; a fifth
                             number is FreeSurfer's tissue type
        ``.lut``             the same
        ``.ctbl``            3D Slicer color table, lines as FreeSurfer's
        ``.label``           ITK-SNAP label description, ``17 220 216 20 1 1 1 "Left Hippocampus"``
        ``.json``            a bundle's ``channel_def``, ``{"0": "background", "1": "..."}``, or ``metadata.json``;
                             the ``labels`` of a ``dataset.json``: Decathlon's ``{"1": "liver"}``, nnU-Net's
                             ``{"liver": 1}`` (without regions of several ids; ``"ignore"`` is left out)
        ===================  =====================================================================================

        The heading line says which column is which; its case, blanks and signs do not matter (``LabelName``,
        ``label_name``), and other columns are ignored:

        - the id: ``id``, ``index``, ``label id``, ``label number``, ``label value``, ``number``, ``value``, ``label
          index``, ``structure id``, ``region id``, ``roi id``, ``idx``, ``no``, or ``label`` where that holds integers;
        - the name: the first there is of ``name``, ``label name``, ``structure name``, ``region name``, ``roi name``,
          ``label``, ``structure``, ``region``, ``roi`` and ``abbreviation``;
        - the parent: ``parent``, ``lobe``, or a ``structure`` that is not the name;
        - the color: ``color`` (``#rrggbb``), or ``r``, ``g`` and ``b`` (``red``, ``Color_R``);
        - ``hemisphere`` and ``abbreviation``.

        An empty cell or ``n/a`` means "none". If a file has no column for the hemisphere, usual patterns in the name
        tell it (``Left-``, ``ctx-rh-``, ``L_``, ``L-``, ``_right``, ``_l``, ``(left)``). Lines that begin with ``#``
        are comments, and a byte order mark is no part of the first cell.

        Id 0 is background and gets no label. A table that calls it something else counts from 0: that is an error.

        Args:
            path: a UTF-8 text file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the format is unknown, the file is not UTF-8, there is no id column, no name column or no
                label, an id is duplicate, negative or not an integer, id 0 is called like a structure, a name is
                missing, a color is not valid, or a row has more or fewer columns than the heading. The message names
                the file and the line at fault.

        Example:
            >>> file = getfixture("tmp_path") / "labels.json"
            >>> _ = file.write_text('{"0": "background", "1": "Left-cuneus"}')
            >>> LabelTable.read(file).names
            ('Left-cuneus',)
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no label table {path}.")
        try:
            table = cls(read_labels(path))
            if not table:
                raise ValueError("the file holds no labels.")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        table._source = str(path)
        return table

    def write(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the table in the format of the file's suffix; the file appears complete or not at all.

        The formats are those of :py:meth:`read`. ``.tsv`` (BIDS, with the extra columns ``parent`` and ``hemisphere``)
        and ``.csv`` hold every field of a label. FreeSurfer's (``.txt``, ``.ctab``, ``.lut``), Slicer's (``.ctbl``)
        and ITK-SNAP's (``.label``) hold id, name and color; ``.json`` holds id and name. Names for FreeSurfer and
        Slicer cannot hold white space: it becomes ``_``. Names for ITK-SNAP cannot hold ``"``: it becomes ``'``.
        In ``.tsv`` and ``.csv`` an apostrophe is put before a name that begins with ``=``, ``+``, ``-`` or ``@``, as a
        spreadsheet would run it; :py:meth:`read` takes it away again.

        Args:
            path: the file to write, in an existing folder.
            overwrite: replace the file if it exists.

        Raises:
            FileExistsError: if the file exists and is not to be overwritten.
            OSError: if the file cannot be written, for example in a folder that does not exist. It names the file.
            ValueError: if the suffix is none of these.

        Example:
            >>> file = getfixture("tmp_path") / "labels.tsv"
            >>> table = LabelTable([Label(1, "Left-cuneus")])
            >>> table.write(file)
            >>> LabelTable.read(file) == table
            True
        """
        path = Path(path)
        content = labels_text(self, path).encode()
        check_absent([path], overwrite)
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    @classmethod
    def from_ids(cls, ids: Iterable[SupportsIndex]) -> LabelTable:
        """Make a table of labels of which only the ids are known, such as those of ``np.unique(label_map)``.

        Example:
            >>> LabelTable.from_ids([0, 17, 4]).names
            ('label-4', 'label-17')
        """
        return cls(Label(id, f"label-{id}") for id in map(as_integer, ids) if id != 0)

    @classmethod
    def from_channel_def(cls, channel_def: Mapping[str, str]) -> LabelTable:
        """Make a table from a bundle's ``channel_def``; the names tell the hemispheres.

        Raises:
            ValueError: if a key is not an integer >= 0, or a name is missing or not a string.

        Example:
            >>> LabelTable.from_channel_def({"0": "background", "17": "Left-Hippocampus"})[17].hemisphere
            'L'
        """
        return cls(labels_of_channel_def(channel_def))

    def channel_def(self) -> dict[str, str]:
        """Give the table as a bundle's ``channel_def``, background included.

        Example:
            >>> LabelTable([Label(17, "Left-Hippocampus")]).channel_def()
            {'0': 'background', '17': 'Left-Hippocampus'}
        """
        return channel_def(self)

    @property
    def source(self) -> str:
        """What a message calls the table, either its file or "the label table".

        Example:
            >>> LabelTable.from_ids([53, 17]).source
            'the label table'
        """
        return self._source

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids, ascending.

        Example:
            >>> LabelTable.from_ids([53, 17]).ids
            (17, 53)
        """
        return tuple(self._labels)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the ids.

        Example:
            >>> LabelTable.from_ids([53, 17]).names
            ('label-17', 'label-53')
        """
        return tuple(label.name for label in self)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that holds every id; uint8 for a table without labels.

        Example:
            >>> LabelTable.from_ids([255]).dtype, LabelTable.from_ids([256]).dtype
            (dtype('uint8'), dtype('uint16'))
        """
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
        """Find the ids of the labels that a query names, ascending, each once.

        Args:
            query: what to find, one of

                - None or ``"all"``: every label;
                - an integer, or its digits as a string: the label with this id;
                - a name: all labels with this name *and* all whose parent has it;
                - ``lobe:`` (or ``parent:``) and a coarse name or a glob of it: all labels whose parent has it;
                - a glob, which holds one of ``*?[``: all labels whose name matches it, unless it is a name itself;
                - a sequence of these: every label that a member finds. An empty one finds nothing.

                Upper and lower case count where something matches so. Else they are passed over, unless that would
                match names that differ by nothing else. A string is not split at commas;
                :py:func:`monai_lcs.labels.parse_request` does that.

        Raises:
            ValueError: if a member of the query finds no label. The message says the nearest names or ids.

        Example:
            >>> table = LabelTable([Label(1, "insula", "cortex", "L"), Label(2, "insula", "cortex", "R"),
            ...                     Label(3, "cuneus", "cortex", "L")])
            >>> table.select(None), table.select("insula"), table.select("c*"), table.select(["3", 1])
            ((1, 2, 3), (1, 2), (3,), (1, 3))
            >>> table.select("Cortex"), table.select("CU*")
            ((1, 2, 3), (3,))
            >>> table.select("Insulla")
            Traceback (most recent call last):
            ...
            ValueError: 'Insulla' names no label of the label table; the nearest: 'insula'.
        """
        if query is None or (isinstance(query, str) and query == "all"):
            return self.ids
        if isinstance(query, str):
            return self._select_id(int(query)) if re.fullmatch("[0-9]+", query) else self._select_name(query)
        if (
            isinstance(query, Iterable) and getattr(query, "ndim", 1) > 0
        ):  # also arrays and tensors, except those without axes
            return tuple(sorted({id for member in query for id in self.select(member)}))
        return self._select_id(as_integer(query))

    def subset(self, ids: int | str | Sequence[int | str] | None) -> LabelTable:
        """Make a table of only the labels that :py:meth:`select` finds for ``ids``.

        Example:
            >>> LabelTable.from_ids([1, 2, 3]).subset([3, 1]).ids
            (1, 3)
        """
        table = LabelTable(self[id] for id in self.select(ids))
        table._source = self._source
        return table

    def children(self) -> dict[str, tuple[int, ...]]:
        """Give the ids under each parent's name, for merging fine labels into coarse ones.

        Every id is in exactly one group. A label without a parent is a group by itself, under its own name.

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
        names = [(label.id, label.name) for label in self]
        # Names first: some hold the characters of a glob ("Left-Thalamus-Proper*")
        ids = _matching([*names, *self._parents()], name, operator.eq)
        kind, colon, parent = name.partition(":")
        if not ids and colon and kind.lower() in _PARENT_WORDS:
            return self._select_children(parent.strip())
        if not ids and set(name) & set("*?["):
            ids = _matching(names, name, fnmatch.fnmatchcase)
        if not ids:
            raise ValueError(f"{name!r} names no label of {self._source}; {self._nearest_names(name)}.")
        return ids

    def _select_children(self, parent: str) -> tuple[int, ...]:
        ids = _matching(self._parents(), parent, fnmatch.fnmatchcase)
        if ids:
            return ids
        parents = sorted({text for _, text in self._parents()})
        known = f"they are {shorten(parents)}" if parents else "it has none"
        raise ValueError(f"{parent!r} is no coarse name of {self._source}; {known}.")

    def _parents(self) -> list[tuple[int, str]]:
        return [(label.id, label.parent) for label in self if label.parent]

    def _nearest_names(self, name: str) -> str:
        texts = {text for label in self for text in (label.parent, label.name) if text}
        near = difflib.get_close_matches(name.lower(), {text.lower() for text in texts}, n=3, cutoff=0.5)
        if near:
            shown = [text for low in near for text in sorted(texts) if text.lower() == low]
            return f"the nearest: {', '.join(map(repr, shown))}"
        return f"its names are {shorten(self.names)}"

    def _unknown_id(self, id: object) -> str:
        if not self or not isinstance(id, (int, np.integer)):
            return f"There is no label {id!r} in {self._source}, which has {len(self)} labels."
        near = sorted(sorted(self.ids, key=lambda known: abs(known - id))[:3])
        return (
            f"There is no label {id} in {self._source}, which has {len(self)} labels, "
            f"ids {self.ids[0]} to {self.ids[-1]}; the nearest: {shorten(near)}."
        )


def _matching(texts: Sequence[tuple[int, str]], query: str, match: Callable[[str, str], bool]) -> tuple[int, ...]:
    """The ids of texts that match; whatever the case where none does else, unless texts differ by nothing but case."""
    for fold in (str, str.lower):
        found = [(id, text) for id, text in texts if match(fold(text), fold(query))]
        spellings = {text for _, text in found}
        if found and len({fold(text) for text in spellings}) == len(spellings):
            return tuple(sorted({id for id, _ in found}))
    return ()
