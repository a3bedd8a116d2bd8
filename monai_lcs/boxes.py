"""Boxes: parts of an image, given as one slice for each spatial axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

__all__ = [
    "Box",
    "batch_neighbors",
    "batch_rounded_sizes",
    "batch_sizes",
    "crop",
    "crop_pyramid",
    "grow_box",
    "intersect",
    "label_boxes",
    "mask_box",
    "pad",
    "pad_end",
    "padded_shape",
    "reach_out",
    "refine",
    "scale",
    "shared_box",
    "shift",
    "size_of",
    "slabs_of",
    "split_box",
    "union_box",
    "unshift",
    "volume_of",
    "whole_box",
]

Box = tuple[slice, ...]

SPLIT_STEP = 4  # a mask is split along the borders of cells of so many voxels
CALL_COST = 10_000  # what one call of a network costs, in voxels


def whole_box(shape: Sequence[int]) -> Box:
    """The box that is the whole image.

    Example:
        >>> whole_box((4, 5))
        (slice(0, 4, None), slice(0, 5, None))
    """
    return tuple(slice(0, size) for size in shape)


def size_of(box: Box) -> tuple[int, ...]:
    """The size of a box along each axis, in voxels.

    Example:
        >>> size_of((slice(2, 5), slice(8, 9)))
        (3, 1)
    """
    return tuple(axis.stop - axis.start for axis in box)


def volume_of(box: Box) -> int:
    """The number of voxels in a box.

    Example:
        >>> volume_of((slice(2, 5), slice(0, 4)))
        12
    """
    return math.prod(size_of(box))


def label_boxes(label_map: Tensor) -> dict[int, Box]:
    """Find the bounding box of every label in one pass over the label map.

    Args:
        label_map: ``(*spatial)``, integers >= 0 of any dtype.

    Returns:
        The box of each id > 0 that occurs.

    Example:
        >>> label_boxes(torch.tensor([[0, 7, 7], [0, 0, 9]]))
        {7: (slice(0, 1, None), slice(1, 3, None)), 9: (slice(1, 2, None), slice(2, 3, None))}
    """
    ids = np.asarray(label_map.detach().cpu().to(torch.int32))
    values = None
    if ids.size and ids.max() > 65535:  # find_objects makes a list as long as the largest id
        values, ids = np.unique(np.append(ids, 0), return_inverse=True)
        ids = ids[:-1].reshape(label_map.shape)
    boxes = {i: box for i, box in enumerate(ndimage.find_objects(ids), start=1) if box is not None}
    return {i if values is None else int(values[i]): box for i, box in boxes.items()}


def mask_box(mask: Tensor) -> Box | None:
    """Find the bounding box of a mask ``(*spatial)``; ``None`` where the mask is empty.

    Example:
        >>> mask_box(torch.tensor([[0, 0, 0], [0, 1, 1]]))
        (slice(1, 2, None), slice(1, 3, None))
    """
    inside = mask.bool()
    box = []
    for axis in range(mask.ndim):
        others = [i for i in range(mask.ndim) if i != axis]
        where = torch.nonzero(inside.any(dim=others) if others else inside).flatten()
        if not len(where):
            return None
        box.append(slice(int(where[0]), int(where[-1]) + 1))
    return tuple(box)


def crop(tensor: Tensor, box: Sequence[slice]) -> Tensor:
    """Crop the last, spatial, axes of a tensor to a box, without a copy.

    Example:
        >>> crop(torch.arange(12).reshape(1, 3, 4), (slice(1, 3), slice(0, 2)))
        tensor([[[4, 5],
                 [8, 9]]])
    """
    index: tuple[Any, ...] = (Ellipsis, *box)
    return tensor[index]


def union_box(boxes: Sequence[Box]) -> Box:
    """The smallest box that contains one or more boxes.

    Example:
        >>> union_box([(slice(0, 2), slice(5, 6)), (slice(4, 7), slice(5, 9))])
        (slice(0, 7, None), slice(5, 9, None))
    """
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def grow_box(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """Grow a box by ``margin`` voxels on both sides of each axis; it ends where the image of ``shape`` ends.

    Example:
        >>> grow_box((slice(2, 5), slice(8, 9)), (3, 1), (10, 10))
        (slice(0, 8, None), slice(7, 10, None))
    """
    return tuple(
        slice(max(axis.start - m, 0), min(axis.stop + m, size))
        for axis, m, size in zip(box, margin, shape, strict=True)
    )


def reach_out(box: Box, reach: int, shape: Sequence[int], sizes: Sequence[int] | None = None) -> Box:
    """Grow a box by ``reach`` voxels on both sides of each axis; move it inward where the image would cut it.

    Boxes of the same size therefore stay of the same size, wherever they lie.

    Args:
        box: a box inside the image.
        reach: voxels to add on each side.
        shape: spatial shape of the image.
        sizes: sizes of the result, where it must be larger than ``size + 2 * reach``.

    Example:
        >>> reach_out((slice(1, 5), slice(4, 8)), 2, (20, 20)), reach_out((slice(1, 5), slice(4, 8)), 2, (6, 20))
        ((slice(0, 8, None), slice(2, 10, None)), (slice(0, 6, None), slice(2, 10, None)))
    """
    grown = []
    for i, (axis, limit) in enumerate(zip(box, shape, strict=True)):
        size = min(sizes[i] if sizes else axis.stop - axis.start + 2 * reach, limit)
        start = min(max(axis.start - reach, 0), limit - size)
        grown.append(slice(start, start + size))
    return tuple(grown)


def batch_sizes(
    sizes: Sequence[Sequence[int]], room: float, overhead: int = CALL_COST
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Group boxes into batches; all boxes of a batch are decoded at the size of its largest.

    The cost of a batch is its number of voxels plus a constant for the call of the network. Each box, from the largest
    to the smallest, joins the batch whose cost it raises least, or begins a new one where that is cheaper.

    Args:
        sizes: the sizes of N boxes.
        room: the most voxels in a batch; a batch of one box may exceed it.
        overhead: the cost of a call, in voxels.

    Returns:
        For each batch, the indices of its boxes, and its size.

    Example:
        >>> batch_sizes([(40, 40), (8, 9), (9, 8), (40, 38)], room=4000, overhead=100)
        [([0, 3], (40, 40)), ([2, 1], (9, 9))]
    """
    batches: list[tuple[list[int], tuple[int, ...]]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (math.prod(sizes[i]), i), reverse=True):
        best, least = None, math.prod(sizes[i]) + overhead
        for k, (members, size) in enumerate(batches):
            joined = math.prod(map(max, size, sizes[i])) * (len(members) + 1)
            more = joined - math.prod(size) * len(members)
            if joined <= room and more <= least:
                best, least = k, more
        if best is None:
            batches.append(([i], tuple(sizes[i])))
        else:
            members, size = batches[best]
            batches[best] = ([*members, i], tuple(map(max, size, sizes[i])))
    return batches


def batch_rounded_sizes(
    sizes: Sequence[Sequence[int]], limits: Sequence[int], room: float, multiple: int
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Group boxes into batches by their sizes rounded up, so that the size of a crop depends on its own box alone.

    Args:
        sizes: the sizes of N boxes.
        limits: the largest size along each axis, that of the image.
        room: the most voxels in a batch; a batch of one box may exceed it.
        multiple: sizes are rounded up to a multiple of it.

    Returns:
        For each batch, the indices of its boxes, and its size.

    Example:
        >>> batch_rounded_sizes([(40, 40), (7, 9), (8, 10), (38, 39)], limits=(64, 12), room=1000, multiple=8)
        [([0, 3], (40, 12)), ([1, 2], (8, 12))]
    """
    together: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(sizes):
        rounded = (min(-(-n // multiple) * multiple, limit) for n, limit in zip(size, limits, strict=True))
        together.setdefault(tuple(rounded), []).append(i)
    batches = []
    for size, members in together.items():
        count = max(1, int(min(room / math.prod(size), len(members))))
        batches += [(members[first : first + count], size) for first in range(0, len(members), count)]
    return batches


def batch_neighbors(
    boxes: Sequence[Box], room: float, thick: int | None = None
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Group boxes into batches of neighbors, which overlap, in the order in which they begin along the first axis.

    Args:
        boxes: N boxes.
        room: the most voxels in a batch, the sum over its boxes; a batch of one box may exceed it.
        thick: boxes that do not begin in the same slab of so many voxels are not in the same batch.

    Returns:
        For each batch, the indices of its boxes, and a size: that of its largest box.

    Example:
        >>> batch_neighbors([(slice(0, 4), slice(0, 9)), (slice(7, 9), slice(0, 8)), (slice(2, 6), slice(1, 9))], 70)
        [([0, 2], (4, 9)), ([1], (2, 8))]
    """
    batches: list[list[int]] = []
    left, slab = 0.0, None
    for i in sorted(range(len(boxes)), key=lambda i: boxes[i][0].start):
        voxels, own = volume_of(boxes[i]), thick and boxes[i][0].start // thick
        if not batches or voxels > left or own != slab:
            batches.append([])
            left, slab = room, own
        batches[-1].append(i)
        left -= voxels
    return [(batch, max((size_of(boxes[i]) for i in batch), key=math.prod)) for batch in batches]


def slabs_of(box: Box, room: float) -> list[Box]:
    """Divide a box along its first axis into slabs of at most ``room`` voxels, but at least one voxel thick.

    Example:
        >>> [slab[0] for slab in slabs_of((slice(3, 8), slice(0, 10)), room=25)]
        [slice(3, 5, None), slice(5, 7, None), slice(7, 8, None)]
    """
    first, *others = box
    thick = max(1, int(min(room / volume_of(tuple(others)), first.stop - first.start)))
    starts = range(first.start, first.stop, thick)
    return [(slice(start, min(start + thick, first.stop)), *others) for start in starts]


def split_box(mask: Tensor, margin: Sequence[int], around: int = 6) -> list[Box]:
    """Find boxes that together contain a mask; several where they are cheaper to decode than one.

    The cost of a box is its volume after it has grown by the margin. The bounding box is divided in two at the best
    place, and its parts again, as long as that lowers the sum of the costs by a fifth.

    Args:
        mask: ``(*spatial)``, not empty.
        margin: voxels by which each box will grow along each axis.
        around: voxels that the decoder computes beyond that.

    Raises:
        ValueError: When the mask is empty.

    Example:
        >>> mask = torch.zeros(100, dtype=torch.bool)
        >>> mask[:10] = mask[80:85] = True
        >>> split_box(mask, margin=(3,)), split_box(mask, margin=(30,))
        ([(slice(0, 10, None),), (slice(80, 85, None),)], [(slice(0, 85, None),)])
    """
    added = np.array([2 * (m + around) for m in margin])
    cells = np.argwhere(_occupied(np.asarray(mask.detach().cpu()) != 0, SPLIT_STEP))
    if not len(cells):
        raise ValueError("`mask` must not be empty.")
    return [_tight_box(mask, part) for part in _split(cells, added / SPLIT_STEP)]


def _tight_box(mask: Tensor, cells: np.ndarray) -> Box:
    """The bounding box of the part of the mask that lies in the box of some of its cells ``(N, dims)``."""
    low, high = cells.min(axis=0) * SPLIT_STEP, (cells.max(axis=0) + 1) * SPLIT_STEP
    around = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    held = mask_box(mask[around])
    assert held is not None
    return unshift(held, around)


def _occupied(mask: np.ndarray, step: int) -> np.ndarray:
    """Whether each cell, of ``step`` voxels along each axis, contains a voxel of the mask."""
    for axis in range(mask.ndim):
        mask = np.logical_or.reduceat(mask, range(0, mask.shape[axis], step), axis=axis)
    return mask


def _split(cells: np.ndarray, around: np.ndarray) -> list[np.ndarray]:
    """Divide cells ``(N, dims)`` in two, and the parts again, as long as the grown boxes get a fifth smaller in sum."""

    def costs(ordered: np.ndarray) -> np.ndarray:
        """The cost of the box of the first n cells, for every n."""
        low, high = np.minimum.accumulate(ordered), np.maximum.accumulate(ordered)
        return (high - low + 1 + around).prod(axis=1)

    best, halves = 0.8 * (np.ptp(cells, axis=0) + 1 + around).prod(), None
    for axis in range(cells.shape[1]):
        ordered = cells[np.argsort(cells[:, axis], kind="stable")]
        between = np.flatnonzero(np.diff(ordered[:, axis])) + 1  # divide between planes, not within one
        if not len(between):
            continue
        sums = costs(ordered)[between - 1] + costs(ordered[::-1])[::-1][between]
        if sums.min() < best:
            best, at = sums.min(), between[sums.argmin()]
            halves = ordered[:at], ordered[at:]
    return [cells] if halves is None else [part for half in halves for part in _split(half, around)]


def crop_pyramid(
    boxes: Sequence[Box], shape: Sequence[int], depth: int, reach: int
) -> tuple[list[list[Box]], list[list[Box]]]:
    """The crops of each level that a U-Net's decoder needs to answer in N boxes of the same size.

    At each level the decoder computes an outer crop and passes its center, the inner crop, to the level above. The
    outer crop is larger by what two convolutions see. The inner crop of the level below must contain the voxels from
    which this outer crop is up-sampled, and one more for the convolution after the up-sampling.

    Args:
        boxes: N boxes of the same size inside the image.
        shape: spatial shape of the image, multiples of ``2 ** depth``. No crop leaves the image.
        depth: the number of levels below the first.
        reach: voxels that a level looks beyond what it passes on. 3 covers all that the convolutions see.

    Returns:
        The outer and the inner crops, ``[level][n]``, in the voxels of that level. Those of a level have the same size.

    Example:
        >>> outer, inner = crop_pyramid([(slice(20, 28),)], (64,), depth=1, reach=3)
        >>> outer[0], inner[1], outer[1]  # 18 - 1 to 30 + 1 are 8 to 16 of the level below
        ([(slice(18, 30, None),)], [(slice(8, 16, None),)], [(slice(6, 18, None),)])
    """
    inner, outer = [list(boxes)], []
    for level in range(depth + 1):
        here = [size >> level for size in shape]
        outer.append([reach_out(box, min(reach, 2), here) for box in inner[level]])
        if level == depth:
            break
        seen = max(reach - 2, 0)
        # Wherever a run of n voxels starts, n // 2 + 1 voxels of twice the size cover it
        sizes = [(size + 2 * seen) // 2 + 1 for size in size_of(outer[level][0])]
        halves = [tuple(slice(max(axis.start - seen, 0) // 2, axis.stop) for axis in box) for box in outer[level]]
        inner.append([reach_out(half, 0, [size // 2 for size in here], sizes) for half in halves])
    return outer, inner


def padded_shape(shape: Sequence[int], stride: int) -> tuple[int, ...]:
    """The shape to which :func:`pad_end` pads.

    Example:
        >>> padded_shape((9, 3), stride=4)
        (12, 8)
    """
    return tuple(max(size + -size % stride, 2 * stride) for size in shape)


def pad_end(x: Tensor, stride: int) -> Tensor:
    """Pad ``(B, C, *spatial)`` at the end of each axis to a multiple of ``stride``, by repeating its edge.

    The result is at least ``2 * stride`` long: an instance norm needs more than one voxel at the coarsest level.

    Example:
        >>> pad_end(torch.rand(1, 1, 9, 3), stride=4).shape
        torch.Size([1, 1, 12, 8])
    """
    missing = [padded - size for size, padded in zip(x.shape[2:], padded_shape(x.shape[2:], stride), strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [side for end in reversed(missing) for side in (0, end)], mode="replicate")


def intersect(box: Box, other: Box) -> Box | None:
    """The part that two boxes share; ``None`` where they share none.

    Example:
        >>> intersect((slice(0, 5),), (slice(3, 9),)), intersect((slice(0, 5),), (slice(5, 9),))
        ((slice(3, 5, None),), None)
    """
    both = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True))
    return both if all(axis.start < axis.stop for axis in both) else None


def shared_box(box: Box, other: Box) -> Box:
    """The part that two boxes share, for boxes that are known to meet.

    Example:
        >>> shared_box((slice(0, 5),), (slice(3, 9),))
        (slice(3, 5, None),)
    """
    shared = intersect(box, other)
    assert shared is not None
    return shared


def refine(box: Box, factor: int) -> Box:
    """The same box on a grid with ``factor`` voxels where there was one, on which the first voxel stays where it is.

    Example:
        >>> refine((slice(1, 3),), 4)  # from voxel 1 to voxel 2, which are now 4 and 8
        (slice(4, 9, None),)
    """
    return tuple(slice(axis.start * factor, (axis.stop - 1) * factor + 1) for axis in box)


def scale(box: Box, factor: int) -> Box:
    """The same box in voxels that are ``factor`` times smaller.

    Example:
        >>> scale((slice(1, 3),), 4)
        (slice(4, 12, None),)
    """
    return tuple(slice(axis.start * factor, axis.stop * factor) for axis in box)


def pad(part: Tensor, box: Box, shape: Sequence[int], value: float) -> Tensor:
    """Pad a crop ``(..., *size)`` to ``(..., *shape)``: it fills the box, and ``value`` is elsewhere.

    Example:
        >>> pad(torch.tensor([7, 8]), (slice(1, 3),), (5,), value=0)
        tensor([0, 7, 8, 0, 0])
    """
    sides = [(axis.start, size - axis.stop) for axis, size in zip(box, shape, strict=True)]
    return F.pad(part, [side for pair in reversed(sides) for side in pair], value=value)


def shift(box: Box, origin: Box) -> Box:
    """Express a box in the coordinates of another box: those of the image cropped to ``origin``.

    Example:
        >>> shift((slice(6, 8),), (slice(5, 20),))
        (slice(1, 3, None),)
    """
    return tuple(slice(a.start - o.start, a.stop - o.start) for a, o in zip(box, origin, strict=True))


def unshift(box: Box, origin: Box) -> Box:
    """Express a box in the coordinates of the image, from those of the image cropped to ``origin``.

    Example:
        >>> unshift((slice(1, 3),), (slice(5, 20),))
        (slice(6, 8, None),)
    """
    return tuple(slice(a.start + o.start, a.stop + o.start) for a, o in zip(box, origin, strict=True))
