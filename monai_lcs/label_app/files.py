"""Label maps as files in the formats that viewers ask for, and uploads checked before they are kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monai.config import PathLike
from monai.data import MetaTensor
from monai.utils import convert_to_numpy

from monai_lcs.grids import affine_of, to_sitk
from monai_lcs.results.segmentation import grid_header

__all__ = ["EXTENSIONS", "check_extension", "check_item_name", "check_size", "result_type", "write_label_map"]

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of image files that clients may send and get."""


def check_extension(name: PathLike) -> str:
    """The ending of a file name among :data:`EXTENSIONS`.

    Raises:
        ValueError: when it has none of them.
    """
    for extension in EXTENSIONS:
        if str(name).lower().endswith(extension):
            return extension
    raise ValueError(f"Image files must end in {', '.join(EXTENSIONS)}, got {Path(name).name!r}.")


def check_item_name(name: str, what: str = "image id") -> str:
    """A name that is safe as the name of a file.

    Raises:
        ValueError: when it holds a folder, begins with a dot, is long or holds what cannot be printed.
    """
    if (
        not re.fullmatch(r"[^\W_][\w .@=+-]*", name)
        or len(name.encode()) > 200
        or ".." in name
        or not name.isprintable()
    ):
        raise ValueError(
            f"The {what} must begin with a letter or digit, hold only letters, digits and ' ._@=+-', no '..', "
            f"and be at most 200 bytes long, got {name[:250]!r}."
        )
    return name


def check_size(path: PathLike, most_voxels: float) -> None:
    """Refuse, by its header alone, a file that would not fit into memory.

    Raises:
        ValueError: when the header cannot be read.
        OverflowError: when there are more voxels than allowed.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise ValueError(f"{path} is no image that can be read.") from error
    shape = reader.GetSize()
    voxels = int(np.prod([float(size) for size in shape])) * reader.GetNumberOfComponents()
    if voxels > most_voxels:
        raise OverflowError(f"The image has {voxels} voxels, {shape}: at most {int(most_voxels)} are allowed.")


def result_type(asked: str | None, highest: int) -> np.dtype[Any]:
    """The type of a result: that asked for, or the next that holds its ids: Slicer asks for one byte whatever they are.

    Raises:
        ValueError: for what is no unsigned integer type.

    Example:
        >>> result_type("uint8", 84), result_type("uint8", 2035), result_type(None, 84)
        (dtype('uint8'), dtype('uint16'), dtype('uint8'))
    """
    smallest = np.min_scalar_type(max(highest, 0))
    try:
        dtype = smallest if asked is None else np.dtype(asked)
    except TypeError:
        dtype = np.dtype(object)
    if dtype not in (np.uint8, np.uint16, np.uint32):
        raise ValueError(f"The result_dtype must be uint8, uint16 or uint32, got {asked!r}.")
    return np.promote_types(dtype, smallest)


def write_label_map(label_map: MetaTensor, path: PathLike, dtype: np.dtype[Any], compress: bool = True) -> None:
    """Write integers ``(1, *spatial)`` with the grid of their affine; the format is that of the ending.

    NIfTI files also keep qform and sform of the file that the metadata come from.

    Args:
        label_map: ids that the type holds.
        path: the file, see :data:`EXTENSIONS`.
        dtype: uint8, uint16 or uint32, see :func:`result_type`.
        compress: for NRRD and MetaImage.
    """
    if check_extension(path) in (".nii", ".nii.gz"):
        affine = convert_to_numpy(label_map.affine)
        array = convert_to_numpy(label_map)[0].astype(dtype)
        nib.save(nib.Nifti1Image(array, affine, grid_header(label_map, affine), dtype=dtype), path)
        return
    image = to_sitk(label_map.as_tensor().int(), affine_of(label_map))
    kinds = {np.dtype(np.uint8): sitk.sitkUInt8, np.dtype(np.uint16): sitk.sitkUInt16}
    sitk.WriteImage(sitk.Cast(image, kinds.get(dtype, sitk.sitkUInt32)), str(path), compress)
