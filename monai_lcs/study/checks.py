"""Checks scans, label maps and whole cases before long work starts."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from tqdm import tqdm

from monai_lcs.grids import grid_distance, same_grid
from monai_lcs.labels.label_map import check_label_map
from monai_lcs.labels.limits import MAX_FLOAT32_ID
from monai_lcs.study.images import read_image

__all__ = [
    "check_case",
    "check_cases",
    "check_label_map_volume",
    "check_resampled_size",
    "check_same_grid",
    "check_scan",
    "check_t1",
    "check_voxel_sizes",
    "read_label_map",
    "read_scan",
    "list_failures",
    "require_valid",
]

_Grid: TypeAlias = tuple[tuple[int, ...], np.ndarray]

VOXEL_MM = (0.01, 30.0)
"""The smallest and the largest edge of a voxel that scans of a body have."""

MOST_MM = 3000.0
"""The longest field of view that scanners have, and more."""

MOST_VALUE = 1e18
"""Larger intensities overflow when they are squared in float32; smaller ones than its inverse vanish."""

MOST_EQUAL = 0.6
"""The largest share of neighbors, neither 0, that have the same value in a scan."""

MOST_VOXELS = 2**30
"""The largest volume that resampling may make: 4 GiB of float32."""


def read_scan(path: PathLike, spatial_dims: int = 3) -> MetaTensor:
    """Reads an image file once and checks what :func:`check_scan` checks.

    Returns:
        ``(1, *spatial)``, float32.

    Raises:
        ValueError: if the file does not exist or cannot be read to its end, or its volume fails the check.

    Example:
        >>> import nibabel as nib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(nib.Nifti1Image(np.ones((4, 5, 6)), np.eye(4)), f"{folder}/scan.nii")
        ...     read_scan(f"{folder}/scan.nii").shape
        torch.Size([1, 4, 5, 6])
    """
    scan = read_image(path)
    check_scan(scan, str(path), spatial_dims)
    return scan


def read_label_map(path: PathLike, spatial_dims: int = 3) -> MetaTensor:
    """Reads a label map once and checks what :func:`check_label_map_volume` checks.

    Returns:
        ``(1, *spatial)``, float32, which holds the ids exactly.

    Raises:
        ValueError: if the file does not exist or cannot be read to its end, or its volume fails the check.

    Example:
        >>> import nibabel as nib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     nib.save(nib.Nifti1Image(np.full((4, 5, 6), 17, np.uint8), np.eye(4)), f"{folder}/dseg.nii")
        ...     read_label_map(f"{folder}/dseg.nii").unique().tolist()
        [17.0]
    """
    label_map = read_image(path)
    check_label_map_volume(label_map, str(path), spatial_dims)
    return label_map


def check_scan(volume: torch.Tensor, name: str, spatial_dims: int = 3) -> None:
    """Checks that a volume ``(C, *spatial)`` has one channel, ``spatial_dims`` dimensions and sensible values.

    A 3D volume of a single slice counts as 2D, whichever axis has the length 1. Values must be finite and not too large
    to compute with, and the voxels of a MetaTensor pass :func:`check_voxel_sizes`.

    Args:
        volume: the volume; it may come from a file or from memory.
        name: what an error message calls the volume, such as its path.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: one sentence that names the volume and what is wrong with it.

    Example:
        >>> check_scan(torch.rand(1, 4, 5, 6), "scan.nii")
        >>> check_scan(torch.rand(1, 4, 5), "slice.nii")
        Traceback (most recent call last):
        ValueError: slice.nii must be 3D, got a 2D file of shape (4, 5).
    """
    channels, *spatial = volume.shape
    if channels != 1:
        raise ValueError(
            f"{name} must be {spatial_dims}D, got a {len(spatial) + 1}D file of {channels} channels: "
            "give one volume of it."
        )
    if len(spatial) != spatial_dims or (spatial_dims == 3 and 1 in spatial):
        dims = len(spatial) if len(spatial) != spatial_dims else 2
        raise ValueError(f"{name} must be {spatial_dims}D, got a {dims}D file of shape {tuple(spatial)}.")
    _check_values(volume, name)
    if isinstance(volume, MetaTensor):
        check_voxel_sizes(volume, name)


def _check_values(volume: torch.Tensor, name: str) -> None:
    """Values must be finite, and so must their squares."""
    if not volume.numel():
        raise ValueError(f"{name} has no voxels, got the shape {tuple(volume.shape[1:])}.")
    values = volume.as_tensor() if isinstance(volume, MetaTensor) else volume
    low, high = (float(extreme) for extreme in torch.aminmax(values))
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"{name} has {bad} NaN or Inf voxels of {volume.numel()}: set them to 0 if nothing is there.")
    largest = max(-low, high)
    if largest > MOST_VALUE or 0 < largest < 1 / MOST_VALUE:
        size = "large" if largest > 1 else "small"
        raise ValueError(f"{name} has values from {low:.3g} to {high:.3g}, too {size} to compute with: rescale it.")


def check_voxel_sizes(volume: MetaTensor, name: str) -> None:
    """Checks that voxels and field of view of a volume ``(C, *spatial)`` have sizes that scans of a body have.

    Voxel edges must be from :data:`VOXEL_MM`, the field of view at most :data:`MOST_MM`, and the affine invertible.

    Raises:
        ValueError: naming the volume and the sizes.

    Example:
        >>> check_voxel_sizes(MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4)), "scan.nii")
        >>> meters = torch.diag(torch.tensor([1000.0, 1000, 1000, 1]))
        >>> check_voxel_sizes(MetaTensor(torch.zeros(1, 4, 5, 6), affine=meters), "scan.nii")
        Traceback (most recent call last):
        ValueError: scan.nii must have voxels of 0.01 to 30 mm, got 1000 x 1000 x 1000 mm: correct its header, such as \
the unit of length.
    """
    shape, affine = _grid_of(volume)
    axes = affine[:-1, : len(shape)]
    sizes = np.linalg.norm(axes, axis=0)
    if not (sizes >= VOXEL_MM[0]).all() or not (sizes <= VOXEL_MM[1]).all():  # NaN is neither
        raise ValueError(
            f"{name} must have voxels of {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm, got {_product(sizes)} mm: "
            "correct its header, such as the unit of length."
        )
    if not np.isfinite(affine).all() or np.linalg.matrix_rank(axes / sizes, tol=1e-3) < len(shape):
        raise ValueError(f"{name} has an affine without an inverse, {affine.round(3).tolist()}: correct its header.")
    extent = sizes * shape
    if extent.max() > MOST_MM:
        raise ValueError(
            f"{name} must have a field of view up to {MOST_MM:g} mm, got {_product(extent)} mm: "
            "correct the voxel sizes in its header."
        )


def check_t1(volume: MetaTensor, name: str) -> None:
    """Checks that a scan ``(1, *spatial)`` is no label map, and warns where it looks like CT.

    In a label map of whole numbers most neighbors are equal: 80 to 99 % in parcellations; in scans up to 20 %. CT has
    air at -1000.

    Raises:
        ValueError: naming the volume and how many values it has.

    Example:
        >>> check_t1(MetaTensor(torch.ones(1, 4, 5, 6)), "dseg.nii")
        Traceback (most recent call last):
        ValueError: dseg.nii looks like a label map (1 value, 100 % of neighbors equal): give the scan itself.
    """
    values = convert_to_numpy(volume)[0]
    pairs = [(values[1:], values[:-1]), (values[:, 1:], values[:, :-1]), (values[..., 1:], values[..., :-1])]
    equal = [(a == b)[(a != 0) & (b != 0)] for a, b in pairs]
    share = min((float(each.mean()) for each in equal if each.size), default=0.0)
    if share > MOST_EQUAL and not (values % 1).any():
        number = len(np.unique(values[values != 0]))
        raise ValueError(
            f"{name} looks like a label map ({number} value{'s' * (number != 1)}, {100 * share:.0f} % of neighbors "
            "equal): give the scan itself."
        )
    low, high = np.percentile(values, [1, 99.5])
    if -4000 < low < -800 and high > 200:
        warnings.warn(
            f"{name} looks like CT (values from {values.min():.0f} to {values.max():.0f}), but weights and atlas are "
            "for T1-weighted MR: do not trust the result before you have looked at it.",
            stacklevel=3,
        )


def check_resampled_size(volume: MetaTensor, spacing: Sequence[float], name: str) -> None:
    """Checks, before memory is taken, that a volume ``(C, *spatial)`` stays small enough at another voxel size.

    Raises:
        ValueError: if it would have more than :data:`MOST_VOXELS` voxels.

    Example:
        >>> scan = MetaTensor(torch.zeros(1, 50, 50, 50), affine=torch.diag(torch.tensor([30.0, 30, 30, 1])))
        >>> check_resampled_size(scan, (2, 2, 2), "scan.nii")
        >>> check_resampled_size(scan, (1, 1, 1), "scan.nii")
        Traceback (most recent call last):
        ValueError: scan.nii would have 1500 x 1500 x 1500 voxels at 1 x 1 x 1 mm, too many for memory: crop it, or \
use larger voxels.
    """
    shape, affine = _grid_of(volume)
    sizes = np.linalg.norm(affine[:-1, : len(shape)], axis=0)
    # An oblique scan is not turned, its axes are only permuted
    order = np.abs(affine[: len(shape), : len(shape)] / sizes).argmax(axis=0)
    fine = np.array([float(spacing[axis]) for axis in order])
    voxels = np.ceil(sizes * shape / fine)
    if voxels.prod() > MOST_VOXELS:
        raise ValueError(
            f"{name} would have {_product(voxels)} voxels at {_product(fine)} mm, too many for memory: "
            "crop it, or use larger voxels."
        )


def _product(values: Sequence[float] | np.ndarray) -> str:
    """Shows sizes as ``1 x 2 x 3``."""
    return " x ".join(f"{value:.6g}" for value in values)


def check_label_map_volume(volume: torch.Tensor, name: str, spatial_dims: int = 3) -> None:
    """Checks what :func:`check_scan` checks, and that a label map holds integers from 0 to 2**24 - 1.

    The network's input is float32, which holds these integers exactly.

    Args:
        volume: the label map ``(C, *spatial)``; it may come from a file or from memory.
        name: what an error message calls the label map, such as its path.
        spatial_dims: 2 or 3.

    Raises:
        ValueError: one sentence that names the label map and what is wrong with it.

    Example:
        >>> check_label_map_volume(torch.full((1, 4, 5, 6), 17.0), "dseg.nii")
        >>> check_label_map_volume(torch.full((1, 4, 5, 6), 2.0**24), "dseg.nii")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: The label map dseg.nii must hold ids below 2**24 = 16777216, which float32 holds exactly, ...
    """
    check_scan(volume, name, spatial_dims)
    check_label_map(volume, f"The label map {name}")
    if volume.max() > MAX_FLOAT32_ID:
        raise ValueError(
            f"The label map {name} must hold ids below 2**24 = {2**24}, which float32 holds exactly, "
            f"got {volume.max().item():.0f}: renumber its labels."
        )


def check_same_grid(image: MetaTensor, label_map: MetaTensor, image_name: str, label_name: str) -> None:
    """Checks that an image and a label map, ``(C, *spatial)``, lie on the same grid.

    Raises:
        ValueError: naming both, if their shapes differ or :func:`monai_lcs.grids.same_grid` finds their affines apart.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4))
        >>> check_same_grid(image, image[..., :3], "scan.nii", "dseg.nii")
        Traceback (most recent call last):
        ValueError: scan.nii and dseg.nii must have the same grid, got shapes (4, 5, 6) and (4, 5, 3).
    """
    _compare_grids(image_name, _grid_of(image), label_name, _grid_of(label_map))


def _grid_of(volume: MetaTensor) -> _Grid:
    """Returns the spatial shape and the affine."""
    return tuple(volume.shape[1:]), convert_to_numpy(volume.affine, dtype=float)


def _compare_grids(name: str, grid: _Grid, name_2: str, grid_2: _Grid) -> None:
    """Raises an error that says how two grids differ."""
    if same_grid(*grid, *grid_2):
        return
    (shape, affine), (shape_2, affine_2) = grid, grid_2
    if shape != shape_2:
        raise ValueError(f"{name} and {name_2} must have the same grid, got shapes {shape} and {shape_2}.")
    raise ValueError(
        f"{name} and {name_2} must have the same grid, got affines up to "
        f"{grid_distance(affine, affine_2, shape):.3g} mm apart: resample one to the other."
    )


def check_case(case: Mapping[str, Any], spatial_dims: int = 3) -> None:
    """Reads the files of a case, and raises if a network could not be trained or evaluated on them.

    Looks at the keys ``"image"``, ``"label"``, ``"atlas_image"`` and ``"atlas_label"``, where present. An image must
    pass :func:`read_scan`, a label map :func:`read_label_map`, and both together :func:`check_same_grid`. The check
    reads every voxel, one file after the other: it takes as long as loading the case, and the memory of one volume.

    Raises:
        ValueError: one sentence that names the file and what is wrong with it.

    Example:
        >>> check_case({"image": "none.nii"})
        Traceback (most recent call last):
        ValueError: none.nii does not exist.
    """
    for image_key, label_key in (("image", "label"), ("atlas_image", "atlas_label")):
        grids = {}
        for key, read in ((image_key, read_scan), (label_key, read_label_map)):
            if key in case:
                grids[key] = _grid_of(read(case[key], spatial_dims))  # not the voxels, which need the memory
        if len(grids) == 2:
            _compare_grids(case[image_key], grids[image_key], case[label_key], grids[label_key])


def check_cases(
    cases: Sequence[Mapping[str, Any]], spatial_dims: int = 3, progress: bool = True
) -> list[tuple[Mapping[str, Any], str]]:
    """Returns the cases that fail :func:`check_case`, each with its error message, and shows a progress bar.

    An atlas that all cases share is read once if it is a case of its own:
    ``check_cases([{"atlas_image": ..., "atlas_label": ...}, *cases])``.

    Example:
        >>> check_cases([{"image": "none.nii"}], progress=False)
        [({'image': 'none.nii'}, 'none.nii does not exist.')]
    """
    bad = []
    for case in tqdm(cases, desc="Checking files", unit="case", disable=not progress):
        try:
            check_case(case, spatial_dims)
        except ValueError as error:
            bad.append((case, str(error)))
    return bad


def require_valid(cases: Sequence[Mapping[str, Any]], spatial_dims: int = 3, progress: bool = True) -> None:
    """Checks all cases and raises one error for all that are bad.

    Raises:
        ValueError: which says how many cases are bad, and what is wrong with the first ten.

    Example:
        >>> require_valid([{"image": "none.nii"}], progress=False)
        Traceback (most recent call last):
        ValueError: 1 of 1 cases cannot be used:
          none.nii does not exist.
    """
    bad = check_cases(cases, spatial_dims, progress)
    if bad:
        raise ValueError(list_failures([message for _, message in bad], len(cases)))


def list_failures(messages: Sequence[str], total: int) -> str:
    """How many of all cases cannot be used, and what is wrong with the first ten.

    Example:
        >>> print(list_failures(["none.nii does not exist."], 3))
        1 of 3 cases cannot be used:
          none.nii does not exist.
    """
    lines = [*messages[:10], *["..."] * (len(messages) > 10)]
    return "\n  ".join([f"{len(messages)} of {total} cases cannot be used:", *lines])
