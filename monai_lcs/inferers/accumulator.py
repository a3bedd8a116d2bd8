"""Blend the logits of a label over the windows that it lies in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_lcs.boxes import Box, shared_box, shift, size_of, volume_of
from monai_lcs.inferers.splitter import touching, window_order

__all__ = ["NOWHERE", "LogitAccumulator"]

NOWHERE = -1e4  # logit where a label is not decoded: its probability is 0; finite, since logits are interpolated


class LogitAccumulator:
    """Average the logits of boxes over overlapping windows, with the weights of the windows.

    The weighted sum of a box is in memory from the first window that the box meets to the last. A box that lies in one
    window only needs no sum.

    Args:
        boxes: N boxes.
        windows: the windows; each box is to be decoded in all windows that it meets.
        importance: weight of each voxel of a window, ``(*window_size)``, on the device of the logits.

    Example:
        >>> windows = [(slice(0, 3),), (slice(2, 5),)]  # they overlap in voxel 2
        >>> accumulator = LogitAccumulator([(slice(1, 4),)], windows, importance=torch.ones(3))
        >>> accumulator.aggregate(0, 0, torch.tensor([1.0, 1.0]))  # window 0 sees voxels 1 and 2 of box 0
        >>> accumulator.aggregate(0, 1, torch.tensor([3.0, 3.0]))  # window 1 sees voxels 2 and 3, and finishes it
        tensor([1., 2., 3.])
    """

    def __init__(self, boxes: Sequence[Box], windows: Sequence[Box], importance: Tensor) -> None:
        self.boxes, self.windows, self.importance = boxes, windows, importance
        self.touches = touching(boxes, windows)
        self.to_come = self.touches.sum(axis=1)  # for each box, the windows that have not been aggregated
        self.sums: dict[int, Tensor] = {}
        self.seen: dict[int, list[int]] = {}

    def window_order(self) -> list[int]:
        """The windows that meet a box, in the order that keeps the fewest sums in memory."""
        order = window_order(self.windows, self.touches, [volume_of(box) for box in self.boxes])
        return [w for w in order if self.touches[:, w].any()]

    def boxes_in(self, w: int) -> list[int]:
        """The numbers of the boxes that window ``w`` meets."""
        return self.touches[:, w].nonzero()[0].tolist()

    def aggregate(self, i: int, w: int, logits: Tensor) -> Tensor | None:
        """Add the logits of window ``w`` where it meets box ``i``.

        Returns:
            The blended logits of the box, of its size, once all windows that it meets are in; ``None`` before.
        """
        self.to_come[i] -= 1
        if self.touches[i].sum() == 1 and shared_box(self.windows[w], self.boxes[i]) == self.boxes[i]:
            return logits  # there is nothing to blend
        self.add(i, w, logits)
        return None if self.to_come[i] else self.finalize(i)

    def add(self, i: int, w: int, logits: Tensor) -> None:
        """Add the weighted logits of window ``w`` to the sum of box ``i``."""
        box, window = self.boxes[i], self.windows[w]
        shared = shared_box(window, box)
        weighted = logits * self.importance[shift(shared, window)]
        self.seen.setdefault(i, []).append(w)
        if i not in self.sums and shared == box:
            self.sums[i] = weighted
            return
        if i not in self.sums:
            self.sums[i] = logits.new_zeros(size_of(box))
        self.sums[i][shift(shared, box)] += weighted

    def finalize(self, i: int) -> Tensor:
        """Divide the sum of box ``i`` by its weights; what no window has seen is :data:`NOWHERE`."""
        weights = torch.zeros_like(self.sums[i])
        for w in self.seen.pop(i):
            shared = shared_box(self.windows[w], self.boxes[i])
            weights[shift(shared, self.boxes[i])] += self.importance[shift(shared, self.windows[w])]
        logits = self.sums.pop(i).div_(weights)
        return logits.masked_fill_(weights == 0, NOWHERE)
