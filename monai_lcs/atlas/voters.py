"""What an aligned atlas votes for: its propagated labels, or the partial volumes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

import SimpleITK as sitk
import torch
from torch import Tensor

from monai_lcs.atlas.alignment import Alignment, as_meta_tensor, reference_grid
from monai_lcs.boxes import Box, crop, grow_box, label_boxes, union_box
from monai_lcs.grids import affine_of, from_sitk, to_sitk
from monai_lcs.labels.votes import Ballot

__all__ = ["LabelMapVoter", "PartialVolumeVoter", "Voter", "count_votes"]

REACH = 2  # voxels that partial volumes reach beyond the labels propagated by nearest neighbor


class Voter(Protocol):
    """An aligned atlas: where it has each label, and how much of it."""

    @property
    def boxes(self) -> Mapping[int, Box]:
        """The box of each of its labels, on the scan's grid."""

    def mask(self, label: int, box: Box) -> Tensor:
        """How much it votes for a label in a box, ``(*size)`` float32, 0 to 1."""


class LabelMapVoter:
    """Votes for one label at each voxel.

    Args:
        label_map: ``(1, *spatial)``, aligned to the scan.
    """

    def __init__(self, label_map: Tensor) -> None:
        self.label_map = label_map.as_subclass(Tensor).cpu()[0].int()

    @cached_property
    def boxes(self) -> dict[int, Box]:
        """See :class:`Voter`."""
        return label_boxes(self.label_map)

    def mask(self, label: int, box: Box) -> Tensor:
        """See :class:`Voter`."""
        return (crop(self.label_map, box) == label).float()


class PartialVolumeVoter:
    """Votes for the labels around each point of the atlas, by linear interpolation of their masks.

    Args:
        alignment: of the atlas to the scan.
        label_map: of the atlas, ``(1, *spatial)``, on its own grid.
        propagated: the same labels propagated, ``(1, *scan_spatial)``.
    """

    def __init__(self, alignment: Alignment, label_map: Tensor, propagated: Tensor) -> None:
        labels = as_meta_tensor(label_map)
        self.fixed = reference_grid(alignment.image)
        self.moving = to_sitk(labels.int(), affine_of(labels))
        if alignment.mode == "none":
            self.moving.CopyInformation(self.fixed)
        self.transform = alignment.transform
        self.label_map = labels.as_subclass(Tensor)[0]
        self.propagated = LabelMapVoter(propagated)

    @cached_property
    def _in_atlas(self) -> dict[int, Box]:
        return label_boxes(self.label_map)

    @cached_property
    def boxes(self) -> dict[int, Box]:
        """See :class:`Voter`."""
        shape = self.propagated.label_map.shape
        return {label: grow_box(box, [REACH] * len(box), shape) for label, box in self.propagated.boxes.items()}

    def mask(self, label: int, box: Box) -> Tensor:
        """See :class:`Voter`."""
        around = grow_box(self._in_atlas[label], [1] * len(box), self.label_map.shape)
        inside = sitk.Cast(self.moving[around] == label, sitk.sitkFloat32)
        resampled = sitk.Resample(inside, self.fixed[box], self.transform, sitk.sitkLinear, 0.0)
        return from_sitk(resampled)[0][0]


def count_votes(voters: Sequence[Voter], shape: Sequence[int], weights: Tensor | None = None) -> Ballot:
    """Count the votes of aligned atlases, label by label, each in its box.

    Args:
        voters: the atlases.
        shape: spatial shape of the scan.
        weights: of each atlas at each voxel, ``(atlases, *spatial)``, >= 0; equal by default.

    Returns:
        The ballot, with the background.

    Example:
        >>> voters = [LabelMapVoter(torch.tensor([[0, 7, 7]])), LabelMapVoter(torch.tensor([[0, 0, 7]]))]
        >>> ballot = count_votes(voters, (3,), torch.tensor([[1.0, 3.0, 1.0], [1.0, 1.0, 1.0]]))
        >>> ballot.ids[0].tolist(), ballot.shares[0].tolist()
        ([0, 7, 7], [1.0, 0.75, 1.0])
    """
    weights = torch.ones(len(voters), *shape) if weights is None else weights
    weights = weights / weights.sum(0)
    ballot = Ballot(shape)
    for label in _labels(voters):
        voting = [n for n, voter in enumerate(voters) if label in voter.boxes]
        box = union_box([voters[n].boxes[label] for n in voting])
        votes = _sum(crop(weights[n], box) * voters[n].mask(label, box) for n in voting)
        ballot.add(label, votes.clamp_(max=1), box)  # rounded weights add up to a little more
    ballot.add_background()
    return ballot


def _labels(voters: Iterable[Voter]) -> list[int]:
    return sorted(set().union(*(voter.boxes for voter in voters)))


def _sum(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    for part in others:
        first += part
    return first
