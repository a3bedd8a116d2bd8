"""Measures the volume of each label, and how far several atlases agree on it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from scipy import ndimage

from monai_lcs.grids import affine_of
from monai_lcs.labels import LabelTable
from monai_lcs.labels.groups import label_sizes
from monai_lcs.labels.label_map import as_label_array, check_known

__all__ = ["centers_mm", "volume_table", "voxel_mm3"]

_PIECE = 1 << 22
"""Voxels that are averaged at a time: what that takes does not grow with the label map."""


def volume_table(
    label_map: NdarrayOrTensor,
    affine_or_voxel_mm3: NdarrayOrTensor | float,
    table: LabelTable,
    agreement: NdarrayOrTensor | None = None,
    confidence: Mapping[int, float] | None = None,
) -> pd.DataFrame:
    """Returns the number of voxels and the volume of each label, how far atlases agreed on it and how sure it is.

    Args:
        label_map: integers of any shape; 0 is background.
        affine_or_voxel_mm3: affine ``(4, 4)`` of the grid in mm, or the volume of a voxel in mm3.
        table: the labels. A label that is absent from the label map has the volume 0.
        agreement: 0 to 1, of the label map's shape: at each voxel the share of the atlases' votes that its label got,
            see :func:`monai_lcs.transforms.fuse_atlases`.
        confidence: the Dice to expect of each label by the network's probabilities, by id.

    Returns:
        Columns ``id``, ``name``, ``voxels`` and ``mm3``, and one row for each label of the table. With ``agreement``
        also a column ``agreement``: the mean over the label's voxels, NaN if it has none. Look first at the labels
        whose agreement is low. With ``confidence`` also that column, which is to be read in the same way.

    Raises:
        ValueError: if the label map holds other values than 0 and the ids of the table, or the shapes differ.

    Example:
        >>> volume_table(np.array([[0, 4, 4]]), np.diag([1, 1, 2.5, 1]), LabelTable.from_ids([4, 7]))
           id     name  voxels  mm3
        0   4  label-4       2  5.0
        1   7  label-7       0  0.0
    """
    labels = as_label_array(label_map)
    sizes = label_sizes(labels)
    check_known(np.array([*sizes]), table)
    voxels = [sizes.get(id, 0) for id in table.ids]
    of_voxel = voxel_mm3(affine_or_voxel_mm3)
    # 7 digits: the voxel sizes of a file are float32
    mm3 = [float(f"{n * of_voxel:.7g}") for n in voxels]
    volumes = pd.DataFrame({"id": table.ids, "name": table.names, "voxels": voxels, "mm3": mm3})
    if agreement is not None:
        volumes["agreement"] = _mean_agreement(agreement, labels, sizes, table)
    if confidence is not None:
        volumes["confidence"] = [round(confidence.get(id, np.nan), 4) if id in sizes else np.nan for id in table.ids]
    return volumes


def voxel_mm3(affine_or_voxel_mm3: NdarrayOrTensor | float) -> float:
    """Returns the volume of a voxel, which the determinant of its affine is.

    Example:
        >>> voxel_mm3(np.diag([1, 1, 2.5, 1])), voxel_mm3(2.5)
        (2.5, 2.5)
    """
    affine = convert_to_numpy(affine_or_voxel_mm3)
    return float(abs(np.linalg.det(affine[:3, :3])) if affine.ndim else affine)


def centers_mm(label_map: MetaTensor) -> dict[int, tuple[float, ...]]:
    """Returns the center of mass of each label of a label map ``(1, *spatial)``, in mm of the world.

    Example:
        >>> import torch
        >>> centers_mm(MetaTensor(torch.tensor([[[0, 4, 4]]]), affine=torch.diag(torch.tensor([1.0, 2.0, 1.0]))))
        {4: (0.0, 3.0)}
    """
    labels, affine = as_label_array(label_map)[0], affine_of(label_map)
    ids = [int(id) for id in np.unique(labels) if id]
    voxels = np.array(ndimage.center_of_mass(labels > 0, labels, ids)).reshape(-1, labels.ndim)
    world = voxels @ affine[:-1, :-1].T + affine[:-1, -1]
    return {id: tuple(point.tolist()) for id, point in zip(ids, world, strict=True)}


def _mean_agreement(
    agreement: NdarrayOrTensor, labels: np.ndarray, sizes: Mapping[int, int], table: LabelTable
) -> list[float]:
    """Returns the mean agreement over the voxels of each label of the table, NaN if it has none."""
    if tuple(agreement.shape) != labels.shape:
        raise ValueError(f"`agreement` must have the label map's shape {labels.shape}, got {tuple(agreement.shape)}.")
    ids = np.array([0, *sizes])
    sums = np.zeros(len(ids))
    voxels, values = labels.ravel(), convert_to_numpy(agreement).ravel()
    for start in range(0, voxels.size, _PIECE):
        piece = slice(start, start + _PIECE)
        sums += np.bincount(np.searchsorted(ids, voxels[piece]), values[piece], minlength=len(ids))
    mean_of = {id: round(float(total) / sizes[id], 4) for id, total in zip(ids[1:].tolist(), sums[1:], strict=True)}
    return [mean_of.get(id, np.nan) for id in table.ids]
