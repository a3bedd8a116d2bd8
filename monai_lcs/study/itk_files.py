"""Reads NRRD and MetaImage files with SimpleITK, after their headers were checked."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from monai_lcs.grids import from_sitk
from monai_lcs.study.file_data import FileImage, ImageFileError, check_byte_order, check_directions
from monai_lcs.study.text_headers import read_meta_header, read_nrrd_header

__all__ = ["ITK_EXTENSIONS", "read_with_itk"]

ITK_EXTENSIONS = (".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of the files that are read with SimpleITK."""


def read_with_itk(path: Path) -> FileImage:
    """Reads an NRRD or MetaImage file.

    Raises:
        ImageFileError: if the header cannot be, header and data disagree, or a voxel is more than one number.
        Exception: SimpleITK's, if it cannot read the file.

    Example:
        >>> import SimpleITK as sitk
        >>> path = getfixture("tmp_path") / "scan.nrrd"
        >>> sitk.WriteImage(sitk.GetImageFromArray(np.ones((6, 5, 4))), path)
        >>> image = read_with_itk(path)
        >>> image.voxels.shape, image.affine.diagonal().tolist()
        ((4, 5, 6), [-1.0, -1.0, 1.0, 1.0])
    """
    import SimpleITK as sitk  # only these files need it

    header = (read_meta_header if path.name.lower().endswith((".mha", ".mhd")) else read_nrrd_header)(path)
    with _quiet():
        image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() != 1 or "complex" in image.GetPixelIDTypeAsString():
        raise ImageFileError(f"{path} must have one real number a voxel, got {image.GetPixelIDTypeAsString()}.")
    dims = image.GetDimension()
    if image.GetSize() != header.shape[:dims]:
        raise ImageFileError(f"{path} was read with the shape {image.GetSize()}, its header says {header.shape}.")
    check_directions(path, np.reshape(image.GetDirection(), (dims, dims)))
    volume, affine = from_sitk(image)
    voxels = volume[0].numpy()
    check_byte_order(path, voxels)
    if dims > 3:  # the other axes have one entry
        voxels, affine = voxels.reshape(voxels.shape[:3]), affine[[0, 1, 2, -1]][:, [0, 1, 2, -1]]
    affine[:-1] *= header.mm
    return FileImage(voxels, affine, notes=header.notes)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ITK from printing warnings, which name the files it was built from."""
    import SimpleITK as sitk

    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
