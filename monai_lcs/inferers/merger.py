"""Merge the logits of all labels: into one label map, or into one volume for each label."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from nibabel.affines import from_matvec
from torch import Tensor

from monai_lcs.boxes import Box, refine, size_of, slabs_of, volume_of, whole_box
from monai_lcs.grids import upright
from monai_lcs.inferers.accumulator import NOWHERE
from monai_lcs.inferers.scan_votes import ScanVotes

__all__ = ["BestLabelMerger", "FineLabelMerger", "ScanLabelMerger", "VolumeMerger", "logit_of", "upsample_logits"]

SLAB_VOXELS = 1 << 20
"""About as many voxels are interpolated at a time: what that takes does not grow with the scan."""


def logit_of(probability: float) -> float:
    """The logit of a probability in [0, 1).

    Example:
        >>> logit_of(0.5), logit_of(0)
        (0.0, -inf)
    """
    return math.log(probability / (1 - probability)) if probability else -math.inf


BACKGROUND = -1  # where it is found as a label is; its voxels are 0 in the result


class BestLabelMerger:
    """Keep the best logit and its label at every voxel; the result does not depend on the order of the labels.

    The label with the largest logit wins. On a tie the smallest id wins. Voxels where no logit exceeds the threshold
    are background. Logits are compared and not probabilities, because these round to 1 where logits still differ.

    Args:
        labels: the ids that may be merged.
        shape: spatial shape of the result.
        threshold: probability in [0, 1) that a label must exceed.
        device: where the result is kept.
        dtype: of the best logits.
        confidence: keep what :meth:`margin` and :meth:`confidence` need: the second best logits, and the sum of the
            probabilities of each label.
        competing: whether the background is what the union of all labels leaves, see :meth:`aggregate_union`.

    Example:
        >>> merger = BestLabelMerger(labels=[17, 53], shape=(4,))
        >>> merger.aggregate(53, torch.tensor([2.0, 2.0, -1.0]), (slice(0, 3),))
        >>> merger.aggregate(17, torch.tensor([2.0, -3.0, 1.0]), (slice(0, 3),))
        >>> merger.finalize()
        tensor([17, 53, 17,  0], dtype=torch.int32)
        >>> merger = BestLabelMerger(labels=[17, 53], shape=(3,), confidence=True)
        >>> merger.aggregate(17, torch.tensor([2.0, 5.0, -1.0]), (slice(0, 3),))
        >>> merger.aggregate(53, torch.tensor([4.0, -3.0]), (slice(0, 2),))
        >>> merger.margin()
        tensor([2., 5., 0.])
        >>> {label: round(dice, 2) for label, dice in merger.confidence().items()}
        {17: 0.63, 53: 0.87}
    """

    def __init__(
        self,
        labels: Iterable[int],
        shape: Sequence[int],
        threshold: float = 0.5,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        confidence: bool = False,
        competing: bool = False,
    ) -> None:
        self.threshold, self.competing = threshold, competing
        self.labels = sorted([*labels, BACKGROUND] if competing else labels)
        self.rank = {label: i for i, label in enumerate(self.labels, start=1)}
        fits = next(t for t in (torch.uint8, torch.int16, torch.int32) if len(self.labels) <= torch.iinfo(t).max)
        least = -math.inf if competing else logit_of(threshold)
        self.logit = torch.full(tuple(shape), least, dtype=dtype, device=device)
        self.ranks = torch.zeros(tuple(shape), dtype=fits, device=device)
        self.second = self.logit.clone() if confidence else None
        self.expected: dict[int, list[float]] = defaultdict(list)  # voxels of each label, in each of its boxes

    def aggregate_union(self, logits: Tensor, box: Box, again: int = 0) -> None:
        """Merge the logits of the union of all labels where labels compete: what it leaves is background.

        A label that is alone wins where it exceeds the threshold. See :meth:`aggregate`.
        """
        self.aggregate(BACKGROUND, 2 * logit_of(self.threshold) - logits, box, again)

    def aggregate(self, label: int, logits: Tensor, box: Box, again: int = 0) -> None:
        """Merge the logits of a label in a box, ``(*size)``; the boxes of one label may overlap.

        Args:
            label: the id.
            logits: of the label.
            box: where they are.
            again: the last voxels along the first axis that the next box of this label has as well.
        """
        best, ranks = self.logit[box], self.ranks[box]
        if self.second is not None:  # the label is no rival of itself, where its boxes overlap
            rival = torch.minimum(best, logits).masked_fill_(ranks == self.rank[label], -math.inf)
            second = self.second[box]
            second.copy_(torch.maximum(second, rival))
            own = logits[: len(logits) - again].float()
            self.expected[label].append(float(torch.sigmoid(own).sum(dtype=torch.float64)))
        better = (logits > best) | ((logits == best) & (self.rank[label] < ranks))
        ranks.masked_fill_(better, self.rank[label])
        best.copy_(torch.maximum(best, logits))

    def margin(self) -> Tensor:
        """Return by how much the best logit exceeds that of the next label, or of the threshold; 0 in the background.

        Raises:
            ValueError: unless the merger was made with ``confidence``.
        """
        if self.second is None:
            raise ValueError("The second best logits are needed: make the merger with `confidence=True`.")
        found = self.ranks > (self.rank[BACKGROUND] if self.competing else 0)
        return torch.where(found, self.logit - self.second, 0)

    def confidence(self) -> dict[int, float]:
        """Return the Dice to expect of each label that has a voxel, were the network's probabilities true.

        With ``p`` the probability of a label at a voxel, that is ``2 * sum(p in its voxels) / (its voxels + sum(p))``.
        In the first sum ``p`` is that of the label against the next one, which :meth:`margin` tells; where labels
        compete, it is that of the label itself.

        Raises:
            ValueError: unless the merger was made with ``confidence``.
        """
        margin = self.margin()
        certain = torch.sigmoid((self.logit if self.competing else margin).flatten().float()).double()
        ranks = self.ranks.flatten().int()
        voxels = torch.bincount(ranks, minlength=len(self.labels) + 1)[1:].tolist()
        right = torch.bincount(ranks, certain, len(self.labels) + 1)[1:].tolist()
        found = zip(self.labels, voxels, right, strict=True)
        expected = {label: math.fsum(each) for label, each in self.expected.items()}  # in any order the same
        there = ((label, count, hits) for label, count, hits in found if count and label != BACKGROUND)
        return {label: 2 * hits / (count + expected[label]) for label, count, hits in there}

    def finalize(self, box: Box | None = None) -> Tensor:
        """Return the label map ``(*shape)``, int32, or a box of it."""
        ids = [0 if label == BACKGROUND else label for label in self.labels]
        table = torch.tensor([0, *ids], dtype=torch.int32, device=self.ranks.device)
        return table[(self.ranks if box is None else self.ranks[box]).int()]


class FineLabelMerger:
    """Merges labels on a grid finer than that of their logits.

    Probabilities are interpolated linearly, then the best label wins; so does the background, whose probability is what
    the best label leaves (or the union of all labels, where labels compete). Logits would not do: far from a label they
    are large and negative, and would take its outer voxels. Nor would a threshold: halfway between two labels, neither
    has a probability of 0.5.

    Args:
        labels: the ids that may be merged.
        shape: spatial shape of the logits.
        factor: see :func:`upsample_logits`.
        threshold: probability in [0, 1) that a label must exceed where there is no other.
        device: where the result is kept.
        dtype: of the best probabilities.
        confidence: keep what :meth:`confidence` needs.
        competing: whether the background is what the union of all labels leaves, see :meth:`aggregate_union`.

    Example:
        >>> merger = FineLabelMerger(labels=[17, 53], shape=(1, 3), factor=2)
        >>> merger.aggregate(17, torch.tensor([[2.0, -20.0]]), (slice(0, 1), slice(0, 2)))
        >>> merger.aggregate(53, torch.tensor([[-20.0, 2.0, -20.0]]), (slice(0, 1), slice(0, 3)))
        >>> merger.finalize()
        tensor([[17, 17, 53,  0,  0]], dtype=torch.int32)
    """

    def __init__(
        self,
        labels: Iterable[int],
        shape: Sequence[int],
        factor: int,
        threshold: float = 0.5,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        confidence: bool = False,
        competing: bool = False,
    ) -> None:
        self.factor, self.threshold, self.competing = factor, threshold, competing
        self.coarse = torch.zeros(tuple(shape), dtype=dtype, device=device)
        fine = size_of(self._refined(whole_box(shape)))
        self.fine = BestLabelMerger(labels, fine, 0.5, device, dtype)  # above a probability of 0
        self.as_given = (
            BestLabelMerger(labels, shape, threshold, device, dtype, True, competing) if confidence else None
        )

    def aggregate_union(self, logits: Tensor, box: Box, again: int = 0) -> None:
        """Merge the logits of the union of all labels where labels compete: what it leaves is background."""
        if self.as_given is not None:
            self.as_given.aggregate_union(logits, box, again)
        self.coarse[box] = torch.maximum(self.coarse[box], torch.sigmoid(logits))

    def aggregate(self, label: int, logits: Tensor, box: Box, again: int = 0) -> None:
        """Merge the logits of a label in a box, ``(*size)``; see :meth:`BestLabelMerger.aggregate`."""
        if self.as_given is not None:
            self.as_given.aggregate(label, logits, box, again)
        probability = torch.sigmoid(logits)
        if not self.competing:
            self.coarse[box] = torch.maximum(self.coarse[box], probability)
        fine = self._refined(box)
        if volume_of(fine):
            self.fine.aggregate(label, self._found(label, probability, box, fine), fine)

    def confidence(self) -> dict[int, float]:
        """Return the Dice to expect of each label, in the voxels of the logits; see :class:`BestLabelMerger`.

        Raises:
            ValueError: unless the merger was made with ``confidence``.
        """
        if self.as_given is None:
            raise ValueError("The second best logits are needed: make the merger with `confidence=True`.")
        return self.as_given.confidence()

    def finalize(self) -> Tensor:
        """Return the label map ``(*fine_shape)``, int32."""
        whole = whole_box(self.coarse.shape)
        background = 2 * self.threshold - self._interpolated(self.coarse, whole, self._refined(whole))
        return self.fine.finalize().masked_fill_(self.fine.logit <= background, 0)

    def _refined(self, box: Box) -> Box:
        """The box of the result that a box of the logits reaches."""
        return refine(box, self.factor)

    def _found(self, label: int, probability: Tensor, box: Box, fine: Box) -> Tensor:
        """The probability of a label in the box of the result."""
        return self._interpolated(probability, box, fine)

    def _interpolated(self, values: Tensor, box: Box, fine: Box) -> Tensor:
        """The values of a box of the logits in the box of the result."""
        return upsample_logits(values, self.factor)


class ScanLabelMerger(FineLabelMerger):
    """Merges labels on the grid of a scan: at each of its voxels, whichever way they lie among those of the logits.

    As :class:`FineLabelMerger` does, with the probabilities interpolated linearly at the middle of the scan's voxels:
    there is no grid between, to whose nearest voxel an outline would move. Beyond its border the volume of the logits
    goes on with a probability of 0. The axes of the scan may have any order and direction: they change no voxel.

    Args:
        labels: the ids that may be merged; with votes, a mapping to the ids of the union that each is.
        shape: spatial shape of the logits, ``(x, y, z)``.
        scan_shape: that of the scan.
        to_logits: ``(4, 4)``, from a voxel of the scan to where it lies, in voxels of the logits.
        threshold: probability in [0, 1) that a label must exceed where there is no other.
        device: where the result is kept.
        dtype: of the best probabilities.
        confidence: keep what :meth:`confidence` needs.
        competing: whether the background is what the union of all labels leaves, see :meth:`aggregate_union`.
        votes: of the atlases at the scan's voxels; the weighted mean of them and of the probabilities decides. Where a
            label has no logits its votes do not count. The confidence is that of the probabilities alone.

    Example:
        >>> to_logits = np.diag([-0.25, 1, 1, 1])  # voxels a quarter as long, from right to left
        >>> to_logits[0, 3] = 1.0
        >>> merger = ScanLabelMerger([17, 53], (2, 1, 1), (5, 1, 1), to_logits)
        >>> merger.aggregate(17, torch.tensor([2.0, -20.0])[:, None, None], (slice(0, 2), slice(0, 1), slice(0, 1)))
        >>> merger.aggregate(53, torch.tensor([-20.0, 1.0])[:, None, None], (slice(0, 2), slice(0, 1), slice(0, 1)))
        >>> merger.finalize().flatten()
        tensor([53, 53, 17, 17, 17], dtype=torch.int32)
    """

    def __init__(
        self,
        labels: Iterable[int] | Mapping[int, Sequence[int]],
        shape: Sequence[int],
        scan_shape: Sequence[int],
        to_logits: np.ndarray,
        threshold: float = 0.5,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        confidence: bool = False,
        competing: bool = False,
        votes: ScanVotes | None = None,
    ) -> None:
        groups = dict(labels) if isinstance(labels, Mapping) else {label: (label,) for label in labels}
        self.groups = {**groups, BACKGROUND: sorted({i for ids in groups.values() for i in ids})}  # what it leaves
        self.scan_shape, self.to_logits = tuple(scan_shape), to_logits
        empty, affine = upright(np.broadcast_to(np.int32(0), self.scan_shape), to_logits)
        affine = affine.round(9)  # the same bits for all orientations
        reach = _reached(whole_box(shape), affine, empty.shape)
        # Where no logit reaches is background; one voxel stands for a scan of which none is reached
        starts = [min(axis.start, size - 1) for axis, size in zip(reach, empty.shape, strict=True)]
        self.reach = tuple(slice(i, max(axis.stop, i + 1)) for i, axis in zip(starts, reach, strict=True))
        self.upright = affine @ from_matvec(np.eye(3), starts)
        self.votes = votes.upright(scan_shape, to_logits, self.reach).to(device) if votes else None
        super().__init__(groups, shape, 1, threshold, device, dtype, confidence, competing)

    def finalize(self) -> Tensor:
        """Return the label map ``(*scan_shape)``, int32."""
        result = np.zeros(self.scan_shape, np.int32)
        reached, whole = upright(result, self.to_logits)[0][self.reach], whole_box(self.coarse.shape)
        for slab in slabs_of(whole_box(reached.shape), SLAB_VOXELS):
            background = 2 * self.threshold - self._found(BACKGROUND, self.coarse, whole, slab)
            found = self.fine.finalize(slab).masked_fill_(self.fine.logit[slab] <= background, 0)
            reached[slab] = found.cpu().numpy()
        return torch.from_numpy(result).to(self.coarse.device)

    def _found(self, label: int, probability: Tensor, box: Box, fine: Box) -> Tensor:
        found = self._interpolated(probability, box, fine)
        return found if self.votes is None else self.votes.averaged(found, self.groups[label], fine)

    def _refined(self, box: Box) -> Box:
        whole = box == whole_box(self.coarse.shape)
        return whole_box(size_of(self.reach)) if whole else _reached(box, self.upright, size_of(self.reach))

    def _interpolated(self, values: Tensor, box: Box, fine: Box) -> Tensor:
        device, size = values.device, torch.tensor(size_of(box), dtype=torch.float64)
        matrix = torch.as_tensor(self.upright)
        first = matrix[:3, 3] - torch.tensor([axis.start for axis in box])
        # In float64, so that equal probabilities are equal after rounding
        # `grid_sample` counts from -1, where the first voxel begins, to 1, where the last one ends
        turn, move = (matrix[:3, :3].T * (2 / size)).to(device), ((first + 0.5) * (2 / size) - 1).to(device)
        result = torch.empty(size_of(fine), dtype=values.dtype, device=device)
        for slab in slabs_of(fine, SLAB_VOXELS):
            axes = (torch.arange(axis.start, axis.stop, dtype=torch.float64, device=device) for axis in slab)
            x, y, z = (axis[:, None] * step for axis, step in zip(axes, turn, strict=True))
            points = (x[:, None, None] + y[:, None] + (z + move)).flip(-1)
            found = F.grid_sample(values.double()[None, None], points[None], align_corners=False)
            result[slab[0].start - fine[0].start : slab[0].stop - fine[0].start] = found[0, 0]
        return result


def _reached(box: Box, affine: np.ndarray, shape: Sequence[int]) -> Box:
    """The box of a grid, given from its voxels to those of a volume, that a box of the volume reaches."""
    corners = np.array([[*corner, 1] for corner in product(*((axis.start - 1, axis.stop) for axis in box))]).T
    indices = (np.linalg.inv(affine) @ corners)[:3]
    low, high = np.ceil(indices.min(axis=1)).astype(int), np.floor(indices.max(axis=1)).astype(int) + 1
    starts, stops = (np.clip(i, 0, shape).tolist() for i in (low, np.maximum(low, high)))
    return tuple(map(slice, starts, stops))


class VolumeMerger:
    """Put the boxes of each label together to a volume of logits; where its boxes overlap, the largest logit counts.

    Args:
        shape: spatial shape of a volume.

    Example:
        >>> merger = VolumeMerger(shape=(4,))
        >>> merger.aggregate(17, torch.tensor([1.0, 2.0]), (slice(0, 2),))
        >>> merger.aggregate(17, torch.tensor([5.0, 6.0]), (slice(1, 3),))
        >>> merger.finalize(17)
        tensor([ 1.0000e+00,  5.0000e+00,  6.0000e+00, -1.0000e+04])
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)
        self.volumes: dict[int, Tensor] = {}

    def aggregate(self, label: int, logits: Tensor, box: Box) -> None:
        """Merge the logits of a label in a box, ``(*size)``."""
        if label not in self.volumes:
            self.volumes[label] = logits.new_full(self.shape, NOWHERE)
        volume = self.volumes[label]
        volume[box] = torch.maximum(volume[box], logits)

    def finalize(self, label: int) -> Tensor:
        """Return the volume of a label ``(*shape)`` and forget it; outside its boxes the logit is ``NOWHERE``."""
        return self.volumes.pop(label)


def upsample_logits(logits: Tensor, factor: int) -> Tensor:
    """Interpolate logits ``(*size)`` linearly, ``factor`` voxels where there was one; the first and the last stay.

    Example:
        >>> upsample_logits(torch.tensor([[0.0, 3.0]]), 3)
        tensor([[0., 1., 2., 3.]])
    """
    if factor == 1:
        return logits
    mode = "bilinear" if logits.ndim == 2 else "trilinear"
    size = size_of(refine(whole_box(logits.shape), factor))
    return F.interpolate(logits[None, None], size=size, mode=mode, align_corners=True)[0, 0]
