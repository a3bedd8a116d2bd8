"""Several atlases fused into one on the image's grid: each votes with its labels where it looks like the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.data import MetaTensor

from monai_lcs.atlas import registration
from monai_lcs.boxes import cut, label_boxes, union_box
from monai_lcs.grids import affine_of, from_sitk, to_sitk

__all__ = ["fuse_atlases"]


def fuse_atlases(
    image: torch.Tensor, atlas_images: Sequence[torch.Tensor], atlas_labels: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Let aligned atlases vote for the label of every voxel, weighted by how much each looks like the image there.

    The weight of an atlas at a voxel is 1 / (d + 0.05)**2, where d is the squared difference of the locally normalized
    intensities of image and atlas, averaged in a Gaussian window of 2 mm (Artaechevarria et al., IEEE TMI 28, 2009). On
    equal votes the smallest id wins. Labels cost time only near their voxels, and memory does not grow with
    their number but with that of the atlases, by about 20 bytes per voxel and atlas.

    Args:
        image: ``(1, *spatial)``, 2D or 3D; its affine holds for all.
        atlas_images: ``(1, *spatial)`` each, aligned to the image.
        atlas_labels: ``(1, *spatial)`` each, integers in one dtype, aligned to the image.

    Returns:
        All ``(1, *spatial)``: the mean of the atlas images, each divided by the mean of its absolute values first; the
        label map, in the dtype of the first; and the agreement, float32, 0 to 1: the share of the votes that the
        winning label got.

    Raises:
        ValueError: when there is no atlas, or the shapes differ.

    Example:
        >>> image = torch.rand(1, 8, 8)
        >>> maps = [torch.full((1, 8, 8), label) for label in (3, 3, 5)]
        >>> _, label_map, agreement = fuse_atlases(image, [image] * 3, maps)
        >>> label_map.unique().tolist(), round(agreement.mean().item(), 2)
        ([3], 0.67)
    """
    if not atlas_images or {tuple(x.shape) for x in (*atlas_images, *atlas_labels)} != {tuple(image.shape)}:
        shapes = [tuple(x.shape) for x in (*atlas_images, *atlas_labels)]
        raise ValueError(f"The atlases must have the image's shape {tuple(image.shape)}, got {shapes}.")
    affine = affine_of(image if isinstance(image, MetaTensor) else MetaTensor(image))
    fixed, *moving = (to_sitk(x.as_subclass(torch.Tensor).float(), affine) for x in (image, *atlas_images))
    weights = torch.cat([from_sitk(registration.similarity(fixed, x))[0] for x in moving])
    maps = torch.cat([x.as_subclass(torch.Tensor).cpu() for x in atlas_labels]).int()
    boxes = [label_boxes(x) for x in maps]
    best = (weights * (maps == 0)).sum(0)
    label_map = torch.zeros_like(maps[0])
    for label in sorted(set().union(*boxes)):
        box = union_box([of_atlas[label] for of_atlas in boxes if label in of_atlas])
        votes = (cut(weights, box) * (cut(maps, box) == label)).sum(0)
        wins = votes > best[box]
        best[box] = torch.where(wins, votes, best[box])
        label_map[box] = torch.where(wins, label, label_map[box])
    agreement = best / weights.sum(0)
    means = [x.as_subclass(torch.Tensor).cpu().float() for x in atlas_images]
    mean = torch.stack([x / x.abs().mean().clamp(min=1e-6) for x in means]).mean(0)
    return mean, label_map[None].to(atlas_labels[0].dtype), agreement[None]
