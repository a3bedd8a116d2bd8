"""Multi-atlas fusion: aligned atlases vote for the label of every voxel, each where it looks like the scan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from monai_lcs.atlas import registration
from monai_lcs.atlas.voters import LabelMapVoter, Voter, count_votes
from monai_lcs.grids import affine_of, from_sitk, to_sitk
from monai_lcs.labels.votes import Ballot

__all__ = ["fuse_atlases", "fuse_votes", "vote_weights"]


def fuse_atlases(
    image: torch.Tensor, atlas_images: Sequence[torch.Tensor], atlas_labels: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fuse aligned atlases: they vote for the label of every voxel, weighted by how much they look like the scan there.

    The weight of an atlas at a voxel is 1 / (d + 0.05)**2. d is the squared difference of the locally normalized
    intensities of scan and atlas, averaged in a Gaussian window of 2 mm (Artaechevarria et al., IEEE TMI 28, 2009). On
    equal votes the smallest id wins. A label costs time only near its voxels. Memory does not grow with the number of
    labels; it grows by about 20 bytes per voxel with each atlas.

    Args:
        image: the scan, ``(1, *spatial)``, 2D or 3D; its affine holds for all.
        atlas_images: ``(1, *spatial)`` each, aligned to the scan.
        atlas_labels: ``(1, *spatial)`` each, integers, aligned to the scan.

    Returns:
        All ``(1, *spatial)``: the mean of the atlas images, each divided by the mean of its absolute values first; the
        label map, in their dtype, or int32 where they have several; and the agreement, float32, 0 to 1: the share of
        the votes that the winning label got.

    Raises:
        ValueError: when there is no atlas, or the shapes differ.

    Example:
        >>> image = torch.rand(1, 8, 8)
        >>> maps = [torch.full((1, 8, 8), label) for label in (3, 3, 5)]
        >>> _, label_map, agreement = fuse_atlases(image, [image] * 3, maps)
        >>> label_map.unique().tolist(), round(agreement.mean().item(), 2)
        ([3], 0.67)
    """
    shapes = [tuple(x.shape) for x in (*atlas_images, *atlas_labels)]
    if not atlas_images or set(shapes) != {tuple(image.shape)}:
        raise ValueError(f"The atlases must have the image's shape {tuple(image.shape)}, got {shapes}.")
    mean, ballot = fuse_votes(image, atlas_images, [LabelMapVoter(x) for x in atlas_labels])
    first, *others = (x.dtype for x in atlas_labels)
    return mean, ballot.ids[:1].to(first if all(one == first for one in others) else torch.int32), ballot.shares[:1]


def fuse_votes(
    image: torch.Tensor,
    atlas_images: Sequence[torch.Tensor],
    voters: Sequence[Voter],
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Ballot]:
    """The mean of the atlas images and the votes for each label, weighted as :func:`fuse_atlases` says.

    Args:
        image: the scan, ``(1, *spatial)``.
        atlas_images: ``(1, *spatial)`` each, aligned to the scan.
        voters: the labels of each atlas.
        weights: from :func:`vote_weights`, where they are known.
    """
    if weights is None and len(voters) > 1:
        weights = vote_weights(image, atlas_images)
    ballot = count_votes(voters, image.shape[1:], weights)
    return _mean_image(atlas_images), ballot


def _voxels(x: torch.Tensor) -> torch.Tensor:
    return x.as_subclass(torch.Tensor).cpu()


def vote_weights(image: torch.Tensor, atlas_images: Sequence[torch.Tensor]) -> torch.Tensor:
    """How much each atlas looks like the scan at every voxel, ``(atlases, *spatial)``."""
    affine = affine_of(image if isinstance(image, MetaTensor) else MetaTensor(image))
    fixed, *moving = (to_sitk(x.as_subclass(torch.Tensor).float(), affine) for x in (image, *atlas_images))
    return torch.cat([from_sitk(registration.similarity(fixed, x))[0] for x in moving])


def _mean_image(atlas_images: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean of the images, each brought to a mean absolute value of 1 first."""
    images = [_voxels(x).float() for x in atlas_images]
    return torch.stack([x / x.abs().mean().clamp(min=1e-6) for x in images]).mean(0)
