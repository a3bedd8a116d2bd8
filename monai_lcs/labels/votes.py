"""Vote maps: the share of the votes that each label has at every voxel, kept for the few labels that have the most.

One aligned atlas votes with the partial volumes of its labels, several atlases with their weighted sum. No voxel is
near more than a few labels, so that memory grows neither with the labels nor with the atlases.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_lcs.boxes import Box, label_boxes, union_box, whole_box
from monai_lcs.labels.groups import label_mask

__all__ = ["VOTE_CHANNELS", "Ballot", "group_votes", "vote_boxes"]

CANDIDATES = 4
"""Labels that are kept at a voxel, the background among them."""

VOTE_CHANNELS = 2 * CANDIDATES
"""Channels of a vote map: the shares of the candidates, then their ids, each from the last one to the winner.

So the last channel is a label map, as where there are no votes."""


class Ballot:
    """Counts votes, label by label.

    Args:
        shape: spatial shape.

    Attributes:
        shares: of the candidates at each voxel, ``(CANDIDATES, *spatial)`` float32, most votes first.
        ids: their ids, int32; so ``ids[0]`` is the label map of the winners.

    Example:
        >>> ballot = Ballot((3,))
        >>> ballot.add(7, torch.tensor([0.75, 0.25]), (slice(0, 2),))
        >>> ballot.add(9, torch.tensor([0.5]), (slice(1, 2),))
        >>> ballot.add_background()
        >>> ballot.ids[0], ballot.shares[0]
        (tensor([7, 9, 0], dtype=torch.int32), tensor([0.7500, 0.5000, 1.0000]))
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shares = torch.zeros(CANDIDATES, *shape)
        self.ids = torch.zeros(CANDIDATES, *shape, dtype=torch.int32)
        self.total = torch.zeros(tuple(shape))

    def add(self, label: int, votes: Tensor, box: Box) -> None:
        """Count the votes of a label in a box, ``(*size)``, 0 to 1; by ascending ids, as the first wins a tie."""
        self.total[box] += votes
        self._insert(label, votes, box)

    def add_background(self) -> None:
        """Give the votes that are left to the background, which wins ties."""
        self._insert(0, (1 - self.total).clamp(min=0), whole_box(self.total.shape), wins_ties=True)

    def channels(self) -> Tensor:
        """The votes as one tensor of float32, see :data:`VOTE_CHANNELS`."""
        return torch.cat([self.shares.flip(0), self.ids.flip(0).float()])

    def _insert(self, label: int, votes: Tensor, box: Box, wins_ties: bool = False) -> None:
        """Put a label in its place among the candidates; the last one may fall out."""
        ids = torch.full(votes.shape, label, dtype=torch.int32)
        for shares_here, ids_here in zip(self.shares, self.ids, strict=True):
            share, id = shares_here[box], ids_here[box]
            wins = (votes >= share) if wins_ties else (votes > share)
            shares_here[box], votes = torch.where(wins, votes, share), torch.where(wins, share, votes)
            ids_here[box], ids = torch.where(wins, ids, id), torch.where(wins, id, ids)


def group_votes(votes: Tensor, group: Sequence[int]) -> Tensor:
    """The share of the votes of a label or a union.

    Args:
        votes: ``(VOTE_CHANNELS, *spatial)``; or one channel, a label map, for a share of 0 or 1.
        group: its ids.

    Returns:
        ``(*spatial)`` in the dtype of ``votes``; bool for a label map.

    Example:
        >>> ballot = Ballot((2,))
        >>> for label in (17, 18):
        ...     ballot.add(label, torch.tensor([0.5, 0.25]), (slice(0, 2),))
        >>> group_votes(ballot.channels(), (17, 18)), group_votes(torch.tensor([[17, 4]]), (17, 18))
        (tensor([1.0000, 0.5000]), tensor([ True, False]))
    """
    if len(votes) == 1:
        return label_mask(votes[0], group)
    shares = (votes[:CANDIDATES] * label_mask(votes[CANDIDATES:], group)).sum(0)
    return shares.clamp_(max=1)  # rounded shares add up to a little more


def vote_boxes(votes: Tensor) -> dict[int, Box]:
    """The bounding box of every label that has votes.

    Args:
        votes: as for :func:`group_votes`.

    Example:
        >>> vote_boxes(torch.tensor([[0, 7, 7]]))
        {7: (slice(1, 3, None),)}
    """
    found: dict[int, Box] = {}
    for ids in votes[CANDIDATES:] if len(votes) > 1 else votes:
        for label, box in label_boxes(ids).items():
            found[label] = union_box([box, found[label]]) if label in found else box
    return found
