"""Boxes: the part of an image where a label can be, as one slice per spatial axis."""

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
    "batch_sizes",
    "crop_pyramid",
    "cut",
    "grow_box",
    "intersect",
    "label_boxes",
    "mask_box",
    "pad_end",
    "place",
    "reach_out",
    "scale",
    "shift",
    "slabs_of",
    "split_box",
    "union_box",
    "unshift",
]

Box = tuple[slice, ...]

SPLIT_STEP = 4  # voxels of the cells in which a mask is split


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


def reach_out(box: Box, reach: int, shape: Sequence[int], sizes: Sequence[int] | None = None) -> Box:
    """The box and ``reach`` voxels on both sides of each axis, moved rather than cut where the image ends.

    So boxes of one size give boxes of one size, whatever their place.

    Args:
        box: inside an image of ``shape``.
        reach: voxels.
        shape: of the image.
        sizes: larger sizes to give instead of ``size + 2 * reach``.

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
    sizes: Sequence[Sequence[int]], room: float, overhead: int = 10_000
) -> list[tuple[list[int], tuple[int, ...]]]:
    """Put boxes into batches of one size each, the largest of its boxes, so that little is computed in vain.

    A batch costs its voxels, and what a call of the network costs whatever the size. Boxes join the batch where they
    add the least.

    Args:
        sizes: of N boxes.
        room: voxels of a batch, at most, unless it is of one box.
        overhead: what a call costs, in voxels.

    Returns:
        For each batch the indices of its boxes, and its size.

    Example:
        >>> batch_sizes([(40, 40), (8, 9), (9, 8), (40, 38)], room=4000, overhead=100)
        [([0, 3], (40, 40)), ([2, 1], (9, 9))]
    """

    def cost(count: int, size: Sequence[int]) -> int:
        return count * math.prod(size) + overhead

    batches: list[tuple[list[int], tuple[int, ...]]] = []
    for i in sorted(range(len(sizes)), key=lambda i: (math.prod(sizes[i]), i), reverse=True):
        best, least = None, cost(1, sizes[i])
        for k, (members, size) in enumerate(batches):
            joined = tuple(map(max, size, sizes[i]))
            more = cost(len(members) + 1, joined) - cost(len(members), size)
            fits = (len(members) + 1) * math.prod(joined) <= room
            if fits and more <= least:
                best, least = k, more
        if best is None:
            batches.append(([i], tuple(sizes[i])))
        else:
            members, size = batches[best]
            batches[best] = ([*members, i], tuple(map(max, size, sizes[i])))
    return batches


def slabs_of(box: Box, room: float) -> list[Box]:
    """The box cut along its first axis into slabs of ``room`` voxels at most, or of one voxel's thickness.

    Example:
        >>> [slab[0] for slab in slabs_of((slice(3, 8), slice(0, 10)), room=25)]
        [slice(3, 5, None), slice(5, 7, None), slice(7, 8, None)]
    """
    first, *others = box
    thick = max(1, int(min(room / math.prod(axis.stop - axis.start for axis in others), first.stop - first.start)))
    starts = range(first.start, first.stop, thick)
    return [(slice(start, min(start + thick, first.stop)), *others) for start in starts]


def split_box(mask: Tensor, margin: Sequence[int], around: int = 6) -> list[Box]:
    """Boxes that together hold a mask, several where decoding these, grown by a margin, is cheaper than one.

    A box is cut in two at the best place, and its parts again, as long as that makes the sum of the grown boxes a fifth
    smaller.

    Args:
        mask: ``(*spatial)``, not empty.
        margin: voxels by which each box is to be grown along each axis.
        around: voxels that decoding takes beyond that.

    Example:
        >>> mask = torch.zeros(100, dtype=torch.bool)
        >>> mask[:10] = mask[80:85] = True
        >>> split_box(mask, margin=(3,)), split_box(mask, margin=(30,))
        ([(slice(0, 10, None),), (slice(80, 85, None),)], [(slice(0, 85, None),)])
    """
    around_each = [2 * (m + around) for m in margin]
    cells = np.argwhere(_occupied(np.asarray(mask.detach().cpu()) != 0, SPLIT_STEP))
    if not len(cells):
        raise ValueError("`mask` must not be empty.")
    boxes = []
    for part in _split(cells, np.asarray(around_each) / SPLIT_STEP):
        low, high = part.min(axis=0) * SPLIT_STEP, (part.max(axis=0) + 1) * SPLIT_STEP
        cell = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
        held = mask_box(mask[cell])
        assert held is not None
        boxes.append(unshift(held, cell))
    return boxes


def _occupied(mask: np.ndarray, step: int) -> np.ndarray:
    """Which cells of ``step`` voxels along each axis hold a voxel of the mask."""
    for axis in range(mask.ndim):
        mask = np.logical_or.reduceat(mask, range(0, mask.shape[axis], step), axis=axis)
    return mask


def _split(cells: np.ndarray, around: np.ndarray) -> list[np.ndarray]:
    """Cells ``(N, dims)`` cut in two, and again, where the sum of the boxes and what is around them is a fifth less."""

    def costs(ordered: np.ndarray) -> np.ndarray:
        """Of the box of the first n, for every n."""
        low, high = np.minimum.accumulate(ordered), np.maximum.accumulate(ordered)
        return (high - low + 1 + around).prod(axis=1)

    best, halves = 0.8 * (np.ptp(cells, axis=0) + 1 + around).prod(), None
    for axis in range(cells.shape[1]):
        ordered = cells[np.argsort(cells[:, axis], kind="stable")]
        between = np.flatnonzero(np.diff(ordered[:, axis])) + 1  # cut between planes, not within one
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
    """The crops in which a U-Net's decoder gives its answer in boxes of one size, level by level.

    At each level the decoder takes an outer crop, two convolutions larger than the inner one that it gives to the level
    above. The level below must give the voxels that this outer crop is up-sampled from, and one more for the
    convolution of the up-sampling.

    Args:
        boxes: N boxes of the same size inside an image of ``shape``, whose sizes are multiples of ``2 ** depth``.
        shape: of the image, which no crop leaves.
        depth: levels below the first.
        reach: 3 for all that the convolutions see, less for less.

    Returns:
        The outer and the inner crops, ``[level][n]``, in each level's voxels; those of a level have the same size.

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
        # Whatever its parity, a run of n voxels is covered by n // 2 + 1 of twice the size
        sizes = [(axis.stop - axis.start + 2 * seen) // 2 + 1 for axis in outer[level][0]]
        halves = [tuple(slice(max(axis.start - seen, 0) // 2, axis.stop) for axis in box) for box in outer[level]]
        inner.append([reach_out(half, 0, [size // 2 for size in here], sizes) for half in halves])
    return outer, inner


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


def scale(box: Box, factor: int) -> Box:
    """The box in voxels that are ``factor`` times smaller."""
    return tuple(slice(axis.start * factor, axis.stop * factor) for axis in box)


def place(part: Tensor, box: Box, shape: Sequence[int], value: float) -> Tensor:
    """A volume of ``shape`` that holds ``part`` in the box, and a value elsewhere."""
    sides = [(axis.start, size - axis.stop) for axis, size in zip(box, shape, strict=True)]
    return F.pad(part, [side for pair in reversed(sides) for side in pair], value=value)


def shift(box: Box, origin: Box) -> Box:
    """The box in the coordinates of one that contains it."""
    return tuple(slice(a.start - o.start, a.stop - o.start) for a, o in zip(box, origin, strict=True))


def unshift(box: Box, origin: Box) -> Box:
    """The box in the coordinates of the image, from those of a box in it."""
    return tuple(slice(a.start + o.start, a.stop + o.start) for a, o in zip(box, origin, strict=True))
