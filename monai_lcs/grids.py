"""Grids: the affine of an image, whether two grids are the same, and images of SimpleITK."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from torch import Tensor

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = ["affine_of", "from_sitk", "grid_distance", "on_grid_of", "to_sitk", "voxel_size"]


def affine_of(x: MetaTensor) -> np.ndarray:
    """Return the affine of a channel-first tensor as float64, ``(d + 1, d + 1)`` for ``d`` spatial dimensions."""
    return to_affine_nd(x.ndim - 1, x.affine.detach().cpu().numpy().astype(np.float64))


def voxel_size(image: Tensor, item: int = 0) -> tuple[float, ...]:
    """Size in mm of a voxel along each spatial axis; 1 mm where the tensor carries no affine.

    Args:
        image: ``(B, C, *spatial)``, any tensor; a :class:`monai.data.MetaTensor` knows its affine.
        item: which of the batch; each has its own affine.
    """
    dims = image.ndim - 2
    if not isinstance(image, MetaTensor):
        return (1.0,) * dims
    affine = torch.as_tensor(image.affine, dtype=torch.float64)
    affine = affine[item] if affine.ndim == 3 else affine
    return tuple(torch.linalg.norm(affine[:dims, :dims], dim=0).tolist())


def grid_distance(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance, in mm, between the corners of two grids of the same shape `(*spatial)`.

    Example:
        >>> import numpy as np
        >>> grid_distance(np.eye(4), np.diag([1.01, 1, 1, 1]), (101, 50, 50))  # the last voxel is number 100
        1.0
    """
    sizes = [*shape, *[1] * (len(affine) - 1 - len(shape))]  # a 2D file may come with a 3D affine
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in sizes))]).T
    offsets = (np.asarray(affine, dtype=float) - np.asarray(other, dtype=float)) @ corners
    return round(float(np.linalg.norm(offsets[:-1], axis=0).max()), 9)


def to_sitk(x: torch.Tensor, affine: np.ndarray) -> sitk.Image:
    """Convert ``(1, *spatial)`` and its RAS affine to a SimpleITK image (LPS), in its dtype where SimpleITK has it."""
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
    """Convert a SimpleITK image (LPS) to ``(1, *spatial)``, dtype unchanged, and its RAS affine."""
    import SimpleITK as sitk  # only registration needs it

    dims = image.GetDimension()
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = np.reshape(image.GetDirection(), (dims, dims)) * image.GetSpacing()
    affine[:-1, -1] = image.GetOrigin()
    array = np.ascontiguousarray(sitk.GetArrayFromImage(image).T)
    return torch.from_numpy(array)[None], _swap_ras_lps(affine)


def _swap_ras_lps(affine: np.ndarray) -> np.ndarray:
    return np.diag([-1, -1, 1, 1] if len(affine) == 4 else [-1, -1, 1]) @ affine


def on_grid_of(image: MetaTensor, aligned: torch.Tensor, atlas_meta: Mapping[str, Any]) -> MetaTensor:
    """Give the aligned voxels exactly the image's affine and its device, and the atlas's other metadata."""
    meta = {**atlas_meta, "spatial_shape": np.array(image.shape[1:])}
    meta.pop("affine", None)
    return MetaTensor(aligned.to(image.device), affine=image.affine.clone(), meta=meta)
