"""Several atlases fused into one on the image's grid: each votes with its labels where it looks like the image."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_lcs.boxes import cut, label_boxes, union_box
from monai_lcs.data import read_image

from . import registration
from .align import AlignAtlas, affine_of, from_sitk, on_grid_of, to_sitk
from .atlas_pool import files_of

__all__ = ["FuseAtlasesD", "FuseAtlasesDict", "FuseAtlasesd", "fuse_atlases"]


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


class FuseAtlasesd(MapTransform):
    """Aligns further atlases to the image and fuses them with the one aligned already, see :func:`fuse_atlases`.

    Put it after :class:`AlignAtlasd`. Replaces atlas image and label map by the fused ones and adds ``"agreement"``. A
    further atlas that is the image itself (same file, symbolic links resolved; the image must know its file) does not
    vote, so that training subjects may be atlases of each other. One that cannot be aligned is left out with a warning.
    Where no further atlas is left, the data stay as they are. Costs one alignment per atlas; nothing is random, so
    ``CacheDataset`` keeps the result.

    Args:
        keys: the one key of the image.
        atlases: the further atlases, ``{"image": path, "label": path}`` each, as :func:`monai_lcs.data.find_cases`
            finds them.
        atlas_image_key: key of the aligned atlas image.
        atlas_label_key: key of the aligned atlas label map.
        mode: as for :class:`AlignAtlas`, like the next three; with atlases, one that aligns them.
        min_overlap: lowest overlap that counts as aligned.
        spacing_mm: registration resolution.
        seed: seed of the choice of voxels.
        allow_missing_keys: return the data as it is where the image is missing, else raise ``KeyError``.

    Raises:
        ValueError: if ``keys`` is not exactly one key, an atlas lacks one of its two, or there are atlases and ``mode``
            is ``"none"``; and as :class:`AlignAtlas`.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection = "image",
        atlases: Sequence[Mapping[Hashable, Any]] = (),
        atlas_image_key: Hashable = "atlas_image",
        atlas_label_key: Hashable = "atlas_label",
        mode: str = "affine",
        min_overlap: float = 0.5,
        spacing_mm: float = 2.0,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"`keys` must be the one key of the image, got {self.keys}.")
        self.atlases = [dict(atlas) for atlas in atlases]
        for atlas in self.atlases:
            if not {"image", "label"} <= atlas.keys():
                raise ValueError(f"Each of `atlases` must have the keys 'image' and 'label', got {atlas}.")
        if self.atlases and mode == "none":
            raise ValueError("`atlases` must be aligned: give `mode` 'rigid', 'affine' or 'deformable', not 'none'.")
        self.atlas_image_key = atlas_image_key
        self.atlas_label_key = atlas_label_key
        self.aligner = AlignAtlas(mode, min_overlap, "error", spacing_mm, seed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the fused atlas."""
        d = dict(data)
        for key in self.key_iterator(d):
            own = files_of(d[key])
            others = [atlas for atlas in self.atlases if own.isdisjoint(files_of(atlas["image"]))]
            aligned = self._aligned(d[key], others)
            if not aligned:
                continue
            first: MetaTensor = d[self.atlas_image_key]
            fused = fuse_atlases(d[key][:1], *zip((first, d[self.atlas_label_key]), *aligned, strict=True))
            names = (self.atlas_image_key, self.atlas_label_key, "agreement")
            for name, x in zip(names, fused, strict=True):
                d[name] = on_grid_of(first, x, first.meta)
        return d

    def _aligned(
        self, image: torch.Tensor, atlases: Sequence[Mapping[Hashable, Any]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        aligned: list[tuple[torch.Tensor, torch.Tensor]] = []
        for atlas in atlases:
            files = (atlas["image"], atlas["label"])
            try:
                aligned.append(self.aligner(image, *(read_image(path) for path in files)))
            except ValueError as error:
                warnings.warn(f"The atlas {files[0]} does not vote: {error}", stacklevel=2)
        return aligned


FuseAtlasesD = FuseAtlasesDict = FuseAtlasesd
