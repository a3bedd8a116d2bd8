"""Writes volumes on the grid of a scan, in the file type of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.utils import convert_to_numpy

from monai_lcs.grids import affine_of, same_grid, to_sitk
from monai_lcs.labels.label_map import as_label_array
from monai_lcs.study.images import IMAGE_EXTENSIONS
from monai_lcs.study.nibabel_files import mm_by_unit

__all__ = ["ending_like", "image_on_grid", "label_map_image", "write_volume"]

_NIFTI = (".nii.gz", ".nii")
_MGH = (".mgz", ".mgh")
_ITK = (".nrrd", ".mha")

# What a NIfTI header says about the grid; MONAI keeps it in the metadata of an image.
_GRID_FIELDS = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)


def ending_like(file: str) -> str:
    """The ending of a file for results of a scan: that of the scan's file, or ``.nii.gz`` where it has none of ours.

    A header with a file of its own for the voxels becomes the single file of its format.

    Example:
        >>> ending_like("T1.MGZ"), ending_like("scan.nhdr"), ending_like("scan.hdr"), ending_like("")
        ('.mgz', '.nrrd', '.nii.gz', '.nii.gz')
    """
    found = next((ending for ending in IMAGE_EXTENSIONS if file.lower().endswith(ending)), "")
    single = {".nhdr": ".nrrd", ".mhd": ".mha"}.get(found, found)
    return single if single in (*_NIFTI, *_MGH, *_ITK) else ".nii.gz"


def write_volume(path: Path, volume: NdarrayOrTensor, image: MetaTensor, dtype: np.dtype[Any]) -> None:
    """Write a volume on the grid of a scan; the ending of the path says the format.

    Args:
        path: the file.
        volume: ``(1, *spatial)``.
        image: the scan ``(1, *spatial)``.
        dtype: type of the voxels. FreeSurfer's formats have fewer: there the smallest that holds the voxels.

    Raises:
        ValueError: for another ending than those of :func:`ending_like`.

    Example:
        >>> import tempfile, torch
        >>> from monai_lcs.study.images import read_image
        >>> scan = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.diag(torch.tensor([-1.0, 2, 3, 1])))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_volume(Path(folder, "a.nrrd"), scan + 7, scan, np.dtype(np.uint8))
        ...     read_image(Path(folder, "a.nrrd")).affine.diagonal().tolist()
        [-1.0, 2.0, 3.0, 1.0]
    """
    name = path.name.lower()
    if name.endswith(_NIFTI):
        nib.save(image_on_grid(convert_to_numpy(volume)[0].astype(dtype), image), path)
    elif name.endswith(_MGH):
        voxels = convert_to_numpy(volume)[0]
        nib.save(nib.MGHImage(voxels.astype(_mgh_type(voxels, dtype)), affine_of(image)), path)
    elif name.endswith(_ITK):
        import SimpleITK as sitk

        voxels = torch.from_numpy(convert_to_numpy(volume).astype(dtype))
        sitk.WriteImage(to_sitk(voxels, affine_of(image)), str(path), useCompression=True)
    else:
        raise ValueError(f"{path} must end in {', '.join((*_NIFTI, *_MGH, *_ITK))}.")


def _mgh_type(voxels: np.ndarray, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """FreeSurfer's type for voxels that ``dtype`` holds."""
    if not np.issubdtype(dtype, np.integer):
        return np.dtype(np.float32)
    types = (np.dtype(kind) for kind in (np.uint8, np.int16, np.int32))
    low, high = (int(end) for end in (voxels.min(), voxels.max()))
    return next(kind for kind in types if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)


def label_map_image(
    label_map: MetaTensor, image: MetaTensor, dtype: np.dtype[Any]
) -> nib.Nifti1Image | nib.Nifti2Image:
    """Returns a label map as a NIfTI image on the grid of a scan.

    If the scan was read from a NIfTI file, and still lies on the file's grid, all fields that place the grid are the
    file's, and so is the version, since NIfTI 1 would round what NIfTI 2 has. Otherwise its affine is written as the
    sform of a scanner; and as the qform as well, which cannot hold shears, where it can.

    Args:
        label_map: integers ``(1, *spatial)``.
        image: the scan ``(1, *spatial)``.
        dtype: type of the voxels.

    Example:
        >>> import torch
        >>> scan = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.diag(torch.tensor([1.0, 2, 3, 1])))
        >>> header = label_map_image(scan, scan, np.dtype(np.uint8)).header
        >>> int(header["sform_code"]), header["pixdim"][1:4].tolist(), header.get_xyzt_units()
        (1, [1.0, 2.0, 3.0], ('mm', 'unknown'))
    """
    return image_on_grid(as_label_array(label_map)[0], image, dtype)  # nibabel converts them piece by piece


def image_on_grid(
    voxels: np.ndarray, image: MetaTensor, dtype: np.dtype[Any] | None = None
) -> nib.Nifti1Image | nib.Nifti2Image:
    """Returns voxels ``(*spatial)`` as a NIfTI image on the grid of a scan, as :func:`label_map_image`.

    Args:
        voxels: the voxels.
        image: the scan ``(1, *spatial)``.
        dtype: in which they are written; their own by default.

    Example:
        >>> import torch
        >>> scan = MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4))
        >>> image_on_grid(np.zeros((4, 5, 6), np.float32), scan).get_data_dtype() == np.float32
        True
    """
    header = _file_header(image)
    if header is None:
        header = _new_header(convert_to_numpy(image.affine), voxels.shape)
    image_type = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # Given an affine, nibabel would compute the fields anew
    return image_type(voxels, None, header, dtype=dtype or voxels.dtype)


def _file_header(image: MetaTensor) -> nib.Nifti1Header | None:
    """Returns a header with the fields of the scan's NIfTI file; None if there are none or the scan was moved."""
    meta = image.meta
    if not all(name in meta for name in _GRID_FIELDS):
        return None
    header = nib.Nifti2Header() if int(meta.get("sizeof_hdr", 0)) == nib.Nifti2Header.sizeof_hdr else nib.Nifti1Header()
    header.set_data_shape(image.shape[1:])
    for name in _GRID_FIELDS:
        header[name] = np.asarray(meta[name])
    header["pixdim"] = np.asarray(
        meta.get("original_pixdim", meta["pixdim"])
    )  # MONAI's transforms write into the other
    in_file, affine = header.get_best_affine(), convert_to_numpy(image.affine)
    in_mm = np.diag([*[mm_by_unit(header["xyzt_units"])] * 3, 1]) @ in_file
    # MONAI's own readers leave meters and micrometers as they are
    return header if any(np.allclose(affine, found) for found in (in_mm, in_file)) else None


def _new_header(affine: np.ndarray, shape: tuple[int, ...]) -> nib.Nifti1Header:
    """Returns a header with an affine in mm."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_qform(affine, code="scanner")
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm")
    if not same_grid(shape, affine, shape, header.get_qform()):
        header["qform_code"] = 0
    return header
