"""What atlases vote for at the scan's own voxels, in the part of the scan that has labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import from_matvec

from monai_lcs.atlas import Alignment
from monai_lcs.atlas.voters import LabelMapVoter, PartialVolumeVoter, Voter, count_votes
from monai_lcs.boxes import Box, crop, intersect, mask_box, shift, size_of, slabs_of, unshift, whole_box
from monai_lcs.grids import affine_of, resample
from monai_lcs.labels.exact import holds_exactly
from monai_lcs.labels.votes import VOTE_CHANNELS

__all__ = ["part_of", "votes_in_part", "votes_of_one"]

REACH_MM = 10.0
"""How far the labels of other atlases may lie beyond the box of the first one's: brains that are aligned end there.
Beyond it the network alone decides."""

SLAB_VOXELS = 1 << 20
"""About as many voxels are voted for at a time."""


def part_of(source: MetaTensor, label_map: MetaTensor) -> MetaTensor:
    """The part of a scan in the box of a label map and :data:`REACH_MM` more, with its affine.

    Args:
        source: the scan, ``(1, x, y, z)``.
        label_map: ``(1, x, y, z)`` on any grid.

    Raises:
        ValueError: where it has no label.

    Example:
        >>> scan = MetaTensor(torch.zeros(1, 40, 40, 8))
        >>> labels = torch.zeros(1, 20, 20, 4)
        >>> labels[:, 9, 2] = 7
        >>> part = part_of(scan, MetaTensor(labels, affine=torch.diag(torch.tensor([2.0, 2, 2, 1]))))
        >>> part.shape, part.affine[:3, 3].tolist()
        (torch.Size([1, 21, 15, 8]), [8.0, 0.0, 0.0])
    """
    box: Any = mask_box(label_map.as_tensor()[0] != 0)
    if box is None:
        name = source.meta.get("filename_or_obj") or "the scan"
        raise ValueError(
            f"No label of the atlas has a voxel on the network's grid of {name}: give a smaller `spacing`."
        )
    there, own = affine_of(label_map), affine_of(source)
    more = REACH_MM / np.linalg.norm(there[:3, :3], axis=0)
    ends = [(axis.start - n, axis.stop - 1 + n) for axis, n in zip(box, more, strict=True)]
    corners = np.linalg.solve(own, there @ np.array([[*corner, 1.0] for corner in product(*ends)]).T)[:3]
    most = np.array(source.shape[1:]) - 1
    start, last = (np.clip(x, 0, most).astype(int) for x in (np.floor(corners.min(1)), np.ceil(corners.max(1))))
    part = tuple(map(slice, start.tolist(), (last + 1).tolist()))
    return MetaTensor(crop(source.as_tensor(), part), affine=torch.as_tensor(own @ from_matvec(np.eye(3), start)))


def votes_in_part(label_maps: Sequence[MetaTensor], weights: MetaTensor) -> MetaTensor:
    """The votes of atlases at the voxels of a part of the scan, counted in slabs to save memory.

    Args:
        label_maps: of each atlas, propagated to these voxels, ``(1, x, y, z)``.
        weights: of each atlas, ``(atlases, *spatial)``, on any grid.

    Returns:
        ``(VOTE_CHANNELS, x, y, z)``, see :mod:`monai_lcs.labels.votes`.

    Raises:
        ValueError: unless there are as many weights as label maps.

    Example:
        >>> maps = [MetaTensor(torch.tensor([[[[7]], [[0]]]])), MetaTensor(torch.tensor([[[[7]], [[9]]]]))]
        >>> votes = votes_in_part(maps, MetaTensor(torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 2, 1, 1)))
        >>> votes[-1].flatten().tolist(), votes[3].flatten().tolist()  # the winner and its share
        ([7.0, 9.0], [1.0, 0.75])
    """
    if len(label_maps) != len(weights):
        raise ValueError(f"Each atlas has a label map and weights, got {len(label_maps)} and {len(weights)}.")
    shape, affine = tuple(label_maps[0].shape[1:]), affine_of(label_maps[0])
    there = [MetaTensor(each[None], affine=weights.affine) for each in weights.as_tensor()]
    votes = torch.empty(VOTE_CHANNELS, *shape)
    for slab in slabs_of(whole_box(shape), SLAB_VOXELS):
        own = affine @ from_matvec(np.eye(3), [axis.start for axis in slab])
        at_voxels = torch.cat([resample(each, size_of(slab), own) for each in there])
        voters = [LabelMapVoter(crop(each.as_tensor(), slab)) for each in label_maps]
        votes[:, slab[0]] = count_votes(voters, size_of(slab), at_voxels).channels()
    return MetaTensor(votes, affine=torch.as_tensor(affine))


def votes_of_one(alignment: Alignment, label_map: MetaTensor, part: MetaTensor) -> MetaTensor:
    """The votes of one atlas at the voxels of a part of the scan: the partial volumes of its labels.

    They are counted in slabs to save memory: 20 bytes for each voxel of the part, 36 where ids are above 2048.

    Args:
        alignment: of the atlas to the scan.
        label_map: of the atlas, ``(1, *spatial)``, on its own grid.
        part: a volume on the part, ``(1, x, y, z)``.

    Returns:
        ``(VOTE_CHANNELS, x, y, z)``, see :mod:`monai_lcs.labels.votes`; float16, or float32 where that type does not
        hold all ids.

    Example:
        >>> from monai_lcs.atlas import AtlasAligner
        >>> labels = MetaTensor(torch.tensor([[[[7]], [[0]]]]))
        >>> alignment = AtlasAligner("none").align(labels.float(), labels.float())
        >>> votes_of_one(alignment, labels, labels)[-1].flatten().tolist()
        [7.0, 0.0]
    """
    # The transform, in mm, holds for any grid; of the mode "none", which shares a grid, as well
    there = replace(alignment, image=part, mode="rigid")
    voter = PartialVolumeVoter(there, label_map, there.propagate(label_map))
    shape = tuple(part.shape[1:])
    dtype = torch.float16 if holds_exactly(torch.float16, list(voter.boxes)) else torch.float32
    votes = torch.empty(VOTE_CHANNELS, *shape, dtype=dtype)
    for slab in slabs_of(whole_box(shape), SLAB_VOXELS):
        votes[:, slab[0]] = count_votes([_InSlab(voter, slab)], size_of(slab)).channels().to(dtype)
    return MetaTensor(votes, affine=part.affine.clone())


class _InSlab:
    """A voter in a slab of its voxels, see :class:`monai_lcs.atlas.voters.Voter`."""

    def __init__(self, voter: Voter, slab: Box) -> None:
        self.voter, self.slab = voter, slab
        shared = {label: intersect(box, slab) for label, box in voter.boxes.items()}
        self.boxes = {label: shift(both, slab) for label, both in shared.items() if both is not None}

    def mask(self, label: int, box: Box) -> torch.Tensor:
        return self.voter.mask(label, unshift(box, self.slab))
