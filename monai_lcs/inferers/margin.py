"""Where labels are decoded: in the boxes of their atlas masks, grown by a margin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from monai_lcs.boxes import Box, crop, grow_box, label_boxes, split_box, union_box, unshift, whole_box
from monai_lcs.grids import voxel_size
from monai_lcs.labels.groups import label_mask

__all__ = ["Part", "check_margin", "in_slabs", "label_parts", "margin_voxels"]


class Part(NamedTuple):
    """A label, or a union of ids, in one of its boxes.

    Attributes:
        label: the id to write.
        ids: the ids of the union.
        box: where this part is decoded.
        again: the last voxels along the first axis that the next part has as well.

    Example:
        >>> Part(label=100, ids=(17, 53), box=(slice(0, 4), slice(2, 8))).label
        100
    """

    label: int
    ids: tuple[int, ...]
    box: Box
    again: int = 0


def check_margin(margin_mm: float | None) -> None:
    """Check a margin in mm.

    Raises:
        ValueError: When it is negative, infinite or NaN.

    Example:
        >>> check_margin(6.0)
        >>> check_margin(None)  # no margin: everywhere
    """
    if margin_mm is not None and not 0 <= margin_mm < math.inf:
        raise ValueError(f"`margin_mm` must be >= 0 or None, got {margin_mm}.")


def margin_voxels(margin_mm: float, image: Tensor, item: int = 0) -> list[int]:
    """Convert a margin to voxels along each axis, rounded up.

    Args:
        margin_mm: the margin in mm.
        image: ``(B, C, *spatial)``; a :class:`monai.data.MetaTensor` knows its voxel size, others have 1 mm.
        item: the index in the batch.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> image = MetaTensor(torch.zeros(1, 1, 4, 4), affine=torch.diag(torch.tensor([1.0, 2.5, 1.0, 1.0])))
        >>> margin_voxels(6, image)
        [6, 3]
    """
    return [math.ceil(margin_mm / mm - 1e-6) for mm in voxel_size(image, item)]


def label_parts(
    label_map: Tensor,
    groups: Mapping[int, tuple[int, ...]],
    margin: Sequence[int] | None,
    split: bool = True,
    overlap: bool = False,
) -> list[Part]:
    """Find the boxes in which each label is decoded.

    Args:
        label_map: the propagated labels, ``(*spatial)``.
        groups: for each id to write, the ids of its union. Labels that the map does not hold have no part.
        margin: voxels around the atlas mask along each axis; ``None`` for the whole volume.
        split: use several boxes for a label where that is cheaper than one.
        overlap: let the boxes of one label overlap where they are side by side, also with a margin of 0.

    Example:
        >>> import torch
        >>> label_map = torch.tensor([[0, 0, 7, 7, 0, 0]])
        >>> label_parts(label_map, {7: (7,), 9: (9,)}, margin=(0, 1))
        [Part(label=7, ids=(7,), box=(slice(0, 1, None), slice(1, 5, None)), again=0)]
    """
    found = label_boxes(label_map)
    parts = []
    for label, ids in groups.items():
        present = [found[i] for i in ids if i in found]
        if not present:
            continue
        boxes = [whole_box(label_map.shape)]
        if margin is not None:
            tight = _split_union(label_map, ids, union_box(present), margin) if split else [union_box(present)]
            boxes = _grow(tight, margin, label_map.shape, overlap)
        parts += [Part(label, ids, box) for box in boxes]
    return parts


def in_slabs(parts: Sequence[Part], thick: int, overlap: bool = False) -> list[Part]:
    """Cut parts along their first axis into slabs, and put those of a slab next to each other.

    Args:
        parts: what to cut.
        thick: voxels of a slab; it starts at a multiple of them.
        overlap: whether a slab has one voxel of the next one as well, so that one can interpolate between them.

    Example:
        >>> first, second = Part(7, (7,), (slice(3, 9),)), Part(9, (9,), (slice(1, 4),))
        >>> [(part.label, part.box[0].start, part.box[0].stop) for part in in_slabs([first, second], 4, overlap=True)]
        [(7, 3, 5), (9, 1, 4), (7, 4, 9), (7, 8, 9)]
    """
    cut = []
    for part in parts:
        first, *others = part.box
        for start in range(first.start // thick * thick, first.stop, thick):
            again = int(overlap and start + thick < first.stop)
            slab = slice(max(start, first.start), min(start + thick, first.stop) + again)
            cut.append((start, part._replace(box=(slab, *others), again=again)))
    return [part for _, part in sorted(cut, key=lambda pair: pair[0])]


def _split_union(label_map: Tensor, ids: tuple[int, ...], box: Box, margin: Sequence[int]) -> list[Box]:
    """The tight boxes of a union, from the box of all of it."""
    return [unshift(piece, box) for piece in split_box(label_mask(crop(label_map, box), ids), margin)]


def _grow(boxes: Sequence[Box], margin: Sequence[int], shape: Sequence[int], overlap: bool) -> list[Box]:
    """Grow the boxes of one label; at least by one voxel where several must overlap."""
    margin = [max(m, 1) for m in margin] if overlap and len(boxes) > 1 else margin
    return [grow_box(box, margin, shape) for box in boxes]
