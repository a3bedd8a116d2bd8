"""Label groups: one label, or several whose union is requested as one; and the masks of groups in a label map."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.utils import convert_to_dst_type

from monai_lcs.labels.exact import holds_exactly
from monai_lcs.labels.label import is_integer
from monai_lcs.labels.label_map import as_plain_tensor, check_label_map, values_and_positions
from monai_lcs.labels.limits import MAX_ID

__all__ = ["LabelGroup", "as_groups", "group_masks", "label_mask", "label_sizes", "present_labels"]

LabelGroup: TypeAlias = int | Sequence[int]
"""One label id, or several ids whose union is requested as one label."""

_FEW = 16  # ids of a union that are looked for one by one
_PIECE = 1 << 22
"""Voxels that are counted at a time: what that takes does not grow with the label map."""


def as_groups(groups: Iterable[LabelGroup]) -> tuple[tuple[int, ...], ...]:
    """Check label groups and write each of them as a tuple of ids.

    Args:
        groups: label ids, or sequences of ids that are requested as one label. Integers may be Python's, numpy's or
            torch's. The list is neither changed nor kept.

    Raises:
        ValueError: if there is no group, a group is empty, or an id is not an integer > 0 or comes twice in a group.

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
    if not ids or min(ids) <= 0 or max(ids) > MAX_ID or len(set(ids)) != len(ids):
        raise ValueError(f"A label group must hold unique integer ids > 0, got {group!r}.")
    return ids


def label_mask(label_map: NdarrayOrTensor, group: LabelGroup) -> torch.Tensor:
    """Mark where a label map holds a label, or any label of a union.

    Args:
        label_map: label ids of any shape and real type.
        group: one label id or a sequence of ids. A label that the map lacks gives an empty mask.

    Returns:
        Bool tensor of the shape of ``label_map``.

    Raises:
        ValueError: if the group is not valid.

    Example:
        >>> label_mask(torch.tensor([[0, 1], [2, 3]]), (1, 3)).int()
        tensor([[0, 1],
                [0, 1]], dtype=torch.int32)
    """
    labels = as_plain_tensor(label_map)
    ids = [i for i in _as_group(group) if holds_exactly(labels.dtype, [i])]  # torch takes `uint8 == 300` for `== 44`
    if len(ids) > _FEW:
        if labels.dtype in (torch.uint16, torch.uint32, torch.uint64):
            labels = labels.long()  # PyTorch cannot search the others
        known = torch.tensor(sorted(ids), device=labels.device).to(labels.dtype)
        return known[torch.bucketize(labels.contiguous(), known).clamp_(max=len(known) - 1)] == labels
    mask = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    for i in ids:
        mask |= labels == i  # several times faster than torch.isin
    return mask


def present_labels(label_map: NdarrayOrTensor) -> tuple[int, ...]:
    """List the ids > 0 that occur in a label map, ascending, in one pass over its voxels.

    Args:
        label_map: label ids of any shape and real type.

    Raises:
        ValueError: if a voxel is not an integer >= 0: NaN, or a label map that was resampled by interpolation.

    Example:
        >>> present_labels(torch.tensor([[0.0, 7.0], [3.0, 7.0]]))
        (3, 7)
    """
    return tuple(label_sizes(label_map))


def label_sizes(label_map: NdarrayOrTensor) -> dict[int, int]:
    """Count the voxels of every id > 0 that occurs in a label map, ids ascending, in one pass over its voxels.

    Args:
        label_map: label ids of any shape and real type.

    Raises:
        ValueError: if a voxel is not an integer >= 0.

    Example:
        >>> label_sizes(torch.tensor([[0, 7], [3, 7]]))
        {3: 1, 7: 2}
    """
    check_label_map(label_map)
    sizes: Counter[int] = Counter()
    for piece in as_plain_tensor(label_map).flatten().split(_PIECE):
        values, positions = values_and_positions(piece.to(torch.int32))
        counts = torch.bincount(positions, minlength=len(values))
        held = (counts > 0) & (values > 0)
        sizes.update(dict(zip(values[held].tolist(), counts[held].tolist(), strict=True)))
    return dict(sorted(sizes.items()))


def group_masks(
    label_map: NdarrayOrTensor, groups: Sequence[tuple[int, ...]], dtype: torch.dtype
) -> torch.Tensor | MetaTensor:
    """Stack the masks of label groups as channels, with the metadata of the label map.

    Args:
        label_map: label ids ``(1, *spatial)``.
        groups: K groups, as :py:func:`as_groups` gives them.
        dtype: type of the masks, which hold 0 and 1.

    Returns:
        The masks ``(K, *spatial)``; a ``MetaTensor`` if the label map is one or, for an array, if MONAI tracks
        metadata.

    Example:
        >>> group_masks(torch.tensor([[0, 1, 2]]), [(2,), (1, 2)], torch.uint8)
        tensor([[0, 0, 1],
                [0, 1, 1]], dtype=torch.uint8)
    """
    labels = as_plain_tensor(label_map)
    masks = torch.empty((len(groups), *labels.shape[1:]), dtype=dtype, device=labels.device)
    for mask, group in zip(masks, groups, strict=True):
        mask.copy_(label_mask(labels[0], group))
    if isinstance(label_map, torch.Tensor):
        return convert_to_dst_type(masks, label_map, dtype=dtype)[0]
    return MetaTensor(masks) if get_track_meta() else masks
