"""Multi-atlas fusion, as a transform of dictionaries."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_lcs.atlas.alignment import AlignAtlas
from monai_lcs.atlas.fusion import fuse_atlases
from monai_lcs.grids import on_grid_of
from monai_lcs.study.images import read_image
from monai_lcs.transforms.atlas_pool import files_of

__all__ = ["FuseAtlasesD", "FuseAtlasesDict", "FuseAtlasesd"]


class FuseAtlasesd(MapTransform):
    """Aligns further atlases to the image and fuses them with the one aligned already, see :func:`fuse_atlases`.

    Put it after :class:`AlignAtlasd`. Replaces atlas image and label map by the fused ones and adds ``"agreement"``. A
    further atlas that is the image itself (same file, symbolic links resolved; the image must know its file) does not
    vote, so that training subjects may be atlases of each other. One that cannot be aligned is left out with a warning.
    Where no further atlas is left, the data stay as they are. Costs one alignment per atlas; nothing is random, so
    ``CacheDataset`` keeps the result.

    Args:
        keys: the one key of the image.
        atlases: the further atlases, ``{"image": path, "label": path}`` each, as
            :func:`monai_lcs.study.cases.find_cases` finds them.
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
