"""What a client asks for: ids, names, globs and unions of them, to the labels of the atlas."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_lcs.labels import LabelTable, is_integer

__all__ = ["Asked", "label_names", "parse_prompt"]


@dataclass(frozen=True)
class Asked:
    """One label to find.

    Args:
        id: the value that the result has there.
        name: what it is called.
        ids: the ids of the atlas whose union it is.
    """

    id: int
    name: str
    ids: tuple[int, ...]


def label_names(table: LabelTable) -> dict[int, str]:
    """A name for each id that no other has: where a table has a name twice, the id is added.

    Example:
        >>> from monai_lcs.labels import Label
        >>> label_names(LabelTable([Label(1, "insula"), Label(2, "insula"), Label(3, "cuneus")]))
        {1: 'insula (1)', 2: 'insula (2)', 3: 'cuneus'}
    """
    counts = Counter(table.names)
    return {label.id: label.name if counts[label.name] == 1 else f"{label.name} ({label.id})" for label in table}


def parse_prompt(prompt: Any, table: LabelTable, present: Iterable[int] | None = None) -> list[Asked]:
    """Find the labels asked for.

    Args:
        prompt: nothing or ``"all"``: every label; a name, coarse name, glob or id: each label it finds; several of
            them in a string, separated by commas or semicolons; a union, ``"A + B"``; a list of all these, in which a
            list is a union; or a mapping from the names of unions to what they are made of.
        table: the labels of the atlas.
        present: ids that have voxels in the atlas; all by default. Others are left out.

    Returns:
        The labels, ascending by id, each once. A union has the smallest of its ids that no other has.

    Raises:
        ValueError: when something finds no label, with the nearest names; when nothing that was found has voxels; or
            when two unions are left without different ids.

    Example:
        >>> names = {"17": "Left-Hippocampus", "18": "Left-Amygdala", "53": "Right-Amygdala"}
        >>> table = LabelTable.from_channel_def(names)
        >>> [asked.id for asked in parse_prompt("Left-*, 53", table)]
        [17, 18, 53]
        >>> parse_prompt("Left-Hippocampus + *-Amygdala", table)[0].ids
        (17, 18, 53)
        >>> parse_prompt({"Amygdala": "*-Amygdala"}, table)
        [Asked(id=18, name='Amygdala', ids=(18, 53))]
    """
    known = _Known(table, table.ids if present is None else present)
    if prompt is None or (isinstance(prompt, str) and prompt.strip() in ("", "all")):
        return [known.single(id) for id in sorted(known.present)]
    singles: set[int] = set()
    unions: list[tuple[str, tuple[int, ...]]] = []
    for name, item, is_union in _items(prompt, known):
        ids = known.find(item)
        if is_union:
            unions.append((name or " + ".join(known.names[id] for id in ids), ids))
        else:
            singles.update(ids)
    asked = [known.single(id) for id in singles]
    for name, ids in unions:
        free = [id for id in ids if id not in {other.id for other in asked}]
        if not free:
            raise ValueError(f"The union {name!r} is left without an id of its own: ask for it by itself.")
        asked.append(Asked(free[0], name, ids))
    return sorted(asked, key=lambda one: one.id)


class _Known:
    """The labels there are."""

    def __init__(self, table: LabelTable, present: Iterable[int]) -> None:
        self.table = table
        self.present = set(present)
        self.names = label_names(table)
        self.id_of = {name: id for id, name in self.names.items()}

    def single(self, id: int) -> Asked:
        return Asked(id, self.names[id], (id,))

    def find(self, query: Any) -> tuple[int, ...]:
        ids = tuple(id for id in self._select(query) if id in self.present)
        if not ids:
            raise ValueError(f"The atlas has no voxel of {query!r}.")
        return ids

    def finds(self, query: str) -> bool:
        try:
            return bool(self._select(query))
        except ValueError:
            return False

    def _select(self, query: Any) -> tuple[int, ...]:
        if isinstance(query, str):
            query = query.strip()
            return (self.id_of[query],) if query in self.id_of else self.table.select(query)
        if isinstance(query, Sequence):
            return tuple(sorted({id for member in query for id in self._select(member)}))
        if not is_integer(query):
            raise ValueError(f"A label must be asked for by an id or a name, got {query!r}.")
        return self.table.select(query)


def _items(prompt: Any, known: _Known) -> Iterable[tuple[str | None, Any, bool]]:
    """What is asked for one by one: the name of a union if it has one, the query, and whether it is a union."""
    if isinstance(prompt, Mapping):
        return [(str(name), _parts(query, known), True) for name, query in prompt.items()]
    if isinstance(prompt, str):
        return [_item(part, known) for part in _split(prompt, "[,;\n]", known)]
    if isinstance(prompt, Sequence):
        return [item for member in prompt for item in _member(member, known)]
    return [(None, prompt, False)]


def _member(member: Any, known: _Known) -> Iterable[tuple[str | None, Any, bool]]:
    if isinstance(member, Sequence) and not isinstance(member, str):
        return [(None, member, True)]
    return _items(member, known)


def _parts(query: Any, known: _Known) -> Any:
    return _split(query, "[,;\n]| \\+ ", known) if isinstance(query, str) else query


def _item(text: str, known: _Known) -> tuple[str | None, Any, bool]:
    parts = _split(text, " \\+ ", known)
    return (None, parts, True) if len(parts) > 1 else (None, text, False)


def _split(text: str, separator: str, known: _Known) -> list[str]:
    """The parts of a list, unless the whole is a name: some hold commas."""
    if known.finds(text):
        return [text]
    return [part.strip() for part in re.split(separator, text) if part.strip()]
