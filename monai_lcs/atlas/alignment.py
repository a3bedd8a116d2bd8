"""Alignment of an atlas to a scan: registration finds it once, and it propagates any label map of the atlas."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.utils import look_up_option

from monai_lcs.atlas import orientation, registration
from monai_lcs.grids import affine_of, from_sitk, on_grid_of, same_grid, to_sitk

__all__ = ["ALIGNMENTS", "Alignment", "AtlasAligner", "check_alignable"]

ALIGNMENTS = ("none", "rigid", "affine", "deformable", "deformable_fine")
"""The kinds of alignment, each with more freedom than the one before."""

NOT_CHECKED = "not checked"
UNSUSPICIOUS = (NOT_CHECKED, orientation.AS_IN_HEADER, orientation.CANNOT_BE_TOLD)

NEXT_STEPS = (
    "check that both show the same body part and have the right orientation in their headers, "
    "or try another alignment (`mode`; --align), or a lower `min_overlap`."
)


@dataclass(frozen=True, eq=False)
class Alignment:
    """What registration found: where each point of a scan lies in the atlas.

    Args:
        image: the atlas image on the scan's grid, ``(1, *spatial)``, float32.
        transform: takes points of the scan to points of the atlas, in mm.
        mode: one of :data:`ALIGNMENTS`.
        metric: mutual information in nats; higher is better.
        overlap: Dice of the foregrounds of scan and aligned atlas, 0 to 1.
        seconds: what it took.
        orientation: in which orientation the scan fits the atlas, in words; see
            :func:`monai_lcs.atlas.orientation.better_orientation`.

    Example:
        >>> image = torch.rand(1, 8, 8)
        >>> alignment = AtlasAligner("none").align(image, image)
        >>> alignment.report["mode"], alignment.overlap, alignment.propagate((image > 0.5).int()).dtype
        ('none', 1.0, torch.int32)
    """

    image: MetaTensor
    transform: sitk.Transform
    mode: str
    metric: float
    overlap: float
    seconds: float
    orientation: str = NOT_CHECKED

    @property
    def report(self) -> dict[str, Any]:
        """``mode``, ``metric``, ``overlap``, ``seconds`` and ``orientation``."""
        return {name: getattr(self, name) for name in ("mode", "metric", "overlap", "seconds", "orientation")}

    def on_grid_of(self, volume: MetaTensor, atlas_image: MetaTensor) -> Alignment:
        """The same alignment for another grid of the scan.

        Args:
            volume: ``(C, *spatial)``, on the grid that atlas image and labels are to have.
            atlas_image: ``(1, *spatial)``, the image that was aligned, on its own grid.

        Raises:
            ValueError: with the mode ``"none"``, which has one grid for all.

        Example:
            >>> image = MetaTensor(torch.zeros(1, 32, 32))
            >>> image[:, 8:24, 10:22] = torch.arange(16.0)[:, None] + 5
            >>> AtlasAligner("rigid").align(image, image).on_grid_of(image[:, :20], image).image.shape
            torch.Size([1, 20, 32])
        """
        if self.mode == "none":
            raise ValueError("An alignment with the mode 'none' holds for one grid alone: align on the other grid.")
        moving = to_sitk(atlas_image.float(), affine_of(atlas_image))
        voxels, _ = from_sitk(registration.resample(moving, reference_grid(volume), self.transform))
        return replace(self, image=on_grid_of(volume, voxels, atlas_image.meta))

    def propagate(self, label_map: torch.Tensor) -> MetaTensor:
        """Carry an atlas label map to the scan's grid, by nearest neighbor.

        Args:
            label_map: ``(1, *spatial)``, ids in any dtype, on any grid in the atlas's world.

        Returns:
            ``(1, *scan_spatial)``: the same ids in the same dtype, 0 beyond the label map's border.

        Raises:
            ValueError: with the mode ``"none"``, when the label map is not on the scan's grid.
        """
        labels = as_meta_tensor(label_map)
        fixed = reference_grid(self.image)
        moving = to_sitk(labels, affine_of(labels))
        if self.mode == "none":
            _check_same_grid(self.image, labels)
            moving.CopyInformation(fixed)
        propagated, _ = from_sitk(sitk.Resample(moving, fixed, self.transform, sitk.sitkNearestNeighbor, 0.0))
        return on_grid_of(self.image, propagated.to(labels.dtype), labels.meta)


class AtlasAligner:
    """Aligns atlases to scans; see :class:`monai_lcs.transforms.AlignAtlas` for how, and for the arguments.

    It keeps no state, so that several threads may share one.

    Args:
        check_orientation: whether to look if the scan's header turns it the wrong way, see
            :func:`monai_lcs.atlas.orientation.better_orientation`; never with the mode ``"none"``.

    Raises:
        ValueError: for an unknown ``mode`` or ``on_failure``, ``min_overlap`` outside 0 to 1, ``spacing_mm`` not
            positive, or a negative ``seed``.

    Example:
        >>> image = torch.zeros(1, 40, 48)
        >>> image[:, 10:30, 12:40] = torch.arange(20.0)[:, None] + 5
        >>> far = torch.tensor([[1.0, 0, 300], [0, 1, -80], [0, 0, 1]])  # the same scan, 300 and -80 mm away
        >>> alignment = AtlasAligner("rigid").align(image, MetaTensor(image, affine=far))
        >>> labels = MetaTensor((image > 15).int(), affine=far)
        >>> bool((alignment.propagate(labels) == labels).all()), round(alignment.overlap, 2)
        (True, 1.0)
    """

    def __init__(
        self,
        mode: str = "affine",
        min_overlap: float = 0.5,
        on_failure: str = "error",
        spacing_mm: float = 2.0,
        seed: int = 0,
        check_orientation: bool = True,
    ) -> None:
        self.mode = look_up_option(mode, ALIGNMENTS)
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
        self.check_orientation = check_orientation and self.mode != "none"

    @property
    def key(self) -> tuple[Any, ...]:
        """What an alignment depends on besides the two images. Different here, different there."""
        oriented = self.check_orientation and orientation.constants()
        failed = self.min_overlap, self.on_failure  # what one warns of is an error to another
        return self.mode, *failed, self.spacing_mm, self.seed, registration.constants(), oriented

    def align(self, image: torch.Tensor, atlas_image: torch.Tensor) -> Alignment:
        """Register the atlas image to a scan.

        Args:
            image: the scan, ``(C, *spatial)``, 2D or 3D; its first channel is registered. Without metadata voxels are
                1 mm wide.
            atlas_image: ``(1, *spatial)``, on its own grid.

        Raises:
            ValueError: for wrong shapes, values or affines; for grids that differ, with the mode ``"none"``; and for a
                failed alignment, with ``on_failure="error"``.
        """
        start = time.perf_counter()
        scan, atlas = as_meta_tensor(image), as_meta_tensor(atlas_image)
        check_alignable(scan, scan, "the image")
        check_alignable(atlas, scan, "the atlas image")
        fixed, moving = self._as_sitk(scan, atlas)
        # Most of either runs on one thread, so that the bits do not depend on the cores: side by side they use two.
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(self._orientation, scan, atlas)
            problem, transform, metric, overlap = self._register(fixed, moving)
            found = looking.result()
        if problem:
            better = "" if found in UNSUSPICIOUS else f" (it fits better with {found})"
            self.fail(problem + better, scan, atlas)
        voxels, _ = from_sitk(registration.resample(moving, fixed, transform))
        aligned = on_grid_of(scan, voxels, atlas.meta)
        return Alignment(aligned, transform, self.mode, metric, overlap, time.perf_counter() - start, found)

    def propagate(self, alignment: Alignment, label_map: torch.Tensor, image: torch.Tensor) -> MetaTensor:
        """:meth:`Alignment.propagate`, which has failed where no label is left on the scan's grid.

        It warns where the scan's header seems to turn it the wrong way: the labels then lie on the wrong parts.

        Args:
            alignment: of the atlas to the scan.
            label_map: of the atlas, ``(1, *spatial)``.
            image: the scan; the message names its file.

        Raises:
            ValueError: when no label is left, with ``on_failure="error"``.
        """
        scan = as_meta_tensor(image)
        if alignment.orientation not in UNSUSPICIOUS:
            warnings.warn(
                f"The header of {name_of(scan, 'the image')} looks wrong: the scan fits better with "
                f"{alignment.orientation}. Labels may lie wrong: repair the header, or the atlas's if all scans warn, "
                "and make sure which side is left.",
                stacklevel=3,
            )
        propagated = alignment.propagate(label_map)
        if label_map.any() and not propagated.any():
            self.fail("no label of the atlas is left on the image's grid", scan, alignment.image)
        return propagated

    def fail(self, problem: str, image: MetaTensor, atlas_image: MetaTensor) -> None:
        """Raise a ValueError that names the files, or warn, as ``on_failure`` says."""
        files = f"{name_of(atlas_image, 'the atlas image')} to {name_of(image, 'the image')}"
        message = f"Aligning {files} failed: {problem}; "
        if self.on_failure == "error":
            raise ValueError(message + NEXT_STEPS)
        warnings.warn(f"{message}the atlas stays at the best placement found, check it.", stacklevel=4)

    def _as_sitk(self, scan: MetaTensor, atlas: MetaTensor) -> tuple[sitk.Image, sitk.Image]:
        """Scan and atlas as images of SimpleITK; on the very same grid with the mode ``"none"``."""
        if self.mode != "none":
            _check_size(scan)
            _check_size(atlas)
        fixed, moving = (to_sitk(x[:1].float(), affine_of(x)) for x in (scan, atlas))
        if self.mode == "none":
            _check_same_grid(scan, atlas)
            moving.CopyInformation(fixed)
        return fixed, moving

    def _orientation(self, scan: MetaTensor, atlas: MetaTensor) -> str:
        """In which orientation the scan fits the atlas, in words."""
        if not self.check_orientation:
            return NOT_CHECKED
        found = orientation.better_orientation(scan, atlas)
        return orientation.CANNOT_BE_TOLD if found is None else str(found)

    def _register(self, fixed: sitk.Image, moving: sitk.Image) -> tuple[str, sitk.Transform, float, float]:
        """Find the transform from scan to atlas: what went wrong if anything, transform, metric and overlap."""
        images = fixed, moving
        fixed, moving = (registration.shrink(image, self.spacing_mm) for image in images)
        for name, image in (("image", fixed), ("atlas image", moving)):
            if np.ptp(sitk.GetArrayViewFromImage(image)) == 0:
                return f"the {name} is constant", registration.first_placement(fixed, moving, self.mode), 0.0, 0.0
        placement = registration.best_placement(fixed, moving, self.mode, self.seed)
        problem = ""
        transform: sitk.Transform = placement
        try:
            transform = registration.register(*images, placement, self.mode, self.seed, self.spacing_mm)
        except RuntimeError as error:
            problem = f"the optimizer stopped with {str(error).strip().splitlines()[-1]!r}"
        overlap = registration.overlap(fixed, moving, transform)
        if not problem and overlap < self.min_overlap:
            problem = f"the overlap of the foregrounds is {overlap:.2f}, below min_overlap={self.min_overlap}"
        if problem and transform is not placement:
            transform, overlap = placement, registration.overlap(fixed, moving, placement)
        return problem, transform, registration.mutual_information(fixed, moving, transform, self.seed), overlap


def as_meta_tensor(x: torch.Tensor) -> MetaTensor:
    """The tensor with metadata; voxels of 1 mm where it had none."""
    return x if isinstance(x, MetaTensor) else MetaTensor(x)


def name_of(x: MetaTensor, default: str) -> str:
    """The file that a tensor was read from, for messages."""
    return str(x.meta.get("filename_or_obj") or default)


def reference_grid(image: MetaTensor) -> sitk.Image:
    """An empty image of SimpleITK on the grid of ``(1, *spatial)``."""
    return to_sitk(torch.zeros(1, *image.shape[1:], dtype=torch.uint8), affine_of(image))


# ---- checks ---------------------------------------------------------------------------------------------------------


def check_alignable(x: MetaTensor, image: MetaTensor, what: str) -> None:
    """Check a scan, an atlas image or an atlas label map before registration.

    Args:
        x: the volume to check.
        image: the scan, whose number of axes it must have.
        what: its name in messages where no file is known, such as ``"the atlas image"``.

    Raises:
        ValueError: for another number of axes, several channels of an atlas, an affine that cannot be inverted, and
            values that are not finite.

    Example:
        >>> scan = MetaTensor(torch.zeros(1, 4, 4, 4))
        >>> check_alignable(MetaTensor(torch.zeros(2, 4, 4, 4)), scan, "the atlas image")
        Traceback (most recent call last):
        ValueError: The atlas image must have one channel, got 2 in the atlas image.
    """
    name = name_of(x, what)
    if x.ndim not in (3, 4) or x.ndim != image.ndim or 0 in x.shape:
        raise ValueError(
            f"Image and atlas must be channel-first and all 2D or all 3D, got shape {tuple(x.shape)} for {name} "
            f"and {tuple(image.shape)} for the image."
        )
    if x is not image and x.shape[0] != 1:
        raise ValueError(f"{what.capitalize()} must have one channel, got {x.shape[0]} in {name}.")
    affine = affine_of(x)
    if not np.isfinite(affine).all() or np.linalg.det(affine) == 0:
        raise ValueError(f"The affine of {name} cannot be inverted, got {affine.tolist()}; repair the file's header.")
    if not torch.isfinite(x).all():
        raise ValueError(f"{name} has NaN or infinite voxels; replace them first.")


def check_integers(label_map: MetaTensor) -> None:
    """Raise a ValueError where a label map was interpolated."""
    if label_map.is_floating_point() and not torch.equal(label_map, label_map.round()):
        name = name_of(label_map, "The atlas label map")
        raise ValueError(f"{name} has non-integer values; resample it by nearest neighbor.")


def _check_same_grid(image: MetaTensor, atlas: MetaTensor) -> None:
    shape, atlas_shape = tuple(image.shape[1:]), tuple(atlas.shape[1:])
    affine, atlas_affine = affine_of(image), affine_of(atlas)
    if not same_grid(shape, affine, atlas_shape, atlas_affine):
        raise ValueError(
            f"With mode='none' the atlas must be on the image's grid: {name_of(image, 'the image')} has shape {shape} "
            f"and affine {affine.tolist()}, {name_of(atlas, 'the atlas')} has shape {atlas_shape} and affine "
            f"{atlas_affine.tolist()}; use mode='rigid', 'affine' or 'deformable'."
        )


def _check_size(x: MetaTensor, minimum: int = 4) -> None:
    if min(x.shape[1:]) < minimum:
        raise ValueError(
            f"Registration needs {minimum} voxels or more along each axis, got shape {tuple(x.shape[1:])} for "
            f"{name_of(x, 'an image')}; drop the axis of a single slice, or use mode='none'."
        )
