"""Boxes: the part of an image where a label can be, as one slice per spatial axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from scipy import ndimage
from torch import Tensor

__all__ = [
    "Box",
    "crop_box",
    "cut",
    "grow_box",
    "intersect",
    "label_boxes",
    "mask_box",
    "pad_end",
    "shift",
    "union_box",
    "voxel_size",
]

Box = tuple[slice, ...]


def label_boxes(label_map: Tensor) -> dict[int, Box]:
    """The bounding box of every label of a map, in one pass.

    Args:
        label_map: ``(*spatial)``, integers >= 0 of any dtype.

    Example:
        >>> label_boxes(torch.tensor([[0, 7, 7], [0, 0, 9]]))
        {7: (slice(0, 1, None), slice(1, 3, None)), 9: (slice(1, 2, None), slice(2, 3, None))}
    """
    ids = np.asarray(label_map.detach().cpu().to(torch.int64))
    values = None
    if ids.size and ids.max() > 65535:  # find_objects makes a list as long as the largest id
        values, ids = np.unique(np.append(ids, 0), return_inverse=True)
        ids = ids[:-1].reshape(label_map.shape)
    boxes = {i: box for i, box in enumerate(ndimage.find_objects(ids), start=1) if box is not None}
    return {i if values is None else int(values[i]): box for i, box in boxes.items()}


def mask_box(mask: Tensor) -> Box | None:
    """The bounding box of a mask ``(*spatial)``, ``None`` for an empty one."""
    inside = mask.bool()
    box = []
    for axis in range(mask.ndim):
        others = [i for i in range(mask.ndim) if i != axis]
        where = torch.nonzero(inside.any(dim=others) if others else inside).flatten()
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def cut(tensor: Tensor, box: Sequence[slice]) -> Tensor:
    """A view of what is inside the box, the last axes being spatial."""
    index: tuple[Any, ...] = (Ellipsis, *box)
    return tensor[index]


def union_box(boxes: Sequence[Box]) -> Box:
    """The smallest box around one or more boxes."""
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def grow_box(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """The box grown by ``margin`` voxels on both sides of each axis, within an image of ``shape``.

    Example:
        >>> grow_box((slice(2, 5), slice(8, 9)), (3, 1), (10, 10))
        (slice(0, 8, None), slice(7, 10, None))
    """
    return tuple(
        slice(max(axis.start - m, 0), min(axis.stop + m, size))
        for axis, m, size in zip(box, margin, shape, strict=True)
    )


def crop_box(box: Box, stride: int, shape: Sequence[int]) -> Box:
    """The crop in which a box is decoded: it contains the box, starts at a multiple of ``stride``, and has one of few
    sizes, multiples of 16 and of twice the stride, so that the crops of many labels can be stacked into one batch.

    Args:
        box: inside an image of ``shape``.
        stride: of the network.
        shape: of the image, multiples of the stride, see :func:`pad_end`.

    Example:
        >>> crop_box((slice(5, 18), slice(50, 60)), stride=4, shape=(80, 60))
        (slice(4, 20, None), slice(44, 60, None))
    """
    crop = []
    for axis, size in zip(box, shape, strict=True):
        start = axis.start - axis.start % stride
        multiple = math.lcm(16, 2 * stride)
        length = min(-(-(axis.stop - start) // multiple) * multiple, size)
        start = min(start, size - length)
        crop.append(slice(start, start + length))
    return tuple(crop)


def pad_end(x: Tensor, stride: int) -> Tensor:
    """``(B, C, *spatial)`` with its edge repeated at the end of each axis, up to a multiple of ``stride``.

    Two of it at least: an instance norm needs more than one voxel at the coarsest level.
    """
    missing = [max(-size % stride, 2 * stride - size) for size in x.shape[2:]]
    if not any(missing):
        return x
    return F.pad(x, [side for pad in reversed(missing) for side in (0, pad)], mode="replicate")


def intersect(box: Box, other: Box) -> Box | None:
    """What two boxes share, ``None`` where that is nothing."""
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True))
    return both if all(axis.start < axis.stop for axis in both) else None


def shift(box: Box, origin: Box) -> Box:
    """The box in the coordinates of one that contains it."""
    return tuple(slice(a.start - o.start, a.stop - o.start) for a, o in zip(box, origin, strict=True))


def voxel_size(image: Tensor, item: int = 0) -> tuple[float, ...]:
    """Size in mm of a voxel along each spatial axis; 1 mm where the tensor carries no affine.

    Args:
        image: ``(B, C, *spatial)``, any tensor; a :class:`monai.data.MetaTensor` knows its affine.
        item: which of the batch; each has its own affine.
    """
    dims = image.ndim - 2
    if not isinstance(image, MetaTensor):
        return (1.0,) * dims
    affine = torch.as_tensor(image.affine, dtype=torch.float64)
    affine = affine[item] if affine.ndim == 3 else affine
    return tuple(torch.linalg.norm(affine[:dims, :dims], dim=0).tolist())
