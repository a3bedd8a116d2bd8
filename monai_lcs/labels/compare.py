"""Compares label tables with each other and with label maps, and looks for what is wrong in one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping

from monai_lcs.labels.hemispheres import infer_hemisphere
from monai_lcs.labels.label import Label
from monai_lcs.labels.limits import MAX_FLOAT32_ID
from monai_lcs.labels.table import LabelTable

__all__ = ["compare_labels", "map_problems", "table_problems"]

FEW_VOXELS = 10


def compare_labels(first: LabelTable, second: LabelTable, names: tuple[str, str], most: int = 20) -> list[str]:
    """Say which ids are in only one of two tables, and which have another name there.

    Args:
        first: a table, or that of a label map.
        second: another.
        names: what the lines call them.
        most: how many labels a line lists.

    Example:
        >>> tables = LabelTable([Label(4, "CSF"), Label(5, "x")]), LabelTable([Label(4, "csf"), Label(9, "y")])
        >>> print(*compare_labels(*tables, ("a.tsv", "b.tsv")), sep="; ")
        1 label in both; 1 only in a.tsv: 5 (x); 1 only in b.tsv: 9 (y); 1 named differently: 4 (CSF, csf)
    """
    both = [label for label in first if label.id in second]
    lines = [f"{len(both)} label{'s' * (len(both) != 1)} in both"]
    for name, table, other in ((names[0], first, second), (names[1], second, first)):
        only = [_show(label) for label in table if label.id not in other]
        if only:
            lines.append(f"{len(only)} only in {name}: {_list(only, most)}")
    renamed = [f"{a.id} ({a.name}, {second[a.id].name})" for a in both if _differ(a, second[a.id])]
    return lines + ([f"{len(renamed)} named differently: {_list(renamed, most)}"] if renamed else [])


def _differ(label: Label, other: Label) -> bool:
    """Whether two labels have different names, and neither is the one of a label map, which has none."""
    return label.name != other.name and f"label-{label.id}" not in (label.name, other.name)


def table_problems(table: LabelTable) -> list[str]:
    """Say what is likely a mistake in a label table: a sentence each.

    These are a name or a color that several labels of a hemisphere have, a hemisphere that contradicts the name, and
    an id that a network cannot see.

    Example:
        >>> table_problems(LabelTable([Label(1, "Left-x", hemisphere="R"), Label(2, "y", color=(1, 2, 3))]))
        ['The hemisphere contradicts the name: 1 (Left-x).']
        >>> table_problems(LabelTable([Label(1, "x"), Label(2, "x")]))
        ['Several labels have the same name: 1 (x), 2 (x).']
    """
    wrong_side = [x for x in table if x.hemisphere and infer_hemisphere(x.name) not in (None, x.hemisphere)]
    found = {
        "Several labels have the same name": _repeated({x: (x.name, x.hemisphere) for x in table}),
        "Several labels have the same color": _repeated({x: (x.color, x.hemisphere) for x in table}),
        "The hemisphere contradicts the name": wrong_side,
        f"The id is above {MAX_FLOAT32_ID}, the largest in a label map": [x for x in table if x.id > MAX_FLOAT32_ID],
    }
    return [f"{what}: {_list(map(_show, labels))}." for what, labels in found.items() if labels]


def map_problems(sizes: Mapping[int, int], table: LabelTable | None, right_mm: Mapping[int, float]) -> list[str]:
    """Say what is likely a mistake in a label map: a sentence each.

    These are no label at all, ids without a name, labels of very few voxels, and labels of the left that lie to the
    right of those of the right.

    Args:
        sizes: the voxels of each id.
        table: its label table, if there is one.
        right_mm: how far to the right the center of each label lies.

    Example:
        >>> table = LabelTable([Label(1, "Left-x", hemisphere="L"), Label(2, "Right-x", hemisphere="R")])
        >>> map_problems({1: 20, 2: 20, 3: 4}, table, {1: 5.0, 2: -5.0, 3: 0.0})  # doctest: +NORMALIZE_WHITESPACE
        ['Without a name: 3 (4 voxels).', 'Fewer than 10 voxels: 3.',
         'The labels of the left lie to the right of those of the right: names or orientation are wrong.']
    """
    if not sizes:
        return ["There is no label in it, only background."]
    table = LabelTable([]) if table is None else table
    unnamed = [f"{id} ({n} voxels)" for id, n in sizes.items() if table and id not in table]
    few = [_show(table[id]) if id in table else str(id) for id, n in sizes.items() if n < FEW_VOXELS]
    lines = [
        f"{what}: {_list(ids)}." for what, ids in (("Without a name", unnamed), ("Fewer than 10 voxels", few)) if ids
    ]
    left, right = ([right_mm[x.id] for x in table if x.hemisphere == side and x.id in right_mm] for side in ("L", "R"))
    if left and right and sum(left) / len(left) > sum(right) / len(right):
        lines.append("The labels of the left lie to the right of those of the right: names or orientation are wrong.")
    return lines


def _repeated(keys: Mapping[Label, Hashable]) -> list[Label]:
    """The labels whose key another one has too."""
    groups: dict[Hashable, list[Label]] = defaultdict(list)
    for label, key in keys.items():
        groups[key].append(label)
    return [label for group in groups.values() if len(group) > 1 for label in group]


def _show(label: Label) -> str:
    return str(label.id) if label.name == f"label-{label.id}" else f"{label.id} ({label.name})"


def _list(texts: Iterable[str], most: int = 20) -> str:
    texts = list(texts)
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")
