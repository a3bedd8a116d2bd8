"""The atlas on an image's grid, as a transform of dictionaries."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from monai_lcs.atlas.alignment import AlignAtlas

__all__ = ["AlignAtlasD", "AlignAtlasDict", "AlignAtlasd"]


class AlignAtlasd(MapTransform):
    """Dictionary form of :class:`AlignAtlas`: replaces atlas image and label map by the aligned ones.

    The report goes to ``data["alignment"]``: ``mode`` is a string, ``metric``, ``overlap`` and ``seconds`` are floats.
    Nothing is random: put the transform before the first random one and ``CacheDataset`` aligns each image once.

    Args:
        keys: the one key of the image.
        atlas_image_key: key of the atlas image.
        atlas_label_key: key of the atlas label map.
        mode: see :class:`AlignAtlas`, like the next four.
        min_overlap: lowest overlap that counts as aligned.
        on_failure: ``"error"`` or ``"warn"``.
        spacing_mm: registration resolution; images are only shrunk, by whole factors.
        seed: seed of the choice of voxels.
        allow_missing_keys: return the data as it is where one of the three keys is missing, else raise ``KeyError``.

    Raises:
        ValueError: if ``keys`` is not exactly one key; and as :class:`AlignAtlas`.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 32, 32)
        >>> align = AlignAtlasd(keys="image", mode="none")
        >>> data = align({"image": image, "atlas_image": image, "atlas_label": (image > 0.5).int()})
        >>> data["alignment"]["mode"], data["alignment"]["overlap"]
        ('none', 1.0)
    """

    backend = AlignAtlas.backend

    def __init__(
        self,
        keys: KeysCollection = "image",
        atlas_image_key: Hashable = "atlas_image",
        atlas_label_key: Hashable = "atlas_label",
        mode: str = "affine",
        min_overlap: float = 0.5,
        on_failure: str = "error",
        spacing_mm: float = 2.0,
        seed: int = 0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if len(self.keys) != 1:
            raise ValueError(f"`keys` must be the one key of the image, got {self.keys}.")
        self.atlas_image_key = atlas_image_key
        self.atlas_label_key = atlas_label_key
        self.aligner = AlignAtlas(mode, min_overlap, on_failure, spacing_mm, seed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Align the atlas in ``data``; ``data`` itself is not changed."""
        d = dict(data)
        needed = (self.keys[0], self.atlas_image_key, self.atlas_label_key)
        missing = [key for key in needed if key not in d]
        if missing and self.allow_missing_keys:
            return d
        if missing:
            raise KeyError(f"AlignAtlasd needs the keys {missing}, the data has only {list(d)}.")
        aligned_image, aligned_label = self.aligner(*(d[key] for key in needed))
        d[self.atlas_image_key], d[self.atlas_label_key] = aligned_image, aligned_label
        d["alignment"] = dict(aligned_image.meta["alignment"])
        return d


AlignAtlasD = AlignAtlasDict = AlignAtlasd
