"""How far apart the surfaces of labels lie in two label maps, in mm, for all labels at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from monai.config.type_definitions import NdarrayOrTensor
from monai.utils import convert_to_numpy
from scipy.spatial import KDTree

from monai_lcs.labels.label_map import as_label_array

__all__ = ["SurfaceScore", "surface_points", "surface_scores"]

ROUNDING_MM = 1e-4
"""Distances may exceed the tolerance by so much: an affine in a file has seven digits."""


class SurfaceScore(NamedTuple):
    """How far apart two surfaces lie.

    Attributes:
        hd95_mm: the 95th percentile of the distances from each surface to the other, the larger of the two; NaN where
            the label is in one label map alone, so that there is no distance.
        surface_dice: the share of both surfaces that lies within the tolerance of the other; 0 where the label is in
            one label map alone, NaN where it is in none.
    """

    hd95_mm: float
    surface_dice: float


def surface_points(label_map: NdarrayOrTensor, affine: NdarrayOrTensor) -> dict[int, np.ndarray]:
    """Find the surface of every label: the voxels that share a face with another label or with the image's outside.

    These are the voxels that MONAI's metrics take, those that an erosion of the label's mask removes. One pass over
    the label map finds those of all labels.

    Args:
        label_map: integers >= 0, ``(1, *spatial)``; 0 is background.
        affine: ``(d + 1, d + 1)``, voxels to mm.

    Returns:
        The centers of these voxels in mm, ``(N, d)``, for each id that occurs.

    Example:
        >>> surface_points(np.array([[[7, 7, 0], [7, 7, 0]]]), np.diag([1.0, 2.5, 1.0]))[7].tolist()
        [[0.0, 0.0], [0.0, 2.5], [1.0, 0.0], [1.0, 2.5]]
    """
    labels = as_label_array(label_map)[0]
    surface = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        marked, ids = np.moveaxis(surface, axis, 0), np.moveaxis(labels, axis, 0)
        marked[0] = marked[-1] = True
        differs = ids[1:] != ids[:-1]
        marked[1:] |= differs
        marked[:-1] |= differs
    surface &= labels > 0
    matrix = convert_to_numpy(affine, dtype=np.float64)
    points = np.argwhere(surface) @ matrix[:-1, :-1].T + matrix[:-1, -1]
    ids = labels[surface]
    order = np.argsort(ids, kind="stable")
    held, starts = np.unique(ids[order], return_index=True)
    return dict(zip(held.tolist(), np.split(points[order], starts[1:]), strict=True)) if len(held) else {}


def surface_scores(
    pred: NdarrayOrTensor,
    target: NdarrayOrTensor,
    ids: Sequence[int],
    affine: NdarrayOrTensor,
    tolerance_mm: float = 1.0,
) -> dict[int, SurfaceScore]:
    """Compute the distances between the surfaces of each label in two label maps.

    The values equal those of ``monai.metrics.compute_hausdorff_distance(percentile=95)`` and ``compute_surface_dice``
    (without ``use_subvoxels``) for the mask of each label. Time and memory grow with the surfaces of the labels, not
    with their number times the image. Distances are those of the world, whatever the shape of a voxel and the
    direction of the axes.

    Args:
        pred: label map, integers >= 0, ``(1, *spatial)``.
        target: the true label map, on the same grid.
        ids: labels to score.
        affine: ``(d + 1, d + 1)``, voxels to mm.
        tolerance_mm: how far apart surfaces may lie to count as the same in the surface Dice.

    Raises:
        ValueError: if the shapes differ or the tolerance is negative.

    Example:
        >>> pred, target = np.array([[0, 4, 0, 0]]), np.array([[0, 0, 4, 4]])
        >>> surface_scores(pred, target, [4], np.diag([2.0, 1.0]), tolerance_mm=2)[4]  # 2 mm; 2 and 4 mm
        SurfaceScore(hd95_mm=3.9, surface_dice=0.6666666666666666)
    """
    if tuple(pred.shape) != tuple(target.shape):
        raise ValueError(
            f"`pred` and `target` must have the same shape, got {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if not tolerance_mm >= 0:
        raise ValueError(f"`tolerance_mm` must be >= 0, got {tolerance_mm}.")
    surfaces = surface_points(pred, affine), surface_points(target, affine)
    return {id: _score(*surfaces, id, tolerance_mm + ROUNDING_MM) for id in ids}


def _score(
    predicted: Mapping[int, np.ndarray], true: Mapping[int, np.ndarray], id: int, tolerance_mm: float
) -> SurfaceScore:
    """Score a label; the surfaces of all are given."""
    if id not in predicted or id not in true:
        return SurfaceScore(np.nan, 0.0 if id in predicted or id in true else np.nan)
    there, back = _distances(predicted[id], true[id]), _distances(true[id], predicted[id])
    hd95 = max(np.quantile(there, 0.95), np.quantile(back, 0.95))
    near = np.count_nonzero(there <= tolerance_mm) + np.count_nonzero(back <= tolerance_mm)
    return SurfaceScore(float(hd95), float(near / (len(there) + len(back))))


def _distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The distance from each point ``(N, d)`` to the nearest of the others."""
    # For points on a grid, which are many at the same coordinate, the middle of a box is quicker to find than a median
    return np.asarray(KDTree(others, leafsize=32, balanced_tree=False).query(points)[0])
