"""Label groups: one label, or several whose union is requested as one; their masks in a label map."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.utils import convert_to_dst_type

from monai_lcs.labels.table import is_integer

__all__ = ["LabelGroup", "as_groups", "check_channel", "group_masks", "label_mask", "present_labels"]

LabelGroup: TypeAlias = int | Sequence[int]
"""One label id, or several whose union is asked for as one."""

_MAX_ID = torch.iinfo(torch.int32).max
_MAX_TABLE = 1 << 22  # ids above this (Allen atlases) are looked up by sorting: a table as long as the id would be slow


def as_groups(groups: Iterable[LabelGroup]) -> tuple[tuple[int, ...], ...]:
    """Check label groups and write each of them as a tuple of ids.

    Args:
        groups: label ids, or sequences of ids that are asked for as one label. Python, numpy and torch integers are
            understood. The list is neither changed nor kept.

    Raises:
        ValueError: when there is no group, a group is empty, or an id is not an integer > 0 or comes twice in a group.

    Example:
        >>> as_groups([4, (17, 53)])
        ((4,), (17, 53))
    """
    if isinstance(groups, str | bytes | Mapping) or not isinstance(groups, Iterable):
        raise ValueError(f"`groups` must be a list of label ids or of lists of ids, got {groups!r}.")
    found = tuple(_as_group(group) for group in groups)
    if not found:
        raise ValueError("`groups` must hold at least one label, got none.")
    return found


def _as_group(group: Any) -> tuple[int, ...]:
    members = [group] if is_integer(group) or not isinstance(group, Iterable) else list(group)
    ids = tuple(operator.index(i) if is_integer(i) else -1 for i in members)
    if not ids or min(ids) <= 0 or max(ids) > _MAX_ID or len(set(ids)) != len(ids):
        raise ValueError(f"A label group must hold unique integer ids > 0, got {group!r}.")
    return ids


def label_mask(label_map: NdarrayOrTensor, group: LabelGroup) -> torch.Tensor:
    """Where a label map holds a label, or any label of a union.

    Args:
        label_map: label ids of any shape and real dtype.
        group: one label id or a sequence of ids. A label that is absent gives an empty mask.

    Returns:
        Bool tensor of the shape of ``label_map``.

    Example:
        >>> label_mask(torch.tensor([[0, 1], [2, 3]]), (1, 3)).int()
        tensor([[0, 1],
                [0, 1]], dtype=torch.int32)
    """
    labels = _plain(label_map)
    mask = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for i in _as_group(group):
        if _holds(labels.dtype, [i]):  # torch takes `uint8 == 300` for `uint8 == 44`
            mask |= labels == i  # for the few ids of a union several times faster than torch.isin
    return mask


def present_labels(label_map: NdarrayOrTensor) -> tuple[int, ...]:
    """Ids > 0 that occur in a label map, in ascending order, from one pass over its voxels.

    Args:
        label_map: label ids of any shape and real dtype.

    Raises:
        ValueError: when a voxel is not an integer >= 0 (a label map resampled by interpolation, NaN).

    Example:
        >>> present_labels(torch.tensor([[0.0, 7.0], [3.0, 7.0]]))
        (3, 7)
    """
    values, index = _values_and_index(_voxel_ids(label_map))
    counts = torch.bincount(index, minlength=len(values))
    return tuple(values[(counts > 0) & (values > 0)].tolist())


def _plain(label_map: NdarrayOrTensor) -> torch.Tensor:
    """The label map as a tensor without metadata, sharing memory where it can."""
    if isinstance(label_map, MetaTensor):
        return label_map.as_tensor()
    if isinstance(label_map, torch.Tensor):
        return label_map
    return torch.from_numpy(np.ascontiguousarray(label_map))  # a flipped view has strides that torch refuses


def _holds(dtype: torch.dtype, ids: Sequence[int]) -> bool:
    """Whether every id can be written exactly in ``dtype``."""
    exact = torch.tensor(ids, dtype=torch.int64)
    return torch.equal(exact.to(dtype).to(torch.int64), exact)


def _voxel_ids(label_map: NdarrayOrTensor) -> torch.Tensor:
    """All voxels as a flat int32 tensor, checked to be integers >= 0."""
    labels = _plain(label_map).flatten()
    if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch cannot compare these with other types
        labels = labels.to(torch.int64)
    ids = labels.to(torch.int32)
    bad = (ids != labels) | (ids < 0)
    if bad.any():
        raise ValueError(
            f"A label map must hold integers from 0 to {_MAX_ID}, got {labels[bad][0].item()}{_origin(label_map)}; "
            "resample label maps with nearest-neighbor interpolation."
        )
    return ids


def _values_and_index(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values that ``ids`` may hold, ascending, and for every voxel the position of its own among them."""
    largest = int(ids.max()) if ids.numel() else 0
    if largest <= _MAX_TABLE:
        return torch.arange(largest + 1, device=ids.device), ids
    values, index = torch.unique(ids, return_inverse=True)
    return values.to(torch.int64), index


def _origin(label_map: NdarrayOrTensor) -> str:
    """`` in FILE`` where the metadata know the file, for error messages."""
    file = label_map.meta.get("filename_or_obj") if isinstance(label_map, MetaTensor) else None
    return f" in {file}" if file else ""


def group_masks(
    label_map: NdarrayOrTensor, groups: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> torch.Tensor | MetaTensor:
    """Stack the masks of ``groups`` as channels and give them the metadata of the label map."""
    labels = _plain(label_map)
    masks = torch.empty((len(groups), *labels.shape[1:]), dtype=dtype, device=labels.device)
    for mask, group in zip(masks, groups, strict=True):
        mask.copy_(label_mask(labels[0], group))
    if isinstance(label_map, torch.Tensor):
        return convert_to_dst_type(masks, label_map, dtype=dtype)[0]
    return MetaTensor(masks) if get_track_meta() else masks


def check_channel(label_map: NdarrayOrTensor) -> None:
    """Raise a ValueError unless a label map is ``(1, *spatial)``."""
    if label_map.ndim < 2 or label_map.shape[0] != 1:
        raise ValueError(
            f"A label map must have the shape (1, *spatial), got {tuple(label_map.shape)}{_origin(label_map)}."
        )
