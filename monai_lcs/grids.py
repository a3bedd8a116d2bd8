"""Handles voxel grids: affines, the comparison of two grids, resampling, and the conversion to and from SimpleITK."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.utils import look_up_option
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from torch import Tensor

from monai_lcs.boxes import Box, size_of, slabs_of, whole_box

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = [
    "GRID_TOLERANCE",
    "affine_of",
    "from_sitk",
    "grid_distance",
    "meta_on_grid",
    "on_grid_of",
    "resample",
    "same_grid",
    "to_sitk",
    "upright",
    "voxel_size",
]

GRID_TOLERANCE = 0.1
"""How far apart the corners of two equal grids may lie, in voxels: file headers round their affines."""

ROUNDING = 1e-3
"""Grids whose corners lie at most this far apart, in voxels, differ by rounding alone: their voxels are copied."""

TIE_MM = 1e-3
"""A voxel halfway between two others takes the one on the right, in front, above, whatever the axes of its file."""

SLAB_VOXELS = 1 << 22
"""About as many voxels are resampled at a time, of either grid: what that takes does not grow with the volumes."""


def affine_of(x: MetaTensor) -> np.ndarray:
    """Returns the affine of a channel-first tensor as float64, ``(d + 1, d + 1)`` for ``d`` spatial dimensions.

    Example:
        >>> affine_of(MetaTensor(torch.zeros(1, 4, 5), affine=torch.diag(torch.tensor([2.0, 3, 1])))).tolist()
        [[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0]]
    """
    return to_affine_nd(x.ndim - 1, x.affine.detach().cpu().numpy().astype(np.float64))


def voxel_size(image: Tensor, item: int = 0) -> tuple[float, ...]:
    """Returns the size of a voxel in mm along each spatial axis; 1 mm if the tensor carries no affine.

    Args:
        image: ``(B, C, *spatial)``; only a :class:`monai.data.MetaTensor` carries an affine.
        item: index in the batch; each item has its own affine.

    Example:
        >>> voxel_size(MetaTensor(torch.zeros(1, 1, 4, 5), affine=torch.diag(torch.tensor([2.0, 3, 1]))))
        (2.0, 3.0)
    """
    dims = image.ndim - 2
    if not isinstance(image, MetaTensor):
        return (1.0,) * dims
    affine = torch.as_tensor(image.affine, dtype=torch.float64)
    affine = affine[item] if affine.ndim == 3 else affine
    return tuple(torch.linalg.norm(affine[:dims, :dims], dim=0).tolist())


def grid_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """Returns the largest distance in mm between the corners of two grids of the same shape ``(*spatial)``.

    Example:
        >>> grid_distance(np.eye(4), np.diag([1.01, 1, 1, 1]), (101, 50, 50))  # the last voxel is number 100
        1.0
    """
    sizes = [*shape, *[1] * (len(affine) - 1 - len(shape))]  # a 2D file may come with a 3D affine
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in sizes))]).T
    offsets = (np.asarray(affine, dtype=float) - np.asarray(other, dtype=float)) @ corners
    return round(float(np.linalg.norm(offsets[:-1], axis=0).max()), 9)


def same_grid(shape: Sequence[int], affine: np.ndarray, shape_2: Sequence[int], affine_2: np.ndarray) -> bool:
    """Tells whether two grids are the same, within the one tolerance of the package.

    They are if their shapes ``(*spatial)`` are equal, and their corners lie at most :data:`GRID_TOLERANCE` voxels
    apart. A voxel here is as large as the first grid's shortest voxel edge.

    Example:
        >>> shifted = np.eye(4)
        >>> shifted[0, 3] = 0.09  # mm
        >>> same_grid((5, 6, 7), np.eye(4), (5, 6, 7), shifted), same_grid((5, 6, 7), np.eye(4), (5, 6, 8), np.eye(4))
        (True, False)
    """
    if tuple(shape) != tuple(shape_2):
        return False
    tolerance_mm = GRID_TOLERANCE * np.linalg.norm(np.asarray(affine)[:-1, :-1], axis=0).min()
    return bool(grid_distance(affine, affine_2, shape) <= tolerance_mm)


def to_sitk(x: torch.Tensor, affine: np.ndarray) -> sitk.Image:
    """Converts a tensor ``(1, *spatial)`` and its RAS affine to a SimpleITK image, whose world is LPS.

    The dtype stays where SimpleITK has it: bool becomes uint8, and half precision becomes float32.

    Example:
        >>> to_sitk(torch.zeros(1, 4, 5, 6), np.diag([1.0, 2, 3, 1])).GetSpacing()
        (1.0, 2.0, 3.0)
    """
    dtype = {torch.bool: torch.uint8, torch.float16: torch.float32, torch.bfloat16: torch.float32}.get(x.dtype, x.dtype)
    import SimpleITK as sitk  # only registration needs it

    image = sitk.GetImageFromArray(x[0].detach().cpu().to(dtype).numpy().T)
    affine = _swap_ras_lps(affine)
    spacing = np.linalg.norm(affine[:-1, :-1], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:-1, :-1] / spacing).ravel().tolist())
    image.SetOrigin(affine[:-1, -1].tolist())
    return image


def from_sitk(image: sitk.Image) -> tuple[torch.Tensor, np.ndarray]:
    """Converts a SimpleITK image to a tensor ``(1, *spatial)`` of the same dtype, and returns it with its RAS affine.

    Example:
        >>> volume, affine = from_sitk(to_sitk(torch.zeros(1, 4, 5, 6), np.diag([1.0, 2, 3, 1])))
        >>> volume.shape, affine.diagonal().tolist()
        (torch.Size([1, 4, 5, 6]), [1.0, 2.0, 3.0, 1.0])
    """
    import SimpleITK as sitk  # only registration needs it

    dims = image.GetDimension()
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = np.reshape(image.GetDirection(), (dims, dims)) * image.GetSpacing()
    affine[:-1, -1] = image.GetOrigin()
    array = np.ascontiguousarray(sitk.GetArrayFromImage(image).T)
    return torch.from_numpy(array)[None], _swap_ras_lps(affine)


def _swap_ras_lps(affine: np.ndarray) -> np.ndarray:
    """Flips the first two world axes."""
    return np.diag([-1, -1, *[1] * (len(affine) - 2)]) @ affine


def on_grid_of(image: MetaTensor, aligned: torch.Tensor, atlas_meta: Mapping[str, Any]) -> MetaTensor:
    """Returns the aligned voxels with exactly the image's affine, on its device, and with the atlas's other metadata.

    Args:
        image: ``(C, *spatial)``, the target of the alignment.
        aligned: ``(1, *spatial)``, voxels of the atlas on the image's grid.
        atlas_meta: metadata of the atlas volume as it was read.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 4, 5), affine=torch.diag(torch.tensor([2.0, 3, 1])))
        >>> aligned = on_grid_of(image, torch.ones(1, 4, 5), {"filename_or_obj": "T1w.nii.gz", "affine": torch.eye(3)})
        >>> aligned.affine.diagonal().tolist(), aligned.meta["filename_or_obj"]
        ([2.0, 3.0, 1.0], 'T1w.nii.gz')
    """
    return MetaTensor(
        aligned.to(image.device), affine=image.affine.clone(), meta=meta_on_grid(atlas_meta, image.shape[1:])
    )


def meta_on_grid(meta: Mapping[str, Any], shape: Sequence[int]) -> dict[str, Any]:
    """Returns the metadata of a volume for one on another grid: all but the affine, and nothing shared.

    MONAI's transforms write into the arrays of the metadata, such as ``pixdim``.

    Args:
        meta: metadata of a volume as it was read.
        shape: spatial shape of the other grid.

    Example:
        >>> meta = {"pixdim": np.ones(4), "affine": np.eye(4)}
        >>> other = meta_on_grid(meta, (4, 5, 6))
        >>> sorted(other), other["pixdim"] is meta["pixdim"]
        (['pixdim', 'spatial_shape'], False)
    """
    kept = {name: value for name, value in meta.items() if name != "affine"}
    return {**copy.deepcopy(kept), "spatial_shape": np.array(shape)}


def upright(voxels: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a view of voxels ``(x, y, z)`` whose axes are in the order and the directions closest to RAS.

    Args:
        voxels: the array; none of it is copied.
        affine: ``(4, 4)``, of the array.

    Returns:
        The view and its affine.

    Example:
        >>> view, affine = upright(np.array([[[1]], [[2]]]), np.diag([-1.0, 1, 1, 1]))
        >>> view.ravel().tolist(), affine[0].tolist()
        ([2, 1], [1.0, 0.0, 0.0, -1.0])
    """
    orientation = io_orientation(affine)
    return apply_orientation(voxels, orientation), affine @ inv_ornt_aff(orientation, voxels.shape)


def resample(
    volume: MetaTensor, shape: Sequence[int], affine: np.ndarray, mode: str = "bilinear", outside: float | None = None
) -> Tensor:
    """Samples a volume at the voxels of another grid, in slabs: the two grids are all that takes memory.

    The axes of either grid may have any order and direction: they change no bit of the result.

    Args:
        volume: ``(1, x, y, z)`` with its affine.
        shape: of the other grid.
        affine: ``(4, 4)``, likewise.
        mode: ``"bilinear"``, or ``"nearest"`` for label maps: a tie goes to the right, the front, the top.
        outside: the value more than half a voxel beyond the volume's border; that of the border by default.

    Returns:
        ``(1, *shape)``, of the type of the volume, on the CPU.

    Example:
        >>> volume = MetaTensor(torch.tensor([[[[2.0]], [[4.0]]]]))
        >>> resample(volume, (4, 1, 1), np.diag([0.5, 1, 1, 1])).flatten().tolist()
        [2.0, 3.0, 4.0, 4.0]
        >>> resample(volume, (4, 1, 1), np.diag([1.0, 1, 1, 1]), outside=0).flatten().tolist()
        [2.0, 4.0, 0.0, 0.0]
    """
    import SimpleITK as sitk  # not needed to read and to compare grids

    interpolator = {"bilinear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor}[
        look_up_option(mode, ("bilinear", "nearest"))
    ]
    source, source_affine = upright(volume.as_tensor()[0].detach().cpu().numpy(), affine_of(volume))
    result = np.full(tuple(shape), outside or 0, dtype=source.dtype)
    target, target_affine = upright(result, np.asarray(affine, dtype=float))
    edge = np.linalg.norm(target_affine[:-1, :-1], axis=0).min()
    if source.shape == target.shape and grid_distance(source_affine, target_affine, target.shape) <= ROUNDING * edge:
        target[...] = source
        return torch.from_numpy(result)[None]
    if mode == "nearest":
        source_affine[:3, 3] -= TIE_MM
    for slab in slabs_of(whole_box(target.shape), SLAB_VOXELS * min(1.0, target.size / source.size)):
        seen = _seen(slab, target_affine, source.shape, source_affine)
        if outside is not None:
            seen = [indices[(indices >= 0) & (indices < n)] for indices, n in zip(seen, source.shape, strict=True)]
            if not all(map(len, seen)):
                continue
        inside = (indices.clip(0, n - 1) for indices, n in zip(seen, source.shape, strict=True))
        part = to_sitk(torch.from_numpy(source[np.ix_(*inside)])[None], _moved(source_affine, [i[0] for i in seen]))
        grid = to_sitk(torch.zeros(1, 1, 1, 1), _moved(target_affine, [axis.start for axis in slab]))
        placed = grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
        found = sitk.Resample(part, size_of(slab), sitk.Transform(), interpolator, *placed, outside or 0)
        target[slab] = sitk.GetArrayViewFromImage(found).T
    return torch.from_numpy(result)[None]


def _moved(affine: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """The affine of a grid that begins at another voxel."""
    moved = affine.copy()
    moved[:-1, -1] += affine[:-1, :-1] @ start
    return moved


def _seen(slab: Box, affine: np.ndarray, shape: Sequence[int], source_affine: np.ndarray) -> list[np.ndarray]:
    """The voxels along each axis of a source, perhaps beyond it, from which a slab of another grid is interpolated."""
    corners = np.array([[*corner, 1] for corner in product(*((axis.start, axis.stop - 1) for axis in slab))]).T
    indices = (np.linalg.solve(source_affine, affine) @ corners)[: len(shape)]
    ends = zip(indices.min(axis=1), indices.max(axis=1), strict=True)
    return [np.arange(math.floor(low) - 1, math.ceil(high) + 2) for low, high in ends]
