"""The votes of atlases at the voxels of a scan, which are averaged with a network's answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import from_matvec
from torch import Tensor

from monai_lcs.boxes import Box, crop, intersect, shift
from monai_lcs.grids import affine_of, upright
from monai_lcs.labels.votes import VOTE_CHANNELS, group_votes

__all__ = ["ScanVotes"]

WEIGHT = 0.3
"""Of the votes of several atlases; the network has the rest. Scan 1013 decided it, with three and with nine atlases."""


class ScanVotes:
    """Votes in a box of a scan; beyond it the network alone decides.

    A network sees its own voxels, which are coarser than the scan's; the atlases vote at those of the scan. Each is
    wrong where the other is right: their weighted mean is better than both, see ``docs/benchmarks.md``. The votes of
    one atlas are the partial volumes of its propagated masks.

    Args:
        channels: ``(VOTE_CHANNELS, *size)``, see :mod:`monai_lcs.labels.votes`; or a label map ``(1, *size)``.
        start: the first voxel of the box.
        weight: of the votes; the network has the rest of 1.

    Raises:
        ValueError: for another number of channels.

    Example:
        >>> votes = ScanVotes(torch.tensor([[7, 7, 9]]), start=(1,))
        >>> votes.averaged(torch.tensor([0.5, 0.5, 0.5]), (7,), (slice(0, 3),))
        tensor([0.5000, 0.6500, 0.6500])
    """

    def __init__(self, channels: Tensor, start: Sequence[int], weight: float = WEIGHT) -> None:
        if len(channels) not in (1, VOTE_CHANNELS):
            raise ValueError(f"Votes have {VOTE_CHANNELS} channels and a label map has 1, got {len(channels)}.")
        self.channels, self.weight = channels, weight
        self.box: Box = tuple(slice(i, i + n) for i, n in zip(start, channels.shape[1:], strict=True))

    @classmethod
    def at(cls, scan: MetaTensor, votes: MetaTensor, weight: float = WEIGHT) -> ScanVotes:
        """Votes of a box of a scan, as their affines say; both ``(C, x, y, z)``.

        Raises:
            ValueError: when their voxels are not those of the scan.
        """
        there = np.linalg.solve(affine_of(scan), affine_of(votes))
        start = there[:3, 3].round()
        if not np.allclose(there, from_matvec(np.eye(3), start), atol=0.01):
            raise ValueError(
                f"Votes must be given at the voxels of the scan, these lie at {there[:3].round(3).tolist()}."
            )
        return cls(votes.as_tensor(), start.astype(int).tolist(), weight)

    def averaged(self, probability: Tensor, ids: Sequence[int], box: Box) -> Tensor:
        """The weighted mean of a network's probability and the votes.

        Args:
            probability: of the network, ``(*size)``, 0 to 1.
            ids: of the label or union.
            box: where in the scan.

        Returns:
            ``(*size)``, 0 to 1; beyond the box of the votes, the probability.
        """
        mean = probability.clone()
        both = intersect(self.box, box)
        if both is not None:
            votes = group_votes(crop(self.channels, shift(both, self.box)), ids)
            there = mean[shift(both, box)]
            there.mul_(1 - self.weight).add_(votes.to(mean), alpha=self.weight)
        return mean

    def upright(self, shape: Sequence[int], affine: np.ndarray, reach: Box) -> ScanVotes:
        """The same votes for a part of the scan that is turned upright, see :func:`monai_lcs.grids.upright`.

        Args:
            shape: of the scan.
            affine: ``(4, 4)``, of the scan.
            reach: the part, in voxels of the turned scan.
        """
        start = [axis.start for axis in self.box]
        turned, to_box = upright(self.channels.movedim(0, -1).cpu().numpy(), affine @ from_matvec(np.eye(3), start))
        to_scan = upright(np.broadcast_to(np.int8(0), shape), affine)[1]
        first = np.linalg.solve(to_scan, to_box)[:3, 3].round().astype(int) - [axis.start for axis in reach]
        channels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(turned, -1, 0)))
        return ScanVotes(channels, first.tolist(), self.weight)

    def to(self, device: torch.device | str) -> ScanVotes:
        """The same votes on a device."""
        return ScanVotes(self.channels.to(device), [axis.start for axis in self.box], self.weight)
