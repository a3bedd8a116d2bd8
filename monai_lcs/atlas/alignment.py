"""Put an atlas on an image's grid: check that the grids agree, or register it (SimpleITK)."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends, look_up_option

from monai_lcs.atlas import registration
from monai_lcs.grids import affine_of, from_sitk, grid_distance, on_grid_of, to_sitk

__all__ = ["AlignAtlas"]

MODES = ("none", "rigid", "affine", "deformable")

GRID_TOLERANCE_MM = 0.1
"""Corners of two equal grids may lie this far apart: rounding in file headers, far below a voxel."""


class AlignAtlas(Transform):
    """Put an atlas image and its label map on the grid of an image.

    The rigid and affine stages maximize Mattes mutual information, so image and atlas may differ in contrast, grid,
    orientation and position. Registration starts from the best of three placements (positions as the files give them,
    centers of the grids, centers of the foregrounds), runs coarse to fine, rigid first, on copies shrunk to about
    ``spacing_mm``, on one thread: the same input gives the same output bit for bit, on any number of cores, in about
    4 s for a brain. Only the final resampling takes longer on finer grids.

    The deformable mode goes on from the affine one with symmetric-forces demons (Thirion 1998; Vercauteren et al. 2009)
    in another 4 s. It compares locally normalized intensities, so that bias fields and differences in gain do not
    matter, but expects the same kind of contrast: T1 to T1. It is kept only where it raises mutual information.

    Background is the value that at least half of a grid's border has, else the minimum; foreground is what differs from
    it by Otsu's threshold, taken on the square root of the difference. The overlap compared with ``min_overlap`` is the
    Dice score of the foregrounds of image and aligned atlas: it finds atlases that missed or that show something else,
    not a head turned the wrong way inside a round outline. Rotations up to about 40 degrees beyond what the affines say
    are recovered.

    Args:
        mode: ``"none"`` only checks that all grids agree within 0.1 mm; ``"rigid"`` rotates and translates;
            ``"affine"`` also scales and shears; ``"deformable"`` then moves every voxel by itself.
        min_overlap: alignment with a lower overlap, 0 to 1, has failed; 0 accepts any.
        on_failure: when the overlap is too low, the optimizer stops with an error, an image is constant or no label
            is left on the image's grid: ``"error"`` raises, ``"warn"`` warns and returns the atlas at its best
            placement before registration.
        spacing_mm: registration resolution. Finer input is shrunk to about it, but not below 32 voxels an axis.
        seed: seed, 0 or more, for the choice of the voxels from which mutual information is estimated.

    Attributes:
        report_: the last call's report (with several threads that of any of them), also in the returned atlas image's
            ``meta["alignment"]``: ``mode``, ``metric`` (mutual information in nats, higher is better), ``overlap``
            (0 to 1) and ``seconds``.

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
        self.mode = look_up_option(mode, MODES)
        self.on_failure = look_up_option(on_failure, ("error", "warn"))
        if not 0 <= min_overlap <= 1:
            raise ValueError(f"`min_overlap` must lie between 0 and 1, got {min_overlap}.")
        if not spacing_mm > 0:
            raise ValueError(f"`spacing_mm` must be positive, got {spacing_mm}.")
        if seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {seed}.")
        self.min_overlap = min_overlap
        self.spacing_mm = spacing_mm
        self.seed = seed
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
        start = time.perf_counter()
        target, atlas, atlas_ids = (_as_meta_tensor(x) for x in (image, atlas_image, atlas_label))
        _check_inputs(target, atlas, atlas_ids)
        fixed = to_sitk(target[:1].float(), affine_of(target))
        moving = to_sitk(atlas.float(), affine_of(atlas))
        labels = to_sitk(atlas_ids, affine_of(atlas_ids))
        if self.mode == "none":
            for x, converted in ((atlas, moving), (atlas_ids, labels)):
                _check_same_grid(target, x)
                converted.CopyInformation(fixed)
        else:
            _check_size(target)
            _check_size(atlas)

        problem, transform, metric, overlap = self._register(fixed, moving)
        aligned_labels, _ = from_sitk(sitk.Resample(labels, fixed, transform, sitk.sitkNearestNeighbor, 0.0))
        if not problem and atlas_ids.any() and not aligned_labels.any():
            problem = "no label of the atlas is left on the image's grid"
        if problem:
            self._fail(problem, target, atlas)
        aligned_image, _ = from_sitk(registration.resample(moving, fixed, transform))
        seconds = time.perf_counter() - start
        # One transform may serve several threads (CacheDataset): its attribute is not read back.
        report = {"mode": self.mode, "metric": metric, "overlap": overlap, "seconds": seconds}
        self.report_ = dict(report)
        return (
            on_grid_of(target, aligned_image, {**atlas.meta, "alignment": report}),
            on_grid_of(target, aligned_labels.to(atlas_ids.dtype), atlas_ids.meta),
        )

    def _register(self, fixed: sitk.Image, moving: sitk.Image) -> tuple[str, sitk.Transform, float, float]:
        """Find the transform from image to atlas; return what went wrong if anything, transform, metric and overlap."""
        fixed = registration.shrink(fixed, self.spacing_mm)
        moving = registration.shrink(moving, self.spacing_mm)

        def score(transform: sitk.Transform) -> float:
            return registration.mutual_information(fixed, moving, transform, self.seed)

        center = registration.grid_center(fixed)
        as_they_are = registration.translation(center, 0 * center)
        by_grids = registration.translation(center, registration.grid_center(moving) - center)
        placement = as_they_are if self.mode == "none" else by_grids
        for name, small in (("image", fixed), ("atlas image", moving)):
            if np.ptp(sitk.GetArrayViewFromImage(small)) == 0:
                return f"the {name} is constant", placement, 0.0, 0.0
        if self.mode != "none":
            by_foregrounds = registration.translation(
                center, registration.foreground_center(moving) - registration.foreground_center(fixed)
            )
            placement = max(as_they_are, by_grids, by_foregrounds, key=score)

        transform: sitk.Transform = placement
        problem = ""
        if self.mode != "none":
            try:
                rigid = registration.optimize(fixed, moving, placement, self.seed)
                transform = max(placement, rigid, key=score)
                if self.mode != "rigid":
                    affine = registration.optimize(fixed, moving, registration.as_affine(transform), self.seed)
                    transform = max(transform, affine, key=score)
                if self.mode == "deformable":
                    transform = max(transform, registration.deform(fixed, moving, transform), key=score)
            except RuntimeError as e:
                problem = f"the optimizer stopped with {str(e).strip().splitlines()[-1]!r}"
        overlap = registration.overlap(fixed, moving, transform)
        if not problem and overlap < self.min_overlap:
            problem = f"the overlap of the foregrounds is {overlap:.2f}, below min_overlap={self.min_overlap}"
        if problem and transform is not placement:
            transform, overlap = placement, registration.overlap(fixed, moving, placement)
        return problem, transform, score(transform), overlap

    def _fail(self, problem: str, image: MetaTensor, atlas_image: MetaTensor) -> None:
        message = f"Aligning {_name(atlas_image, 'the atlas image')} to {_name(image, 'the image')} failed: {problem}; "
        if self.on_failure == "error":
            raise ValueError(
                f"{message}check that both show the same body part and have the right orientation in their headers, "
                "or pass another `mode`, a lower `min_overlap`, or on_failure='warn'."
            )
        warnings.warn(f"{message}the atlas stays at the best placement found, check it.", stacklevel=3)


# Checks


def _as_meta_tensor(x: torch.Tensor) -> MetaTensor:
    return x if isinstance(x, MetaTensor) else MetaTensor(x)


def _name(x: MetaTensor, default: str) -> str:
    return str(x.meta.get("filename_or_obj") or default)


def _check_inputs(image: MetaTensor, atlas_image: MetaTensor, atlas_label: MetaTensor) -> None:
    tensors = {"the image": image, "the atlas image": atlas_image, "the atlas label map": atlas_label}
    for what, x in tensors.items():
        name = _name(x, what)
        if x.ndim not in (3, 4) or x.ndim != image.ndim or 0 in x.shape:
            raise ValueError(
                f"Image and atlas must be channel-first and all 2D or all 3D, got shape {tuple(x.shape)} for {name} "
                f"and {tuple(image.shape)} for the image."
            )
        if x is not image and x.shape[0] != 1:
            raise ValueError(f"{what.capitalize()} must have one channel, got {x.shape[0]} in {name}.")
        affine = affine_of(x)
        if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
            raise ValueError(
                f"The affine of {name} cannot be inverted, got {affine.tolist()}; repair the file's header."
            )
        if not torch.isfinite(x).all():
            raise ValueError(f"{name} has NaN or infinite voxels; replace them first.")
    if atlas_label.is_floating_point() and not torch.equal(atlas_label, atlas_label.round()):
        raise ValueError(
            f"{_name(atlas_label, 'The atlas label map')} has non-integer values; resample it by nearest neighbor."
        )


def _check_same_grid(image: MetaTensor, atlas: MetaTensor) -> None:
    shape, atlas_shape = tuple(image.shape[1:]), tuple(atlas.shape[1:])
    affine, atlas_affine = affine_of(image), affine_of(atlas)
    if shape != atlas_shape or grid_distance(affine, atlas_affine, shape) > GRID_TOLERANCE_MM:
        raise ValueError(
            f"With mode='none' the atlas must be on the image's grid: {_name(image, 'the image')} has shape {shape} "
            f"and affine {affine.tolist()}, {_name(atlas, 'the atlas')} has shape {atlas_shape} and affine "
            f"{atlas_affine.tolist()}; use mode='rigid', 'affine' or 'deformable'."
        )


def _check_size(x: MetaTensor, minimum: int = 4) -> None:
    if min(x.shape[1:]) < minimum:
        raise ValueError(
            f"Registration needs {minimum} voxels or more along each axis, got shape {tuple(x.shape[1:])} for "
            f"{_name(x, 'an image')}; drop the axis of a single slice, or use mode='none'."
        )
