"""The atlas on an image's grid, as array and dictionary transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends

from monai_lcs.atlas.alignment import AtlasAligner, as_meta_tensor, check_alignable, check_integers

__all__ = ["AlignAtlas", "AlignAtlasD", "AlignAtlasDict", "AlignAtlasd"]


class AlignAtlas(Transform):
    """Put an atlas image and its label map on the grid of an image.

    The rigid and affine stages maximize Mattes mutual information, so image and atlas may differ in contrast, grid,
    orientation and position. Registration starts from the best of three placements (positions as the files give them,
    centers of the grids, centers of the foregrounds), runs coarse to fine, rigid first, on copies shrunk to about
    ``spacing_mm``, on one thread: the same input gives the same output bit for bit, on any number of cores. They take
    about 3 s for a brain. Only the final resampling takes longer on finer grids.

    The deformable modes go on from the affine one with symmetric-forces demons (Thirion 1998; Vercauteren et al. 2009)
    on all cores, with the same bits on any number of them. ``"deformable"`` takes another 5 s of one core.
    ``"deformable_fine"`` works at half of ``spacing_mm``, or as fine as the image is; it takes 26 s and follows the
    anatomy more closely. Both compare locally normalized intensities, so that bias fields and differences in gain do
    not matter, but expect the same kind of contrast: T1 to T1. The result is kept only where it raises mutual
    information. It is made to carry labels, not to measure volume changes: it folds in places, the fine one in 2 to 3%
    of a brain.

    Background is the value that at least half of a grid's border has, else the minimum; foreground is what differs from
    it by Otsu's threshold, taken on the square root of the difference. The overlap compared with ``min_overlap`` is the
    Dice score of the foregrounds of image and aligned atlas: it finds atlases that missed or that show something else,
    not a head turned the wrong way inside a round outline. So the image is compared with the atlas in all 24
    orientations, meanwhile and in about 2 s, except with the mode ``"none"``: where another one than the header's fits
    clearly better, a warning says which. Rotations up to about 40 degrees beyond what the affines say are recovered.

    Args:
        mode: ``"none"`` only checks that all grids are the same; ``"rigid"`` rotates and translates;
            ``"affine"`` also scales and shears; ``"deformable"`` and ``"deformable_fine"`` then move every voxel by
            itself.
        min_overlap: alignment with a lower overlap, 0 to 1, has failed; 0 accepts any.
        on_failure: when the overlap is too low, the optimizer stops with an error, an image is constant or no label
            is left on the image's grid: ``"error"`` raises, ``"warn"`` warns and returns the atlas at its best
            placement before registration.
        spacing_mm: registration resolution. Finer input is shrunk to about it, but not below 32 voxels an axis.
        seed: seed, 0 or more, for the choice of the voxels from which mutual information is estimated.

    Attributes:
        report_: the last call's report (with several threads that of any of them), also in the returned atlas image's
            ``meta["alignment"]``: ``mode``, ``metric`` (mutual information in nats, higher is better), ``overlap``
            (0 to 1), ``seconds`` and ``orientation`` (``"as in the header"``, what fits better, ``"cannot be told"``
            or ``"not checked"``).

    Raises:
        ValueError: for an unknown ``mode`` or ``on_failure``, ``min_overlap`` outside 0 to 1, ``spacing_mm`` not
            positive, a negative ``seed``.

    Example:
        >>> import torch
        >>> from monai.data import MetaTensor
        >>> image = torch.zeros(1, 40, 48)
        >>> image[:, 10:30, 12:40] = torch.arange(20.0)[:, None] + 5
        >>> labels = (image > 15).int()
        >>> far = torch.tensor([[1.0, 0, 300], [0, 1, -80], [0, 0, 1]])  # the same scan, 300 and -80 mm away
        >>> align = AlignAtlas(mode="rigid")
        >>> atlas_image, atlas_label = align(image, MetaTensor(image, affine=far), MetaTensor(labels, affine=far))
        >>> atlas_label.shape, bool((atlas_label == labels).all()), round(align.report_["overlap"], 2)
        (torch.Size([1, 40, 48]), True, 1.0)
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        mode: str = "affine",
        min_overlap: float = 0.5,
        on_failure: str = "error",
        spacing_mm: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.aligner = AtlasAligner(mode, min_overlap, on_failure, spacing_mm, seed)
        self.report_: dict[str, Any] = {}

    def __call__(  # type: ignore[override]
        self, image: torch.Tensor, atlas_image: torch.Tensor, atlas_label: torch.Tensor
    ) -> tuple[MetaTensor, MetaTensor]:
        """Align the atlas to the image.

        Args:
            image: ``(C, *spatial)``, 2D or 3D; the first channel is registered. Without metadata voxels are 1 mm wide.
            atlas_image: ``(1, *spatial)``, on its own grid.
            atlas_label: ``(1, *spatial)``, integer values in any dtype, on its own grid.

        Returns:
            Atlas image (float32, linear interpolation, its background beyond its border) and atlas label map (same ids
            and dtype, nearest neighbor, 0 beyond its border), both ``(1, *image_spatial)`` with the image's affine, on
            its device.

        Raises:
            ValueError: for wrong shapes, values or affines, for grids that differ with mode ``"none"``, and for a
                failed alignment with ``on_failure="error"``; the sentence names the files where the metadata does.
        """
        scan, labels = as_meta_tensor(image), as_meta_tensor(atlas_label)
        check_alignable(labels, scan, "the atlas label map")
        check_integers(labels)
        alignment = self.aligner.align(scan, atlas_image)
        propagated = self.aligner.propagate(alignment, labels, scan)
        # One transform may serve several threads (CacheDataset): its attribute is not read back.
        self.report_ = alignment.report
        alignment.image.meta["alignment"] = alignment.report
        return alignment.image, propagated


class AlignAtlasd(MapTransform):
    """Dictionary form of :class:`AlignAtlas`: replaces atlas image and label map by the aligned ones.

    The report goes to ``data["alignment"]``: ``mode`` and ``orientation`` are strings, ``metric``, ``overlap`` and
    ``seconds`` are floats.
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
        self.align = AlignAtlas(mode, min_overlap, on_failure, spacing_mm, seed)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Align the atlas in ``data``; ``data`` itself is not changed."""
        d = dict(data)
        needed = (self.keys[0], self.atlas_image_key, self.atlas_label_key)
        missing = [key for key in needed if key not in d]
        if missing and self.allow_missing_keys:
            return d
        if missing:
            raise KeyError(f"AlignAtlasd needs the keys {missing}, the data has only {list(d)}.")
        aligned_image, aligned_label = self.align(*(d[key] for key in needed))
        d[self.atlas_image_key], d[self.atlas_label_key] = aligned_image, aligned_label
        d["alignment"] = dict(aligned_image.meta["alignment"])
        return d


AlignAtlasD = AlignAtlasDict = AlignAtlasd
