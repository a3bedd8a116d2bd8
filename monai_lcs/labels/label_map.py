"""Label maps: the one check of their values, and the forms in which other modules read them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from monai.config.type_definitions import NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import convert_to_numpy

from monai_lcs.labels.limits import MAX_ID
from monai_lcs.labels.table import LabelTable

__all__ = [
    "as_label_array",
    "as_plain_tensor",
    "check_channel",
    "check_known",
    "check_label_map",
    "origin",
    "values_and_positions",
    "voxel_ids",
]

_MAX_LOOKUP = 1 << 22
"""Up to this id a lookup table with an entry for every id is faster than sorting. Allen atlases exceed it."""

_PIECE = 1 << 18
"""Voxels that are checked at a time, few enough to stay in the cache of a processor."""


def check_label_map(label_map: NdarrayOrTensor, what: str | None = None, any_integer: bool = False) -> None:
    """Raise a ValueError unless every voxel of a label map is a label id: an integer from 0 to ``MAX_ID``.

    The check passes over the voxels a few times and needs no further memory on a CPU; on a GPU it needs one more map
    for a floating-point type.

    Args:
        label_map: array or tensor of any shape and real type, on any device.
        what: what the message calls the label map, such as ``"The label map scan_dseg.nii.gz"``. By default it names
            the file that the metadata know, if any.
        any_integer: accept negative and huge integers as well.

    Raises:
        ValueError: if a voxel is no id. The message says its value exactly.

    Example:
        >>> check_label_map(torch.tensor([[0.0, 7.0], [3.0, 7.0]]))
        >>> check_label_map(torch.tensor([0, 1406.9994]), "The label map a.nii")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: The label map a.nii must hold integers >= 0, got 1406.9994; resample label maps with ...
    """
    wrong = _find_wrong(_comparable(label_map), any_integer)
    if wrong is None:
        return
    file = origin(label_map).removeprefix(" in ")
    name = what or (f"The label map {file}" if file else "A label map")
    if float(wrong).is_integer() and wrong > 0:
        raise ValueError(f"{name} must hold ids up to {MAX_ID}, got {int(wrong)}; renumber its labels.")
    advice = "resample label maps with nearest-neighbor interpolation, or take the argmax of probabilities."
    if float(wrong).is_integer():
        advice = "set what is no label to 0."
    raise ValueError(f"{name} must hold integers{'' if any_integer else ' >= 0'}, got {wrong!s}; {advice}")


def _comparable(label_map: NdarrayOrTensor) -> NdarrayOrTensor:
    """Give the voxels in a form that can be compared, sharing memory where that is possible."""
    if not isinstance(label_map, torch.Tensor):
        return np.asarray(label_map)
    values = as_plain_tensor(label_map).detach()
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:
        return values.numpy()  # numpy compares all types, several times faster
    return values.long() if values.dtype in (torch.uint16, torch.uint32, torch.uint64) else values


def _find_wrong(values: NdarrayOrTensor, any_integer: bool) -> Any:
    """Find a voxel that is no id; None if there is none."""
    if 0 in values.shape:
        return None
    fraction = _find_fraction(values)
    if fraction is not None:
        return _scalar(fraction)
    for extreme in (_scalar(values.min()), _scalar(values.max())):
        # As Python's float: float32 rounds MAX_ID up.
        if math.isinf(extreme) or not (any_integer or 0 <= float(extreme) <= MAX_ID):
            return extreme
    return None


def _find_fraction(values: NdarrayOrTensor) -> Any:
    """Find a voxel that is NaN or not an integer; None if there is none."""
    if _is_integer_type(values):
        return None
    if isinstance(values, torch.Tensor):
        fractions = values.frac() != 0
        return values[fractions][0] if fractions.any() else None
    voxels = values.ravel(order="K")
    for start in range(0, voxels.size, _PIECE):
        piece = voxels[start : start + _PIECE]
        fractions = piece != np.rint(piece)
        if fractions.any():
            return piece[fractions][0]
    return None


def _is_integer_type(values: NdarrayOrTensor) -> bool:
    if isinstance(values, torch.Tensor):
        return not values.dtype.is_floating_point
    return not np.issubdtype(values.dtype, np.floating)


def _scalar(value: Any) -> Any:
    """Give one voxel as numpy's scalar, which prints with as many digits as its type has."""
    if isinstance(value, torch.Tensor):
        value = value.float() if value.dtype == torch.bfloat16 else value
        return value.cpu().numpy()[()]
    return value


def check_channel(label_map: NdarrayOrTensor) -> None:
    """Raise a ValueError unless a label map has the shape ``(1, *spatial)``.

    Example:
        >>> check_channel(torch.zeros(2, 4, 4))
        Traceback (most recent call last):
        ...
        ValueError: A label map must have the shape (1, *spatial), got (2, 4, 4).
    """
    if label_map.ndim < 2 or label_map.shape[0] != 1:
        raise ValueError(
            f"A label map must have the shape (1, *spatial), got {tuple(label_map.shape)}{origin(label_map)}."
        )


def check_known(ids: np.ndarray, table: LabelTable) -> None:
    """Raise a ValueError unless all ids are 0 or in the label table.

    Example:
        >>> check_known(np.array([0, 4, 7]), LabelTable.from_ids([4]))
        Traceback (most recent call last):
        ...
        ValueError: The label map holds [7], which LabelTable(1 label, ids 4 to 4) does not have.
    """
    unknown = [id for id in ids.tolist() if id != 0 and id not in table]
    if unknown:
        rest = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
        raise ValueError(f"The label map holds {unknown[:10]}{rest}, which {table} does not have.")


def origin(label_map: NdarrayOrTensor) -> str:
    """Name the file of a label map as `` in FILE`` for a message; empty if the metadata know none.

    Example:
        >>> origin(MetaTensor(torch.zeros(1), meta={"filename_or_obj": "scan_dseg.nii.gz"}))
        ' in scan_dseg.nii.gz'
    """
    file = label_map.meta.get("filename_or_obj") if isinstance(label_map, MetaTensor) else None
    return f" in {file}" if file else ""


def as_plain_tensor(label_map: NdarrayOrTensor) -> torch.Tensor:
    """Give a label map as a tensor without metadata, which shares its memory where that is possible.

    Example:
        >>> as_plain_tensor(MetaTensor(torch.tensor([1, 2])))
        tensor([1, 2])
    """
    if isinstance(label_map, MetaTensor):
        return label_map.as_tensor()
    if isinstance(label_map, torch.Tensor):
        return label_map
    voxels = np.ascontiguousarray(label_map)  # torch refuses the strides of a flipped view, and foreign byte orders
    return torch.from_numpy(voxels.astype(voxels.dtype.newbyteorder("="), copy=False))


def as_label_array(label_map: NdarrayOrTensor) -> np.ndarray:
    """Check a label map and give it as a numpy array of integers.

    Args:
        label_map: ids of any shape and real type.

    Returns:
        An array of the same shape. Integer types stay as they are, others become int32.

    Raises:
        ValueError: if a voxel is not an integer from 0 to ``MAX_ID``.

    Example:
        >>> as_label_array(torch.tensor([0.0, 7.0]))
        array([0, 7], dtype=int32)
    """
    check_label_map(label_map)
    # MONAI's conversion would copy an array that is not in C order.
    values = label_map if isinstance(label_map, np.ndarray) else convert_to_numpy(label_map)
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.int32)


def voxel_ids(label_map: NdarrayOrTensor) -> torch.Tensor:
    """Check a label map and give its voxels as a flat int32 tensor.

    Args:
        label_map: ids of any shape and real type.

    Raises:
        ValueError: if a voxel is not an integer from 0 to ``MAX_ID``.

    Example:
        >>> voxel_ids(np.array([[0.0, 7.0]]))
        tensor([0, 7], dtype=torch.int32)
    """
    check_label_map(label_map)
    return as_plain_tensor(label_map).flatten().to(torch.int32)


def values_and_positions(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the values of voxels, so that one lookup ``new_values[positions]`` replaces all of them.

    Args:
        ids: flat int32 tensor of ids >= 0.

    Returns:
        The values that ``ids`` may hold, ascending (int64), and the position of every voxel's value among them:
        ``values[positions]`` equals ``ids``.

    Example:
        >>> values_and_positions(torch.tensor([2, 0], dtype=torch.int32))
        (tensor([0, 1, 2]), tensor([2, 0], dtype=torch.int32))
    """
    largest = int(ids.max()) if ids.numel() else 0
    if largest <= _MAX_LOOKUP:
        return torch.arange(largest + 1, device=ids.device), ids
    values, positions = torch.unique(ids, return_inverse=True)
    return values.to(torch.int64), positions
