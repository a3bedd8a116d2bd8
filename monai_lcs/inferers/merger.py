"""Merge the logits of all labels: into one label map, or into one volume for each label."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_lcs.boxes import Box, refine, size_of, whole_box
from monai_lcs.inferers.accumulator import NOWHERE

__all__ = ["BestLabelMerger", "FineLabelMerger", "VolumeMerger", "logit_of", "upsample_logits"]


def logit_of(probability: float) -> float:
    """The logit of a probability in [0, 1).

    Example:
        >>> logit_of(0.5), logit_of(0)
        (0.0, -inf)
    """
    return math.log(probability / (1 - probability)) if probability else -math.inf


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
    ) -> None:
        self.labels = sorted(labels)
        self.rank = {label: i for i, label in enumerate(self.labels, start=1)}
        fits = next(t for t in (torch.uint8, torch.int16, torch.int32) if len(self.labels) <= torch.iinfo(t).max)
        self.logit = torch.full(tuple(shape), logit_of(threshold), dtype=dtype, device=device)
        self.ranks = torch.zeros(tuple(shape), dtype=fits, device=device)
        self.second = self.logit.clone() if confidence else None
        self.expected: dict[int, list[float]] = defaultdict(list)  # voxels of each label, in each of its boxes

    def aggregate(self, label: int, logits: Tensor, box: Box) -> None:
        """Merge the logits of a label in a box, ``(*size)``; the boxes of one label may overlap."""
        best, ranks = self.logit[box], self.ranks[box]
        if self.second is not None:  # the label is no rival of itself, where its boxes overlap
            rival = torch.minimum(best, logits).masked_fill_(ranks == self.rank[label], -math.inf)
            second = self.second[box]
            second.copy_(torch.maximum(second, rival))
            self.expected[label].append(float(torch.sigmoid(logits.float()).sum(dtype=torch.float64)))
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
        return torch.where(self.ranks > 0, self.logit - self.second, 0)

    def confidence(self) -> dict[int, float]:
        """Return the Dice to expect of each label that has a voxel, were the network's probabilities true.

        With ``p`` the probability of a label at a voxel, that is ``2 * sum(p in its voxels) / (its voxels + sum(p))``.
        In the first sum ``p`` is that of the label against the next one, which :meth:`margin` tells.

        Raises:
            ValueError: unless the merger was made with ``confidence``.
        """
        margin = self.margin().flatten().float()
        ranks = self.ranks.flatten().int()
        voxels = torch.bincount(ranks, minlength=len(self.labels) + 1)[1:].tolist()
        right = torch.bincount(ranks, torch.sigmoid(margin).double(), len(self.labels) + 1)[1:].tolist()
        found = zip(self.labels, voxels, right, strict=True)
        expected = {label: math.fsum(each) for label, each in self.expected.items()}  # in any order the same
        return {label: 2 * hits / (count + expected[label]) for label, count, hits in found if count}

    def finalize(self) -> Tensor:
        """Return the label map ``(*shape)``, int32."""
        table = torch.tensor([0, *self.labels], dtype=torch.int32, device=self.ranks.device)
        return table[self.ranks.int()]


class FineLabelMerger:
    """Merges labels on a grid finer than that of their logits.

    Probabilities are interpolated linearly, then the best label wins; so does the background, whose probability is what
    the best label leaves. Logits would not do: far from a label they are large and negative, and would take its outer
    voxels. Nor would a threshold: halfway between two labels, neither has a probability of 0.5.

    Args:
        labels: the ids that may be merged.
        shape: spatial shape of the logits.
        factor: see :func:`upsample_logits`.
        threshold: probability in [0, 1) that a label must exceed where there is no other.
        device: where the result is kept.
        dtype: of the best probabilities.
        confidence: keep what :meth:`confidence` needs.

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
    ) -> None:
        self.factor, self.threshold = factor, threshold
        self.coarse = torch.zeros(tuple(shape), dtype=dtype, device=device)
        fine = size_of(refine(whole_box(shape), factor))
        self.fine = BestLabelMerger(labels, fine, 0.5, device, dtype)  # above a probability of 0
        self.as_given = BestLabelMerger(labels, shape, threshold, device, dtype, True) if confidence else None

    def aggregate(self, label: int, logits: Tensor, box: Box) -> None:
        """Merge the logits of a label in a box, ``(*size)``; the boxes of one label may overlap."""
        if self.as_given is not None:
            self.as_given.aggregate(label, logits, box)
        probability = torch.sigmoid(logits)
        self.coarse[box] = torch.maximum(self.coarse[box], probability)
        self.fine.aggregate(label, upsample_logits(probability, self.factor), refine(box, self.factor))

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
        background = upsample_logits(2 * self.threshold - self.coarse, self.factor)
        return self.fine.finalize().masked_fill_(self.fine.logit <= background, 0)


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
