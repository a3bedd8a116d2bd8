"""Multi-atlas fusion as a transform of dictionaries."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_lcs.atlas import Atlas, AtlasAligner, fuse_atlases
from monai_lcs.grids import on_grid_of

__all__ = ["FuseAtlasesD", "FuseAtlasesDict", "FuseAtlasesd"]


class FuseAtlasesd(MapTransform):
    """Align further atlases to the scan and fuse them with the one that is aligned already.

    Put it after :class:`AlignAtlasd`; :func:`monai_lcs.atlas.fuse_atlases` says how the atlases vote. It replaces the
    atlas image and label map by the fused ones and adds ``"agreement"``. A further atlas that is the scan itself, by
    its file (links resolved) or by its content, does not vote, so that training subjects may be atlases of each other.
    One that cannot be aligned is left out with a warning. Where no further atlas is left, the data stay as they are.

    Each atlas is read once. The transform costs one alignment per atlas and scan. Nothing is random, so that
    ``CacheDataset`` keeps the result.

    Args:
        keys: the one key of the scan.
        atlases: the further atlases, ``{"image": path, "label": path}`` each, as
            :func:`monai_lcs.study.cases.find_cases` finds them.
        atlas_image_key: key of the aligned atlas image.
        atlas_label_key: key of the aligned atlas label map.
        mode: as for :class:`AlignAtlas`, like the next three; with atlases, one that aligns them.
        min_overlap: lowest overlap that counts as aligned.
        spacing_mm: registration resolution.
        seed: seed of the choice of voxels.
        allow_missing_keys: return the data as it is where the scan is missing, else raise ``KeyError``.

    Raises:
        ValueError: if ``keys`` is not exactly one key, an atlas lacks one of its two, or there are atlases and ``mode``
            is ``"none"``; when called, if the scan is a tensor without metadata, which tell whether it is one of the
            atlases; and as :class:`AlignAtlas`.
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
        self.aligner = AtlasAligner(mode, min_overlap, "error", spacing_mm, seed, check_orientation=False)
        self._read: dict[int, Atlas] = {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the data with the fused atlas."""
        d = dict(data)
        for key in self.key_iterator(d):
            aligned = self._align_all(d[key])
            if not aligned:
                continue
            first: MetaTensor = d[self.atlas_image_key]
            fused = fuse_atlases(d[key][:1], *zip((first, d[self.atlas_label_key]), *aligned, strict=True))
            names = (self.atlas_image_key, self.atlas_label_key, "agreement")
            for name, x in zip(names, fused, strict=True):
                d[name] = on_grid_of(first, x, first.meta)
        return d

    def _align_all(self, scan: MetaTensor) -> list[tuple[MetaTensor, MetaTensor]]:
        """Image and labels of each further atlas on the scan's grid; without the scan itself and those that fail."""
        aligned: list[tuple[MetaTensor, MetaTensor]] = []
        if self.atlases and not isinstance(scan, MetaTensor):
            raise ValueError(
                "A tensor without metadata may be one of the `atlases` itself: give the scan as a MetaTensor; behind a "
                "PersistentDataset, set its track_meta=True."
            )
        for i, files in enumerate(self.atlases):
            try:
                atlas = self._atlas(i)
                if atlas.is_image(scan):
                    continue
                alignment = self.aligner.align(scan, atlas.image)
                aligned.append((alignment.image, self.aligner.propagate(alignment, atlas.label_map, scan)))
            except ValueError as error:
                warnings.warn(f"The atlas {files['image']} does not vote: {error}", stacklevel=3)
        return aligned

    def _atlas(self, i: int) -> Atlas:
        """The i-th atlas, read when it is needed first."""
        if i not in self._read:
            self._read[i] = Atlas.read(self.atlases[i]["image"], self.atlases[i]["label"])
        return self._read[i]


FuseAtlasesD = FuseAtlasesDict = FuseAtlasesd
