"""Coarse labels: unions of fine labels that a network is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from monai_lcs.labels.table import LabelTable

__all__ = ["group_coarse_labels"]


def group_coarse_labels(
    table: LabelTable, ids: Sequence[int], coarse_labels: Mapping[str, Any] | str
) -> list[tuple[int, ...]]:
    """Each coarse label as the ids of its fine labels.

    Args:
        table: the label table.
        ids: the fine labels in use; others are left out of the groups.
        coarse_labels: ``"parent"`` for the table's parents; or a mapping from a coarse name to its fine labels, see
            :meth:`monai_lcs.labels.LabelTable.select`. Labels that the mapping leaves out are in no group.

    Raises:
        ValueError: when ``coarse_labels`` is something else, names an unknown label, or no group has a label in use.

    Example:
        >>> table = LabelTable.from_channel_def({"11": "Left-Caudate", "50": "Right-Caudate", "16": "Brain-Stem"})
        >>> group_coarse_labels(table, table.ids, {"caudate": "*-Caudate", "stem": 16})
        [(11, 50), (16,)]
    """
    if coarse_labels == "parent":
        unions = list(table.children().values())
    elif isinstance(coarse_labels, Mapping):
        unions = [table.select(query) for query in coarse_labels.values()]
    else:
        raise ValueError(f"`coarse_labels` must be a mapping, 'parent' or null, got {coarse_labels!r}.")
    groups = [tuple(id for id in union if id in set(ids)) for union in unions]
    groups = [group for group in groups if group]
    if not groups:
        raise ValueError(f"No label of `coarse_labels` {coarse_labels!r} is among the labels in use {list(ids)}.")
    return groups
