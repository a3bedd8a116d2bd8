"""The one parser of requested labels: ids, names, globs, coarse names and unions, written in the words of a user.

A *union* is several labels that are segmented as one, such as the hippocampus and the amygdala of one side. The
network sees one mask that covers all its members, and the result holds one label for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monai_lcs.labels.label import Label, is_integer
from monai_lcs.labels.limits import MAX_ID
from monai_lcs.labels.table import LabelTable

__all__ = ["RequestedLabel", "label_names", "parse_request", "requested_table"]

_LIST = "[,;\n]"
_UNION = r" \+ "


@dataclass(frozen=True)
class RequestedLabel:
    """One label of a result: a label of the atlas, or a union of several.

    Args:
        id: the value of its voxels in the result.
        name: what it is called.
        ids: the ids of the atlas labels that it is made of; a single one, unless it is a union.

    Example:
        >>> RequestedLabel(17, "Left-Hippocampus + Left-Amygdala", (17, 18)).ids
        (17, 18)
    """

    id: int
    name: str
    ids: tuple[int, ...]


def label_names(table: LabelTable) -> dict[int, str]:
    """Give each id a name that no other has. Where a table has a name twice, the id is added to it.

    Example:
        >>> from monai_lcs.labels import Label
        >>> label_names(LabelTable([Label(1, "insula"), Label(2, "insula"), Label(3, "cuneus")]))
        {1: 'insula (1)', 2: 'insula (2)', 3: 'cuneus'}
    """
    counts = Counter(table.names)
    return {label.id: label.name if counts[label.name] == 1 else f"{label.name} ({label.id})" for label in table}


def parse_request(request: Any, table: LabelTable, present: Iterable[int] | None = None) -> list[RequestedLabel]:
    """Find the labels that a user requests; MONAI Label calls the request a prompt.

    ====================================  ===========================================================================
    request                               result
    ====================================  ===========================================================================
    None, ``""``, ``"all"``               every label
    ``17``, ``"17"``                      the label with this id
    ``"Left-Hippocampus"``, ``"MTL"``     the labels with this name or coarse name
    ``"lobe:frontal"``                    the labels with this coarse name alone, also ``"parent:frontal"``
    ``"Left-*"``                          the labels whose names match the glob
    ``"Left-*, 53"``, ``"MTL; 53"``       each label that a part finds; separated by commas, semicolons or lines
    ``"A + B"``                           one union of all that the parts find
    ``["Left-*", "A + B", ["C", 53]]``    what each member finds; a list in a list is a union
    ``{"name": "A, B"}``                  one union for each name, of all that the value finds
    ====================================  ===========================================================================

    A single part is understood as by :py:meth:`LabelTable.select`. A text that is a name as a whole is never split.

    Every requested label needs an id of its own, since a label map holds one id in each voxel. A label of the atlas
    keeps its id. A union gets the smallest id of its members that no other requested label has; if there is none, it
    gets the first id above those of the table. Requested labels may overlap; the merger decides which one gets a voxel.

    Args:
        request: as in the table above.
        table: the labels of the atlas.
        present: ids that have voxels in the atlas; by default all of the table. Others are left out.

    Returns:
        The requested labels, ascending by id, each once.

    Raises:
        ValueError: if a part finds no label (the message says the nearest names), if the atlas has no voxel of what
            it finds, or if a union is made of the same labels as another requested label.

    Example:
        >>> names = {"17": "Left-Hippocampus", "18": "Left-Amygdala", "53": "Right-Amygdala"}
        >>> table = LabelTable.from_channel_def(names)
        >>> [label.id for label in parse_request("Left-*, 53", table)]
        [17, 18, 53]
        >>> parse_request({"Amygdala": "*-Amygdala"}, table)
        [RequestedLabel(id=18, name='Amygdala', ids=(18, 53))]
        >>> parse_request(["Left-*", "Left-Hippocampus + Left-Amygdala"], table)[-1]
        RequestedLabel(id=54, name='Left-Hippocampus + Left-Amygdala', ids=(17, 18))
    """
    finder = _Finder(table, table.ids if present is None else present)
    if _is_everything(request):
        return [finder.single(id) for id in sorted(finder.present)]
    terms = list(dict.fromkeys(_terms(request, finder)))
    singles = {id for term in terms if not term.is_union for id in term.ids}
    requested = _add_unions([finder.single(id) for id in singles], (term for term in terms if term.is_union), table)
    return sorted(requested, key=lambda label: label.id)


def requested_table(requests: Iterable[RequestedLabel], table: LabelTable) -> LabelTable:
    """Make the label table of a result.

    A label of the atlas keeps all its fields. A union has its own id and name, the color of the atlas label with that
    id, and the hemisphere and the parent that all its members share, if they do.

    Args:
        requests: what :py:func:`parse_request` gives.
        table: the labels of the atlas.

    Example:
        >>> from monai_lcs.labels import Label
        >>> table = LabelTable([Label(17, "Left-Hippocampus", "MTL", "L"), Label(53, "Right-Hippocampus", "MTL", "R")])
        >>> requested_table(parse_request({"Hippocampi": "*-Hippocampus"}, table), table)[17]
        Label(id=17, name='Hippocampi', parent='MTL', hemisphere=None, color=(188, 67, 121), abbreviation=None)
    """
    names = label_names(table)
    return LabelTable(
        table[one.id] if one.ids == (one.id,) and one.name == names[one.id] else _union_label(one, table)
        for one in requests
    )


def _union_label(union: RequestedLabel, table: LabelTable) -> Label:
    members = [table[id] for id in union.ids]
    parents, hemispheres = ({getattr(label, field) for label in members} for field in ("parent", "hemisphere"))
    return Label(
        union.id,
        union.name,
        parent=parents.pop() if len(parents) == 1 else None,
        hemisphere=hemispheres.pop() if len(hemispheres) == 1 else None,
        color=table[union.id].color if union.id in table else None,  # type: ignore[arg-type]  # None: by the id
    )


@dataclass(frozen=True)
class _Term:
    """A part of a request and the ids that it finds: each by itself, or as a union, which has a name."""

    ids: tuple[int, ...]
    name: str = ""
    is_union: bool = False


class _Finder:
    """The labels that can be requested."""

    def __init__(self, table: LabelTable, present: Iterable[int]) -> None:
        self.table = table
        self.present = set(present) & set(table.ids)
        self.names = label_names(table)
        self.id_of = {name: id for id, name in self.names.items()}

    def single(self, id: int) -> RequestedLabel:
        return RequestedLabel(id, self.names[id], (id,))

    def find(self, *queries: Any) -> tuple[int, ...]:
        """Find the ids of all that ids and names mean, ascending, and leave out those without voxels."""
        ids = sorted({id for query in queries for id in self._select(query) if id in self.present})
        if not ids:
            raise ValueError(f"The atlas has no voxel of {' + '.join(map(repr, queries))}.")
        return tuple(ids)

    def split(self, text: str, separator: str) -> list[str]:
        """Split a text, unless it is a name as a whole: some hold commas."""
        if self._is_query(text):
            return [text]
        return [part.strip() for part in re.split(separator, text) if part.strip()]

    def _is_query(self, text: str) -> bool:
        try:
            return bool(self._select(text))
        except ValueError:
            return False

    def _select(self, query: Any) -> tuple[int, ...]:
        if isinstance(query, str):
            query = query.strip()
            return (self.id_of[query],) if query in self.id_of else self.table.select(query)
        if not is_integer(query):
            raise ValueError(f"A label must be requested by an id or a name, got {query!r}.")
        return self.table.select(query)


def _is_everything(request: Any) -> bool:
    return request is None or (isinstance(request, str) and request.strip() in ("", "all"))


def _terms(request: Any, finder: _Finder) -> Iterator[_Term]:
    """Read the parts of a request one by one."""
    if isinstance(request, Mapping):
        for name, members in request.items():
            yield _union(members, finder, str(name))
    elif isinstance(request, str):
        for text in finder.split(request, _LIST):
            is_union = len(finder.split(text, _UNION)) > 1
            yield _union(text, finder) if is_union else _Term(finder.find(text))
    elif _is_list(request):
        for member in request:
            if _is_list(member):
                yield _union(member, finder)
            else:
                yield from _terms(member, finder)
    else:
        yield _Term(finder.find(request))


def _union(members: Any, finder: _Finder, name: str = "") -> _Term:
    """Make a union; without a name of its own it is called by the names of its members."""
    parts = list(_parts(members, finder))
    if not parts:
        raise ValueError(f"A union must have at least one label, got {members!r}.")
    ids = finder.find(*parts)
    if len(ids) == 1 and not name:
        return _Term(ids)
    return _Term(ids, name or " + ".join(finder.names[id] for id in ids), is_union=True)


def _parts(members: Any, finder: _Finder) -> Iterator[Any]:
    """Split the members of a union down to single ids and names."""
    if isinstance(members, str):
        yield from finder.split(members, f"{_LIST}|{_UNION}")
    elif _is_list(members):
        for member in members:
            yield from _parts(member, finder)
    else:
        yield members


def _is_list(value: Any) -> bool:
    """Tell lists, tuples, sets, arrays and tensors from single ids and names."""
    is_single = isinstance(value, str | Mapping) or getattr(value, "ndim", 1) == 0
    return isinstance(value, Iterable) and not is_single


def _add_unions(singles: Sequence[RequestedLabel], unions: Iterable[_Term], table: LabelTable) -> list[RequestedLabel]:
    """Add unions to the requested labels, each with an id that those before it do not have."""
    requested = list(singles)
    for union in unions:
        requested.append(RequestedLabel(_union_id(union, requested, table), union.name, union.ids))
    return requested


def _union_id(union: _Term, others: Sequence[RequestedLabel], table: LabelTable) -> int:
    """Choose the id of a union: the smallest of its members that is free, or else the first above the table's."""
    for other in others:
        if set(other.ids) == set(union.ids):
            raise ValueError(
                f"The union {union.name!r} is left without an id of its own, since {other.name!r} is made of the same "
                f"labels {list(union.ids)}: request only one of the two."
            )
    taken = {other.id for other in others}
    free = next((id for id in union.ids if id not in taken), max(taken.union(table.ids)) + 1)
    if free > MAX_ID:
        raise ValueError(
            f"The union {union.name!r} is left without an id of its own: all its labels {list(union.ids)} are "
            f"requested by themselves as well, and no id is left up to {MAX_ID}. Request it without them."
        )
    return free
