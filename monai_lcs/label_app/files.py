"""Writes label maps in the formats that viewers request, and checks uploads before they are kept."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from monai.config import PathLike
from monai.data import MetaTensor

from monai_lcs.grids import affine_of, to_sitk
from monai_lcs.results.volume_files import label_map_image
from monai_lcs.study.images import read_shape

__all__ = ["EXTENSIONS", "check_extension", "check_item_name", "check_size", "result_type", "write_label_map"]

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of image files that clients may send and get."""


def check_extension(name: PathLike) -> str:
    """Find which of :data:`EXTENSIONS` a file name ends in.

    Raises:
        ValueError: if it ends in none of them.

    Example:
        >>> check_extension("Scan.NII.GZ")
        '.nii.gz'
    """
    for extension in EXTENSIONS:
        if str(name).lower().endswith(extension):
            return extension
    raise ValueError(f"Image files must end in {', '.join(EXTENSIONS)}, got {Path(name).name!r}.")


def check_item_name(name: str, what: str = "image id") -> str:
    """Check that a name is safe as the name of a file, and return it.

    Args:
        name: the name.
        what: what the message calls it.

    Raises:
        ValueError: if the name holds a folder, begins with a dot, is too long or cannot be printed.

    Example:
        >>> check_item_name("sub-01_T1w")
        'sub-01_T1w'
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
    """Refuse a file that would not fit into memory. Only its header is read.

    Args:
        path: the image file.
        most_voxels: the most voxels allowed; the components of a voxel count one by one.

    Raises:
        ValueError: if the header cannot be read.
        OverflowError: if there are more voxels than allowed.

    Example:
        >>> path = getfixture("tmp_path") / "scan.nii.gz"
        >>> nib.save(nib.Nifti1Image(np.zeros((20, 20, 20), np.uint8), np.eye(4)), path)
        >>> check_size(path, 8000)
        >>> check_size(path, 7999)
        Traceback (most recent call last):
        ...
        OverflowError: The image has 8000 voxels, (20, 20, 20): at most 7999 are allowed.
    """
    shape = read_shape(path)
    voxels = math.prod(shape)
    if voxels > most_voxels:
        raise OverflowError(f"The image has {voxels} voxels, {shape}: at most {int(most_voxels)} are allowed.")


def result_type(asked: str | None, highest: int) -> np.dtype[Any]:
    """Find the integer type of a result: the requested one, or a larger one if that cannot hold the ids.

    3D Slicer requests one byte a voxel, whatever the ids are.

    Args:
        asked: the requested type; by default the smallest that holds the ids.
        highest: the highest id.

    Raises:
        ValueError: if the requested type is none of uint8, uint16 and uint32.

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
    """Write a label map on the grid of its affine, in the format of the file's ending.

    A NIfTI file also gets the qform and sform of the file that the metadata come from.

    Args:
        label_map: ids ``(1, *spatial)``, which the type holds.
        path: the file, see :data:`EXTENSIONS`.
        dtype: uint8, uint16 or uint32, see :func:`result_type`.
        compress: whether to compress NRRD and MetaImage files.

    Raises:
        ValueError: if the file has none of the endings.

    Example:
        >>> path = getfixture("tmp_path") / "dseg.nrrd"
        >>> write_label_map(MetaTensor(np.full((1, 4, 5, 6), 300)), path, np.dtype(np.uint16))
        >>> sitk.ReadImage(str(path)).GetPixelIDTypeAsString()
        '16-bit unsigned integer'
    """
    if check_extension(path) in (".nii", ".nii.gz"):
        nib.save(label_map_image(label_map, label_map, dtype), path)
        return
    image = to_sitk(label_map.as_tensor().int(), affine_of(label_map))
    kinds = {np.dtype(np.uint8): sitk.sitkUInt8, np.dtype(np.uint16): sitk.sitkUInt16}
    sitk.WriteImage(sitk.Cast(image, kinds.get(dtype, sitk.sitkUInt32)), str(path), compress)
